"""What a JPEG's head says, as the arrays that `scan` goes by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

DC_BITS = 9
"""Bits that are looked up at once where a block starts."""
AC_BITS = 11
"""The same for what follows: two codes with their numbers, mostly."""
LONGEST_CODE = 16
"""Bits of the longest Huffman code (ITU-T T.81, B.2.4.2)."""
CODES_ROW = 2 * (LONGEST_CODE + 1) + 256
"""Numbers of one table in `HalfTables.codes`."""
END_OF_BLOCK = 128
"""Steps to take at the code EOB: past every place that a run of zeros can lead to."""
NATURAL = (
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20,
    13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59,
    52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
)  # fmt: skip
"""Row * 8 + column of each coefficient in the order they are coded (ITU-T T.81, figure A.6)."""
_SAMPLINGS = ((1, 1), (2, 1), (2, 2))
"""(across, down) of the first channel beside one of the others: 4:4:4, 4:2:2, 4:2:0."""

_MOST_BYTES = 1 << 16
"""Of a head; longer ones are not worth the time."""
_MOST_PX = 65_500
"""libjpeg's JPEG_MAX_DIMENSION."""

Bytes = npt.NDArray[np.uint8]


class HalfTables(NamedTuple):
    """How scans with one head are decoded; the Huffman tables come DC first, then AC."""

    width: int
    """px of the whole frame, a whole number of MCUs."""
    height: int
    layout: npt.NDArray[np.uint64]
    """[11]: blocks of the first channel in an MCU, across and down (each other channel has one);
    MCUs across and down; 1 where the channels are YCbCr, 0 for RGB; the table of each channel's DC,
    then of each one's AC, counted over both."""
    fast_dc: npt.NDArray[np.int32]
    """[table, next DC_BITS bits]: number << 16 | bits of code and number; 0 where they don't do."""
    fast_ac: npt.NDArray[np.int64]
    """[table, next AC_BITS bits], from the lowest bits on: bits of two codes and their numbers (8),
    of the first (8), steps to the place of the first number (8), from there to the second's (8),
    the first number (16), the second (16); 0 where the bits don't do for one."""
    codes: npt.NDArray[np.int32]
    """[table, CODES_ROW], DC before AC: by length (0 to 16), below what all codes of at most that
    length are, left-aligned in 16 bits; by length, from a code to its symbol's index; symbols."""
    steps: npt.NDArray[np.int32]
    """[channel, 256]: the quantisation step of each zigzag place, zeros past the last."""


class _Code(NamedTuple):
    bits: int
    length: int
    symbol: int


class _Unfit(Exception):
    """The head asks for what only a whole decoder knows."""


def half_tables(head: bytes) -> HalfTables | None:
    """The tables for scans behind `head` (SOI to SOS); None where a whole decoder must read them.

    Fit are baseline frames of three 8-bit channels in one scan, sampled 4:4:4, 4:2:2 or 4:2:0,
    without restarts, of whole MCUs.
    """
    try:
        return _tables(head)
    except (_Unfit, IndexError, ValueError):
        return None


class _Head(NamedTuple):
    steps: dict[int, Bytes]
    huffman: dict[int, list[_Code]]
    frame: bytes
    scan: bytes
    jfif: bool
    adobe: int | None


def _tables(whole: bytes) -> HalfTables:
    if len(whole) > _MOST_BYTES:
        raise _Unfit
    head = _read(whole)
    frame, scan = head.frame, head.scan
    if len(frame) != 15 or frame[0] != 8 or frame[5] != 3:
        raise _Unfit
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    ids, samplings, quants = frame[6::3], [(s >> 4, s & 15) for s in frame[7::3]], frame[8::3]
    across, down = samplings[0]
    if (across, down) not in _SAMPLINGS or samplings[1:] != [(1, 1), (1, 1)]:
        raise _Unfit
    if not 0 < width <= _MOST_PX or not 0 < height <= _MOST_PX:
        raise _Unfit
    if width % (8 * across) or height % (8 * down):
        raise _Unfit
    if len(scan) != 10 or scan[0] != 3 or scan[1:7:2] != ids or scan[7:] != b"\0\x3f\0":
        raise _Unfit
    ycbcr = _is_ycbcr(ids, jfif=head.jfif, adobe=head.adobe)
    if not ycbcr and across * down > 1:
        raise _Unfit
    chosen = [table >> 4 for table in scan[2:8:2]] + [16 | table & 15 for table in scan[2:8:2]]
    if any(table not in head.huffman for table in chosen):
        raise _Unfit
    used = sorted(set(chosen))
    codes = [head.huffman[table] for table in used]
    n_dc = sum(table < 16 for table in used)
    mcus = width // (8 * across), height // (8 * down)
    which = [used.index(table) for table in chosen]
    steps = np.zeros((3, 256), np.int32)
    for channel, quant in enumerate(quants):
        if quant not in head.steps:
            raise _Unfit
        steps[channel, :64] = head.steps[quant]
    return HalfTables(
        width=width,
        height=height,
        layout=np.array([across, down, *mcus, ycbcr, *which], np.uint64),
        fast_dc=np.concatenate([_fast_dc(table) for table in codes[:n_dc]]),
        fast_ac=np.concatenate([_fast_ac(table) for table in codes[n_dc:]]),
        codes=np.concatenate([_any_length(table) for table in codes]),
        steps=steps.ravel(),
    )


def _read(head: bytes) -> _Head:
    steps: dict[int, Bytes] = {}
    huffman: dict[int, list[_Code]] = {}
    frame = scan = b""
    jfif, adobe = False, None
    for marker, body in _segments(head):
        if marker == 0xDB:
            steps |= _quantisation(body)
        elif marker == 0xC4:
            huffman |= _huffman(body)
        elif marker == 0xC0 and not frame:
            frame = body
        elif marker == 0xDA:
            scan = body
        elif marker == 0xE0 and body.startswith(b"JFIF\0"):
            # Decoders warn of other versions, and overlook short ones.
            if len(body) < 14 or body[5] != 1:
                raise _Unfit
            jfif = True
        elif marker == 0xEE and body.startswith(b"Adobe"):
            adobe = body[11]
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE) or body.startswith(b"ICC_PROFILE"):
            raise _Unfit
    return _Head(steps, huffman, frame, scan, jfif, adobe)


def _segments(head: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, what it holds) from SOI to SOS."""
    position = 2
    while position + 4 <= len(head):
        if head[position] != 0xFF:
            raise _Unfit
        length = int.from_bytes(head[position + 2 : position + 4], "big")
        if length < 2:
            raise _Unfit
        yield head[position + 1], head[position + 4 : position + 2 + length]
        position += 2 + length
    if position != len(head):
        raise _Unfit


def _quantisation(body: bytes) -> dict[int, Bytes]:
    """Steps uint8 [64] in zigzag order by table (ITU-T T.81, B.2.4.1)."""
    found = {}
    for start in range(0, len(body), 65):
        table = body[start : start + 65]
        # Of 16 bits, or cut off.
        if len(table) != 65 or table[0] > 3:
            raise _Unfit
        found[table[0]] = np.frombuffer(table, np.uint8, offset=1)
    return found


def _huffman(body: bytes) -> dict[int, list[_Code]]:
    """Codes by table, those of AC from 16 on (ITU-T T.81, B.2.4.2 and C.2)."""
    found = {}
    while body:
        counts = body[1:17]
        size = 17 + sum(counts)
        if len(body) < size or size > 17 + 256 or body[0] & 0xEF > 3:
            raise _Unfit
        codes: list[_Code] = []
        code = 0
        for length, count in enumerate(counts, 1):
            for symbol in body[17 + len(codes) : 17 + len(codes) + count]:
                codes.append(_Code(code, length, symbol))
                code += 1
            # Nor may a code be all ones.
            if count and code >= 1 << length:
                raise _Unfit
            code <<= 1
        if body[0] < 16 and any(code.symbol > 15 for code in codes):
            raise _Unfit
        found[body[0]] = codes
        body = body[size:]
    return found


def _is_ycbcr(ids: bytes, *, jfif: bool, adobe: int | None) -> bool:
    """What libjpeg takes three channels for."""
    if jfif:
        return True
    if adobe is not None:
        if adobe > 1:
            raise _Unfit
        return adobe == 1
    if ids == b"\1\2\3":
        return True
    raise _Unfit


def _number(size: int, bits: int) -> int:
    """The number that `size` bits stand for (ITU-T T.81, F.2.2.1)."""
    return bits if size == 0 or bits >> (size - 1) else bits - (1 << size) + 1


def _fast_dc(codes: list[_Code]) -> npt.NDArray[np.int32]:
    table = np.zeros(1 << DC_BITS, np.int32)
    for code in codes:
        length = code.length + code.symbol
        if length > DC_BITS:
            continue
        for bits in range(1 << code.symbol):
            first = (code.bits << code.symbol | bits) << (DC_BITS - length)
            entry = _number(code.symbol, bits) << 16 | length
            table[first : first + (1 << (DC_BITS - length))] = entry
    return table


def _fast_ac(codes: list[_Code]) -> npt.NDArray[np.int64]:
    used, steps, number = np.zeros((3, 1 << AC_BITS), np.int64)
    for code in codes:
        run, size = code.symbol >> 4, code.symbol & 15
        length = code.length + size
        if length > AC_BITS:
            continue
        for bits in range(1 << size):
            first = (code.bits << size | bits) << (AC_BITS - length)
            here = slice(first, first + (1 << (AC_BITS - length)))
            used[here], number[here] = length, _number(size, bits)
            steps[here] = run + 1 if size or run == 15 else END_OF_BLOCK
    # What the bits behind the first code start with, where it and its number lie in these too.
    behind = (np.arange(1 << AC_BITS) << used) & ((1 << AC_BITS) - 1)
    paired = (used > 0) & (steps < END_OF_BLOCK) & (used[behind] > 0)
    paired &= used + used[behind] <= AC_BITS
    both = used + np.where(paired, used[behind], 0)
    further = np.where(paired, steps[behind], 0)
    # Without a second number the first is written twice.
    second = np.where(paired, number[behind], number)
    low = both | used << 8 | steps << 16 | further << 24 | (number & 0xFFFF) << 32
    return np.where(used > 0, low | second << 48, 0)


def _any_length(codes: list[_Code]) -> npt.NDArray[np.int32]:
    table = np.zeros(CODES_ROW, np.int32)
    limits, offsets, symbols = np.split(table, [LONGEST_CODE + 1, 2 * (LONGEST_CODE + 1)])
    for index, code in enumerate(codes):
        limits[code.length :] = (code.bits + 1) << (LONGEST_CODE - code.length)
        offsets[code.length] = index - code.bits
        symbols[index] = code.symbol
    return table
