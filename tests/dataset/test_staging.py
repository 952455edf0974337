"""Fragments come back as they went, and never with a NaN."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ray_pipeline.dataset.layout import Layout
from ray_pipeline.dataset.staging import Fragment, get_fragment, list_staged, put_fragment
from ray_pipeline.errors import NotFiniteError
from ray_pipeline.store import Store

LAYOUT = Layout("f00df00df00d")
FRAGMENT = Fragment(
    slide_id="a/b",
    plan_fp="bbbbbbbbbbbb",
    shard=3,
    first_tile=768,
    xy=np.array([[0, 224], [448, 224]], np.int32),
    tissue=np.array([0.25, 1], np.float32),
    embedding=np.array([[1, -2, 3], [0.5, 65504, 6e-8]], np.float16),
)


def test_a_fragment_comes_back_bit_for_bit(output: Store) -> None:
    put_fragment(output, LAYOUT, FRAGMENT)
    table = get_fragment(output, LAYOUT, "a/b", "bbbbbbbbbbbb", 3, tiles=range(768, 770))
    assert table["tile"].to_pylist() == [768, 769]
    assert table["x"].to_pylist() == [0, 448]
    assert np.array_equal(np.stack(table["embedding"].to_numpy()), FRAGMENT.embedding)
    assert list_staged(output, LAYOUT) == {"a/b": {"bbbbbbbbbbbb": [3]}}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(output: Store, bad: float) -> None:
    embedding = FRAGMENT.embedding.copy()
    embedding[1, 2] = bad
    with pytest.raises(NotFiniteError, match="1 embeddings of shard 3"):
        put_fragment(output, LAYOUT, replace(FRAGMENT, embedding=embedding))
    assert list_staged(output, LAYOUT) == {}
