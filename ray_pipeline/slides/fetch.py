"""Compressed tiles from object storage: neighbours in one request, several requests ahead.

Memory is bounded: a stream holds at most AHEAD_BYTES that nobody has asked for yet, and beside them
only the ranges under the tiles that are being decoded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

MOST_GAP_BYTES = 64 << 10
"""Bytes between two wanted tiles that are fetched rather than asked around."""
GAP_SHARE = 0.025
"""Of the bytes of wanted tiles, how many more may be fetched in gaps; the smallest gaps first."""
MOST_RANGE_BYTES = 4 << 20
"""Longest request: at 30 ms a request and 80 MB/s a connection, latency is then a third of it."""
AHEAD_BYTES = 32 << 20
"""Bytes that are fetched before they are asked for."""
MOST_IN_FLIGHT = 48
"""Requests at once in a process: at 30 ms a request, enough for ranges of no more than 100 KB."""

Read = Callable[[int, int, int], memoryview]
"""(object, first byte, number of bytes) -> the bytes. Called on many threads at once."""


@dataclass(frozen=True)
class ByteRange:
    """One ranged GET."""

    object: int
    """Which of the slide's objects."""
    start: int
    """First byte."""
    stop: int
    """First byte after it."""

    @property
    def n_bytes(self) -> int:
        """Bytes it fetches."""
        return self.stop - self.start


def coalesce(
    objects: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    *,
    most_range_bytes: int = MOST_RANGE_BYTES,
) -> tuple[list[ByteRange], npt.NDArray[np.int64]]:
    """Ranges that cover the given pieces, in the order of objects and offsets, and whose is whose.

    The pieces are int [n] each, in any order, and may overlap. Returns the ranges and, int64 [n],
    the index of each piece's range.
    """
    if not len(offsets):
        return [], np.empty(0, np.int64)
    order = np.lexsort((offsets, objects))
    where, start, stop = objects[order], offsets[order], (offsets + counts)[order]
    same = where[1:] == where[:-1]
    # Furthest byte of all pieces before: a small piece may lie inside a large one.
    reach = np.empty_like(stop)
    for first, last in _runs_of(where):
        reach[first:last] = np.maximum.accumulate(stop[first:last])
    gaps = np.where(same, np.maximum(start[1:] - reach[:-1], 0), MOST_GAP_BYTES + 1)
    joined = gaps == 0
    candidates = np.flatnonzero((gaps > 0) & (gaps <= MOST_GAP_BYTES))
    candidates = candidates[np.argsort(gaps[candidates], kind="stable")]
    affordable = np.cumsum(gaps[candidates]) <= GAP_SHARE * counts.sum()
    joined[candidates[affordable]] = True
    begins = np.concatenate(([True], ~joined))
    firsts = np.flatnonzero(begins)
    lasts = np.append(firsts[1:], len(order)) - 1
    too_long = reach[lasts] - start[firsts] > most_range_bytes
    for first, last in zip(firsts[too_long].tolist(), lasts[too_long].tolist(), strict=True):
        begin = end = int(start[first])
        pieces = zip(start[first : last + 1].tolist(), stop[first : last + 1].tolist(), strict=True)
        for i, (first_byte, after) in enumerate(pieces, first):
            if i > first and max(end, after) - begin > most_range_bytes:
                begins[i], begin, end = True, first_byte, after
            end = max(end, after)
    cuts = np.flatnonzero(begins)
    bounds = (where[cuts], start[cuts], np.maximum.reduceat(stop, cuts))
    ranges = [ByteRange(*bound) for bound in zip(*(b.tolist() for b in bounds), strict=True)]
    member = np.empty(len(order), np.int64)
    member[order] = np.cumsum(begins) - 1
    return ranges, member


def _runs_of(values: npt.NDArray[np.int32]) -> list[tuple[int, int]]:
    """(first, one past the last) of each run of equal values."""
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return list(pairwise(edges))


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    """Blocking requests on threads: they cost half of what the same ones on an event loop do."""
    return ThreadPoolExecutor(MOST_IN_FLIGHT, thread_name_prefix="ranged-reads")


class RangeStream:
    """The bytes of many ranges, fetched ahead in their order and held until they are released."""

    def __init__(self, read: Read, ranges: Sequence[ByteRange]) -> None:
        self._read, self._ranges = read, ranges
        # Reentrant: a request that is done before it is looked at reports back at once.
        self._lock = threading.RLock()
        self._futures: dict[int, Future[memoryview]] = {}
        self._here: dict[int, memoryview] = {}
        self._started: set[int] = set()
        self._next = self._held = self._flying = 0
        self._closed = False
        self._pump()

    def take(self, index: int) -> memoryview:
        """The bytes of range `index`; waits for them. May be called again until it is released.

        Raises StoreError.
        """
        here = self._here.get(index)
        if here is not None:
            return here
        with self._lock:
            # What is asked for is never kept waiting by what was fetched ahead.
            if index not in self._started:
                self._start(index)
            future = self._futures[index]
        return self._here.setdefault(index, future.result())

    def release(self, index: int) -> None:
        """Let go of a range's bytes, and fetch further ahead in its place."""
        with self._lock:
            self._futures.pop(index)
            self._here.pop(index, None)
            self._held -= self._ranges[index].n_bytes
        self._pump()

    def close(self) -> None:
        """Give up what is still under way."""
        with self._lock:
            self._closed = True
            futures = list(self._futures.values())
            self._futures.clear()
            self._here.clear()
        for future in futures:
            future.cancel()

    def _pump(self) -> None:
        with self._lock:
            while self._next < len(self._ranges) and self._flying < MOST_IN_FLIGHT:
                size = self._ranges[self._next].n_bytes
                if self._closed or (self._held and self._held + size > AHEAD_BYTES):
                    return
                self._next += 1
                if self._next - 1 not in self._started:
                    self._start(self._next - 1)

    def _start(self, index: int) -> None:
        wanted = self._ranges[index]
        self._started.add(index)
        self._held += wanted.n_bytes
        self._flying += 1
        future = _threads().submit(self._read, wanted.object, wanted.start, wanted.n_bytes)
        self._futures[index] = future
        future.add_done_callback(self._landed)

    def _landed(self, _future: Future[memoryview]) -> None:
        with self._lock:
            self._flying -= 1
        self._pump()
