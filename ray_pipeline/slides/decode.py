"""Codecs: the bytes of one compressed tile become uint8 RGB, or a ValueError says what is wrong.

Nothing a tile claims of itself is believed before it is compared with what the directory says:
sizes are read from its header before a decoder sees it, and decoders write into memory that was
allocated for the size the directory states.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, cast

import imagecodecs
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from ray_pipeline.slides.half_jpeg.decoder import HalfJpeg
from ray_pipeline.slides.jpeg import (
    END_OF_IMAGE,
    frame_fault,
    jpeg_prefix,
    scan_start,
    without_app,
)

Pixels = npt.NDArray[np.uint8]

HALF_JPEG = HalfJpeg()
"""This process's; it decodes nothing until someone who reads many slides has it compiled."""
# SOC and SIZ, how every JPEG 2000 codestream starts (ITU-T T.800, A.3).
_CODESTREAM = b"\xff\x4f\xff\x51"
# libjpeg's harmless warning: bytes between the last pixel and the next marker.
_HARMLESS = "extraneous bytes before marker"


class TileSize(NamedTuple):
    """What the directory says of one compressed tile, px."""

    width: int
    height: int
    inside_x: int
    """How much of the width lies inside the level: what of it must be there."""
    inside_y: int
    """How much of the height lies inside the level."""


class Codec(Protocol):
    """How the tiles of one level are decoded. Immutable; used by many threads at once."""

    @property
    def name(self) -> str:
        """`jpeg`, `jpeg2000`, `lzw`, ..."""
        ...

    @property
    def reduces(self) -> tuple[int, ...]:
        """Factors by which it can decode smaller; 1 always, in rising order."""
        ...

    def decode(self, data: memoryview, size: TileSize, reduce: int, room: Pixels) -> Pixels:
        """Pixels uint8 [h, w, 3] of one tile, h and w divided by `reduce` and rounded up.

        `room`, uint8 [at least h * w * 3], may be used for them. Raises ValueError (or what else
        imagecodecs raises: RuntimeError) for bytes that are not a whole tile.
        """
        ...


@dataclass(frozen=True)
class JpegCodec:
    """JPEG tiles, each with its own headers but for the tables that may stand in the directory."""

    ycbcr: bool | None
    """Whether the three channels are YCbCr, else RGB, as the directory says; None where it leaves
    that to the markers of each tile."""
    tables: bytes = b""
    """The directory's JPEGTables, an abbreviated stream; empty without."""
    name = "jpeg"
    reduces = (1, 2, 4, 8)
    _sound: dict[TileSize, tuple[bytes, bytes]] = field(
        default_factory=dict, compare=False, repr=False
    )
    """The last head (SOI to SOS) without a fault, and what decoders are given of it, by tile size:
    a level's tiles mostly share it."""

    def decode(self, data: memoryview, size: TileSize, reduce: int, room: Pixels) -> Pixels:
        """See `Codec.decode`; smaller ones by scaling in the DCT, which for 8 is the exact mean."""
        head, told = self._sound.get(size, (b"", b""))
        if not head or bytes(data[: len(head)]) != head or data[-2:] != END_OF_IMAGE:
            tile = bytes(data)
            if fault := frame_fault(tile, size.width, size.height, size.inside_x, size.inside_y):
                raise ValueError(fault)
            head = tile[: scan_start(tile)]
            told = jpeg_prefix(self.tables, self.ycbcr)
            told += head[2:] if self.ycbcr is None else without_app(head)
            self._sound[size] = head, told
        elif reduce == 2:
            # Tables are worth making for a head that comes again.
            halved = HALF_JPEG.decode(told, data[len(head) :], room)
            if halved is not None:
                return halved
        return _decode_jpeg(b"".join((told, data[len(head) :])), size, reduce, room)


@dataclass(frozen=True)
class JpegStripeCodec:
    """Hamamatsu's: one JPEG over the whole level, cut at its restart markers into stripes."""

    header: bytes
    """From SOI through SOS, its frame set to the size of one stripe."""
    name = "jpeg"
    reduces = (1, 2, 4, 8)

    def decode(self, data: memoryview, size: TileSize, reduce: int, room: Pixels) -> Pixels:
        """See `Codec.decode`."""
        # A stripe ends in a restart marker, the last one in the end of the image.
        if len(data) < 3 or data[-2] != 0xFF or not 0xD0 <= data[-1] <= 0xD9:
            raise ValueError("a stripe without an end")
        whole = b"".join((self.header, data[:-2], b"\xff\xd9"))
        if fault := frame_fault(whole, size.width, size.height, size.inside_x, size.inside_y):
            raise ValueError(fault)
        return _decode_jpeg(whole, size, reduce, room)


@dataclass(frozen=True)
class Jpeg2000Codec:
    """JPEG 2000 codestreams, bare or in a JP2 box; Aperio's compressions 33003 and 33005."""

    ycbcr: bool | None = None
    """Whether the components are YCbCr (33003), else RGB (33005), whatever the codestream says;
    None where that tells."""
    name = "jpeg2000"
    reduces = (1,)

    def decode(self, data: memoryview, size: TileSize, reduce: int, room: Pixels) -> Pixels:
        """See `Codec.decode`."""
        subsampled = _check_codestream(data, size)
        if subsampled and self.ycbcr is not None:
            whole = bytes(data)
            pixels = _components(whole[whole.find(_CODESTREAM) :])
        else:
            pixels = np.asarray(imagecodecs.jpeg2k_decode(cast(bytes, data), numthreads=1))
        pixels = _checked(pixels, size)
        return _rgb_of_ycbcr(pixels) if self.ycbcr else pixels


@dataclass(frozen=True)
class WebpCodec:
    """WebP tiles."""

    name = "webp"
    reduces = (1,)

    def decode(self, data: memoryview, size: TileSize, reduce: int, room: Pixels) -> Pixels:
        """See `Codec.decode`."""
        try:
            return self._decoded(data, size.width, size.height, room)
        except ValueError:
            if size.inside_y == size.height:
                raise
            # The last strip may hold fewer rows.
            return self._decoded(data, size.width, size.inside_y, room)

    def _decoded(self, data: memoryview, width: int, height: int, room: Pixels) -> Pixels:
        out = room[: width * height * 3].reshape(height, width, 3)
        # The decoder refuses a picture of another size than the room it is given.
        imagecodecs.webp_decode(cast(bytes, data), hasalpha=False, out=out)
        return out


@dataclass(frozen=True)
class RawCodec:
    """Plain pixels behind a general compression: `none`, `lzw`, `deflate`, `zstd`."""

    name: str
    predictor: bool = False
    """Each pixel is stored as the difference from its left neighbour (TIFF's predictor 2)."""
    reduces = (1,)

    def decode(self, data: memoryview, size: TileSize, reduce: int, room: Pixels) -> Pixels:
        """See `Codec.decode`. The last strip may hold fewer rows."""
        row = size.width * 3
        full = size.height * row
        if self.name == "none":
            plain = np.frombuffer(data, np.uint8)
        else:
            # One byte more than fits tells a bomb from a tile.
            decoded = _DECOMPRESS[self.name](data, out=full + 1)
            plain = np.frombuffer(decoded, np.uint8)
        if not size.inside_y * row <= len(plain) <= full:
            raise ValueError(f"{len(plain)} bytes of pixels where {full} belong")
        rows = len(plain) // row
        pixels = plain[: rows * row].reshape(rows, size.width, 3)
        if self.predictor:
            pixels = np.asarray(imagecodecs.delta_decode(pixels, axis=1))
        return pixels


_DECOMPRESS: dict[str, Callable[..., Any]] = {
    "lzw": imagecodecs.lzw_decode,
    "deflate": imagecodecs.zlib_decode,
    "zstd": imagecodecs.zstd_decode,
}


def _decode_jpeg(whole: bytes, size: TileSize, reduce: int, room: Pixels) -> Pixels:
    width, height = -(-size.width // reduce), -(-size.height // reduce)
    least = {}
    if reduce > 1:
        least = {"min_height": height, "min_width": width}
        if size.inside_x < size.width or size.inside_y < size.height:
            # The frame may be smaller than the tile at the level's edge.
            frame_height, frame_width, _, _ = simplejpeg.decode_jpeg_header(whole)
            least["min_height"] = -(-frame_height // reduce)
            least["min_width"] = -(-frame_width // reduce)
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(whole, buffer=room, **least)
    except ValueError as error:
        if _HARMLESS not in str(error):
            raise
        pixels = simplejpeg.decode_jpeg(whole, buffer=room, strict=False, **least)
    if pixels.shape[0] > height or pixels.shape[1] > width:
        raise ValueError(f"a JPEG that decodes to {pixels.shape[1]} x {pixels.shape[0]} px")
    return pixels


def _components(codestream: bytes) -> Pixels:
    """The components of a bare JPEG 2000 codestream as they are, chroma repeated to full size.

    imagecodecs converts subsampled ones to RGB by itself, and rounds otherwise than OpenSlide.
    Pillow leaves them alone where a JP2 around the codestream declares them to be sRGB.
    """
    right, bottom, left, top = struct.unpack_from(">4I", codestream, 8)
    size = struct.pack(">IIHBBBB", bottom - top, right - left, 3, 7, 7, 0, 0)
    jp2 = (
        _box(b"jP  ", b"\r\n\x87\n"),
        _box(b"ftyp", b"jp2 \0\0\0\0jp2 "),
        _box(b"jp2h", _box(b"ihdr", size) + _box(b"colr", struct.pack(">BBBI", 1, 0, 0, 16))),
        _box(b"jp2c", codestream),
    )
    with Image.open(io.BytesIO(b"".join(jp2)), formats=("JPEG2000",)) as picture:
        return np.asarray(picture)


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


_CHROMA = np.arange(256) - 128
_R_OF_CR = np.rint(1.402 * _CHROMA).astype(np.int16)
_B_OF_CB = np.rint(1.772 * _CHROMA).astype(np.int16)
# 16 bits of fraction, rounded once for both.
_G_OF_CB = np.rint((0.5 - 0.34414 * _CHROMA) * (1 << 16)).astype(np.int32)
_G_OF_CR = np.rint(-0.71414 * _CHROMA * (1 << 16)).astype(np.int32)


def _rgb_of_ycbcr(pixels: Pixels) -> Pixels:
    """Full-range YCbCr to RGB (ITU-T T.871, section 7), rounded as OpenSlide does."""
    y, cb, cr = pixels[..., 0].astype(np.int16), pixels[..., 1], pixels[..., 2]
    rgb = np.empty(pixels.shape, np.int16)
    rgb[..., 0] = y + _R_OF_CR[cr]
    rgb[..., 1] = y + ((_G_OF_CB[cb] + _G_OF_CR[cr]) >> 16)
    rgb[..., 2] = y + _B_OF_CB[cb]
    return np.clip(rgb, 0, 255).astype(np.uint8)


def _checked(pixels: npt.NDArray[Any], size: TileSize) -> Pixels:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels of {pixels.dtype} {pixels.shape} instead of 8-bit RGB")
    height, width = pixels.shape[:2]
    if not (size.inside_y <= height <= size.height and size.inside_x <= width <= size.width):
        raise ValueError(
            f"a picture of {width} x {height} px in a tile of {size.width} x {size.height}"
        )
    return pixels


def _check_codestream(data: memoryview, size: TileSize) -> bool:
    """Raise ValueError unless a JPEG 2000 codestream is whole; True for subsampled components.

    ITU-T T.800, A.4.1 and A.5.1: SOC, then SIZ with the reference grid and the components.
    """
    start = bytes(data[:4096]).find(_CODESTREAM)
    if start < 0 or len(data) < start + 50:
        raise ValueError("no JPEG 2000 codestream starts here")
    if bytes(data[-64:]).rfind(b"\xff\xd9") < 0:
        raise ValueError("a JPEG 2000 codestream without an end")
    fields = [int.from_bytes(data[start + 8 + 4 * i : start + 12 + 4 * i], "big") for i in range(4)]
    width, height = fields[0] - fields[2], fields[1] - fields[3]
    components = int.from_bytes(data[start + 40 : start + 42], "big")
    if components != 3:
        raise ValueError(f"{components} components instead of 3")
    if not (size.inside_y <= height <= size.height and size.inside_x <= width <= size.width):
        raise ValueError(
            f"a codestream of {width} x {height} px in a tile of {size.width} x {size.height}"
        )
    steps = data[start + 42 : start + 51]
    if any(depth != 7 for depth in steps[0::3]):
        raise ValueError("components that are not 8-bit")
    return any(step != 1 for position, step in enumerate(steps) if position % 3)
