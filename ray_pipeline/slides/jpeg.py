"""JPEG markers: whether a tile is whole before it is decoded, and what decoders must be told."""

from __future__ import annotations

from functools import lru_cache

# ITU-T T.81, table B.1.
_START_OF_IMAGE = b"\xff\xd8"
END_OF_IMAGE = b"\xff\xd9"
"""The marker EOI."""
_START_OF_SCAN = 0xDA
_COLOURS = (0xE0, 0xEE)
"""JFIF and Adobe, the two markers that say what the channels are."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_TABLES = frozenset({0xDB, 0xC4, 0xDD})
"""Quantisation, Huffman, restart interval: what a directory's JPEGTables may hold."""


def frame_fault(
    data: bytes, width_px: int, height_px: int, least_width_px: int = 1, least_height_px: int = 1
) -> str | None:
    """What is wrong with `data` as a JPEG of at most `width_px` x `height_px`; None if nothing is.

    It must be at least `least_width_px` x `least_height_px`. Decoders fill what is missing with
    grey and say nothing, and give a frame the room it claims however little the directory says it
    has. The coded pixels themselves are not looked at.
    """
    fault, scan = _head_fault(data, width_px, height_px, least_width_px, least_height_px)
    if fault is not None:
        return fault
    if scan is None:
        return "a JPEG without pixels"
    # In coded pixels 0xFF never stands before 0xD9: padding may follow, cut data can't.
    return None if data.find(END_OF_IMAGE, scan) >= 0 else "a JPEG without an end"


def scan_start(data: bytes) -> int:
    """First byte of the coded pixels, behind the header SOS, of a JPEG without a fault."""
    _, scan = _head_fault(data, 1 << 16, 1 << 16, 0, 0)
    assert scan is not None
    return scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")


def _head_fault(
    head: bytes, width_px: int, height_px: int, least_width_px: int, least_height_px: int
) -> tuple[str | None, int | None]:
    """(what is wrong with the frame, where the scan starts), two None where `head` ends before."""
    if not head.startswith(_START_OF_IMAGE):
        return "no JPEG starts here", None
    position, framed = 2, False
    while position + 2 <= len(head) and head[position] == 0xFF:
        marker = head[position + 1]
        if marker == _START_OF_SCAN:
            return (None, position) if framed else ("a JPEG without a frame", None)
        if marker in _FRAMES:
            height = int.from_bytes(head[position + 5 : position + 7], "big")
            width = int.from_bytes(head[position + 7 : position + 9], "big")
            fits = least_width_px <= width <= width_px and least_height_px <= height <= height_px
            if framed or not fits:
                claim = f"a JPEG of {width} x {height} px"
                return f"{claim} in a tile of {width_px} x {height_px}", None
            framed = True
        # 0xFF may be repeated before a marker.
        length = int.from_bytes(head[position + 2 : position + 4], "big")
        position += 1 if marker == 0xFF else 2 + length
    return None, None


@lru_cache(maxsize=256)
def jpeg_prefix(tables: bytes, ycbcr: bool | None) -> bytes:
    """SOI, an Adobe marker that says what the channels are (None: no marker), and the tables.

    `tables` is an abbreviated stream (SOI, tables, EOI) or empty. Aperio writes RGB without any
    marker, which decoders would take for YCbCr. Adobe's APP14: Technical Note 5116, section 18.
    Raises ValueError for tables that hold anything else.
    """
    kept, position = [_START_OF_IMAGE], 2
    if ycbcr is not None:
        transform = b"\x01" if ycbcr else b"\x00"
        kept.append(b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + transform)
    while position + 4 <= len(tables) and tables[position : position + 2] != END_OF_IMAGE:
        length = 2 + int.from_bytes(tables[position + 2 : position + 4], "big")
        if tables[position] != 0xFF or position + length > len(tables):
            raise ValueError("the directory's JPEG tables are damaged")
        if tables[position + 1] in _TABLES:
            kept.append(tables[position : position + length])
        elif tables[position + 1] in _FRAMES or tables[position + 1] == _START_OF_SCAN:
            raise ValueError("the directory's JPEG tables hold a picture")
        position += length
    return b"".join(kept)


def without_app(head: bytes) -> bytes:
    """What follows SOI in a JPEG's head, without its JFIF and Adobe markers.

    Decoders believe the first over all else that the channels are YCbCr, and the last Adobe marker
    over the first.
    """
    kept, position = [], 2
    while position + 4 <= len(head) and head[position] == 0xFF:
        start, marker = position, head[position + 1]
        # 0xFF may be repeated before a marker.
        length = int.from_bytes(head[position + 2 : position + 4], "big")
        position += 1 if marker == 0xFF else 2 + length
        if marker not in _COLOURS:
            kept.append(head[start:position])
    return b"".join(kept) + head[position:]
