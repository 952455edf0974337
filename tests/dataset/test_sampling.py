"""Random tiles: as many as asked for, each what its file holds, by groups where asked."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_pipeline.dataset.reading import EmbeddingDataset, open_dataset
from ray_pipeline.errors import SettingsError
from tests.dataset.outputs import DIM, Attributes, make_output, truth

SLIDES = {"007": 5, "a b": 300, "ü=1": 4500, "blank": 0}
SITES: Attributes = {"007": {"site": "A"}, "a b": {"site": "A"}, "ü=1": {"site": None}}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingDataset:
    uri = str(tmp_path_factory.mktemp("sampling") / "out")
    make_output(uri, SLIDES, attributes=SITES)
    return open_dataset(uri)


@given(n=st.integers(0, 6000), seed=st.integers(0, 5))
def test_tiles_come_once_and_as_they_are(dataset: EmbeddingDataset, n: int, seed: int) -> None:
    sample = dataset.sample(n, seed=seed)
    places = list(zip(sample["slide_id"].to_pylist(), sample["tile"].to_pylist(), strict=True))
    assert len(places) == len(set(places)) == min(n, sum(SLIDES.values()))
    vectors = sample["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, DIM)
    truths = {slide_id: truth(slide_id, count)[1] for slide_id, count in SLIDES.items()}
    for (slide_id, tile), vector in zip(places[:50], vectors, strict=False):
        np.testing.assert_array_equal(vector, truths[slide_id][tile])


def test_every_tile_has_the_same_chance(dataset: EmbeddingDataset) -> None:
    seen: Counter[str] = Counter()
    for seed in range(40):
        seen.update(dataset.sample(100, seed=seed)["slide_id"].to_pylist())
    assert seen["a b"] / 4000 == pytest.approx(300 / 4805, abs=0.02)


def test_the_seed_decides(dataset: EmbeddingDataset) -> None:
    assert dataset.sample(50, seed=3).equals(dataset.sample(50, seed=3))
    assert not dataset.sample(50, seed=3).equals(dataset.sample(50, seed=4))


def test_by_slide(dataset: EmbeddingDataset) -> None:
    counts = Counter(dataset.sample(100, by="slide_id")["slide_id"].to_pylist())
    assert counts == {"007": 5, "a b": 100, "ü=1": 100}


def test_by_a_column_of_the_manifest(dataset: EmbeddingDataset) -> None:
    sample = dataset.sample(20, by="site")
    assert Counter(sample["site"].to_pylist()) == {"A": 20, None: 20}
    of_site = zip(sample["site"].to_pylist(), sample["slide_id"].to_pylist(), strict=True)
    assert {slide_id for site, slide_id in of_site if site is None} == {"ü=1"}


@pytest.mark.parametrize("by", ["nothing", "mask"])
def test_by_what_is_no_column(dataset: EmbeddingDataset, by: str) -> None:
    with pytest.raises(SettingsError, match=f"by: '{by}' is no column.*slide_id.*site"):
        dataset.sample(1, by=by)


def test_fewer_than_none(dataset: EmbeddingDataset) -> None:
    with pytest.raises(SettingsError, match="n: -1"):
        dataset.sample(-1)
