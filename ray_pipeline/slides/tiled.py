"""The fast path: a slide read straight from its tables of compressed tiles."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_pipeline.errors import TooLargeError
from ray_pipeline.ranged_file import ReadCounts
from ray_pipeline.slides.bands import Windows, tiles_under
from ray_pipeline.slides.fetch import coalesce
from ray_pipeline.slides.levels import (
    MOST_TILE_PX,
    Level,
    Overview,
    box_mean,
    overview_reading,
    settle_mpp,
)
from ray_pipeline.slides.reading import BandReader
from ray_pipeline.slides.resample import rim_px
from ray_pipeline.slides.tables import SlideIndex
from ray_pipeline.slides.targets import ResampledTiles, Rooms, Strips, Tiles
from ray_pipeline.slides.threads import Threads
from ray_pipeline.store import Store

OVERVIEW_RANGE_BYTES = 16 << 20
"""Longest request for an overview, all of which is wanted."""

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
        self._store, self._objects, self.tables = store, index.objects, index.tables
        self._counting = threading.Lock()
        self._threads = Threads(threads)
        self._rooms = Rooms()
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
                codec=table.codec.name,
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
        rows = -(-self.tables[level.index].tile_height_px // reduce)
        if rows * width > MOST_TILE_PX:
            raise TooLargeError(
                f"{named}: a row of compressed tiles of level {level.index} has {width} x {rows} "
                f"px, past the limit of {MOST_TILE_PX} px: convert it to a TIFF in smaller tiles."
            )
        tops = np.arange(0, height, rows)
        strips = Windows(
            left=np.zeros_like(tops),
            top=tops,
            width=np.full_like(tops, width),
            height=np.minimum(rows, height - tops),
        )
        targets = Strips(strips)
        means, rest = [], np.empty((0, width, 3), np.uint8)
        reader = self._band_reader(level.index, reduce)
        for _ in reader.fill(strips, targets, most_range_bytes=OVERVIEW_RANGE_BYTES):
            rest = np.concatenate((rest, *targets.taken()))
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
        if not parts:
            return
        chosen = self.levels[level]
        places = [_placed(xy, chosen, reduce, side_px, tile_px) for xy in parts]
        windows = Windows.joined([place.windows for place in places])
        if side_px == tile_px:
            targets: Tiles = Tiles(parts, tile_px, self._rooms, windows)
        else:
            left, top = (np.concatenate([getattr(p, c) for p in places]) for c in ("left", "top"))
            corners = np.stack((left, top), axis=1)
            targets = ResampledTiles(
                parts,
                tile_px,
                self._rooms,
                windows,
                corners=corners,
                side_px=side_px,
                threads=self._threads,
            )
        yield from targets.taken()
        for _ in self._band_reader(level, reduce).fill(windows, targets):
            yield from targets.taken()

    def compressed_bytes(
        self, *, level: int, xy: npt.NDArray[np.int32], side_px: float, reduce: int = 1
    ) -> int:
        """See `Slide.compressed_bytes`."""
        under = self.compressed_tiles(level=level, xy=xy, side_px=side_px, reduce=reduce)
        return int(self.tables[level].counts[under].sum())

    def ranges(
        self, *, level: int, xy: npt.NDArray[np.int32], side_px: float, reduce: int = 1
    ) -> int:
        """See `Slide.ranges`."""
        under = self.compressed_tiles(level=level, xy=xy, side_px=side_px, reduce=reduce)
        table = self.tables[level]
        held = under[table.counts[under] > 0]
        objects = np.zeros(len(held), np.int32) if table.objects is None else table.objects[held]
        return len(coalesce(objects, table.offsets[held], table.counts[held])[0])

    def compressed_tiles(
        self, *, level: int, xy: npt.NDArray[np.int32], side_px: float, reduce: int = 1
    ) -> npt.NDArray[np.int64]:
        """Indexes in the level's table of the compressed tiles under the given tiles, each once.

        Without those that lie only under the rim which resampling reads beside a tile.
        """
        windows = _placed(xy, self.levels[level], reduce, side_px, side_px).windows
        return tiles_under(self.tables[level], windows, reduce)

    def close(self) -> None:
        """Let go of what is kept, and of the threads."""
        self._reader = None
        self._threads.close()

    def _band_reader(self, level: int, reduce: int) -> BandReader:
        if self._reader is None or self._reader[0] != (level, reduce):
            reader = BandReader(
                self.tables[level],
                reduce,
                read=self._fetch,
                needed=self._count_needed,
                threads=self._threads,
                named=f"{self.slide_id}: {self.uri}, level {level}",
            )
            self._reader = (level, reduce), reader
        return self._reader[1]

    def _count_needed(self, n_bytes: int) -> None:
        with self._counting:
            self.counts.bytes_needed += n_bytes

    def _fetch(self, index: int, start: int, n_bytes: int) -> memoryview:
        info, cost = self._objects[index], ReadCounts()
        try:
            return self._store.get_range(info.key, start, n_bytes, etag=info.etag, counts=cost)
        finally:
            with self._counting:
                self.counts.add(vars(cost))


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
    # A damaged file may have levels of different shapes.
    origins = np.minimum(xy / (level.downsample * reduce), size - 1)
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
