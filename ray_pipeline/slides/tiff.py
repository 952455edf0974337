"""TIFF and BigTIFF slides: from the file's directory to tables of compressed tiles.

The directory is parsed once, by tifffile, over ranged GETs; label and macro pictures are never
looked at beyond their entry in it.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from typing import IO, Any, cast
from xml.etree.ElementTree import ParseError

import numpy as np
import tifffile
from tifffile import COMPRESSION, PHOTOMETRIC, PLANARCONFIG, PREDICTOR

from ray_pipeline.errors import DamagedSlideError, NotASlideError, TooLargeError
from ray_pipeline.ranged_file import RangedFile
from ray_pipeline.slides.decode import (
    Codec,
    Jpeg2000Codec,
    JpegCodec,
    JpegStripeCodec,
    RawCodec,
    WebpCodec,
)
from ray_pipeline.slides.levels import MOST_SIDE_PX, MOST_TILE_PX
from ray_pipeline.slides.ome import ome_mpp
from ray_pipeline.slides.tables import SlideIndex, TileTable
from ray_pipeline.store import ObjectInfo

# What tifffile, tiffslide, zarr and imagecodecs (RuntimeError) raise over bytes that are not as
# they should be.
PARSER_ERRORS = (
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
    RecursionError,
    RuntimeError,
    StopIteration,
    TypeError,
    ValueError,
)
SUPPORTED = (
    "SVS, NDPI, Philips TIFF, OME-TIFF, pyramidal TIFF, SCN, BIF and DICOM of 8-bit RGB can be read"
)
_COLOURS = (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR)
_BIG_MAGIC = (b"II+\0", b"MM\0+")
_TIFF_MAGIC = (b"II*\0", b"MM\0*", *_BIG_MAGIC)
_APERIO_MPP = re.compile(r"\|\s*MPP\s*=\s*([^|\s]*)")
_PHILIPS_SPACING = re.compile(
    r'Name="DICOM_PIXEL_SPACING"[^>]*>\s*(?:"|&quot;)([0-9.eE+-]+)(?:"|&quot;)\s*'
    r'(?:"|&quot;)([0-9.eE+-]+)(?:"|&quot;)'
)
_ICC_PROFILE = 34675
_MOST_ICC_BYTES = 4 << 20
MOST_DIRECTORIES = 1024
"""Directories in a file's chain: a slide has a dozen, and each costs its parsing."""


def open_tiff(file: RangedFile, named: str) -> tifffile.TiffFile:
    """Parse the directory of `file`; `named` is `<slide_id>: <uri>` for its errors.

    Raises NotASlideError for what is no TIFF, DamagedSlideError for one that breaks off.
    """
    start = file.read(4)
    file.seek(0)
    if start not in _TIFF_MAGIC:
        raise NotASlideError(
            f"{named} is no slide: its first bytes are not those of a TIFF or a DICOM file "
            f"({SUPPORTED}); check the file."
        )
    try:
        _check_chain(file, start)
        file.seek(0)
        # A TIFF of several files would have tifffile open the others by their names.
        parsed = tifffile.TiffFile(cast(IO[bytes], file), _multifile=False)
    except PARSER_ERRORS as error:
        raise unreadable(named, error) from error
    return parsed


def unreadable(named: str, error: BaseException) -> DamagedSlideError:
    """The error for a directory that a parser stumbled over."""
    return DamagedSlideError(
        f"{named} starts like a TIFF but its directory can't be read ({short(error)}): "
        "it is cut short or damaged; upload it again."
    )


def index_tiff(file: RangedFile, parsed: tifffile.TiffFile, named: str) -> SlideIndex | None:
    """The tables of a slide whose layout is read directly; None for one that tiffslide must read.

    Raises NotASlideError for pixels that are not 8-bit RGB, TooLargeError, DamagedSlideError.
    """
    if parsed.is_scn or parsed.is_bif:
        return None
    try:
        vendor, pages = _baseline(parsed, named)
        check_pages(pages, named, size_bytes=file.size_bytes)
        codecs = [_codec(page) for page in pages]
        mpp_x, mpp_y = _mpp(parsed, vendor, pages[0])
        tables = []
        for page, codec in zip(pages, codecs, strict=True):
            if codec is None:
                return None
            tables.append(_table(page, codec))
        profile = pages[0].tags.valueof(_ICC_PROFILE)
    except PARSER_ERRORS as error:
        raise unreadable(named, error) from error
    profile = bytes(profile) if isinstance(profile, bytes) else None
    return SlideIndex(
        vendor=vendor,
        objects=(ObjectInfo(key=file.name, size_bytes=file.size_bytes, etag=file.etag),),
        tables=tuple(tables),
        mpp_x=mpp_x,
        mpp_y=mpp_y,
        icc_profile=profile if profile and len(profile) <= _MOST_ICC_BYTES else None,
    )


def check_pages(pages: list[Any], named: str, *, size_bytes: int) -> None:
    """Refuse levels that can't be slides. Raises NotASlideError, TooLargeError, DamagedSlideError.

    `pages` are tifffile's, one per level; `size_bytes` is the length of the file.
    """
    for index, page in enumerate(pages):
        width, height = page.imagewidth, page.imagelength
        if max(width, height) > MOST_SIDE_PX or min(width, height) < 1:
            raise TooLargeError(
                f"{named} claims {width} x {height} px at level {index}, past the "
                f"limit of {MOST_SIDE_PX} px a side: it was not decoded; check the file."
            )
        if page.samplesperpixel != 3 or page.dtype != np.uint8 or page.photometric not in _COLOURS:
            kind = PHOTOMETRIC(page.photometric).name
            raise NotASlideError(
                f"{named} has {page.samplesperpixel} channels of {page.dtype} ({kind});"
                " only 8-bit RGB slides can be read: convert it to RGB first."
            )
        tile = tile_size(page)
        if math.prod(tile) > MOST_TILE_PX:
            raise TooLargeError(
                f"{named} is compressed in pieces of {tile[0]} x {tile[1]} px at level "
                f"{index}, past the limit of {MOST_TILE_PX} px: it was not decoded; convert it "
                "to a TIFF in tiles."
            )
        offsets = np.asarray(page.dataoffsets, np.float64)
        counts = np.asarray(page.databytecounts, np.float64)
        beyond = int(
            (offsets + counts > size_bytes).sum() + (np.minimum(offsets, counts) < 0).sum()
        )
        if beyond or not len(counts):
            raise DamagedSlideError(
                f"{named} is cut short: {beyond} of {len(counts)} compressed tiles of "
                f"level {index} lie past its end ({size_bytes} bytes); upload it again."
            )


def tile_size(page: Any) -> tuple[int, int]:
    """Width and height of a page's compressed tiles, or of its strips, px."""
    if page.is_tiled:
        return page.tilewidth, page.tilelength
    return page.imagewidth, min(page.rowsperstrip or page.imagelength, page.imagelength)


def short(error: BaseException) -> str:
    """The first words of a library's error: enough to search for, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:100]}" if text else type(error).__name__


def _check_chain(file: RangedFile, start: bytes) -> None:
    """Raise ValueError, or struct.error, unless the chain of directories ends as it should.

    tifffile only logs where it breaks off, so a file that lost its end would pass for one with
    fewer levels; and it follows a ring of more than a hundred for ever.
    """
    big = start in _BIG_MAGIC
    # tifffile goes by the name: Hamamatsu's offsets have 64 bits in an otherwise classic TIFF.
    hamamatsu = start == b"II*\0" and file.name.lower().endswith(".ndpi")
    order = "<" if start[:2] == b"II" else ">"
    number = struct.Struct(order + ("Q" if big else "H"))
    offset = struct.Struct(order + ("Q" if big or hamamatsu else "I"))
    position, seen = 8 if big else 4, set[int]()
    while True:
        file.seek(position)
        (directory,) = offset.unpack(file.read(offset.size))
        if directory == 0:
            break
        if directory in seen or len(seen) == MOST_DIRECTORIES:
            raise ValueError(f"no end to its directories after {len(seen)}")
        seen.add(directory)
        file.seek(directory)
        (entries,) = number.unpack(file.read(number.size))
        position = directory + number.size + entries * (20 if big else 12)
    if not seen:
        raise ValueError("no directory")


def _baseline(parsed: tifffile.TiffFile, named: str) -> tuple[str, list[Any]]:
    """The format, and the pages of the pyramid, finest first."""
    vendor = "generic-tiff"
    for flag, name in (
        ("is_svs", "aperio"),
        ("is_ndpi", "hamamatsu"),
        ("is_philips", "philips"),
        ("is_ome", "ome-tiff"),
    ):
        if getattr(parsed, flag):
            vendor = name
            break
    # Scanners put the baseline first; elsewhere it is the largest.
    named_first = vendor in ("aperio", "hamamatsu", "philips")
    series = parsed.series[0] if named_first else max(parsed.series, key=_area)
    for level in series.levels:
        if len(level.pages) != 1 or level.pages[0] is None:
            raise NotASlideError(
                f"{named} has {len(level.pages)} planes ({level.axes}): only pictures of one RGB "
                "plane can be read: convert it to RGB first."
            )
    pages: list[Any] = [level.pages[0] for level in series.levels]
    return vendor, [getattr(page, "keyframe", page) if page.is_frame else page for page in pages]


def _area(series: Any) -> int:
    page = series.keyframe
    return int(page.imagewidth * page.imagelength)


def _table(page: Any, codec: Codec) -> TileTable:
    width, height = tile_size(page)
    table = TileTable(
        width_px=page.imagewidth,
        height_px=page.imagelength,
        tile_width_px=width,
        tile_height_px=height,
        offsets=np.asarray(page.dataoffsets, np.int64),
        counts=np.asarray(page.databytecounts, np.int64),
        codec=codec,
    )
    if len(table.offsets) != table.rows * table.columns or len(table.counts) != len(table.offsets):
        raise ValueError(
            f"{len(table.offsets)} compressed tiles for a grid of {table.columns} x {table.rows}"
        )
    return table


def _codec(page: Any) -> Codec | None:
    """How the page's tiles are decoded; None when that is left to tiffslide."""
    if page.planarconfig != PLANARCONFIG.CONTIG or page.fillorder != 1:
        return None
    compression, ycbcr = page.compression, page.photometric == PHOTOMETRIC.YCBCR
    if compression == COMPRESSION.JPEG:
        if page.jpegheader is not None:
            return JpegStripeCodec(page.jpegheader)
        return JpegCodec(ycbcr, page.jpegtables or b"")
    if compression in (COMPRESSION.APERIO_JP2000_YCBC, COMPRESSION.APERIO_JP2000_RGB):
        return Jpeg2000Codec(ycbcr=compression == COMPRESSION.APERIO_JP2000_YCBC)
    if compression in (COMPRESSION.JPEG2000, COMPRESSION.JPEG_2000_LOSSY):
        return Jpeg2000Codec()
    if compression == COMPRESSION.WEBP:
        return WebpCodec()
    raw = _RAW.get(compression)
    if raw is None or ycbcr or page.predictor not in (PREDICTOR.NONE, PREDICTOR.HORIZONTAL):
        return None
    return RawCodec(raw, predictor=page.predictor == PREDICTOR.HORIZONTAL)


_RAW = {
    COMPRESSION.NONE: "none",
    COMPRESSION.LZW: "lzw",
    COMPRESSION.ADOBE_DEFLATE: "deflate",
    COMPRESSION.DEFLATE: "deflate",
    COMPRESSION.ZSTD: "zstd",
    COMPRESSION.ZSTD_DEPRECATED: "zstd",
}


def _mpp(parsed: tifffile.TiffFile, vendor: str, page: Any) -> tuple[float | None, float | None]:
    """Microns per pixel across and down, as the format states them, else as the resolution tags."""
    if vendor == "aperio" and (found := _APERIO_MPP.search(page.description)):
        value = _number(found[1])
        return value, value
    if vendor == "philips" and (found := _PHILIPS_SPACING.search(parsed.philips_metadata or "")):
        # Millimetres, rows first, as in DICOM.
        down, across = _number(found[1]), _number(found[2])
        return (across and 1000 * across, down and 1000 * down)
    if vendor == "ome-tiff":
        stated = ome_mpp(parsed.ome_metadata or "", page.imagewidth, page.imagelength)
        if stated != (None, None):
            return stated
    unit = {2: 25_400.0, 3: 10_000.0}.get(page.tags.valueof(296, 2))
    return tuple(_per_pixel(page.tags.valueof(tag), unit) for tag in (282, 283))  # type: ignore[return-value]


def _per_pixel(resolution: object, unit_um: float | None) -> float | None:
    """Microns per pixel of a resolution tag, a fraction of pixels per unit."""
    if unit_um is None or not isinstance(resolution, tuple) or len(resolution) != 2:
        return None
    pixels, units = resolution
    if (pixels, units) == (1, 1):  # what writers put there that know none
        return None
    return unit_um * units / pixels if pixels and units else None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
