"""Large slides in seconds: the compressed tiles of a synthetic field, laid side by side."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile

from ray_pipeline.synthetic import write_slide

FIELD_PX = 8192
"""Side of the synthetic field: a whole number of tiles at each of its levels."""


@dataclass(frozen=True)
class _Page:
    """One level of a field."""

    across: int
    down: int
    tiles: list[bytes]
    tables: bytes


def write_field(path: Path, *, mpp: float, seed: int = 5, side_px: int = FIELD_PX) -> None:
    """One synthetic field of tissue and glass as SVS: 256 px tiles, levels 1, 4 and 16."""
    write_slide(path, width_px=side_px, height_px=side_px, mpp=mpp, seed=seed)


def write_mosaic(
    field: Path, path: Path, *, across: int, down: int, mpp: float, jpeg2000: bool = False
) -> None:
    """`across` x `down` copies of a field as one BigTIFF pyramid whose directories lie at its end.

    With `jpeg2000` each tile is compressed anew, as Aperio's 33005.
    """
    with tifffile.TiffFile(field) as file, field.open("rb") as raw:
        pages = [_page(level.pages[0], raw) for level in file.series[0].levels]
    if jpeg2000:
        pages = [_as_jpeg2000(page) for page in pages]
    with path.open("wb") as out:
        out.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
        levels = []
        for page in pages:
            offsets, counts = [], []
            for row in range(down * page.down):
                for column in range(across * page.across):
                    tile = page.tiles[row % page.down * page.across + column % page.across]
                    offsets.append(out.tell())
                    counts.append(len(tile))
                    out.write(tile)
            levels.append((page, offsets, counts))
        pointer = 8
        for page, offsets, counts in levels:
            size = (across * page.across * 256, down * page.down * 256)
            pointer = _write_directory(
                out,
                pointer,
                page,
                size=size,
                offsets=offsets,
                counts=counts,
                mpp=mpp,
                jpeg2000=jpeg2000,
            )


def _page(page: Any, raw: Any) -> _Page:
    tiles = []
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        raw.seek(offset)
        tiles.append(raw.read(count))
    columns, rows = page.imagewidth // 256, page.imagelength // 256
    assert len(tiles) == columns * rows
    return _Page(columns, rows, tiles, page.jpegtables or b"")


def _as_jpeg2000(page: _Page) -> _Page:
    coded: dict[bytes, bytes] = {}
    for tile in page.tiles:
        pixels = imagecodecs.jpeg8_decode(tile, tables=page.tables or None)
        coded[tile] = bytes(
            imagecodecs.jpeg2k_encode(np.asarray(pixels), level=30, codecformat="j2k")
        )
    return _Page(page.across, page.down, [coded[tile] for tile in page.tiles], b"")


def _write_directory(
    out: Any,
    pointer: int,
    page: _Page,
    *,
    size: tuple[int, int],
    offsets: list[int],
    counts: list[int],
    mpp: float,
    jpeg2000: bool,
) -> int:
    """Write one directory at the end, its arrays before it; returns where the next one is named."""
    resolution = struct.pack("<2I", round(1e7 / mpp), 1000)
    arrays: dict[int, tuple[int, int, bytes]] = {
        254: (4, 1, struct.pack("<I", int(pointer != 8))),
        256: (4, 1, struct.pack("<I", size[0])),
        257: (4, 1, struct.pack("<I", size[1])),
        258: (3, 3, struct.pack("<3H", 8, 8, 8)),
        259: (3, 1, struct.pack("<H", 33005 if jpeg2000 else 7)),
        262: (3, 1, struct.pack("<H", 2 if jpeg2000 else 6)),
        277: (3, 1, struct.pack("<H", 3)),
        282: (5, 1, resolution),
        283: (5, 1, resolution),
        284: (3, 1, struct.pack("<H", 1)),
        296: (3, 1, struct.pack("<H", 3)),
        322: (4, 1, struct.pack("<I", 256)),
        323: (4, 1, struct.pack("<I", 256)),
        324: (16, len(offsets), struct.pack(f"<{len(offsets)}Q", *offsets)),
        325: (4, len(counts), struct.pack(f"<{len(counts)}I", *counts)),
    }
    if page.tables:
        arrays[347] = (7, len(page.tables), page.tables)
    entries = []
    for tag in sorted(arrays):
        kind, count, data = arrays[tag]
        if len(data) > 8:
            place = out.tell()
            out.write(data)
            data = struct.pack("<Q", place)
        entries.append(struct.pack("<HHQ", tag, kind, count) + data.ljust(8, b"\0"))
    start = out.tell()
    out.write(struct.pack("<Q", len(entries)) + b"".join(entries))
    following = out.tell()
    out.write(bytes(8))
    out.seek(pointer)
    out.write(struct.pack("<Q", start))
    out.seek(0, 2)
    return int(following)
