"""Vectors come back as they were written, piece by piece, within a budget of memory."""

from __future__ import annotations

import numpy as np
import pytest

from ray_pipeline.dataset.layout import Layout
from ray_pipeline.dataset.recipes import layout_of
from ray_pipeline.dataset.schema import BATCH_TILES
from ray_pipeline.dataset.slide_files import standing_files
from ray_pipeline.dataset.vectors import (
    LARGEST_GROUP_TILES,
    read_tiles,
    read_vectors,
    slide_file,
)
from ray_pipeline.errors import NotFoundError, ObjectReplacedError, SettingsError
from ray_pipeline.store import Store
from tests.outputs import LAYOUT, put_slide


def some_vectors(n: int, dim: int = 8, seed: int = 0) -> np.ndarray[tuple[int, int], np.dtype]:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float16)


def test_a_slide_comes_back_whole_and_in_order(output: Store) -> None:
    vectors = some_vectors(2 * BATCH_TILES + 500)
    put_slide(output, "a/b 1", vectors, row_group=BATCH_TILES + 200)
    ((slide_id, info),) = standing_files(output, LAYOUT)
    batches = list(read_vectors(output, slide_id, info))
    assert {batch.slide_id for batch in batches} == {"a/b 1"}
    assert max(len(batch.tile) for batch in batches) <= BATCH_TILES
    assert np.array_equal(np.concatenate([batch.vectors for batch in batches]), vectors)
    tile = np.concatenate([batch.tile for batch in batches])
    assert np.array_equal(tile, np.arange(len(vectors)))
    assert np.array_equal(np.concatenate([batch.x for batch in batches]), 224 * tile)
    assert np.array_equal(np.concatenate([batch.y for batch in batches]), 448 * tile)


def test_an_empty_slide_has_no_batches(output: Store) -> None:
    put_slide(output, "empty", some_vectors(0))
    info = slide_file(output, LAYOUT, "empty")
    assert not list(read_vectors(output, "empty", info))


def test_single_tiles_cost_only_their_row_groups(output: Store) -> None:
    vectors = some_vectors(3000)
    put_slide(output, "a", vectors, row_group=1000)
    info = slide_file(output, LAYOUT, "a")
    found = read_tiles(output, "a", info, [2999, 0, 2000])
    assert np.array_equal(found, vectors[[2999, 0, 2000]])
    batches = list(read_vectors(output, "a", info, tiles=[1500]))
    assert [int(batch.tile[0]) for batch in batches] == [1000]


def test_a_slide_below_partition_folders_is_found(output: Store) -> None:
    key = put_slide(output, "a", some_vectors(3), partitions={"site": "north"})
    assert slide_file(output, LAYOUT, "a").key == key


def test_a_file_replaced_since_it_was_listed_is_an_error(output: Store) -> None:
    put_slide(output, "a", some_vectors(3))
    info = slide_file(output, LAYOUT, "a")
    put_slide(output, "a", some_vectors(4))
    with pytest.raises(ObjectReplacedError, match="was replaced while it was read"):
        list(read_vectors(output, "a", info))


def test_a_file_of_somebody_else_is_named(output: Store) -> None:
    output.put(LAYOUT.output("a", {}), b"no Parquet at all")
    info = slide_file(output, LAYOUT, "a")
    with pytest.raises(SettingsError, match="is no file of historay's"):
        list(read_vectors(output, "a", info))


def test_a_row_group_too_long_for_the_bound_on_memory_is_refused(output: Store) -> None:
    put_slide(output, "a", some_vectors(LARGEST_GROUP_TILES + 1), row_group=1 << 20)
    info = slide_file(output, LAYOUT, "a")
    with pytest.raises(SettingsError, match="row groups longer than historay's"):
        list(read_vectors(output, "a", info))


def test_recipes_are_chosen_by_name_and_never_mixed(output: Store) -> None:
    with pytest.raises(NotFoundError, match="holds no embeddings"):
        layout_of(output, None)
    put_slide(output, "a", some_vectors(3))
    assert layout_of(output, None) == LAYOUT
    other = Layout("beefbeefbeef")
    put_slide(output, "a", some_vectors(3), layout=other)
    with pytest.raises(SettingsError, match="beefbeefbeef, f00df00df00d"):
        layout_of(output, None)
    assert layout_of(output, "beef") == other
    with pytest.raises(SettingsError, match="'cafe' is not one recipe"):
        layout_of(output, "cafe")
