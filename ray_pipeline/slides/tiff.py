"""TIFF and BigTIFF slides: from the file's directory to tables of compressed tiles.

The directory is parsed once, by tifffile, over ranged GETs; label and macro pictures are never
looked at beyond their entry in it.
"""

from __future__ import annotations

import math
import re
from typing import Any

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
from ray_pipeline.slides.philips import drop_padding, philips_mpp
from ray_pipeline.slides.tables import SlideIndex, TileTable
from ray_pipeline.slides.tiff_header import PARSER_ERRORS, unreadable
from ray_pipeline.store import ObjectInfo

_COLOURS = (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR)
_APERIO_MPP = re.compile(r"\|\s*MPP\s*=\s*([^|\s]*)")
_CODECS = "JPEG, JPEG 2000, LZW, deflate, zstd, WebP and none can be"
_ICC_PROFILE = 34675
_MOST_ICC_BYTES = 4 << 20


def index_tiff(file: RangedFile, parsed: tifffile.TiffFile, named: str) -> SlideIndex | None:
    """The tables of a slide whose layout is read directly; None for one that tiffslide must read.

    Raises NotASlideError for pixels that are not 8-bit RGB or for a codec that none reads,
    TooLargeError, DamagedSlideError.
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
                raise NotASlideError(
                    f"{named} has a layout that can't be read ({_layout(page)}): convert it to a "
                    "pyramidal TIFF of one RGB picture."
                )
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
        tile = tile_size(page)
        # A size of several numbers is a tuple, and a tuple times a number is as many tuples.
        if not all(isinstance(side, int) for side in (width, height, *tile)):
            raise ValueError(f"level {index} has sizes that are no numbers")
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
        columns, rows = (-(-side // step) for side, step in zip((width, height), tile, strict=True))
        if min(len(offsets), len(counts)) < columns * rows:
            raise ValueError(f"{len(counts)} compressed tiles for a grid of {columns} x {rows}")
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
    pages = [getattr(page, "keyframe", page) if page.is_frame else page for page in pages]
    if vendor == "philips":
        drop_padding(pages, parsed.philips_metadata or "")
    elif vendor != "hamamatsu":
        # tifffile finds only levels that OME-XML tells of, or of one and the same factor, and takes
        # Aperio's second page for a thumbnail.
        pages = max(pages, _reduced(parsed, pages[0]), key=len)
    return vendor, pages


def _reduced(parsed: tifffile.TiffFile, finest: Any) -> list[Any]:
    """`finest` and the pages below or after it that say they are the same picture, smaller."""
    pages = [finest]
    if finest.is_subifd:
        return pages
    chain = range(finest.index + 1, len(parsed.pages))
    candidates: list[Any] = list(finest.pages or ())
    candidates += [parsed.pages.get(index, validate=False, aspage=True) for index in chain]
    for page in candidates:
        width, height = page.imagewidth, page.imagelength
        # Sides are rounded to whole px.
        skew = abs(width * finest.imagelength - height * finest.imagewidth)
        alike = skew <= max(finest.imagewidth, finest.imagelength)
        smaller = width < pages[-1].imagewidth and height < pages[-1].imagelength
        told = page.is_reduced or page.is_subifd or (parsed.is_svs and page.is_tiled)
        if told and alike and smaller and page.samplesperpixel == 3:
            pages.append(page)
    return pages


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


def _layout(page: Any) -> str:
    """What is in the way of decoding the page's tiles."""
    if page.planarconfig != PLANARCONFIG.CONTIG:
        return "each colour in a plane of its own"
    if page.fillorder != 1:
        return "bits in reverse order"
    names = [codec.name for codec in COMPRESSION if codec == page.compression]
    compression = f"{names[0] if names else page.compression} compression"
    if page.compression in (*_RAW, COMPRESSION.JPEG2000, COMPRESSION.JPEG_2000_LOSSY):
        ycbcr = page.photometric == PHOTOMETRIC.YCBCR
        return f"{'YCbCr' if ycbcr else f'predictor {page.predictor}'} in {compression}"
    return f"{compression}; {_CODECS}"


def _codec(page: Any) -> Codec | None:
    """How the page's tiles are decoded; None when there is no way."""
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
        # Whether the decoder has made RGB of it already, a codestream does not always tell.
        return None if ycbcr else Jpeg2000Codec()
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
    if vendor == "philips":
        stated = philips_mpp(parsed.philips_metadata or "")
        if stated != (None, None):
            return stated
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
