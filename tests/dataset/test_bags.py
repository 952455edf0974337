"""Bags for torch: every slide once, whoever the workers are, the same tiles for the same seed."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest
from torch.utils.data import DataLoader

from ray_pipeline.dataset.bags import Bag
from ray_pipeline.dataset.reading import EmbeddingDataset, open_dataset
from ray_pipeline.errors import NotFoundError, SettingsError
from tests.dataset.outputs import DIM, make_output, truth
from tests.servers.s3 import S3Server

# The share-out is tested with more workers than the machine may have CPUs.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

SLIDES = {"007": 5, "a b": 30, "ü=1": 450, "d": 1, "blank": 0}
WITH_TILES = sorted(name for name, n_tiles in SLIDES.items() if n_tiles)
LABELS = {"007": 0, "a b": 1, "ü=1": 1, "d": 0}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingDataset:
    uri = str(tmp_path_factory.mktemp("bags") / "out")
    make_output(uri, SLIDES)
    return open_dataset(uri)


def check(bag: Bag) -> None:
    coordinates, vectors = truth(bag["slide_id"], SLIDES[bag["slide_id"]])
    np.testing.assert_array_equal(bag["features"].numpy(), vectors)
    np.testing.assert_array_equal(bag["coords"].numpy(), coordinates)


def test_a_bag_is_a_slide(dataset: EmbeddingDataset) -> None:
    bags = dataset.torch_bags(labels=LABELS)
    found = list(bags)
    assert len(bags) == len(found) == 4
    assert [bag["slide_id"] for bag in found] == WITH_TILES
    assert {bag["slide_id"]: bag["label"] for bag in found} == LABELS
    for bag in found:
        check(bag)


def test_without_labels_there_are_none(dataset: EmbeddingDataset) -> None:
    (bag,) = dataset.torch_bags(["blank"])
    assert bag["label"] is None
    assert bag["features"].shape == (0, DIM)


@pytest.mark.parametrize("workers", [1, 3, 6])
def test_workers_share_the_slides_out(dataset: EmbeddingDataset, workers: int) -> None:
    """Also those that are forked when the parent has read before them."""
    dataset.slide("007")
    loader = DataLoader(dataset.torch_bags(labels=LABELS), batch_size=None, num_workers=workers)
    found = list(loader)
    assert sorted(bag["slide_id"] for bag in found) == WITH_TILES
    for bag in found:
        check(bag)


@pytest.mark.slow
def test_spawned_workers_read_from_s3(s3: S3Server) -> None:
    output = make_output(f"{s3.bucket()}/out", SLIDES)
    bags = open_dataset(output.uri).torch_bags(shuffle=True)
    loader = DataLoader(bags, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    found = list(loader)
    assert sorted(bag["slide_id"] for bag in found) == WITH_TILES
    for bag in found:
        check(bag)


def test_forked_workers_of_a_store_are_refused(s3: S3Server) -> None:
    output = make_output(f"{s3.bucket()}/out", {"007": 5})
    bags = open_dataset(output.uri).torch_bags()
    fork = multiprocessing.get_context("fork")
    loader = DataLoader(bags, batch_size=None, num_workers=1, multiprocessing_context=fork)
    with pytest.raises(SettingsError, match="multiprocessing_context='spawn'"):
        list(loader)


def test_shuffling_is_by_seed_and_epoch(dataset: EmbeddingDataset) -> None:
    bags = dataset.torch_bags(WITH_TILES * 4, shuffle=True, seed=7)
    first = [bag["slide_id"] for bag in bags]
    assert sorted(first) == sorted(WITH_TILES * 4)
    assert [bag["slide_id"] for bag in bags] == first
    bags.set_epoch(1)
    assert [bag["slide_id"] for bag in bags] != first
    bags.set_epoch(0)
    assert [bag["slide_id"] for bag in bags] == first


def test_workers_that_live_on_see_the_epoch(dataset: EmbeddingDataset) -> None:
    bags = dataset.torch_bags(["ü=1"], max_tiles=20)
    loader = DataLoader(bags, batch_size=None, num_workers=1, persistent_workers=True)
    places = []
    for epoch in range(2):
        bags.set_epoch(epoch)
        (bag,) = loader
        places.append(bag["coords"].tolist())
    assert places[0] != places[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bag_may_be_cut_to_some_tiles(dataset: EmbeddingDataset, workers: int) -> None:
    bags = dataset.torch_bags(max_tiles=20, seed=1)
    found = {bag["slide_id"]: bag for bag in DataLoader(bags, batch_size=None, num_workers=workers)}
    assert {name: len(bag["features"]) for name, bag in found.items()} == {
        name: min(20, SLIDES[name]) for name in WITH_TILES
    }
    coordinates, vectors = truth("ü=1", 450)
    place = {tuple(xy): row for row, xy in enumerate(coordinates.tolist())}
    rows = [place[tuple(xy)] for xy in found["ü=1"]["coords"].tolist()]
    assert rows == sorted(set(rows)) != list(range(20))
    np.testing.assert_array_equal(found["ü=1"]["features"].numpy(), vectors[rows])
    alone = {bag["slide_id"]: bag for bag in bags}["ü=1"]
    assert alone["coords"].tolist() == found["ü=1"]["coords"].tolist()


def test_a_slide_without_label_is_named(dataset: EmbeddingDataset) -> None:
    with pytest.raises(SettingsError, match="labels: none for 007 and 1 more"):
        dataset.torch_bags(["007", "a b", "d"], labels={"a b": 1})


def test_bags_without_tiles_are_not_asked_for(dataset: EmbeddingDataset) -> None:
    with pytest.raises(SettingsError, match="max_tiles: 0"):
        dataset.torch_bags(max_tiles=0)


def test_a_slide_that_is_not_there_is_named(dataset: EmbeddingDataset) -> None:
    with pytest.raises(NotFoundError, match="never: no such slide"):
        list(dataset.torch_bags(["never"]))
