"""Encoded images of a request -> tiles uint8 [tile_px, tile_px, 3].

Nothing is decoded before its format, size and mode are known from its header: a JPEG of a kilobyte
can claim gigapixels, and a progressive one can ask for the same pixels thousands of times.
"""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from ray_pipeline.slides.resample import resample
from serve_app.errors import ImageError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")
MEDIA_TYPES = {
    "image/jpeg": "JPEG",
    "image/jpg": "JPEG",
    "image/png": "PNG",
    "image/webp": "WEBP",
    "image/tiff": "TIFF",
}
"""What a raw body, a form's part or a data URI may call itself. The bytes decide."""
MOST_SCANS = 64
"""Scans of a JPEG: encoders make up to ten, and each costs a pass over all pixels."""

Tile = npt.NDArray[np.uint8]
_PIL_ERRORS = (
    OSError,  # UnidentifiedImageError, truncated data
    ValueError,
    SyntaxError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    UserWarning,
    NotImplementedError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What Pillow raises for bytes that are no sound image."""


def claimed_px(data: bytes, *, named: str, most_px: int) -> int:
    """Pixels that an encoded image claims to have, from its header alone.

    Raises ImageError for no image of FORMATS, for more than `most_px`, for other modes than 8-bit
    RGB, and for several frames. `named` tells which image of the request it is.
    """
    if (size := _colour_jpeg_size(data)) is not None and size[0] * size[1] <= most_px:
        return size[0] * size[1]
    with _opened(data, named, most_px) as image:
        return image.width * image.height


def decode_tile(data: bytes, tile: Tile, *, resize: bool, named: str, most_px: int) -> None:
    """Decode an encoded image into `tile`, uint8 [tile_px, tile_px, 3], C-contiguous.

    Any other size is refused, or, with `resize`, brought to `tile_px` by the filter that slides
    are resampled with; only squares are. Raises ImageError.
    """
    tile_px = len(tile)
    if _colour_jpeg_size(data) == (tile_px, tile_px) and tile_px * tile_px <= most_px:
        # Twice as fast as Pillow, and all of it without the interpreter's lock. What it does not
        # take as sound is Pillow's to judge.
        with suppress(ValueError):
            simplejpeg.decode_jpeg(data, buffer=tile)
            return
    with _opened(data, named, most_px) as image:
        width, height = image.size
        if (width, height) != (tile_px, tile_px) and not resize:
            raise ImageError(
                f"{named} has {width} x {height} px, and the model takes {tile_px} x {tile_px}: "
                "cut tiles of that size, or send resize=true."
            )
        if width != height:
            raise ImageError(f"{named} has {width} x {height} px: only a square can be resized.")
        try:
            image.load()
            pixels = np.asarray(image)
        except _PIL_ERRORS:
            raise ImageError(f"{named} is damaged: its pixels can't be decoded.") from None
    if pixels.shape != (height, width, 3):
        raise ImageError(f"{named} is damaged: its pixels are not what its header says.")
    tile[:] = pixels if width == tile_px else resample(pixels, 0, 0, width, tile_px)


def _colour_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG of three colours in a usual number of scans, else None."""
    if data[:2] != b"\xff\xd8" or _scans(data) > MOST_SCANS:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (width, height) if colours in ("YCbCr", "RGB") else None


def _scans(jpeg: bytes) -> int:
    # Inside entropy-coded data a 0xFF is followed by 0x00, so this counts scans, and little else.
    return jpeg.count(b"\xff\xda")


def _opened(data: bytes, named: str, most_px: int) -> Image.Image:
    size = _webp_size(data)
    if size is None:
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except _PIL_ERRORS:
            raise ImageError(
                f"{named} is no image of {', '.join(FORMATS)}: send the bytes of one."
            ) from None
        size = image.size
    else:
        image = None
    if min(size) < 1 or size[0] * size[1] > most_px:
        raise ImageError(
            f"{named} claims {size[0]} x {size[1]} px, past the limit of {most_px} px an image."
        )
    if image is None:
        try:
            image = Image.open(io.BytesIO(data), formats=("WEBP",))
        except _PIL_ERRORS:
            raise ImageError(f"{named} is a damaged WebP: it can't be decoded.") from None
    _check_kind(image, data, named)
    return image


def _check_kind(image: Image.Image, data: bytes, named: str) -> None:
    if image.mode != "RGB":
        raise ImageError(f"{named} has mode {image.mode}: only 8-bit RGB is read, without alpha.")
    # Both tell in their header; a TIFF would be walked through, and only its first page is read.
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        raise ImageError(f"{named} has several frames: send one image each.")
    if image.format == "JPEG" and _scans(data) > MOST_SCANS:
        raise ImageError(f"{named} has more than {MOST_SCANS} scans: save it as a usual JPEG.")


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Canvas of a WebP (RFC 9649, 2.5-2.7), whose decoder allocates it on opening; else None."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    head = data[:30].ljust(30, b"\0")
    if head[12:16] == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", head[26:30])
    return width & 0x3FFF, height & 0x3FFF
