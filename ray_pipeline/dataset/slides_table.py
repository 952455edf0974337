"""The slides table: one row per slide, compacted from the records, so it can always be rebuilt.

Compaction is incremental: one LIST of the records tells their versions, and only records whose
version differs from the `record_etag` in the standing table are fetched. What it keeps in memory
are 64 bits of each id and version, so that in a million slides one run in ten million might take a
record for current that is not; rows stream from file to file.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import compress, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ray_pipeline.dataset.layout import LONG_LIST, Layout, cuts, original_name
from ray_pipeline.dataset.records import SlideRecord, decode_vector, get_records
from ray_pipeline.dataset.row_groups import RowGroups
from ray_pipeline.dataset.schema import LATER_COLUMNS, SLIDE_COLUMNS, SLIDE_VECTORS
from ray_pipeline.errors import NotFoundError, ObjectReplacedError, StoreError
from ray_pipeline.store import Store

CHUNK_RECORDS = 1024
"""Rows handled at a time: bounds memory at some 20 MB for two vectors of 1,536 numbers each."""
TAIL_BYTES = 512 << 10
"""First request of a table, at its end: all of one of few slides, the directory of 100,000."""
LISTED_RECORDS = 16_384
"""Of a listing, those that are compared at a time: each time its threads get in between."""
READ_ATTEMPTS = 4
"""Tries of reading a table that another driver replaces meanwhile."""
UNREADABLE = (pa.ArrowException, KeyError, TypeError, ValueError)
"""What comes of reading a table that is none of ours, or of a record that fits no column."""

T = TypeVar("T")
Say = Callable[[str], None]
Hashes = npt.NDArray[np.int64]


def compact(output: Store, layout: Layout, say: Say) -> int:
    """Bring the slides table up to date with the records; returns its number of rows.

    Damaged records are passed over, and `say` is told of each. Two drivers may compact at once:
    the last one's table stands, and what it lacks is newer than it, so the next run fetches it.
    """
    return _settled(lambda: _compact(output, layout, say))


def read_slides(output: Store, layout: Layout) -> pa.Table:
    """One row per slide, without its vectors: the table, with newer records laid over it.

    Right also after a run that died before it could compact; writes nothing.
    """
    return _settled(lambda: _read(output, layout))


class FinishedFiles:
    """Finished slides as the table tells them: each with its input, and its file's version.

    A table that can't be read tells nothing. `table` is the version of the one that was read.
    """

    def __init__(self, output: Store, layout: Layout) -> None:
        self._known, self.table = np.empty(0, np.int64), ""
        with suppress(StoreError, OSError, *UNREADABLE):
            self._known, self.table = _settled(lambda: _finished(output, layout))

    def of(self, rows: Sequence[tuple[str, str, str]]) -> Iterator[str]:
        """Slides of (slide_id, input_fp, version of the file that stands) that are finished.

        No other file has that version, and the table has it from who put it there.
        """
        if not len(self._known):
            return iter(())
        return compress((row[0] for row in rows), _among(_hashes(rows), self._known))


def is_table(output: Store, layout: Layout, version: str) -> bool:
    """Whether the table that stands is of this version."""
    try:
        return output.head(layout.slides_table).etag == version
    except NotFoundError:
        return False


def _finished(output: Store, layout: Layout) -> tuple[Hashes, str]:
    standing = _standing(output, layout)
    if standing is None or not _is_whole(standing):
        return np.empty(0, np.int64), ""
    rows = _told(standing, "input_fp", "output_etag", "error_kind")
    # A version of the form `~size-mtime` may be that of another file.
    told = (row[:3] for row in rows if row[3] is None and row[2] and row[2][0] != "~")
    return np.sort(_hashes(told)), standing.etag


def told_otherwise(output: Store, layout: Layout, inputs: Iterable[tuple[str, str]]) -> set[str]:
    """Finished slides (slide_id, input_fp) of which the table, as it stands, tells otherwise.

    That is a failure, another input, or nothing at all. No record is looked at.
    """

    def told() -> Hashes | None:
        standing = _standing(output, layout)
        if standing is None:
            return None
        rows = _told(standing, "input_fp", "error_kind")
        return np.sort(_hashes((slide_id, fp) for slide_id, fp, kind in rows if kind is None))

    told_so, inputs, others = _settled(told), iter(inputs), set[str]()
    while told_so is not None and (rows := list(islice(inputs, CHUNK_RECORDS))):
        others.update(slide_id for slide_id, _ in compress(rows, ~_among(_hashes(rows), told_so)))
    return others


def _compact(output: Store, layout: Layout, say: Say) -> int:
    standing = _standing(output, layout)
    current, stale = _compared(output, layout, standing)
    if _is_whole(standing) and not stale.num_rows and current.true_count == len(current):
        return len(current)
    with tempfile.TemporaryDirectory() as folder:
        fresh = []
        for start in range(0, stale.num_rows, CHUNK_RECORDS):
            path = Path(folder) / f"fresh-{start}.parquet"
            table = _fetched(output, layout, stale.slice(start, CHUNK_RECORDS), say)
            pq.write_table(table, path)
            fresh.append(pq.ParquetFile(path))
        schemas = [] if standing is None else [standing.schema]
        schema = _unified([*schemas, *(file.schema_arrow for file in fresh)])
        merged = Path(folder) / "merged.parquet"
        tables = (_conformed(table, schema) for table in _rows_of(standing, current, fresh))
        count = _write(tables, schema, merged)
        output.put_file(layout.slides_table, merged)
    return count


def _read(output: Store, layout: Layout) -> pa.Table:
    standing = _standing(output, layout)
    current, stale = _compared(output, layout, standing)
    if standing is None:
        tables = [SLIDE_COLUMNS.empty_table().drop_columns(list(SLIDE_VECTORS))]
    else:
        names = [name for name in standing.schema.names if name not in SLIDE_VECTORS]
        kept = pa.concat_tables(
            [standing.schema.empty_table().select(names), *standing.tables(names)]
        )
        tables = [kept.filter(current)]
    for start in range(0, stale.num_rows, CHUNK_RECORDS):
        fresh = _fetched(output, layout, stale.slice(start, CHUNK_RECORDS))
        tables.append(fresh.drop_columns(list(SLIDE_VECTORS)))
    schema = _unified([table.schema for table in tables])
    schema = pa.schema([field for field in schema if field.name not in SLIDE_VECTORS])
    return pa.concat_tables([_conformed(table, schema) for table in tables])


def _settled(action: Callable[[], T]) -> T:
    for _ in range(READ_ATTEMPTS - 1):
        try:
            return action()
        except ObjectReplacedError:
            continue  # another driver has just brought the table up to date
    return action()


def _compared(
    output: Store, layout: Layout, standing: RowGroups | None
) -> tuple[pa.BooleanArray, pa.Table]:
    """Which of the table's rows still hold; ids and versions of the records to fetch, by id."""
    every = max(1, standing.metadata.num_rows // LONG_LIST) if standing is not None else 1
    few: list[str] = []  # ids enough to cut the listing by
    listed: list[Hashes] = [np.empty(0, np.int64)]

    def told() -> Iterator[tuple[str, str]]:
        for place, row in enumerate(_told(standing, "record_etag")):
            if place % every == 0:
                few.append(row[0])
            yield row

    known = _hashes(told())
    ordered = np.sort(known)

    def stale() -> Iterator[tuple[str, str]]:
        infos = output.list(layout.records, cuts=cuts(layout.records, sorted(few)))
        while rows := [(_slide_of(info.key), info.etag) for info in islice(infos, LISTED_RECORDS)]:
            listed.append(_hashes(rows))
            yield from compress(rows, ~_among(listed[-1], ordered))

    fresh = _columns(stale(), ("slide_id", "record_etag")).sort_by("slide_id")
    return pa.array(_among(known, np.sort(np.concatenate(listed)))), fresh


def _told(standing: RowGroups | None, *further: str) -> Iterator[Any]:
    """The slide_id and `further` columns of the table's rows, in their order."""
    if standing is None:
        return
    columns = ["slide_id", *further]
    for table in standing.tables(columns):
        for batch in table.to_batches(CHUNK_RECORDS):
            yield from zip(*(batch[name].to_pylist() for name in columns), strict=True)


def _hashes(rows: Iterable[tuple[Any, ...]]) -> Hashes:
    # Python's own, which differ from process to process: they are kept nowhere.
    return np.fromiter(map(hash, rows), np.int64)


def _among(hashes: Hashes, known: Hashes) -> npt.NDArray[np.bool_]:
    """Which of `hashes` are among the sorted `known`."""
    if not len(known):
        return np.zeros(len(hashes), np.bool_)
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return np.equal(known[places], hashes)


def _slide_of(key: str) -> str:
    return original_name(key.rpartition("/")[2].removesuffix(".json"))


def _columns(rows: Iterable[tuple[str, str]], names: Sequence[str]) -> pa.Table:
    """Two columns of text, and never more than a chunk of them as Python's."""
    rows, schema = iter(rows), pa.schema([(name, pa.string()) for name in names])
    chunks = [schema.empty_table()]
    while chunk := list(islice(rows, CHUNK_RECORDS)):
        chunks.append(pa.table(list(map(list, zip(*chunk, strict=True))), schema=schema))
    return pa.concat_tables(chunks)


def _standing(output: Store, layout: Layout) -> RowGroups | None:
    """The table that stands, pinned to its version; None for none, or one that is not ours."""
    try:
        file = RowGroups(output, layout.slides_table, tail_bytes=TAIL_BYTES)
    except (NotFoundError, pa.ArrowException):
        return None
    ours = all(field in SLIDE_COLUMNS or _is_flat(field) for field in file.schema)
    missing = {*SLIDE_COLUMNS.names} - {*file.schema.names}
    return file if ours and missing <= {*LATER_COLUMNS} else None


def _is_whole(standing: RowGroups | None) -> bool:
    """Whether there is a table, and none of our columns came after it."""
    return standing is not None and {*SLIDE_COLUMNS.names} <= {*standing.schema.names}


def _is_flat(field: pa.Field) -> bool:
    return field.name not in SLIDE_COLUMNS.names and not pa.types.is_nested(field.type)


def _fetched(output: Store, layout: Layout, stale: pa.Table, say: Say | None = None) -> pa.Table:
    versions = dict(zip(*(column.to_pylist() for column in stale.columns), strict=True))
    records = get_records(output, list(map(layout.record, versions)), say=say)
    return _rows([(record, versions[record.slide_id]) for record in records], say)


def _rows(records: list[tuple[SlideRecord, str]], say: Say | None) -> pa.Table:
    """The rows of records and their versions; a record that fits no row is left out and said."""
    try:
        return _table(records)
    except UNREADABLE as error:
        if len(records) > 1:
            tables = [_rows([record], say) for record in records]
            schema = _unified([table.schema for table in tables])
            return pa.concat_tables([_conformed(table, schema) for table in tables])
        if say is not None:
            say(f"{records[0][0].slide_id}: its record is damaged ({error}) and was passed over.")
        return SLIDE_COLUMNS.empty_table()


def _table(records: list[tuple[SlideRecord, str]]) -> pa.Table:
    rows = []
    for record, etag in records:
        row: dict[str, Any] = {**vars(record), **record.facts, "record_etag": etag}
        row["mask"] = list(dict(record.facts.get("mask") or {}).items())
        for name in SLIDE_VECTORS:
            row[name] = None if row[name] is None else decode_vector(row[name])
        rows.append({name: row.get(name) for name in SLIDE_COLUMNS.names})
    base = pa.Table.from_pylist(rows, schema=SLIDE_COLUMNS)
    for name in sorted({name for record, _ in records for name in record.attributes}):
        base = base.append_column(name, _column([r.attributes.get(name) for r, _ in records]))
    return base


def _column(values: list[Any]) -> pa.Array:
    """A manifest's column. Lists and structs become JSON, mixed types text; all null is null."""
    flat = [json.dumps(v) if isinstance(v, list | dict) else v for v in values]
    try:
        return pa.array(flat)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in flat])


def _rows_of(
    standing: RowGroups | None, current: pa.BooleanArray, fresh: Iterable[pq.ParquetFile]
) -> Iterator[pa.Table]:
    start = 0
    if standing is not None:
        for group in standing.groups:
            table = standing.table(group, standing.schema.names)
            yield table.filter(current.slice(start, table.num_rows))
            start += table.num_rows
    for file in fresh:
        yield file.read()


def _write(tables: Iterable[pa.Table], schema: pa.Schema, target: Path) -> int:
    """Write the rows in groups of at least CHUNK_RECORDS, so that many runs leave no crumbs."""
    waiting, count = schema.empty_table(), 0
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for table in tables:
            waiting = pa.concat_tables([waiting, table])
            count += table.num_rows
            if waiting.num_rows >= CHUNK_RECORDS:
                writer.write_table(waiting)
                waiting = schema.empty_table()
        if waiting.num_rows or not count:
            writer.write_table(waiting)
    return count


def _unified(schemas: list[pa.Schema]) -> pa.Schema:
    names = {name for schema in schemas for name in schema.names}
    fields = list(SLIDE_COLUMNS)
    for name in sorted(names - set(SLIDE_COLUMNS.names)):
        same = [pa.schema([schema.field(name)]) for schema in schemas if name in schema.names]
        try:
            # A column without a value yet takes the type of the first that comes.
            fields.append(pa.unify_schemas(same, promote_options="permissive").field(name))
        except pa.ArrowTypeError:
            fields.append(pa.field(name, pa.string()))
    return pa.schema(fields)


def _conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)
