"""Columns of row groups come back as written, in few requests, and from one version only."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_pipeline.dataset.row_groups import GROUPS_AT_ONCE, RowGroups
from ray_pipeline.errors import ObjectReplacedError
from ray_pipeline.store import Store

KEY, ROWS, GROUPS = "table.parquet", 100, 2 * GROUPS_AT_ONCE + 3


@dataclass
class CountingStore(Store):
    """A store that notes what is fetched."""

    lengths: list[int] = field(default_factory=list)

    def get_range(self, key: str, start: int, length: int, **said: Any) -> memoryview:
        self.lengths.append(length)
        return super().get_range(key, start, length, **said)


def some_rows(groups: int = GROUPS) -> pa.Table:
    n, rng = groups * ROWS, np.random.default_rng(1)
    vectors = pa.array(list(rng.standard_normal((n, 1000)).astype(np.float32)))
    told = [None if i % 7 == 0 else [("share", float(i))] for i in range(n)]
    return pa.table(
        {
            "slide_id": [f"slide {i}" for i in range(n)],
            "mask": pa.array(told, pa.map_(pa.string(), pa.float64())),
            "vector": vectors,
            "site.code": [f"{i % 3}" for i in range(n)],
            "nothing": pa.nulls(n, pa.int32()),
        }
    )


def put(output: Store, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=ROWS, compression="zstd")
    output.put(KEY, sink.getvalue())


def counting(output: Store) -> CountingStore:
    return CountingStore(**{k: v for k, v in vars(output).items() if k != "_backends"})


@pytest.mark.parametrize(
    ("columns", "gets"),
    [
        (["slide_id"], 1),
        (["slide_id", "mask"], 1),
        (["site.code", "nothing"], 1),
        (["slide_id", "site.code"], 2),  # the vectors between them stay where they are
        (["slide_id", "mask", "vector", "site.code", "nothing"], 1),
    ],
)
def test_columns_of_every_group_in_order_and_no_others_are_fetched(
    output: Store, columns: list[str], gets: int
) -> None:
    rows, store = some_rows(), counting(output)
    put(output, rows)
    file = RowGroups(store, KEY, tail_bytes=0)
    assert file.schema.names == rows.column_names
    store.lengths.clear()
    tables = list(file.tables(columns))
    assert [table.num_rows for table in tables] == [ROWS] * GROUPS
    assert pa.concat_tables(tables).equals(rows.select(columns))
    # Of the last group, some may have come with the file's directory.
    assert gets * (GROUPS - 1) <= len(store.lengths) <= gets * GROUPS
    if "vector" not in columns:
        assert sum(store.lengths) < rows["vector"].nbytes / 20


def test_a_file_within_the_tail_is_one_request(output: Store) -> None:
    rows, store = some_rows(3), counting(output)
    put(output, rows)
    file = RowGroups(store, KEY, tail_bytes=1 << 24)
    assert pa.concat_tables(file.tables(rows.column_names)).equals(rows)
    assert len(store.lengths) == 1


def test_row_groups_without_rows_are_passed_over(output: Store) -> None:
    rows, sink, store = some_rows(2), io.BytesIO(), counting(output)
    with pq.ParquetWriter(sink, rows.schema) as writer:
        for part in (rows[:0], rows[:ROWS], rows[:0], rows[ROWS:], rows[:0]):
            writer.write_table(part)
    output.put(KEY, sink.getvalue())
    file = RowGroups(store, KEY, tail_bytes=0)
    store.lengths.clear()
    assert [table.num_rows for table in file.tables(["slide_id", "mask"])] == [ROWS, ROWS]
    assert len(store.lengths) <= 2


def test_rows_of_two_versions_are_never_mixed(output: Store) -> None:
    put(output, some_rows())
    file = RowGroups(output, KEY, tail_bytes=0)
    tables = file.tables(["slide_id"])
    next(tables)
    put(output, some_rows(3))
    with pytest.raises(ObjectReplacedError, match="was replaced while it was read"):
        list(tables)


def test_what_is_no_parquet_is_told(output: Store) -> None:
    output.put(KEY, b"no Parquet at all")
    with pytest.raises(pa.ArrowException):
        RowGroups(output, KEY, tail_bytes=0)
