"""Rows survive the trip through Arrow, whatever their sizes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from ray_pipeline.errors import NoMppError
from ray_pipeline.rows import HEADER, Failure, ShardRow, from_table, to_table


@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_arrays_come_back_as_they_went(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [
        ShardRow(
            slide_id="a",
            shard=index,
            xy=rng.integers(0, 9, (n, 2)).astype(np.int32),
            tissue=rng.random(n).astype(np.float32),
            pixels=rng.integers(0, 255, (n, 4, 4, 3)).astype(np.uint8),
            embedding=rng.random((n, 3)).astype(np.float16),
            info={"tile_px": 4, "dim": 3},
        )
        for index, n in enumerate(sizes)
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, to_table(rows).schema) as writer:
        writer.write_table(to_table(rows))
    back = list(from_table(pa.ipc.open_stream(sink.getvalue()).read_all()))
    for before, after in zip(rows, back, strict=True):
        for name in ("xy", "tissue", "pixels", "embedding"):
            expected, found = getattr(before, name), getattr(after, name)
            assert found.dtype == expected.dtype
            assert np.array_equal(found, expected)


def test_one_row_shares_its_pixels_with_the_table() -> None:
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    table = to_table([ShardRow(slide_id="a", shard=0, pixels=pixels, info={"tile_px": 4})])
    (back,) = from_table(table)
    assert back.pixels is not None
    assert back.pixels.ctypes.data == pixels.ctypes.data


def test_a_failed_row_keeps_its_reason_and_drops_its_arrays() -> None:
    failure = Failure.of("plan", NoMppError("slide a states no mpp."))
    row = ShardRow(slide_id="a", shard=HEADER, xy=np.zeros((1, 2), np.int32)).failed(failure)
    (back,) = from_table(to_table([row]))
    assert back.failure == Failure(stage="plan", kind="no-mpp", reason="slide a states no mpp.")
    assert back.xy is None
    assert back.is_header
    assert not back.to_do
