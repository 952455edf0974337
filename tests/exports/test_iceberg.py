"""Iceberg reads the committed files where they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.expressions import EqualTo

from ray_pipeline.dataset.layout import slide_of_output
from ray_pipeline.errors import SettingsError
from ray_pipeline.exports.iceberg import IcebergTable
from ray_pipeline.exports.run import export_slides
from ray_pipeline.store import Store
from tests.exports.conftest import DIM, IDS, RECIPE_FP, SLIDES, columns, commit, commit_all
from tests.servers.s3 import S3Server


def opened(path: Path, **said: str) -> Any:
    """The table, opened by what a user of Iceberg has in hand."""
    catalog = SqlCatalog(
        "historay", uri=f"sqlite:///{path / 'catalog.db'}", warehouse="unused", **said
    )
    return catalog.load_table(f"historay.recipe_{RECIPE_FP}")


def of(slide_id: str) -> Any:
    equal: Any = EqualTo  # its types tell of the validated model only
    return equal("slide_id", slide_id)


def check(store: Store, path: Path, slide_id: str) -> None:
    rows = opened(path).scan(of(slide_id)).to_arrow().sort_by("tile")
    expected = columns(store, slide_id, ["embedding", "tile", "x", "y", "tissue"])
    vectors = np.array(rows["embedding"].to_pylist(), np.float32)
    assert np.array_equal(vectors, expected[0])
    for name, values in zip(("tile", "x", "y", "tissue"), expected[1:], strict=True):
        assert np.array_equal(rows[name].to_numpy(), values)


def test_rows_are_those_of_the_files(output: Store, tmp_path: Path) -> None:
    export_slides(output, str(tmp_path / "ice berg"), "iceberg")
    table = opened(tmp_path / "ice berg")
    assert table.scan().to_arrow().num_rows == sum(SLIDES.values())
    for slide_id in IDS:
        check(output, tmp_path / "ice berg", slide_id)
    assert [f.name for f in table.schema().fields] == [
        "slide_id",
        "tile",
        "x",
        "y",
        "tissue",
        "embedding",
    ]
    assert all(field.required for field in table.schema().fields)


def test_nothing_is_copied(output: Store, tmp_path: Path) -> None:
    export_slides(output, str(tmp_path / "i"), "iceberg")
    assert not list((tmp_path / "i").rglob("*.parquet"))
    files = opened(tmp_path / "i").inspect.files()["file_path"].to_pylist()
    assert {f.removeprefix("file://") for f in files} == {
        f"{output.uri}/{info.key}" for info in output.list("embeddings")
    }


def test_a_slides_rows_cost_its_own_file_only(output: Store, tmp_path: Path) -> None:
    long = "one-slide-of-a-very-long-name-that-bounds-would-cut-"
    for number in range(3):
        commit(output, f"{long}{number}", 10, seed=number)
    export_slides(output, str(tmp_path / "i"), "iceberg")
    for slide_id in ("007", f"{long}1"):
        planned = opened(tmp_path / "i").scan(of(slide_id)).plan_files()
        assert [slide_of_output(task.file.file_path) for task in planned] == [slide_id]


def test_a_second_export_adds_a_snapshot_of_the_new_slides(output: Store, tmp_path: Path) -> None:
    export_slides(output, str(tmp_path / "i"), "iceberg")
    before = opened(tmp_path / "i").current_snapshot().snapshot_id
    commit(output, "new", 25, seed=7)
    export_slides(output, str(tmp_path / "i"), "iceberg")
    table = opened(tmp_path / "i")
    assert table.current_snapshot().parent_snapshot_id == before
    assert table.scan().to_arrow().num_rows == sum(SLIDES.values()) + 25
    check(output, tmp_path / "i", "new")


def test_a_replaced_slide_is_dropped_and_added_at_once(
    output: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IcebergTable, "slides_at_once", 2)
    export_slides(output, str(tmp_path / "i"), "iceberg")
    for slide_id, n_tiles in (("b c", 400), ("slide/3", 33)):
        (info,) = [i for i in output.list("embeddings") if slide_of_output(i.key) == slide_id]
        commit(output, slide_id, n_tiles, seed=8, replace_etag=info.etag)
    assert export_slides(output, str(tmp_path / "i"), "iceberg").slides_exported == 2
    for slide_id in IDS:
        check(output, tmp_path / "i", slide_id)
    counted = opened(tmp_path / "i").inspect.files()["record_count"].to_pylist()
    expected = {**SLIDES, "b c": 400, "slide/3": 33}
    assert sorted(counted) == sorted(expected.values())


def test_slides_without_tiles(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "out"))
    commit(store, "blank", 0)
    commit(store, "full", 10)
    assert export_slides(store, str(tmp_path / "i"), "iceberg").slides_exported == 2
    assert opened(tmp_path / "i").scan().to_arrow().num_rows == 10
    check(store, tmp_path / "i", "full")


def test_files_in_a_bucket(s3: S3Server, tmp_path: Path) -> None:
    store = commit_all(Store.open(f"{s3.bucket()}/out"))
    export_slides(store, str(tmp_path / "i"), "iceberg")
    table = opened(tmp_path / "i", **{"s3.endpoint": s3.env["AWS_ENDPOINT_URL"]})
    rows = table.scan(of("slide/3")).to_arrow()
    assert rows.num_rows == SLIDES["slide/3"]
    assert len(rows["embedding"][0].as_py()) == DIM


def test_the_catalogue_is_a_local_file(output: Store) -> None:
    with pytest.raises(SettingsError, match="name a local folder"):
        export_slides(output, "s3://bucket/iceberg", "iceberg")
