"""The fast path: a slide read straight from its tables of compressed tiles."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_pipeline.ranged_file import ReadCounts
from ray_pipeline.slides.bands import Group, Windows, tiles_under
from ray_pipeline.slides.levels import Level, Overview, box_mean, overview_reading, settle_mpp
from ray_pipeline.slides.reading import GLASS, BandReader
from ray_pipeline.slides.resample import resample, rim_px
from ray_pipeline.slides.tables import SlideIndex
from ray_pipeline.store import Store

OVERVIEW_RANGE_BYTES = 16 << 20
"""Longest request for an overview, all of which is wanted."""

MOST_ROOMS = 3
"""Parts' memory that is kept to be used again: one being filled, one on its way, one to spare."""

Pixels = npt.NDArray[np.uint8]


class TiledSlide:
    """A `Slide` over tables of compressed tiles, whatever container they were found in.

    Memory beside the tiles handed out: the decoded pixels that `reading` keeps, the windows of one
    group of tiles where they are resampled, and what `fetch` holds.
    """

    reader = "direct"

    def __init__(
        self,
        store: Store,
        index: SlideIndex,
        *,
        uri: str,
        slide_id: str,
        etag: str,
        counts: ReadCounts,
        mpp_override: float | None,
        threads: int = 1,
    ) -> None:
        """Take over what `index` found; `counts` says what finding it cost. Raises NoMppError."""
        self.slide_id, self.uri, self.etag, self.counts = slide_id, uri, etag, counts
        self.vendor, self.icc_profile = index.vendor, index.icc_profile
        self.size_bytes = sum(info.size_bytes for info in index.objects)
        self.mpp = settle_mpp(slide_id, index.mpp_x, index.mpp_y, mpp_override)
        self._store, self._objects, self._tables = store, index.objects, index.tables
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._rooms = _Rooms()
        self._reader: tuple[tuple[int, int], BandReader] | None = None
        first = index.tables[0]
        downsamples = [
            (first.width_px / table.width_px + first.height_px / table.height_px) / 2
            for table in index.tables
        ]
        self.levels = tuple(
            Level(
                index=number,
                width_px=table.width_px,
                height_px=table.height_px,
                downsample=downsample,
                mpp=self.mpp.value * downsample,
                reduces=table.reduces,
            )
            for number, (table, downsample) in enumerate(
                zip(index.tables, downsamples, strict=True)
            )
        )

    def overview(self, mpp: float) -> Overview:
        """See `Slide.overview`: decoded as small as the codec can, then averaged over boxes."""
        named = f"{self.slide_id}: {self.uri}"
        level, reduce, factor = overview_reading(self.levels, mpp, named=named)
        width, height = -(-level.width_px // reduce), -(-level.height_px // reduce)
        rows = -(-self._tables[level.index].tile_height_px // reduce)
        tops = np.arange(0, height, rows)
        strips = Windows(
            left=np.zeros_like(tops),
            top=tops,
            width=np.full_like(tops, width),
            height=np.minimum(rows, height - tops),
        )
        parts = [strips.part(slice(i, i + 1)) for i in range(len(tops))]
        means, rest = [], np.empty((0, width, 3), np.uint8)
        room = np.empty((1, rows, width, 3), np.uint8)
        reader = self._band_reader(level.index, reduce)
        for group in reader.fill(parts, lambda _: room, most_range_bytes=OVERVIEW_RANGE_BYTES):
            strip = room[0, : int(strips.height[group.part])]
            rest = np.concatenate((rest, strip))
            whole = len(rest) // factor * factor
            means.append(box_mean(rest[:whole], factor))
            rest = rest[whole:]
        means.append(box_mean(rest, factor))
        return Overview(
            rgb=np.concatenate(means),
            downsample_x=level.downsample * reduce * factor,
            downsample_y=level.downsample * reduce * factor,
        )

    def read_tiles(
        self,
        *,
        level: int,
        xy: npt.NDArray[np.int32],
        side_px: float,
        tile_px: int,
        reduce: int = 1,
    ) -> Pixels:
        """See `Slide.read_tiles`."""
        (tiles,) = self.read_parts(
            level=level, parts=[xy], side_px=side_px, tile_px=tile_px, reduce=reduce
        )
        return tiles

    def read_parts(
        self,
        *,
        level: int,
        parts: Sequence[npt.NDArray[np.int32]],
        side_px: float,
        tile_px: int,
        reduce: int = 1,
    ) -> Iterator[Pixels]:
        """See `Slide.read_parts`."""
        chosen = self.levels[level]
        places = [_placed(xy, chosen, reduce, side_px, tile_px) for xy in parts]
        tiles: dict[int, Pixels] = {}
        room = np.empty(0, np.uint8)

        def target(group: Group) -> Pixels:
            nonlocal room
            if group.part not in tiles:
                tiles[group.part] = self._rooms.take((len(parts[group.part]), tile_px, tile_px, 3))
            into = tiles[group.part][group.tiles]
            windows = places[group.part].windows.part(group.tiles)
            if side_px == tile_px:
                if min(windows.width.min(), windows.height.min()) < tile_px:
                    into[:] = GLASS
                return into
            shape = (len(into), int(windows.height.max()), int(windows.width.max()), 3)
            if room.size < np.prod(shape):
                room = np.empty(int(np.prod(shape)), np.uint8)
            return room[: np.prod(shape)].reshape(shape)

        finished = 0
        seen: Pixels | None = None

        def remembered(group: Group) -> Pixels:
            nonlocal seen
            seen = target(group)
            return seen

        windows = [place.windows for place in places]
        for group in self._band_reader(level, reduce).fill(windows, remembered):
            if side_px != tile_px:
                assert seen is not None
                self._resample(places[group.part], group, seen, side_px, tiles[group.part])
            while finished < group.part or (
                finished == group.part and group.tiles.stop == len(parts[finished])
            ):
                yield tiles.pop(finished, np.empty((0, tile_px, tile_px, 3), np.uint8))
                finished += 1
        for _ in range(finished, len(parts)):
            yield np.empty((0, tile_px, tile_px, 3), np.uint8)

    def compressed_bytes(
        self, *, level: int, xy: npt.NDArray[np.int32], side_px: float, reduce: int = 1
    ) -> int:
        """See `Slide.compressed_bytes`."""
        table = self._tables[level]
        # Without the rim that resampling reads, which is what tiles of the model's side need.
        windows = _placed(xy, self.levels[level], reduce, side_px, side_px).windows
        return int(table.counts[tiles_under(table, windows, reduce)].sum())

    def close(self) -> None:
        """Let go of what is kept, and of the threads."""
        self._reader = None
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _band_reader(self, level: int, reduce: int) -> BandReader:
        if self._reader is None or self._reader[0] != (level, reduce):
            reader = BandReader(
                self._tables[level],
                reduce,
                read=self._fetch,
                counts=self.counts,
                pool=self._pool,
                named=f"{self.slide_id}: {self.uri}, level {level}",
            )
            self._reader = (level, reduce), reader
        return self._reader[1]

    async def _fetch(self, index: int, start: int, n_bytes: int) -> memoryview:
        info = self._objects[index]
        return await self._store.get_range_async(
            info.key, start, n_bytes, etag=info.etag, counts=self.counts
        )

    def _resample(
        self, place: _Place, group: Group, seen: Pixels, side_px: float, tiles: Pixels
    ) -> None:
        windows = place.windows.part(group.tiles)
        lefts, tops = place.left[group.tiles].tolist(), place.top[group.tiles].tolist()
        into = tiles[group.tiles]
        tile_px = into.shape[1]

        def some(first: int, step: int) -> None:
            for i in range(first, len(into), step):
                window = seen[i, : windows.height[i], : windows.width[i]]
                into[i] = resample(window, lefts[i], tops[i], side_px, tile_px)

        if self._pool is None:
            some(0, 1)
            return
        threads = self._pool._max_workers
        running = [self._pool.submit(some, first, threads) for first in range(threads)]
        wait(running)
        for future in running:
            future.result()


class _Rooms:
    """Memory of tiles that were handed out, used again once nobody refers to it any more.

    The first touch of new memory costs as much as a fifth of decoding into it.
    """

    def __init__(self) -> None:
        self._rooms: list[Pixels] = []

    def take(self, shape: tuple[int, ...]) -> Pixels:
        """Memory for uint8 of `shape`, with anything in it."""
        size = math.prod(shape)
        for index in range(len(self._rooms)):
            # Arrays made of a room, and Arrow's buffers of these, refer to it: the list and
            # getrefcount's own argument are the two references that are always there.
            if sys.getrefcount(self._rooms[index]) == 2 and self._rooms[index].size >= size:
                return self._rooms[index][:size].reshape(shape)
        room = np.empty(size, np.uint8)
        self._rooms = [*self._rooms[-(MOST_ROOMS - 1) :], room]
        return room.reshape(shape)


@dataclass(frozen=True)
class _Place:
    """Where tiles lie: the windows that are read, and their corners inside these, px."""

    windows: Windows
    left: npt.NDArray[np.float64]
    top: npt.NDArray[np.float64]


def _placed(
    xy: npt.NDArray[np.int32], level: Level, reduce: int, side_px: float, tile_px: float
) -> _Place:
    size = np.array([-(-level.width_px // reduce), -(-level.height_px // reduce)])
    origins = xy / (level.downsample * reduce)
    if side_px == tile_px:
        starts = np.clip(np.rint(origins), 0, np.maximum(size - np.ceil(side_px), 0)).astype(int)
        stops = np.minimum(starts + int(np.ceil(side_px)), size)
        corners = np.zeros_like(origins)
    else:
        # The rim is always read, so a tile's pixels never depend on its company.
        rim = rim_px(side_px, int(tile_px))
        starts = np.maximum(np.floor(origins).astype(int) - rim, 0)
        stops = np.minimum(np.ceil(origins + side_px).astype(int) + rim, size)
        corners = origins - starts
    extent = np.maximum(stops - starts, 1)
    windows = Windows(left=starts[:, 0], top=starts[:, 1], width=extent[:, 0], height=extent[:, 1])
    return _Place(windows, corners[:, 0], corners[:, 1])
