"""Bands of compressed tiles to pixels: fetched ahead, decoded once, copied where they belong."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ray_pipeline.errors import DamagedSlideError
from ray_pipeline.slides.bands import Step, Windows, plan_bands, reduced_tile
from ray_pipeline.slides.fetch import MOST_RANGE_BYTES, ByteRange, RangeStream, Read, coalesce
from ray_pipeline.slides.tables import TileTable
from ray_pipeline.slides.threads import Task, Threads
from ray_pipeline.slides.tiff_header import PARSER_ERRORS, short

GLASS = 255
"""Every channel of tiles the file leaves out, as scanners do where they saw no tissue."""
KEPT_BYTES = 64 << 20
"""Most decoded pixels that are kept from one run of windows to the next."""
STEPS_AT_ONCE = 16
"""Compressed tiles that a thread takes at a time."""
SEGMENT_BYTES = 16 << 20
"""Compressed bytes within which neighbours are looked for: bounds how long some wait their turn."""

Pixels = npt.NDArray[np.uint8]


class Targets(Protocol):
    """Where the windows' pixels go."""

    def of(self, windows: Sequence[int]) -> Mapping[int, Pixels]:
        """Window -> uint8 [h, w, 3], at least as large as the window, for all these and others."""
        ...

    def whole(self, windows: Sequence[int]) -> None:
        """These windows have all their pixels."""
        ...


class BandReader:
    """Reads one level at one reduction. Keeps the compressed tiles under the last row it read."""

    def __init__(
        self,
        table: TileTable,
        reduce: int,
        *,
        read: Read,
        needed: Callable[[int], None],
        threads: Threads,
        named: str,
    ) -> None:
        """`threads` decode.

        `needed` is told the bytes of compressed tiles that were decoded, and `named` tells errors
        which level of which slide this is.
        """
        self._table, self._reduce, self._read = table, reduce, read
        self._needed, self._threads, self._named = needed, threads, named
        self._lock = threading.Lock()
        width, height = reduced_tile(table, reduce)
        self._tile_bytes = width * height * 3
        self._kept: dict[int, Pixels] = {}
        self._rooms: list[Pixels] = []

    def fill(
        self, windows: Windows, targets: Targets, *, most_range_bytes: int = MOST_RANGE_BYTES
    ) -> Iterator[None]:
        """Fill the targets of `windows` in order; comes back whenever some of them are whole.

        Each target is filled from its left top corner on. Raises DamagedSlideError or a StoreError.
        """
        plan = plan_bands(self._table, windows, self._reduce)
        here = self._kept
        # Those of earlier runs that reach down to the last row may be needed further along it.
        self._kept = {tile: here[tile] for tile in here if tile >= plan.first_lingering}
        room = max(0, KEPT_BYTES // self._tile_bytes - len(self._kept))
        keep = frozenset(np.sort(plan.lingering)[:room].tolist())
        tiles = np.where(np.isin(plan.tiles, list(here)), -1, plan.tiles)
        loads = _Loads(self._table, tiles, self._read, most_range_bytes)
        by_last = np.argsort(plan.last_step, kind="stable")
        ends = np.searchsorted(plan.last_step[by_last], np.arange(len(tiles)), side="right")
        finished = 0
        running: deque[tuple[int, Task]] = deque()
        try:
            for first in range(0, len(tiles), STEPS_AT_ONCE):
                chunk = plan.steps(first, min(first + STEPS_AT_ONCE, len(tiles)))
                filled = sorted({paste[0] for step in chunk for paste in step.pastes})
                into = targets.of(filled)
                job = partial(self._run, first, chunk, into, loads, here=here, keep=keep)
                running.append((first + len(chunk), self._threads.start(job)))
                last = first + STEPS_AT_ONCE >= len(tiles)
                most = 0 if last else self._threads.most_under_way
                # Helpers have work through whatever is done with the pixels that are handed out.
                while len(running) > most or (
                    running and running[0][1].done and self._threads.full
                ):
                    stop, task = running.popleft()
                    self._threads.finish(task)
                    end = int(ends[stop - 1])
                    if end > finished:
                        targets.whole(by_last[finished:end].tolist())
                        finished = end
                        yield
        finally:
            loads.close()
            # The last one first, lest helpers begin with what is dropped next.
            for _, task in reversed(running):
                task.drop()

    def _run(
        self,
        first: int,
        steps: Sequence[Step],
        targets: Mapping[int, Pixels],
        loads: _Loads,
        *,
        here: Mapping[int, Pixels],
        keep: frozenset[int],
    ) -> None:
        """Decode the plan's steps from number `first` on, and copy their pixels into `targets`."""
        needed = 0
        with self._lock:
            room = self._rooms.pop() if self._rooms else _decoding_room(self._tile_bytes)
        stop = first + len(steps)
        for (tile, pastes), data in zip(steps, loads.taken(first, stop), strict=True):
            pixels = here.get(tile)
            if pixels is None:
                if data is None:
                    for window, top, bottom, left, right, *_ in pastes:
                        targets[window][top:bottom, left:right] = GLASS
                    continue
                needed += len(data)
                pixels = self._decoded(tile, data, room)
            for window, top, bottom, left, right, t, b, lf, r in pastes:
                targets[window][top:bottom, left:right] = pixels[t:b, lf:r]
            if tile in keep and tile not in here:
                self._kept[tile] = pixels.copy()
        loads.release(first, stop)
        with self._lock:
            self._rooms.append(room)
            self._needed(needed)

    def _decoded(self, tile: int, data: memoryview, room: Pixels) -> Pixels:
        table = self._table
        size = table.tile_size(tile)
        try:
            pixels = table.codec.decode(data, size, self._reduce, room)
        except PARSER_ERRORS as error:
            fault = short(error)
        else:
            height, width = -(-size.inside_y // self._reduce), -(-size.inside_x // self._reduce)
            if pixels.shape[0] >= height and pixels.shape[1] >= width:
                return pixels
            fault = f"{pixels.shape[1]} x {pixels.shape[0]} px where {width} x {height} belong"
        row, column = divmod(tile, table.columns)
        x, y = column * table.tile_width_px, row * table.tile_height_px
        raise DamagedSlideError(
            f"{self._named}: the compressed tile {tile} at x {x}, y {y} can't be decoded "
            f"({fault}): the file is damaged; upload it again."
        )


def _decoding_room(n_bytes: int) -> Pixels:
    """Memory for one tile's pixels, at an odd address.

    libjpeg-turbo's SIMD writes rows that start at a multiple of 16 or 32 bytes past the cache
    (simd/x86_64/jdcolext-avx2.asm), and copying from there waits for memory: an eighth of reading.
    """
    return np.empty(n_bytes + 1, np.uint8)[1:]


class _Loads:
    """The bytes of compressed tiles, to be taken once each, about in the order of `chosen`."""

    def __init__(
        self, table: TileTable, chosen: npt.NDArray[np.int64], read: Read, most: int
    ) -> None:
        """Fetch the tiles `chosen`, but for those below 0, in ranges of at most `most` bytes."""
        offsets, counts = table.offsets[chosen], np.where(chosen < 0, 0, table.counts[chosen])
        objects = (
            np.zeros(len(chosen), np.int32) if table.objects is None else table.objects[chosen]
        )
        self._ranges: list[ByteRange] = []
        range_of = np.full(len(chosen), -1, np.int64)
        self._left: list[int] = []
        held = np.flatnonzero(counts > 0)
        segment = np.cumsum(counts[held]) // SEGMENT_BYTES
        for number in np.unique(segment):
            members = held[segment == number]
            pieces = objects[members], offsets[members], counts[members]
            ranges, member = coalesce(*pieces, most_range_bytes=most)
            first_wanted = np.full(len(ranges), len(chosen))
            np.minimum.at(first_wanted, member, members)
            order = np.argsort(first_wanted)
            place = np.empty(len(order), np.int64)
            place[order] = np.arange(len(order)) + len(self._ranges)
            range_of[members] = place[member]
            self._left.extend(np.bincount(member, minlength=len(ranges))[order].tolist())
            self._ranges.extend(ranges[i] for i in order)
        starts = np.array([wanted.start for wanted in self._ranges], np.int64)
        within = offsets - starts[range_of] if len(starts) else offsets
        self._range_of = range_of.tolist()
        self._starts, self._stops = within.tolist(), (within + counts).tolist()
        self._lock = threading.Lock()
        self._stream = RangeStream(read, self._ranges)

    def taken(self, first: int, stop: int) -> Iterator[memoryview | None]:
        """Bytes of the tiles at these places, one by one; None where there is nothing to fetch.

        Raises StoreError.
        """
        chosen = slice(first, stop)
        places = (self._range_of[chosen], self._starts[chosen], self._stops[chosen])
        at, fetched = -1, memoryview(b"")
        for index, begin, end in zip(*places, strict=True):
            if index < 0:
                yield None
                continue
            if index != at:
                at, fetched = index, self._stream.take(index)
            yield fetched[begin:end]

    def release(self, first: int, stop: int) -> None:
        """Say that the tiles at these places are decoded."""
        done = []
        with self._lock:
            for index in self._range_of[first:stop]:
                if index >= 0:
                    self._left[index] -= 1
                    if not self._left[index]:
                        done.append(index)
        for index in done:
            self._stream.release(index)

    def close(self) -> None:
        """Give up what is still under way."""
        self._stream.close()
