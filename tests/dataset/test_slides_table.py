"""The slides table follows the records, fetching only what changed, and can be rebuilt."""

from __future__ import annotations

import numpy as np
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
from ray_pipeline.dataset.slides_table import compact, read_slides
from ray_pipeline.store import Store

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
        **changes,
    }
    return SlideRecord(**values)  # type: ignore[arg-type]


def table(output: Store) -> dict[str, dict[str, object]]:
    rows = pq.read_table(output.open_file(LAYOUT.slides_table)).to_pylist()
    return {row["slide_id"]: row for row in rows}


def test_one_row_per_slide_with_the_manifests_columns(output: Store) -> None:
    put_record(output, LAYOUT, record("007"))
    put_record(output, LAYOUT, record("b", status="failed", error_kind="no-mpp", facts={}))
    assert compact(output, LAYOUT) == 2
    rows = table(output)
    assert (rows["007"]["site"], rows["007"]["grade"], rows["007"]["vendor"]) == (
        "liver",
        2,
        "aperio",
    )
    assert rows["007"]["mean_embedding"] == [0.0, 1.0, 2.0]
    assert rows["b"]["error_kind"] == "no-mpp"


def test_compaction_fetches_only_what_changed(
    output: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(5):
        put_record(output, LAYOUT, record(f"s{index}"))
    compact(output, LAYOUT)
    fetched: list[str] = []
    real = get_records

    def counting(store: Store, keys: list[str]) -> list[SlideRecord]:
        fetched.extend(keys)
        return real(store, keys)

    monkeypatch.setattr(slides_table, "get_records", counting)
    put_record(output, LAYOUT, record("s3", n_tiles=99))
    put_record(output, LAYOUT, record("s9"))
    assert compact(output, LAYOUT) == 6
    assert fetched == [LAYOUT.record("s3"), LAYOUT.record("s9")]
    assert table(output)["s3"]["n_tiles"] == 99
    fetched.clear()
    compact(output, LAYOUT)
    assert fetched == []


def test_reading_sees_records_newer_than_the_table(output: Store) -> None:
    put_record(output, LAYOUT, record("a"))
    put_record(output, LAYOUT, record("b"))
    compact(output, LAYOUT)
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
    compact(output, LAYOUT)
    put_record(output, LAYOUT, record("b", attributes={"grade": "high", "new": True}))
    compact(output, LAYOUT)
    output.delete([LAYOUT.slides_table])
    assert compact(output, LAYOUT) == 2
    assert [table(output)[name]["grade"] for name in "ab"] == ["2", "high"]
