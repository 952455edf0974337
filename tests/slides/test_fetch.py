"""Coalescing and fetching ahead: all bytes, few requests, bounded memory."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_pipeline.errors import UnreachableError
from ray_pipeline.slides import fetch
from ray_pipeline.slides.fetch import (
    GAP_SHARE,
    MOST_GAP_BYTES,
    MOST_RANGE_BYTES,
    ByteRange,
    RangeStream,
    coalesce,
)

pieces = st.lists(
    st.tuples(
        st.integers(0, 2), st.integers(0, 20_000_000), st.sampled_from([1, 500, 9_000, 3_000_000])
    ),
    min_size=1,
    max_size=60,
)


@given(found=pieces, packed=st.booleans())
@settings(deadline=None)
def test_ranges_cover_their_pieces_and_little_else(
    found: list[tuple[int, int, int]], packed: bool
) -> None:
    objects, offsets, counts = (np.array(c, np.int64) for c in zip(*found, strict=True))
    if packed:
        offsets = np.cumsum(counts) - counts
    ranges, member = coalesce(objects.astype(np.int32), offsets, counts)
    for index, place in enumerate(member.tolist()):
        assert ranges[place].object == objects[index]
        assert ranges[place].start <= offsets[index]
        assert offsets[index] + counts[index] <= ranges[place].stop
    wasted = 0
    for place, wanted in enumerate(ranges):
        mine = np.flatnonzero(member == place)
        assert wanted.n_bytes <= MOST_RANGE_BYTES or len(mine) == 1
        covered, edge = 0, wanted.start
        for index in mine[np.argsort(offsets[mine], kind="stable")].tolist():
            assert offsets[index] - edge <= MOST_GAP_BYTES
            covered += max(0, offsets[index] + counts[index] - max(edge, offsets[index]))
            edge = max(edge, offsets[index] + counts[index])
        assert edge == wanted.stop
        wasted += wanted.n_bytes - covered
    assert wasted <= GAP_SHARE * counts.sum()


def test_neighbours_are_one_request() -> None:
    counts = np.full(400, 10_000, np.int64)
    offsets = np.cumsum(counts) - counts
    ranges, _ = coalesce(np.zeros(400, np.int32), offsets, counts)
    assert ranges == [ByteRange(0, 0, 4_000_000)]


class Slow:
    """Bytes that come a little later; remembers how much was asked for at once."""

    def __init__(self) -> None:
        self.lock, self.asked, self.most_flying, self.flying = threading.Lock(), 0, 0, 0

    def __call__(self, index: int, start: int, n_bytes: int) -> memoryview:
        with self.lock:
            self.asked += n_bytes
            self.flying += 1
            self.most_flying = max(self.most_flying, self.flying)
        time.sleep(0.005)
        with self.lock:
            self.flying -= 1
        return memoryview(bytes(n_bytes))


def test_no_more_is_fetched_ahead_than_may_be_held() -> None:
    read, size = Slow(), 1 << 20
    ranges = [ByteRange(0, i * size, (i + 1) * size) for i in range(100)]
    stream = RangeStream(read, ranges)
    time.sleep(0.3)
    assert read.asked == fetch.AHEAD_BYTES
    for index in range(100):
        assert len(stream.take(index)) == size
        assert read.asked <= fetch.AHEAD_BYTES + (index + 1) * size
        stream.release(index)
    assert read.asked == 100 * size
    assert read.most_flying <= fetch.MOST_IN_FLIGHT
    stream.close()


def test_what_is_asked_for_comes_though_the_room_is_full() -> None:
    read, size = Slow(), 1 << 20
    ranges = [ByteRange(0, i * size, (i + 1) * size) for i in range(80)]
    stream = RangeStream(read, ranges)
    assert len(stream.take(79)) == size
    for index in range(79):
        stream.take(index)
        stream.release(index)
    stream.release(79)
    assert read.asked == 80 * size
    stream.close()


def test_a_failed_request_is_told_to_who_asks() -> None:
    def failing(index: int, start: int, n_bytes: int) -> memoryview:
        raise UnreachableError("a: no answer.")

    stream = RangeStream(failing, [ByteRange(0, 0, 10), ByteRange(0, 10, 20)])
    with pytest.raises(UnreachableError, match="no answer"):
        stream.take(0)
    stream.close()
