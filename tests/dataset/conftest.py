"""A staged slide, ready to commit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ray_pipeline.dataset.commit import CommitJob
from ray_pipeline.dataset.layout import Layout
from ray_pipeline.dataset.records import SlideRecord
from ray_pipeline.dataset.schema import Footer
from ray_pipeline.dataset.staging import Fragment, put_fragment
from ray_pipeline.recipe import SHARD_TILES
from ray_pipeline.store import Store

MakeJob = Callable[..., CommitJob]


@pytest.fixture
def output(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "out"))


@pytest.fixture
def staged(output: Store) -> MakeJob:
    """`staged_slide` with the test's own output."""
    return partial(staged_slide, store=output)


def staged_slide(
    slide_id: str = "slide-1",
    *,
    store: Store,
    n_tiles: int = 600,
    dim: int = 8,
    input_fp: str = "aaaaaaaaaaaa",
    plan_fp: str = "bbbbbbbbbbbb",
    recipe_fp: str = "f00df00df00d",
    seed: int = 0,
    skip: tuple[int, ...] = (),
) -> CommitJob:
    """Stage a slide of `n_tiles` seeded random vectors and return the job to commit it."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n_tiles, dim)).astype(np.float16)
    tiles = np.arange(n_tiles)
    xy = np.stack([tiles % 50 * 224, tiles // 50 * 224], axis=1).astype(np.int32)
    n_shards = -(-n_tiles // SHARD_TILES)
    for shard in range(n_shards):
        where = slice(shard * SHARD_TILES, (shard + 1) * SHARD_TILES)
        fragment = Fragment(
            slide_id=slide_id,
            plan_fp=plan_fp,
            shard=shard,
            first_tile=where.start,
            xy=xy[where],
            tissue=np.full(len(xy[where]), 0.5, np.float32),
            embedding=vectors[where],
        )
        if shard not in skip:
            put_fragment(store, Layout(recipe_fp), fragment)
    footer = Footer(
        recipe={"format": 1},
        recipe_fp=recipe_fp,
        slide_id=slide_id,
        uri=f"s3://slides/{slide_id}.svs",
        etag="e1",
        input_fp=input_fp,
        plan_fp=plan_fp,
        mpp_used=0.5,
        mpp_achieved=0.5,
        level=0,
        version="0",
    )
    record = SlideRecord(
        slide_id=slide_id, uri=footer.uri, status="done", run="run-1", input_fp=input_fp
    )
    return CommitJob(
        output=store, footer=footer, record=record, n_shards=n_shards, n_tiles=n_tiles, dim=dim
    )
