"""A slide read through tiffslide: every TIFF layout that tifffile knows, at tifffile's speed."""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import Any
from xml.etree.ElementTree import ParseError

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image
from tiffslide import TiffSlide

from ray_pipeline.errors import (
    DamagedSlideError,
    NotASlideError,
    StoreError,
    TooLargeError,
)
from ray_pipeline.ranged_file import RangedFile
from ray_pipeline.slides.jpeg import jpeg_fault
from ray_pipeline.slides.levels import Level, Overview, settle_mpp

RESAMPLE_RULE = "sub-pixel box, antialiased triangle over its rim (Pillow 2-D BILINEAR), uint8"
"""How a tile is made when its side at the level differs from the model's; stands in the recipe."""
MOST_SIDE_PX = 1 << 20
"""Longest side that is opened: four times the longest any scanner makes, at its finest."""
MOST_TILE_PX = 1 << 27
"""Largest compressed tile or strip that is decoded: 400 MB once it is."""
MISSING = 255
"""Every channel of tiles the file leaves out, as scanners do where they saw no tissue: glass."""
MOST_RUN_TILES = 16
"""Neighbouring tiles decoded together: bounds a region to some 4,000 px across."""
STRIP_PX = 1 << 24
"""Pixels of one strip while the overview is averaged: bounds it to 48 MB."""

# What tifffile, tiffslide, zarr and imagecodecs (RuntimeError) raise over bytes that are not as
# they should be.
_PARSER_ERRORS = (
    tifffile.TiffFileError,
    zlib.error,
    struct.error,
    ParseError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
_COLOURS = (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class TiffSlideReader:
    """A `Slide` behind tiffslide, over ranged GETs. Label and macro images are never touched."""

    def __init__(
        self, file: RangedFile, *, uri: str, slide_id: str, mpp_override: float | None
    ) -> None:
        """Parse the file's directory. Raises SlideError subclasses and StoreErrors."""
        self.slide_id, self.uri = slide_id, uri
        self.etag, self.size_bytes = file.etag, file.size_bytes
        self._file = file
        _check_magic(file, self._named())
        try:
            self._slide = TiffSlide(file)
            _check_chain(file, self._slide.ts_tifffile)
            with warnings.catch_warnings():
                # "metadata parsing only partially implemented": what we need is checked below.
                warnings.simplefilter("ignore", UserWarning)
                properties: dict[str, Any] = dict(self._slide.properties)
            self._series = _baseline_series(self._slide.ts_tifffile, properties)
            dimensions = list(self._slide.level_dimensions)
            downsamples = [float(value) for value in self._slide.level_downsamples]
            pages = [self._page(index) for index in range(len(dimensions))]
            self._check_pages(pages, dimensions)
        except NotImplementedError as error:
            raise NotASlideError(
                f"{self._named()} has a layout that can't be read ({_short(error)}): convert it to "
                "a pyramidal TIFF of one RGB picture."
            ) from error
        except _PARSER_ERRORS as error:
            raise DamagedSlideError(
                f"{self._named()} starts like a TIFF but its directory can't be read "
                f"({_short(error)}): it is cut short or damaged; upload it again."
            ) from error
        for page in pages:
            page.keyframe.nodata = MISSING
        self.vendor = str(properties.get("tiffslide.vendor") or "generic-tiff")
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

    @property
    def gets(self) -> int:
        """Ranged GETs so far."""
        return self._file.gets

    @property
    def bytes_fetched(self) -> int:
        """Bytes fetched so far."""
        return self._file.bytes_fetched

    def overview(self, mpp: float) -> Overview:
        """The whole slide at about `mpp`, box-averaged from the coarsest level that is finer."""
        finer = [level for level in self.levels if level.mpp <= mpp]
        level = finer[-1] if finer else self.levels[0]
        factor = max(1, int(mpp / level.mpp))
        rows = max(1, STRIP_PX // (level.width_px * factor)) * factor
        strips = [
            _averaged(self._region(level, 0, top, level.width_px, rows), factor)
            for top in range(0, level.height_px, rows)
        ]
        return Overview(
            rgb=np.concatenate(strips),
            downsample_x=level.downsample * factor,
            downsample_y=level.downsample * factor,
        )

    def read_tiles(
        self, *, level: int, xy: npt.NDArray[np.int32], side_px: float, tile_px: int
    ) -> npt.NDArray[np.uint8]:
        """See `Slide.read_tiles`. Neighbouring tiles of a row are decoded together."""
        chosen = self.levels[level]
        tiles = np.empty((len(xy), tile_px, tile_px, 3), np.uint8)
        resample = side_px != tile_px
        origins = xy / chosen.downsample
        if not resample:
            most = (chosen.width_px - tile_px, chosen.height_px - tile_px)
            origins = np.minimum(np.rint(origins), most)
        # The filter reaches past a tile's rim by one px of the output. That rim is always read, and
        # each tile is resampled from its own window: so its pixels never depend on its company.
        rim = math.ceil(side_px / tile_px) + 1 if resample else 0
        starts = np.maximum(np.floor(origins).astype(int) - rim, 0)
        stops = np.ceil(origins + side_px).astype(int) + rim
        stops = np.minimum(stops, (chosen.width_px, chosen.height_px))
        for run in _runs(origins, side_px):
            (left, top), (right, bottom) = starts[run].min(axis=0), stops[run].max(axis=0)
            region = self._region(chosen, left, top, right - left, bottom - top)
            for index in run:
                (x0, y0), (x1, y1) = starts[index] - (left, top), stops[index] - (left, top)
                window = region[y0:y1, x0:x1]
                if resample:
                    window = _resampled(window, origins[index] - starts[index], side_px, tile_px)
                tiles[index] = window
        return tiles

    def compressed_bytes(self, *, level: int, xy: npt.NDArray[np.int32], side_px: float) -> int:
        """See `Slide.compressed_bytes`."""
        page = self._page(level)
        under: set[int] = set()
        for x, y in xy / self.levels[level].downsample:
            under.update(_tiles_under(page, x, y, x + side_px, y + side_px))
        return sum(page.databytecounts[index] for index in under)

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
        except _PARSER_ERRORS as error:
            raise DamagedSlideError(
                f"{self._named()}: pixels at level {level.index}, x {left}, y {top} can't be "
                f"decoded ({_short(error)}): the file is damaged; upload it again."
            ) from error
        return np.ascontiguousarray(array, np.uint8)

    def _check_tiles(self, level: Level, left: int, top: int, right: int, bottom: int) -> None:
        """Raise ValueError where a JPEG tile under the region, px of the level, is not whole."""
        page = self._page(level.index)
        # Hamamatsu's tiles are pieces of one JPEG; theirs only tifffile can put together.
        if page.compression != tifffile.COMPRESSION.JPEG or page.jpegheader is not None:
            return
        for index in _tiles_under(page, left, top, right, bottom):
            if page.databytecounts[index] == 0:
                continue
            handle = page.parent.filehandle
            # zarr's thread may still be reading for a region that failed.
            with handle.lock:
                handle.seek(page.dataoffsets[index])
                data = handle.read(page.databytecounts[index])
            if fault := jpeg_fault(data, *_tile_size(page)):
                raise ValueError(f"compressed tile {index} holds {fault}")

    def _page(self, level: int) -> Any:
        return self._series.levels[level][0]

    def _named(self) -> str:
        return f"{self.slide_id}: {self.uri}"

    def _check_pages(self, pages: list[Any], dimensions: list[tuple[int, int]]) -> None:
        for index, (page, (width, height)) in enumerate(zip(pages, dimensions, strict=True)):
            if max(width, height) > MOST_SIDE_PX or min(width, height) < 1:
                raise TooLargeError(
                    f"{self._named()} claims {width} x {height} px at level {index}, past the "
                    f"limit of {MOST_SIDE_PX} px a side: it was not decoded; check the file."
                )
            if (
                page.samplesperpixel != 3
                or page.dtype != np.uint8
                or page.photometric not in _COLOURS
            ):
                kind = tifffile.PHOTOMETRIC(page.photometric).name
                raise NotASlideError(
                    f"{self._named()} has {page.samplesperpixel} channels of {page.dtype} ({kind});"
                    " only 8-bit RGB slides can be read: convert it to RGB first."
                )
            tile = _tile_size(page)
            if math.prod(tile) > MOST_TILE_PX:
                raise TooLargeError(
                    f"{self._named()} is compressed in pieces of {tile[0]} x {tile[1]} px at level "
                    f"{index}, past the limit of {MOST_TILE_PX} px: it was not decoded; convert it "
                    "to a TIFF in tiles."
                )
            offsets, counts = np.asarray(page.dataoffsets), np.asarray(page.databytecounts)
            beyond = int((offsets + counts > self.size_bytes).sum())
            if beyond or not len(counts):
                raise DamagedSlideError(
                    f"{self._named()} is cut short: {beyond} of {len(counts)} compressed tiles of "
                    f"level {index} lie past its end ({self.size_bytes} bytes); upload it again."
                )


def _check_magic(file: RangedFile, named: str) -> None:
    start = file.read(132)
    file.seek(0)
    if start[128:132] == b"DICM":
        raise NotASlideError(
            f"{named} is a DICOM file, which this version can't read yet: convert it to TIFF."
        )
    if start[:4] not in _TIFF_MAGIC:
        raise NotASlideError(
            f"{named} is no slide: its first bytes are not those of a TIFF (SVS, NDPI, SCN, BIF "
            "and pyramidal TIFF can be read); check the file."
        )


def _check_chain(file: RangedFile, parsed: tifffile.TiffFile) -> None:
    """Raise ValueError unless the chain of directories ends as it should.

    tifffile follows the chain as far as it leads and only logs where it breaks off, so a file that
    lost its end would pass for one with fewer levels.
    """
    position = parsed.pages.next_page_offset
    if position is None:
        raise ValueError("no directory")
    file.seek(position)
    (following,) = struct.unpack(parsed.tiff.offsetformat, file.read(parsed.tiff.offsetsize))
    if following != 0:
        raise ValueError(f"the directory after byte {position} is missing")


def _baseline_series(file: tifffile.TiffFile, properties: dict[str, Any]) -> Any:
    index = properties.get("tiffslide.series-index")
    return file.series[int(index) if index is not None else 0]


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


def _tile_size(page: Any) -> tuple[int, int]:
    """Width and height of a page's compressed tiles, or of its strips, px."""
    if page.is_tiled:
        return page.tilewidth, page.tilelength
    return page.imagewidth, min(page.rowsperstrip or page.imagelength, page.imagelength)


def _tiles_under(page: Any, left: float, top: float, right: float, bottom: float) -> Iterator[int]:
    """Indexes of the compressed tiles under a rectangle in px of the page, of those it has."""
    width, height = _tile_size(page)
    across, down = -(-page.imagewidth // width), -(-page.imagelength // height)
    for row in range(int(top // height), min(math.ceil(bottom / height), down)):
        for column in range(int(left // width), min(math.ceil(right / width), across)):
            if row * across + column < len(page.databytecounts):
                yield row * across + column


def _resampled(
    window: npt.NDArray[np.uint8], corner: npt.NDArray[np.float64], side_px: float, tile_px: int
) -> npt.NDArray[np.uint8]:
    """The square of `side_px` whose left top corner lies at `corner` (x, y) in `window`."""
    picture = Image.fromarray(np.ascontiguousarray(window))
    x, y = corner.tolist()
    box = (x, y, min(x + side_px, picture.width), min(y + side_px, picture.height))
    return np.asarray(picture.resize((tile_px, tile_px), Image.Resampling.BILINEAR, box=box))


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


def _averaged(pixels: npt.NDArray[np.uint8], factor: int) -> npt.NDArray[np.uint8]:
    """Box average over factor x factor px; the last cells average what there is of them."""
    if factor == 1:
        return pixels
    height, width = pixels.shape[:2]
    padding = ((0, -height % factor), (0, -width % factor), (0, 0))
    padded = np.pad(pixels, padding, mode="edge")
    cells = padded.reshape(padded.shape[0] // factor, factor, padded.shape[1] // factor, factor, 3)
    means: npt.NDArray[np.float32] = cells.mean(axis=(1, 3), dtype=np.float32)
    return np.rint(means).astype(np.uint8)


def _short(error: BaseException) -> str:
    """The first words of a library's error: enough to search for, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:100]}" if text else type(error).__name__
