"""An output is read, and asked, the same from every kind of store that can list."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ray_pipeline.dataset.reading import open_dataset
from ray_pipeline.errors import SettingsError
from ray_pipeline.query import run_query
from tests.dataset.outputs import make_output, truth
from tests.stores.conftest import Place

SLIDES = {"007": 5, "Präparat 3 μ": 4500, "a=b/c?": 300}
COUNTS = "select slide_id, count(*) as tiles, sum(x) as x from tiles group by all order by all"


def test_an_output_reads_the_same_from_everywhere(place: Place, tmp_path: Path) -> None:
    here = tmp_path / "here"
    make_output(str(here), SLIDES)
    for path in here.rglob("*"):
        if path.is_file():
            place.lay(f"lab/out/{path.relative_to(here)}", path.read_bytes())
    uri = f"{place.root.rstrip('/')}/lab/out"
    if place.folder is not None:
        with pytest.raises(SettingsError, match="an output must lie in a folder or a bucket"):
            open_dataset(uri)
        return
    dataset, local = open_dataset(uri), open_dataset(str(here))
    versions = ["record_etag", "output_etag"]
    assert dataset.slides().drop(versions).equals(local.slides().drop(versions))
    for slide_id, n_tiles in SLIDES.items():
        for found, made in zip(dataset.slide(slide_id), truth(slide_id, n_tiles), strict=True):
            np.testing.assert_array_equal(found, made)
    assert dataset.to_arrow().to_table().equals(local.to_arrow().to_table())
    one = dataset.to_polars().filter(pl.col("slide_id") == "a=b/c?").collect()
    assert one.height == 300
    assert dataset.sample(4, by="slide_id").equals(local.sample(4, by="slide_id"))
    assert [len(bag["features"]) for bag in dataset.torch_bags()] == [5, 4500, 300]
    assert answer(uri) == answer(str(here))


def answer(output: str) -> object:
    sink = io.BytesIO()
    run_query(output, COUNTS, recipe=None, form="json", out=None, stdout=sink)
    return json.loads(sink.getvalue())
