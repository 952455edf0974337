"""The slides table follows the records, fetching only what changed, and can be rebuilt."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_pipeline.dataset import slides_table
from ray_pipeline.dataset.layout import Layout
from ray_pipeline.dataset.records import (
    SlideRecord,
    encode_vector,
    get_records,
    put_record,
)
from ray_pipeline.dataset.schema import SLIDE_COLUMNS
from ray_pipeline.dataset.slides_table import compact, read_slides, told_otherwise
from ray_pipeline.store import ObjectInfo, Store
from tests.servers.s3 import S3Server

LAYOUT = Layout("f00df00df00d")


def record(slide_id: str, **changes: object) -> SlideRecord:
    values: dict[str, object] = {
        "slide_id": slide_id,
        "uri": f"s3://b/{slide_id}.svs",
        "status": "done",
        "run": "run-1",
        "n_tiles": 5,
        "facts": {"vendor": "aperio", "mpp_found": 0.5, "mask": {"otsu": 0.2}, "tissue_mm2": 1.5},
        "attributes": {"site": "liver", "grade": 2},
        "mean_embedding": encode_vector(np.arange(3, dtype=np.float32)),
        "max_embedding": encode_vector(np.arange(3, 6, dtype=np.float32)),
        **changes,
    }
    return SlideRecord(**values)  # type: ignore[arg-type]


def compacted(output: Store) -> int:
    """Compaction of records that are all sound."""
    said: list[str] = []
    count = compact(output, LAYOUT, said.append)
    assert said == []
    return count


def table(output: Store) -> dict[str, dict[str, object]]:
    rows = pq.read_table(output.open_file(LAYOUT.slides_table)).to_pylist()
    return {row["slide_id"]: row for row in rows}


def test_one_row_per_slide_with_the_manifests_columns(output: Store) -> None:
    put_record(output, LAYOUT, record("007"))
    put_record(output, LAYOUT, record("b", status="failed", error_kind="no-mpp", facts={}))
    assert compacted(output) == 2
    rows = table(output)
    assert (rows["007"]["site"], rows["007"]["grade"], rows["007"]["vendor"]) == (
        "liver",
        2,
        "aperio",
    )
    assert rows["007"]["mean_embedding"] == [0.0, 1.0, 2.0]
    assert rows["007"]["max_embedding"] == [3.0, 4.0, 5.0]
    assert rows["b"]["error_kind"] == "no-mpp"


def test_compaction_fetches_only_what_changed(
    output: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(5):
        put_record(output, LAYOUT, record(f"s{index}"))
    compacted(output)
    fetched: list[str] = []
    real = get_records

    def counting(store: Store, keys: list[str], **said: Any) -> list[SlideRecord]:
        fetched.extend(keys)
        return real(store, keys, **said)

    monkeypatch.setattr(slides_table, "get_records", counting)
    put_record(output, LAYOUT, record("s3", n_tiles=99))
    put_record(output, LAYOUT, record("s9"))
    assert compacted(output) == 6
    assert sorted(fetched) == [LAYOUT.record("s3"), LAYOUT.record("s9")]
    assert table(output)["s3"]["n_tiles"] == 99
    fetched.clear()
    compacted(output)
    assert fetched == []


def test_reading_sees_records_newer_than_the_table(output: Store) -> None:
    put_record(output, LAYOUT, record("a"))
    put_record(output, LAYOUT, record("b"))
    compacted(output)
    put_record(output, LAYOUT, record("b", status="failed", error_kind="not-finite"))
    put_record(output, LAYOUT, record("c"))
    rows = {row["slide_id"]: row for row in read_slides(output, LAYOUT).to_pylist()}
    assert {name: row["status"] for name, row in rows.items()} == {
        "a": "done",
        "b": "failed",
        "c": "done",
    }


def test_a_lost_table_is_rebuilt_and_mixed_types_become_text(output: Store) -> None:
    put_record(output, LAYOUT, record("a", attributes={"grade": 2}))
    compacted(output)
    put_record(output, LAYOUT, record("b", attributes={"grade": "high", "new": True}))
    compacted(output)
    output.delete([LAYOUT.slides_table])
    assert compacted(output) == 2
    assert [table(output)[name]["grade"] for name in "ab"] == ["2", "high"]


@dataclass
class RestlessStore(Store):
    """A store where another driver replaces the table between a HEAD and the read that follows."""

    replacing: list[bytes] = field(default_factory=list)

    def head(self, key: str) -> ObjectInfo:
        info = super().head(key)
        if self.replacing:
            self.put(key, self.replacing.pop())
        return info


def test_two_drivers_may_compact_at_once(s3: S3Server) -> None:
    output = Store.open(s3.bucket())
    for index in range(3):
        put_record(output, LAYOUT, record(f"s{index}", attributes={"site": "x" * index}))
    compacted(output)
    theirs = output.get(LAYOUT.slides_table)
    put_record(output, LAYOUT, record("s3"))
    plain = {k: v for k, v in vars(output).items() if k != "_backends"}
    restless = RestlessStore(**plain, replacing=[theirs, theirs])
    put_record(output, LAYOUT, record("s1", n_tiles=99))
    compacted(output)
    assert compacted(restless) == 4
    assert restless.replacing == []
    assert table(output)["s1"]["n_tiles"] == 99


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("b", b"{}"),
        ("b", record("c").to_bytes()),
        ("b", record("b", facts={"width_px": "wide"}).to_bytes()),
        ("b", record("b", facts={"mask": 3}).to_bytes()),
        ("b", record("b", facts={"level": 1 << 40}).to_bytes()),
        ("b", record("b", mean_embedding="no base64").to_bytes()),
        ("b", record("b", max_embedding="no base64").to_bytes()),
    ],
)
def test_a_damaged_record_is_said_and_the_others_have_their_rows(
    output: Store, name: str, damage: bytes
) -> None:
    put_record(output, LAYOUT, record("a"))
    put_record(output, LAYOUT, record("c"))
    output.put(LAYOUT.record(name), damage)
    said: list[str] = []
    assert compact(output, LAYOUT, said.append) == 2
    assert (
        set(table(output))
        == set(read_slides(output, LAYOUT)["slide_id"].to_pylist())
        == {
            "a",
            "c",
        }
    )
    (sentence,) = said
    assert "was passed over" in sentence


def test_lists_and_structs_of_a_manifest_become_json(output: Store) -> None:
    put_record(output, LAYOUT, record("a", attributes={"stains": ["HE"], "block": {"row": 1}}))
    compacted(output)
    put_record(output, LAYOUT, record("b", attributes={"stains": [1], "block": {"column": "x"}}))
    put_record(output, LAYOUT, record("c", attributes={"stains": None, "block": "none"}))
    assert compacted(output) == 3
    rows = table(output)
    assert [rows[name]["stains"] for name in "abc"] == ['["HE"]', "[1]", None]
    assert [rows[name]["block"] for name in "abc"] == ['{"row": 1}', '{"column": "x"}', "none"]


def test_a_column_without_a_value_yet_takes_the_type_of_the_first(output: Store) -> None:
    put_record(output, LAYOUT, record("a", attributes={"grade": None}))
    compacted(output)
    put_record(output, LAYOUT, record("b", attributes={"grade": 2}))
    compacted(output)
    put_record(output, LAYOUT, record("c", attributes={"grade": None}))
    compacted(output)
    assert [table(output)[name]["grade"] for name in "abc"] == [None, 2, None]
    put_record(output, LAYOUT, record("d", attributes={"grade": 2.5}))
    compacted(output)
    assert [table(output)[name]["grade"] for name in "abcd"] == [None, 2.0, None, 2.5]


@pytest.mark.parametrize("standing", [b"", b"notes", "of another tool", "of another version"])
def test_a_table_that_is_none_of_ours_is_built_anew(output: Store, standing: bytes | str) -> None:
    put_record(output, LAYOUT, record("a"))
    if isinstance(standing, bytes):
        output.put(LAYOUT.slides_table, standing)
    else:
        ids = {"slide_id": ["a"], "record_etag": ["e"], "grade": [["nested"]]}
        ours = pa.table(ids if "version" in standing else {"x": [1]})
        sink = pa.BufferOutputStream()
        pq.write_table(ours, sink)
        output.put(LAYOUT.slides_table, sink.getvalue().to_pybytes())
    assert read_slides(output, LAYOUT).num_rows == 1
    assert compacted(output) == 1
    assert table(output)["a"]["grade"] == 2


def without_maximum(output: Store) -> None:
    """Make records and table those of a version that knew no maximum."""
    for info in list(output.list(LAYOUT.records)):
        told = json.loads(output.get(info.key))
        del told["max_embedding"]
        output.put(info.key, json.dumps(told).encode())
    output.delete([LAYOUT.slides_table])
    compacted(output)
    sink = pa.BufferOutputStream()
    older = pq.read_table(output.open_file(LAYOUT.slides_table)).drop_columns(["max_embedding"])
    pq.write_table(older, sink)
    output.put(LAYOUT.slides_table, sink.getvalue().to_pybytes())


def test_a_table_without_maximum_is_brought_up_to_date_without_its_records(
    output: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        put_record(output, LAYOUT, record(name))
    without_maximum(output)
    put_record(output, LAYOUT, record("b", run="run-2"))
    fetched: list[str] = []
    real = get_records

    def counting(store: Store, keys: list[str], **said: Any) -> list[SlideRecord]:
        fetched.extend(keys)
        return real(store, keys, **said)

    monkeypatch.setattr(slides_table, "get_records", counting)
    assert read_slides(output, LAYOUT).num_rows == 3
    assert compacted(output) == 3
    assert fetched == [LAYOUT.record("b")] * 2
    rows = table(output)
    assert [rows[name]["max_embedding"] for name in "abc"] == [None, [3.0, 4.0, 5.0], None]
    assert [rows[name]["mean_embedding"] for name in "abc"] == [[0.0, 1.0, 2.0]] * 3


def test_a_table_without_maximum_has_the_column_after_a_run_that_changes_nothing(
    output: Store,
) -> None:
    put_record(output, LAYOUT, record("a"))
    without_maximum(output)
    assert told_otherwise(output, LAYOUT, [("a", "another")]) == {"a"}
    assert compacted(output) == 1
    assert pq.read_schema(output.open_file(LAYOUT.slides_table)).names == [
        *SLIDE_COLUMNS.names,
        "grade",
        "site",
    ]


def test_rows_of_many_runs_share_row_groups(output: Store) -> None:
    for index in range(5):
        put_record(output, LAYOUT, record(f"s{index}"))
        compacted(output)
    assert pq.ParquetFile(output.open_file(LAYOUT.slides_table)).num_row_groups == 1
