"""Bands of compressed tiles to pixels: fetched ahead, decoded once, copied where they belong."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import numpy.typing as npt

from ray_pipeline.errors import DamagedSlideError
from ray_pipeline.ranged_file import ReadCounts
from ray_pipeline.slides.bands import Group, Job, Windows, plan_stream
from ray_pipeline.slides.fetch import MOST_RANGE_BYTES, ByteRange, RangeStream, Read, coalesce
from ray_pipeline.slides.tables import TileTable
from ray_pipeline.slides.tiff import PARSER_ERRORS, short

GLASS = 255
"""Every channel of tiles the file leaves out, as scanners do where they saw no tissue."""
KEPT_BYTES = 128 << 20
"""Decoded pixels that are kept from one row of tiles to the next."""
JOBS_AT_ONCE = 8
"""Compressed tiles that a thread takes at a time."""
SEGMENT_BYTES = 16 << 20
"""Compressed bytes within which neighbours are looked for: bounds how long some wait their turn."""

Pixels = npt.NDArray[np.uint8]


class BandReader:
    """Reads one level at one reduction. Keeps the compressed tiles under the last row it read."""

    def __init__(
        self,
        table: TileTable,
        reduce: int,
        *,
        read: Read,
        counts: ReadCounts,
        pool: ThreadPoolExecutor | None,
        named: str,
    ) -> None:
        """`named` tells errors which level of which slide; `pool` decodes where there is one."""
        self._table, self._reduce, self._read = table, reduce, read
        self._counts, self._pool, self._named = counts, pool, named
        self._lock = threading.Lock()
        width = -(-table.tile_width_px // reduce)
        self._tile_bytes = width * -(-table.tile_height_px // reduce) * 3
        self._kept: dict[int, tuple[Pixels, Pixels]] = {}
        self._rooms: list[Pixels] = []

    def fill(
        self,
        parts: Sequence[Windows],
        target: Callable[[Group], Pixels],
        *,
        most_range_bytes: int = MOST_RANGE_BYTES,
    ) -> Iterator[Group]:
        """Fill `target(group)`, uint8 [n, h, w, 3], with the pixels of its windows, group by group.

        Each window is filled from its left top corner on. Raises DamagedSlideError or a StoreError.
        """
        most_kept = max(1, KEPT_BYTES // self._tile_bytes)
        plan = plan_stream(self._table, parts, self._reduce, resident=self._kept, room=most_kept)
        wanted = {job.tile for group in plan.groups for job in group.jobs if job.load is None}
        for tile in set(self._kept) - wanted:
            self._drop(tile)
        loads = _Loads(self._table, plan.loads, self._read, most_range_bytes)
        try:
            for group in plan.groups:
                self._run(group.jobs, loads, target(group))
                yield group
        finally:
            loads.close()

    def _run(self, jobs: Sequence[Job], loads: _Loads, into: Pixels) -> None:
        if self._pool is None:
            self._do(jobs, loads, into)
            return
        chunks = [jobs[i : i + JOBS_AT_ONCE] for i in range(0, len(jobs), JOBS_AT_ONCE)]
        running = [self._pool.submit(self._do, chunk, loads, into) for chunk in chunks]
        wait(running)
        for future in running:
            future.result()

    def _do(self, jobs: Sequence[Job], loads: _Loads, into: Pixels) -> None:
        for job in jobs:
            if self._table.counts[job.tile] == 0:
                for window, top, bottom, left, right, *_ in job.pastes:
                    into[window, top:bottom, left:right] = GLASS
                continue
            pixels = self._kept[job.tile][0] if job.load is None else self._load(job, loads)
            for window, top, bottom, left, right, t, b, lf, r in job.pastes:
                into[window, top:bottom, left:right] = pixels[t:b, lf:r]
            if not job.keep:
                self._drop(job.tile)

    def _load(self, job: Job, loads: _Loads) -> Pixels:
        """Decode a compressed tile; it stays among the kept ones until it is dropped."""
        assert job.load is not None
        table = self._table
        data = loads.take(job.load)
        with self._lock:
            room = self._rooms.pop() if self._rooms else np.empty(self._tile_bytes, np.uint8)
        try:
            pixels = table.codec.decode(data, table.tile_size(job.tile), self._reduce, room)
        except PARSER_ERRORS as error:
            row, column = divmod(job.tile, table.columns)
            x, y = column * table.tile_width_px, row * table.tile_height_px
            raise DamagedSlideError(
                f"{self._named}: the compressed tile {job.tile} at x {x}, y {y} can't be decoded "
                f"({short(error)}): the file is damaged; upload it again."
            ) from error
        # A codec without use for the room may have handed out the fetched bytes themselves.
        if job.keep and not pixels.flags.owndata and not np.shares_memory(pixels, room):
            pixels = pixels.copy()
        with self._lock:
            self._counts.bytes_needed += len(data)
            self._kept[job.tile] = (pixels, room)
        loads.release(job.load)
        return pixels

    def _drop(self, tile: int) -> None:
        with self._lock:
            self._rooms.append(self._kept.pop(tile)[1])


class _Loads:
    """The bytes of compressed tiles, by the number of their load."""

    def __init__(self, table: TileTable, tiles: Sequence[int], read: Read, most: int) -> None:
        chosen = np.asarray(tiles, np.int64)
        offsets, counts = table.offsets[chosen], table.counts[chosen]
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
        places = (range_of, within, within + counts)
        self._places = list(zip(*(array.tolist() for array in places), strict=True))
        self._lock = threading.Lock()
        self._stream = RangeStream(read, self._ranges)

    def take(self, load: int) -> memoryview:
        """The bytes of one compressed tile. Raises StoreError."""
        index, start, stop = self._places[load]
        return self._stream.take(index)[start:stop]

    def release(self, load: int) -> None:
        """Say that one compressed tile is decoded."""
        index = self._places[load][0]
        with self._lock:
            self._left[index] -= 1
            done = self._left[index] == 0
        if done:
            self._stream.release(index)

    def close(self) -> None:
        """Give up what is still under way."""
        self._stream.close()
