"""Every reader people use opens the output with the README's own line, and all agree to the bit."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.dataset.outputs import DIM, make_output, slide_bytes, truth

pytestmark = pytest.mark.readers

ROOT = Path(__file__).resolve().parents[2]
SLIDES = {"007": 5, "Präparat 3 μ": 4500, "a=b/c?": 300}
"""Of three sizes, one of them more than a row group."""


SITES = {"007": "A=B c", "Präparat 3 μ": None, "a=b/c?": "Zürich"}


@pytest.fixture(scope="module", params=[(), ("site",)], ids=["plain", "by site"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readers")
    attributes = {slide_id: {"site": site} for slide_id, site in SITES.items()}
    make_output(str(folder / "out"), SLIDES, partition_by=request.param, attributes=attributes)
    return folder


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def line_of(reader: str) -> str:
    """What the README says in the reader's row."""
    (line,) = re.findall(
        rf"^\| {re.escape(reader)} \| `([^`]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    return str(line)


def check(frame: pd.DataFrame) -> None:
    """All tiles of all slides, each number as it was made."""
    assert {"slide_id", "tile", "x", "y", "tissue", "embedding"} <= set(frame.columns)
    assert sorted(map(str, frame["slide_id"].unique())) == sorted(SLIDES)
    for slide_id, n_tiles in SLIDES.items():
        mine = frame[frame["slide_id"] == slide_id].sort_values("tile")
        coordinates, vectors = truth(slide_id, n_tiles)
        assert mine["tile"].to_list() == list(range(n_tiles))
        np.testing.assert_array_equal(mine[["x", "y"]].to_numpy(), coordinates)
        found = np.array([list(vector) for vector in mine["embedding"]])
        assert found.shape == (n_tiles, DIM)
        np.testing.assert_array_equal(found, vectors.astype(np.float64))
        tissue = np.linspace(0.5, 1, n_tiles, dtype=np.float32)
        np.testing.assert_array_equal(mine["tissue"].to_numpy(np.float32), tissue)


def test_duckdb(here: Path) -> None:
    import duckdb  # noqa: PLC0415

    opened = eval(line_of("DuckDB"), {"duckdb": duckdb})
    check(opened.df())
    assert opened.types[opened.columns.index("embedding")] == "FLOAT[]"


def test_polars(here: Path) -> None:
    import polars  # noqa: PLC0415

    opened = eval(line_of("Polars"), {"polars": polars})
    assert isinstance(opened, polars.LazyFrame)
    check(pd.DataFrame(opened.collect().to_dicts()))


def test_pandas(here: Path) -> None:
    check(eval(line_of("pandas"), {"pandas": pd}))


def test_pyarrow(here: Path) -> None:
    import pyarrow.dataset  # noqa: PLC0415

    opened = eval(line_of("pyarrow"), {"pyarrow": pyarrow})
    check(opened.to_table().to_pandas())


@pytest.mark.ray
def test_ray_data(here: Path, ray_cluster: None) -> None:
    import ray  # noqa: PLC0415

    del ray_cluster
    opened = eval(line_of("Ray Data"), {"ray": ray, "os": os}, {})
    check(opened.to_pandas())


def test_hugging_face(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    import datasets  # noqa: PLC0415

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    opened = eval(line_of("Hugging Face datasets"), {"datasets": datasets})
    assert opened.num_rows == sum(SLIDES.values())
    check(opened.to_pandas())


@pytest.fixture
def spark(java: None, tmp_path: Path) -> Iterator[Any]:
    del java
    from pyspark.sql import SparkSession  # noqa: PLC0415

    session = (
        SparkSession.builder.master("local[1]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.sql.warehouse.dir", str(tmp_path))
        .getOrCreate()
    )
    yield session
    session.stop()


@pytest.mark.java
@pytest.mark.slow
def test_spark(here: Path, spark: Any) -> None:
    opened = eval(line_of("Spark"), {"spark": spark})
    kinds = {field.name: field.dataType.simpleString() for field in opened.schema.fields}
    assert kinds["embedding"] == "array<float>"
    rows = [row.asDict() for row in opened.toLocalIterator()]
    check(pd.DataFrame(rows))
    assert opened.where("slide_id = '007'").count() == 5


def test_ours(here: Path) -> None:
    from ray_pipeline.dataset.reading import open_dataset  # noqa: PLC0415

    dataset = open_dataset("out")
    check(dataset.to_arrow().to_table().to_pandas())
    check(pd.DataFrame(dataset.to_polars().collect().to_dicts()))
    check(dataset.to_duckdb().sql("select * from tiles").df())


@pytest.mark.ray
def test_ours_on_ray(here: Path, ray_cluster: None) -> None:
    from ray_pipeline.dataset.reading import open_dataset  # noqa: PLC0415

    del ray_cluster
    check(open_dataset("out").to_ray().to_pandas())


def test_vectors_of_real_length_cost_no_more_than_half_floats() -> None:
    per_tile = len(slide_bytes("slide-1", 2000, dim=1536)) / 2000
    # 53.8 MB for 20,000 tiles of 1,536 numbers was measured when the format was chosen.
    assert per_tile == pytest.approx(53.8e6 / 20_000, rel=0.10)
