"""A query's answer as text or as a file."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

Form = Literal["table", "csv", "json", "parquet"]
"""How an answer is written."""
TABLE_ROWS = 100
"""Most rows of a table to look at."""
TABLE_NUMBERS = 3
"""Numbers of a vector that a table shows."""
ROW_GROUP_BYTES = 64 << 20
"""Of Arrow data that make a row group."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a query gives."""

    schema: pa.Schema
    """Its columns."""
    batches: Iterator[pa.RecordBatch]
    """Its rows, for one pass."""


def table_of(answer: Answer) -> list[tuple[str, ...]]:
    """Header and the first rows as text; a row of `...` at the end where there are more."""
    rows = [tuple(map(_cell, row)) for row in islice(_rows(answer), TABLE_ROWS + 1)]
    if len(rows) > TABLE_ROWS:
        rows[TABLE_ROWS:] = [("...",) * len(answer.schema)]
    return [tuple(answer.schema.names), *rows]


def write_answer(answer: Answer, form: Form, sink: IO[bytes]) -> None:
    """Write all rows as `csv` (with header), `json` (an array of objects) or `parquet`."""
    if form == "parquet":
        _write_parquet(answer, sink)
        return
    text = io.TextIOWrapper(sink, encoding="utf-8", newline="", write_through=False)
    try:
        if form == "json":
            _write_json(answer, text)
        else:
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(answer.schema.names)
            writer.writerows(map(_field, row) for row in _rows(answer))
    finally:
        text.detach()


def _write_json(answer: Answer, text: IO[str]) -> None:
    names, between = answer.schema.names, "[\n"
    for row in _rows(answer):
        text.write(between + json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False))
        between = ",\n"
    text.write("\n]\n" if between == ",\n" else "[]\n")


def _write_parquet(answer: Answer, sink: IO[bytes]) -> None:
    with pq.ParquetWriter(sink, answer.schema, compression="zstd") as writer:
        waiting: list[pa.RecordBatch] = []
        for batch in answer.batches:
            waiting.append(batch)
            if sum(one.nbytes for one in waiting) >= ROW_GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting))


def _rows(answer: Answer) -> Iterator[tuple[Any, ...]]:
    for batch in answer.batches:
        columns = [_shortest(column).to_pylist(maps_as_pydicts="lossy") for column in batch.columns]
        for row in zip(*columns, strict=True):
            yield tuple(map(_plain, row))


def _shortest(column: pa.Array) -> pa.Array:
    """float32 as the float64 of the same shortest decimals: 0.3, not 0.30000001192092896."""
    if pa.types.is_float32(column.type):
        return column.cast(pa.string()).cast(pa.float64())
    if pa.types.is_fixed_size_list(column.type) and pa.types.is_float32(column.type.value_type):
        if column.null_count:
            return _shortest(column.cast(pa.list_(pa.float32())))
        return pa.FixedSizeListArray.from_arrays(_shortest(column.flatten()), column.type.list_size)
    if pa.types.is_list(column.type) and pa.types.is_float32(column.type.value_type):
        offsets, values = column.offsets, _shortest(column.values)
        return pa.ListArray.from_arrays(offsets, values, mask=column.is_null())
    return column


def _plain(value: Any) -> Any:
    """A value that JSON knows; what it does not know becomes text."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case list():
            return [_plain(item) for item in value]
        case dict():
            return {str(name): _plain(item) for name, item in value.items()}
        case _:
            return str(value)


def _field(value: Any) -> Any:
    match value:
        case bool() | list() | dict():
            return json.dumps(value, ensure_ascii=False)
        case _:
            return value


def _cell(value: Any) -> str:
    match value:
        case None:
            return "NULL"
        case float():
            return f"{value:.6g}"
        case list() if len(value) > TABLE_NUMBERS:
            first = ", ".join(map(_cell, value[:TABLE_NUMBERS]))
            return f"[{first}, ... {len(value)}]"
        case _:
            return str(_field(value)).replace("\n", " ")
