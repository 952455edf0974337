"""Encoded images for tests: sound ones in every format, and hostile ones."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
from PIL import Image

LOSSLESS = {"PNG": "image/png", "WEBP": "image/webp", "TIFF": "image/tiff"}


def random_tiles(n: int, px: int = 224, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Noise, uint8 [n, px, px, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (n, px, px, 3), dtype=np.uint8)


def encoded(tile: npt.NDArray[np.uint8], kind: str = "PNG") -> bytes:
    """The tile as a file, without loss where the format can."""
    out = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(tile).save(out, kind, **options)
    return out.getvalue()


def in_mode(mode: str, kind: str = "PNG", px: int = 224) -> bytes:
    out = io.BytesIO()
    Image.new(mode, (px, px)).save(out, kind)
    return out.getvalue()


def animated(kind: str) -> bytes:
    out = io.BytesIO()
    frames = [Image.fromarray(tile) for tile in random_tiles(2)]
    frames[0].save(out, kind, save_all=True, append_images=frames[1:], lossless=True)
    return out.getvalue()


def claiming_jpeg(width: int, height: int) -> bytes:
    """A small JPEG whose frame header claims another size."""
    data = bytearray(encoded(random_tiles(1, 8)[0], "JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def claiming_png(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(4096), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def claiming_webp(width: int, height: int) -> bytes:
    """An extended WebP whose canvas is as large as said."""
    canvas = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    inner = encoded(random_tiles(1, 8)[0], "WEBP")[12:]
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + canvas + inner
    return b"RIFF" + struct.pack("<I", len(body)) + body


def claiming_tiff(width: int, height: int) -> bytes:
    """A TIFF that claims any size, and has next to no data."""
    data = bytearray(encoded(random_tiles(1, 8)[0], "TIFF"))
    (ifd,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, ifd)
    for entry in range(ifd + 2, ifd + 2 + 12 * entries, 12):
        (tag,) = struct.unpack_from("<H", data, entry)
        if tag in (256, 257):
            number = width if tag == 256 else height
            struct.pack_into("<HHII", data, entry, tag, 4, 1, number)
    return bytes(data)


def many_scans(scans: int) -> bytes:
    """A progressive JPEG that asks for its pixels over and over."""
    out = io.BytesIO()
    Image.fromarray(random_tiles(1)[0]).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


BOMBS = {
    "jpeg": claiming_jpeg(65_000, 65_000),
    "jpeg wide": claiming_jpeg(65_535, 300),
    "png": claiming_png(2**31 - 1, 2**31 - 1),
    "png tall": claiming_png(1, 2**31 - 1),
    "webp": claiming_webp(16_383, 16_383),
    "webp canvas": claiming_webp(1 << 24, 1 << 24),
    "tiff": claiming_tiff(2**31 - 1, 2**31 - 1),
    "tiff large": claiming_tiff(60_000, 60_000),
}
"""Small files that claim more than the default limit of pixels an image."""
