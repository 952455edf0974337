"""Every reader people use opens the output with its own one line."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pytest

from ray_pipeline.dataset.commit import commit_slide
from ray_pipeline.store import Store
from tests.dataset.conftest import MakeJob

IDS = ["007", "b c", "slide/3"]


@pytest.fixture
def folder(output: Store, staged: MakeJob) -> Path:
    for seed, slide_id in enumerate(IDS):
        commit_slide(staged(slide_id, seed=seed, n_tiles=300))
    return Path(output.uri) / "embeddings"


@pytest.fixture
def truth(staged: MakeJob) -> npt.NDArray[np.float32]:
    """Vectors of slide 007."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((300, 8)).astype(np.float16).astype(np.float32)


def test_duckdb(folder: Path, truth: npt.NDArray[np.float32]) -> None:
    rows = duckdb.execute(
        f"select slide_id, tile, embedding from '{folder}/**/*.parquet' "
        "where slide = '007' order by tile"
    ).fetchall()
    assert {row[0] for row in rows} == {"007"}
    assert np.array_equal(np.array([row[2] for row in rows], np.float32), truth)
    counts = f"select slide_id, count(*) from '{folder}/**/*.parquet' group by all order by all"
    assert duckdb.execute(counts).fetchall() == [(name, 300) for name in IDS]


def test_pandas(folder: Path, truth: npt.NDArray[np.float32]) -> None:
    frame = pd.read_parquet(folder)
    mine = frame[frame.slide_id == "007"].sort_values("tile")
    assert np.array_equal(np.stack(mine.embedding.to_list()), truth)
    assert sorted(frame.slide_id.unique()) == IDS


def test_polars(folder: Path, truth: npt.NDArray[np.float32]) -> None:
    frame = pl.scan_parquet(folder / "**/*.parquet").filter(pl.col("slide_id") == "007").collect()
    assert np.array_equal(np.stack(frame.sort("tile")["embedding"].to_list()), truth)
    assert frame["slide_id"].cast(pl.String).unique().to_list() == ["007"]


def test_pyarrow(folder: Path, truth: npt.NDArray[np.float32]) -> None:
    table = ds.dataset(folder, partitioning="hive").to_table(filter=ds.field("slide_id") == "007")
    assert np.array_equal(np.stack(table.sort_by("tile")["embedding"].to_numpy()), truth)


def test_vectors_of_real_length_cost_no_more_than_half_floats(staged: MakeJob) -> None:
    job = staged(n_tiles=2000, dim=1536)
    commit_slide(job)
    per_tile = job.output.head(job.key).size_bytes / 2000
    # 53.8 MB for 20,000 tiles of 1,536 numbers was measured when the format was chosen.
    assert per_tile == pytest.approx(53.8e6 / 20_000, rel=0.10)
