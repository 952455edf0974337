"""An output of five slides with awkward ids, as a job would have left it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from ray_pipeline.dataset.commit import CommitJob, commit_slide
from ray_pipeline.store import Store
from tests.dataset.conftest import staged_slide

IDS = ("007", "b c", "gewebe ä µ", "site=lung", "slide/3")
DIM, RECIPE_FP = 8, "f00df00df00d"
SLIDES = {slide_id: 300 + 10 * seed for seed, slide_id in enumerate(IDS)}


def commit(
    store: Store,
    slide_id: str,
    n_tiles: int,
    *,
    seed: int = 0,
    recipe_fp: str = RECIPE_FP,
    mpp: tuple[float, float] = (0.25, 0.5),
    stride_px: int = 224,
    size_px: tuple[int, int] | None = (90_000, 60_000),
    replace_etag: str | None = None,
) -> CommitJob:
    """Commit `n_tiles` seeded tiles; `mpp` is that of level 0 and that of the tiles.

    Without `size_px` it is a file of the time before footers told it.
    """
    width, height = size_px or (None, None)
    job = staged_slide(
        slide_id, store=store, n_tiles=n_tiles, dim=DIM, seed=seed, recipe_fp=recipe_fp
    )
    recipe = {
        "format": 1,
        "encoder": {"model": "toy"},
        "tiling": {"tile_px": 224, "stride_px": stride_px, "mpp": 0.5},
    }
    footer = replace(
        job.footer,
        recipe=recipe,
        mpp_used=mpp[0],
        mpp_achieved=mpp[1],
        width_px=width,
        height_px=height,
    )
    job = replace(job, footer=footer, replace_etag=replace_etag)
    commit_slide(job)
    return job


def commit_all(store: Store) -> Store:
    for seed, (slide_id, n_tiles) in enumerate(SLIDES.items()):
        commit(store, slide_id, n_tiles, seed=seed)
    return store


@pytest.fixture
def output(tmp_path: Path) -> Store:
    """Five slides of one recipe."""
    return commit_all(Store.open(str(tmp_path / "an output")))


def columns(store: Store, slide_id: str, names: Sequence[str]) -> list[npt.NDArray[np.generic]]:
    """What the committed file holds, by a reader that is none of ours."""
    for info in store.list("embeddings"):
        table = pq.read_table(Path(store.uri) / info.key)
        if table["slide_id"][0].as_py() == slide_id:
            return [np.array(table[name].to_pylist(), table_type(name)) for name in names]
    raise AssertionError(slide_id)


def table_type(name: str) -> type[np.generic]:
    return np.float32 if name in ("embedding", "tissue") else np.int32
