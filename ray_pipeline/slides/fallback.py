"""A slide read through tiffslide: layouts that are put together of several pictures (SCN, BIF)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from tiffslide import TiffSlide

from ray_pipeline.errors import DamagedSlideError, NotASlideError, StoreError
from ray_pipeline.ranged_file import MOST_AHEAD_BYTES, RangedFile
from ray_pipeline.slides.jpeg import frame_fault
from ray_pipeline.slides.levels import Level, Overview, box_mean, overview_reading, settle_mpp
from ray_pipeline.slides.resample import resample, rim_px
from ray_pipeline.slides.tiff import check_pages, tile_size
from ray_pipeline.slides.tiff_header import PARSER_ERRORS, short, unreadable

MISSING = 255
"""Every channel of tiles the file leaves out, as scanners do where they saw no tissue: glass."""
MOST_RUN_TILES = 16
"""Neighbouring tiles decoded together: bounds a region to some 4,000 px across."""
# All that tifffile decodes as JPEG: 7, and 6 and the others that files may claim instead.
_JPEGS = (7, 6, 33007, 34892)
STRIP_PX = 1 << 24
"""Pixels of one strip while the overview is averaged: bounds it to 48 MB."""


class TiffSlideReader:
    """A `Slide` behind tiffslide, over ranged GETs. Label and macro images are never touched."""

    reader = "tiffslide"

    def __init__(
        self, file: RangedFile, *, uri: str, slide_id: str, mpp_override: float | None
    ) -> None:
        """Parse the file's directory. Raises SlideError subclasses and StoreErrors."""
        self.slide_id, self.uri = slide_id, uri
        self.etag, self.size_bytes, self.counts = file.etag, file.size_bytes, file.counts
        self._file = file
        try:
            self._slide = TiffSlide(file)
            with warnings.catch_warnings():
                # "metadata parsing only partially implemented": what we need is checked below.
                warnings.simplefilter("ignore", UserWarning)
                properties: dict[str, Any] = dict(self._slide.properties)
            self._series = _placed_series(self._slide.ts_tifffile, properties)
            dimensions = list(self._slide.level_dimensions)
            downsamples = [float(value) for value in self._slide.level_downsamples]
            pages = [
                placed.page for level in range(len(dimensions)) for placed in self._pages(level)
            ]
            check_pages(pages, self._named(), size_bytes=file.size_bytes)
            profile = pages[0].tags.valueof(34675)
        except NotImplementedError as error:
            raise NotASlideError(
                f"{self._named()} has a layout that can't be read ({short(error)}): convert it to "
                "a pyramidal TIFF of one RGB picture."
            ) from error
        except PARSER_ERRORS as error:
            raise unreadable(self._named(), error) from error
        self.icc_profile = bytes(profile) if isinstance(profile, bytes) else None
        for page in pages:
            page.keyframe.nodata = MISSING
        unnamed = "ventana" if self._slide.ts_tifffile.is_bif else "generic-tiff"
        self.vendor = str(properties.get("tiffslide.vendor") or unnamed)
        self.mpp = settle_mpp(
            slide_id,
            _number(properties.get("tiffslide.mpp-x")),
            _number(properties.get("tiffslide.mpp-y")),
            mpp_override,
        )
        self.levels = tuple(
            Level(
                index=index,
                width_px=width,
                height_px=height,
                downsample=downsample,
                mpp=self.mpp.value * downsample,
            )
            for index, ((width, height), downsample) in enumerate(
                zip(dimensions, downsamples, strict=True)
            )
        )

    def overview(self, mpp: float) -> Overview:
        """The whole slide at about `mpp`, box-averaged from the coarsest level that is finer."""
        level, _, factor = overview_reading(self.levels, mpp, named=self._named())
        rows = max(1, STRIP_PX // (level.width_px * factor)) * factor
        strips = [
            box_mean(self._region(level, 0, top, level.width_px, rows), factor)
            for top in range(0, level.height_px, rows)
        ]
        return Overview(
            rgb=np.concatenate(strips),
            downsample_x=level.downsample * factor,
            downsample_y=level.downsample * factor,
        )

    def read_parts(
        self,
        *,
        level: int,
        parts: Sequence[npt.NDArray[np.int32]],
        side_px: float,
        tile_px: int,
        reduce: int = 1,
    ) -> Iterator[npt.NDArray[np.uint8]]:
        """See `Slide.read_parts`."""
        for xy in parts:
            yield self.read_tiles(
                level=level, xy=xy, side_px=side_px, tile_px=tile_px, reduce=reduce
            )

    def read_tiles(
        self,
        *,
        level: int,
        xy: npt.NDArray[np.int32],
        side_px: float,
        tile_px: int,
        reduce: int = 1,
    ) -> npt.NDArray[np.uint8]:
        """See `Slide.read_tiles`. Neighbouring tiles of a row are decoded together."""
        assert reduce == 1
        chosen = self.levels[level]
        tiles = np.full((len(xy), tile_px, tile_px, 3), MISSING, np.uint8)
        resampled = side_px != tile_px
        # A damaged file may have levels of different shapes.
        size = np.array([chosen.width_px, chosen.height_px])
        origins = np.minimum(xy / chosen.downsample, size - 1)
        if not resampled:
            origins = np.minimum(np.rint(origins), np.maximum(size - tile_px, 0))
        # The rim is always read, and each tile is resampled from its own window: so its pixels
        # never depend on its company.
        rim = rim_px(side_px, tile_px) if resampled else 0
        starts = np.maximum(np.floor(origins).astype(int) - rim, 0)
        stops = np.ceil(origins + side_px).astype(int) + rim
        stops = np.minimum(stops, size)
        for run in _runs(origins, side_px):
            (left, top), (right, bottom) = starts[run].min(axis=0), stops[run].max(axis=0)
            region = self._region(chosen, left, top, right - left, bottom - top)
            for index in run:
                (x0, y0), (x1, y1) = starts[index] - (left, top), stops[index] - (left, top)
                window = region[y0:y1, x0:x1]
                if resampled:
                    x, y = (origins[index] - starts[index]).tolist()
                    window = resample(window, x, y, side_px, tile_px)
                tiles[index, : len(window), : window.shape[1]] = window
        return tiles

    def compressed_bytes(
        self, *, level: int, xy: npt.NDArray[np.int32], side_px: float, reduce: int = 1
    ) -> int:
        """See `Slide.compressed_bytes`."""
        assert reduce == 1
        total = 0
        for placed in self._pages(level):
            under: set[int] = set()
            for x, y in xy / self.levels[level].downsample:
                under.update(placed.tiles_under(x, y, x + side_px, y + side_px))
            total += sum(placed.page.databytecounts[index] for index in under)
        return total

    def ranges(
        self, *, level: int, xy: npt.NDArray[np.int32], side_px: float, reduce: int = 1
    ) -> int:
        """See `Slide.ranges`; the file is read in blocks."""
        needed = self.compressed_bytes(level=level, xy=xy, side_px=side_px, reduce=reduce)
        return -(-needed // MOST_AHEAD_BYTES)

    def close(self) -> None:
        """Let go of the file."""
        self._slide.close()
        self._file.close()

    def _region(
        self, level: Level, left: int, top: int, width: int, height: int
    ) -> npt.NDArray[np.uint8]:
        """Pixels of one level, clipped to it: uint8 [h, w, 3]; `left`, `top` in px of the level."""
        width = min(width, level.width_px - left)
        height = min(height, level.height_px - top)
        x, y = (_scaled_up(position, level.downsample) for position in (left, top))
        try:
            self._check_tiles(level, left, top, left + width, top + height)
            array = self._slide.read_region((x, y), level.index, (width, height), as_array=True)
        except StoreError:
            raise
        except PARSER_ERRORS as error:
            raise DamagedSlideError(
                f"{self._named()}: pixels at level {level.index}, x {left}, y {top} can't be "
                f"decoded ({short(error)}): the file is damaged; upload it again."
            ) from error
        return np.ascontiguousarray(array, np.uint8)

    def _check_tiles(self, level: Level, left: int, top: int, right: int, bottom: int) -> None:
        """Raise ValueError where a JPEG tile under the region, px of the level, is not whole."""
        for placed in self._pages(level.index):
            page = placed.page
            # Hamamatsu's tiles are pieces of one JPEG; theirs only tifffile can put together.
            if page.compression not in _JPEGS or page.jpegheader is not None:
                continue
            for index in placed.tiles_under(left, top, right, bottom):
                if page.databytecounts[index] == 0:
                    continue
                handle = page.parent.filehandle
                # zarr's thread may still be reading for a region that failed.
                with handle.lock:
                    handle.seek(page.dataoffsets[index])
                    data = handle.read(page.databytecounts[index])
                if fault := frame_fault(data, *tile_size(page)):
                    raise ValueError(f"compressed tile {index} holds {fault}")

    def _pages(self, level: int) -> list[_PlacedPage]:
        """The pages a level is put together of, and where each lies."""
        return [
            _PlacedPage(series.levels[level][0], *(offsets[level] if offsets else (0, 0)))
            for series, offsets in self._series
        ]

    def _named(self) -> str:
        return f"{self.slide_id}: {self.uri}"


@dataclass(frozen=True)
class _PlacedPage:
    """A page and its left top corner in its level, px."""

    page: Any
    top: int
    left: int

    def tiles_under(self, left: float, top: float, right: float, bottom: float) -> Iterator[int]:
        """Indexes of its compressed tiles under a rectangle in px of the level."""
        rectangle = (left - self.left, top - self.top, right - self.left, bottom - self.top)
        return _tiles_under(self.page, *rectangle)


def _placed_series(
    file: tifffile.TiffFile, properties: dict[str, Any]
) -> list[tuple[Any, list[tuple[int, int]]]]:
    """The series the slide is put together of, and (top, left) of each at every level, px.

    Leica scans the regions of a slide one by one; elsewhere there is one, at the corner.
    """
    composition = properties.get("tiffslide.series-composition")
    if not composition:
        index = properties.get("tiffslide.series-index")
        return [(file.series[int(index) if index is not None else 0], [])]
    return [
        (file.series[int(index)], [(int(place[0]), int(place[1])) for place in places])
        for index, places in composition["located_series"].items()
    ]


def _number(value: object) -> float | None:
    """What a file states as a number; None where it states something else."""
    try:
        return float(str(value))
    except ValueError:
        return None


def _scaled_up(position: int, downsample: float) -> int:
    """The level-0 position that tiffslide, which divides and rounds down, takes to `position`."""
    scaled = math.ceil(position * downsample)
    return scaled + (int(scaled / downsample) < position)


def _tiles_under(page: Any, left: float, top: float, right: float, bottom: float) -> Iterator[int]:
    """Indexes of the compressed tiles under a rectangle in px of the page, of those it has."""
    width, height = tile_size(page)
    across, down = -(-page.imagewidth // width), -(-page.imagelength // height)
    for row in range(max(0, int(top // height)), min(math.ceil(bottom / height), down)):
        for column in range(max(0, int(left // width)), min(math.ceil(right / width), across)):
            if row * across + column < len(page.databytecounts):
                yield row * across + column


def _runs(origins: npt.NDArray[np.floating[Any]], side_px: float) -> Iterator[npt.NDArray[np.intp]]:
    """Indexes of tiles on one row that touch or overlap, at most MOST_RUN_TILES at a time."""
    order = np.lexsort((origins[:, 0], origins[:, 1]))
    start = 0
    for stop in range(1, len(order) + 1):
        if stop < len(order):
            (x0, y0), (x1, y1) = origins[order[stop - 1]], origins[order[stop]]
            if y0 == y1 and x1 - x0 <= side_px + 1 and stop - start < MOST_RUN_TILES:
                continue
        yield order[start:stop]
        start = stop
