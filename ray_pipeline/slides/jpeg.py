"""Whether the bytes of a JPEG tile are whole, told from its markers before it is decoded."""

from __future__ import annotations

# ITU-T T.81, table B.1.
_START_OF_IMAGE = b"\xff\xd8"
_END_OF_IMAGE = b"\xff\xd9"
_START_OF_SCAN = 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def jpeg_fault(data: bytes, width_px: int, height_px: int) -> str | None:
    """What is wrong with `data` as a JPEG of at most `width_px` x `height_px`; None if nothing is.

    Decoders fill what is missing with grey and say nothing, and give a frame the room it claims
    however little the directory says it has. The coded pixels themselves are not looked at.
    """
    if not data.startswith(_START_OF_IMAGE):
        return "no JPEG starts here"
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in _FRAMES:
            height = int.from_bytes(data[position + 5 : position + 7], "big")
            width = int.from_bytes(data[position + 7 : position + 9], "big")
            if width > width_px or height > height_px:
                return f"a JPEG of {width} x {height} px in a tile of {width_px} x {height_px}"
        elif marker == _START_OF_SCAN:
            # In coded pixels 0xFF never stands before 0xD9: padding may follow, cut data can't.
            whole = data.rfind(_END_OF_IMAGE, position) >= 0
            return None if whole else "a JPEG without an end"
        # 0xFF may be repeated before a marker.
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        position += 1 if marker == 0xFF else 2 + length
    return "a JPEG without pixels"
