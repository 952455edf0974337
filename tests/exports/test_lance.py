"""Lance opens the dataset, and every row is there once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest

from ray_pipeline.dataset.layout import slide_of_output
from ray_pipeline.errors import StoreError
from ray_pipeline.exports.lance import LanceTable
from ray_pipeline.exports.run import export_slides
from ray_pipeline.store import Store
from tests.exports.conftest import DIM, IDS, SLIDES, columns, commit


def rows(path: Path, slide_id: str) -> pa.Table:
    told = slide_id.replace("'", "''")
    dataset = lance.dataset(str(path / "embeddings.lance"))
    return dataset.to_table(filter=f"slide_id = '{told}'").sort_by("tile")


def check(store: Store, path: Path, slide_id: str) -> None:
    table = rows(path, slide_id)
    expected = columns(store, slide_id, ["embedding", "tile", "x", "y", "tissue"])
    vectors = np.stack(table["embedding"].to_numpy())
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, expected[0])
    for name, values in zip(("tile", "x", "y", "tissue"), expected[1:], strict=True):
        assert np.array_equal(table[name].to_numpy(), values)


def test_all_slides_are_in_one_dataset(output: Store, tmp_path: Path) -> None:
    export_slides(output, str(tmp_path / "l"), "lance")
    dataset = lance.dataset(str(tmp_path / "l" / "embeddings.lance"))
    assert dataset.count_rows() == sum(SLIDES.values())
    assert dataset.schema.field("embedding").type.list_size == DIM
    for slide_id in IDS:
        check(output, tmp_path / "l", slide_id)


def test_a_replaced_slide_takes_the_place_of_its_rows(
    output: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LanceTable, "slides_at_once", 2)
    commit(output, "o'hara", 12)
    export_slides(output, str(tmp_path / "l"), "lance")
    for slide_id in ("o'hara", "b c"):
        (info,) = [i for i in output.list("embeddings") if slide_of_output(i.key) == slide_id]
        commit(output, slide_id, 33, seed=8, replace_etag=info.etag)
    assert export_slides(output, str(tmp_path / "l"), "lance").slides_exported == 2
    for slide_id in ("o'hara", "b c"):
        check(output, tmp_path / "l", slide_id)
    dataset = lance.dataset(str(tmp_path / "l" / "embeddings.lance"))
    assert dataset.count_rows() == sum(SLIDES.values()) - SLIDES["b c"] + 66


def test_a_crash_between_rows_and_mark_doubles_nothing(output: Store, tmp_path: Path) -> None:
    export_slides(output, str(tmp_path / "l"), "lance")
    for key in (tmp_path / "l" / "_historay" / "done" / "007").iterdir():
        key.unlink()
    assert export_slides(output, str(tmp_path / "l"), "lance").slides_exported == 1
    check(output, tmp_path / "l", "007")


def test_nearest_neighbours_are_found(output: Store, tmp_path: Path) -> None:
    export_slides(output, str(tmp_path / "l"), "lance")
    vector = columns(output, "site=lung", ["embedding"])[0][17]
    asked: dict[str, Any] = {"column": "embedding", "q": vector, "k": 1}
    found = lance.dataset(str(tmp_path / "l" / "embeddings.lance")).to_table(nearest=asked)
    assert (found["slide_id"][0].as_py(), found["tile"][0].as_py()) == ("site=lung", 17)


def test_a_dataset_that_cant_be_opened_is_not_begun_anew(output: Store, tmp_path: Path) -> None:
    export_slides(output, str(tmp_path / "l"), "lance", slide_ids=["007"])
    for path in (tmp_path / "l" / "embeddings.lance" / "_versions").iterdir():
        path.write_bytes(b"")
    with pytest.raises(StoreError, match="Lance could not open or write it"):
        export_slides(output, str(tmp_path / "l"), "lance")


def test_slides_without_tiles(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "out"))
    commit(store, "blank", 0)
    assert export_slides(store, str(tmp_path / "l"), "lance").slides_exported == 1
    assert lance.dataset(str(tmp_path / "l" / "embeddings.lance")).count_rows() == 0
    commit(store, "full", 10)
    assert export_slides(store, str(tmp_path / "l"), "lance").slides_exported == 1
    check(store, tmp_path / "l", "full")
