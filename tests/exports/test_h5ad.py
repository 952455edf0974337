"""AnnData reads what was exported."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pytest

from ray_pipeline.exports.run import export_slides
from ray_pipeline.store import Store
from tests.exports.conftest import DIM, IDS, RECIPE_FP, SLIDES, columns, commit


@pytest.mark.parametrize("slide_id", IDS)
def test_anndata_reads_vectors_and_places(output: Store, tmp_path: Path, slide_id: str) -> None:
    export_slides(output, str(tmp_path / "a"), "h5ad", slide_ids=[slide_id])
    data = anndata.read_h5ad(tmp_path / "a" / f"{slide_id.replace('/', '%2F')}.h5ad")
    vectors, tile, x, y, tissue = columns(
        output, slide_id, ["embedding", "tile", "x", "y", "tissue"]
    )
    assert data.shape == (SLIDES[slide_id], DIM)
    assert data.X.dtype == np.float32
    assert np.array_equal(data.X, vectors)
    assert set(data.obs["slide_id"]) == {slide_id}
    for name, expected in (("tile", tile), ("x", x), ("y", y), ("tissue", tissue)):
        assert np.array_equal(data.obs[name].to_numpy(), expected)
    assert np.array_equal(data.obsm["spatial"], np.stack([x, y], axis=1) + 224.0)  # 448 / 2
    assert data.obs_names.is_unique
    told = data.uns["historay"]
    assert (told["slide_id"], told["recipe_fp"]) == (slide_id, RECIPE_FP)
    assert float(told["tile_size_level0"]) == 448


def test_slides_join_and_stay_apart(output: Store, tmp_path: Path) -> None:
    export_slides(output, str(tmp_path / "a"), "h5ad")
    parts = [anndata.read_h5ad(path) for path in (tmp_path / "a").glob("*.h5ad")]
    joined = anndata.concat(parts)
    assert joined.n_obs == sum(SLIDES.values())
    assert joined.obs_names.is_unique
    assert set(joined.obs["slide_id"]) == set(IDS)


def test_the_vectors_can_stay_in_the_file(output: Store, tmp_path: Path) -> None:
    export_slides(output, str(tmp_path / "a"), "h5ad", slide_ids=["007"])
    backed = anndata.read_h5ad(tmp_path / "a" / "007.h5ad", backed="r")
    assert np.array_equal(backed.X[5:9], columns(output, "007", ["embedding"])[0][5:9])
    backed.file.close()


def test_a_slide_without_tiles(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "out"))
    commit(store, "blank", 0)
    export_slides(store, str(tmp_path / "a"), "h5ad")
    assert anndata.read_h5ad(tmp_path / "a" / "blank.h5ad").shape == (0, DIM)
