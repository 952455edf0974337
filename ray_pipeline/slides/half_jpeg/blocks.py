"""Blocks of coefficients to rows of pixels, for `scan`, which compiles these with its own loops.

Indices are unsigned: numba asks of every signed one whether it counts from the end, and loops with
that question are not vectorised. Literals are cast, since numba widens what it can, and makes a
float of a signed and an unsigned 64-bit number.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import int16, int32, njit, uint8, uint32, uint64

LANES = 16
"""Blocks that are transformed together: 32-bit numbers in one register of AVX-512."""
BLOCK_ROWS = 65
"""Rows of lanes for the blocks: their coefficients, and one for what lies past the last."""

Bytes = npt.NDArray[np.uint8]
Coefficients = npt.NDArray[np.int16]
Columns = npt.NDArray[np.int32]
Point = tuple[int, ...]


@njit
def are_sound(blocks: Coefficients, n_blocks: int) -> bool:
    """Whether no coefficient of a block's first row is larger than 8 bits make (64 * 128).

    libjpeg-turbo has other ways for blocks with nothing but a first row, which overflow otherwise.
    """
    beyond = int16(0)
    for block in range(n_blocks):
        base = block * uint64(BLOCK_ROWS * LANES)
        for at in range(uint64(8 * LANES)):
            beyond |= int16(int16(blocks[base + at] + int16(8192)) & int16(-16384))
    return beyond == int16(0)


@njit
def to_rows(
    blocks: Coefficients,
    across: int,
    down: int,
    group: int,
    columns: Columns,
    samples: Bytes,
    luma: Bytes,
    blue: Bytes,
    red: Bytes,
) -> None:
    """One group of LANES MCUs, int16 [block, BLOCK_ROWS, lane], to its part of the channels' rows.

    `columns` and `samples` are room to work in. Rows start with a word.
    """
    lumas, size, here = across * down, uint64(BLOCK_ROWS * LANES), group * uint64(LANES)
    for band in range(down):
        for block in range(across):
            base = (band * across + block) * size
            _to_four(blocks, base, columns, samples, block * uint64(16 * LANES))
        if across == uint64(2):
            words = luma.view(np.uint64)
            stride = uint64(len(words)) // (down * uint64(4))
            to = band * uint64(4) * stride + here
            _lay_eights(samples, uint64(16 * LANES), uint64(4), words, to, stride)
        else:
            _lay_fours(samples, luma.view(np.uint32), here)
    for block, rows in ((lumas, blue), (lumas + uint64(1), red)):
        if down == uint64(2):
            _to_eight(blocks, block * size, columns, samples)
            words = rows.view(np.uint64)
            stride = uint64(len(words)) // uint64(8)
            _lay_eights(samples, uint64(4 * LANES), uint64(8), words, here, stride)
        else:
            _to_four(blocks, block * size, columns, samples, uint64(0))
            _lay_fours(samples, rows.view(np.uint32), here)


@njit
def to_pixels(
    luma: Bytes,
    blue: Bytes,
    red: Bytes,
    across: int,
    down: int,
    ycbcr: bool,
    mcu_row: int,
    width: int,
    wide_blue: Bytes,
    wide_red: Bytes,
    out: Bytes,
) -> None:
    """The rows of one row of MCUs, `width` px of each, to their place in `out`.

    `wide_blue` and `wide_red` are room to work in.
    """
    n_rows = down * uint64(4)
    for row in range(n_rows):
        luma_at = row * (uint64(len(luma)) // n_rows)
        chroma_at = row * (uint64(len(blue)) // n_rows)
        to = (mcu_row * n_rows + row) * width * uint64(3)
        if not ycbcr:
            _woven(luma, blue, red, luma_at, width, out, to)
        elif across != down:
            _widened(blue, chroma_at, width // uint64(2), wide_blue)
            _widened(red, chroma_at, width // uint64(2), wide_red)
            _coloured(luma, luma_at, wide_blue, wide_red, uint64(0), width, out, to)
        else:
            _coloured(luma, luma_at, blue, red, chroma_at, width, out, to)


@njit
def _to_four(blocks: Coefficients, base: int, columns: Columns, samples: Bytes, to: int) -> None:
    """Coefficients int16 [64, lane] to samples uint8 [4 x 4, lane]: means of 2 x 2."""
    lanes = uint64(LANES)
    half = int32(1 << 11)
    for column in range(uint64(8)):
        if column == uint64(4):
            continue
        for lane in range(lanes):
            k = column * lanes + lane
            at = base + k
            v0, v1, v2, v3 = _four_point(
                int32(blocks[at]),
                int32(blocks[at + uint64(8 * LANES)]),
                int32(blocks[at + uint64(16 * LANES)]),
                int32(blocks[at + uint64(24 * LANES)]),
                int32(blocks[at + uint64(40 * LANES)]),
                int32(blocks[at + uint64(48 * LANES)]),
                int32(blocks[at + uint64(56 * LANES)]),
            )
            columns[k] = _short(int32(v0 + half) >> 12)
            columns[k + uint64(8 * LANES)] = _short(int32(v1 + half) >> 12)
            columns[k + uint64(16 * LANES)] = _short(int32(v2 + half) >> 12)
            columns[k + uint64(24 * LANES)] = _short(int32(v3 + half) >> 12)
    middle = int32(1 << 18)
    for row in range(uint64(4)):
        for lane in range(lanes):
            k = row * uint64(8 * LANES) + lane
            v0, v1, v2, v3 = _four_point(
                columns[k],
                columns[k + uint64(LANES)],
                columns[k + uint64(2 * LANES)],
                columns[k + uint64(3 * LANES)],
                columns[k + uint64(5 * LANES)],
                columns[k + uint64(6 * LANES)],
                columns[k + uint64(7 * LANES)],
            )
            at = to + row * uint64(4 * LANES) + lane
            samples[at] = _centred(int32(v0 + middle) >> 19)
            samples[at + uint64(LANES)] = _centred(int32(v1 + middle) >> 19)
            samples[at + uint64(2 * LANES)] = _centred(int32(v2 + middle) >> 19)
            samples[at + uint64(3 * LANES)] = _centred(int32(v3 + middle) >> 19)


@njit
def _to_eight(blocks: Coefficients, base: int, columns: Columns, samples: Bytes) -> None:
    """Coefficients int16 [64, lane] to samples uint8 [8 x 8, lane], transposed."""
    lanes = uint64(LANES)
    half = int32(1 << 10)
    for column in range(uint64(8)):
        for lane in range(lanes):
            k = column * lanes + lane
            at = base + k
            v0, v1, v2, v3, v4, v5, v6, v7 = _eight_point(
                int32(blocks[at]),
                int32(blocks[at + uint64(8 * LANES)]),
                int32(blocks[at + uint64(16 * LANES)]),
                int32(blocks[at + uint64(24 * LANES)]),
                int32(blocks[at + uint64(32 * LANES)]),
                int32(blocks[at + uint64(40 * LANES)]),
                int32(blocks[at + uint64(48 * LANES)]),
                int32(blocks[at + uint64(56 * LANES)]),
            )
            columns[k] = _short(int32(v0 + half) >> 11)
            columns[k + uint64(8 * LANES)] = _short(int32(v1 + half) >> 11)
            columns[k + uint64(16 * LANES)] = _short(int32(v2 + half) >> 11)
            columns[k + uint64(24 * LANES)] = _short(int32(v3 + half) >> 11)
            columns[k + uint64(32 * LANES)] = _short(int32(v4 + half) >> 11)
            columns[k + uint64(40 * LANES)] = _short(int32(v5 + half) >> 11)
            columns[k + uint64(48 * LANES)] = _short(int32(v6 + half) >> 11)
            columns[k + uint64(56 * LANES)] = _short(int32(v7 + half) >> 11)
    middle = int32(1 << 17)
    for row in range(uint64(8)):
        for lane in range(lanes):
            k = row * uint64(8 * LANES) + lane
            v0, v1, v2, v3, v4, v5, v6, v7 = _eight_point(
                columns[k],
                columns[k + uint64(LANES)],
                columns[k + uint64(2 * LANES)],
                columns[k + uint64(3 * LANES)],
                columns[k + uint64(4 * LANES)],
                columns[k + uint64(5 * LANES)],
                columns[k + uint64(6 * LANES)],
                columns[k + uint64(7 * LANES)],
            )
            samples[k] = _centred(int32(v0 + middle) >> 18)
            samples[k + uint64(LANES)] = _centred(int32(v1 + middle) >> 18)
            samples[k + uint64(2 * LANES)] = _centred(int32(v2 + middle) >> 18)
            samples[k + uint64(3 * LANES)] = _centred(int32(v3 + middle) >> 18)
            samples[k + uint64(4 * LANES)] = _centred(int32(v4 + middle) >> 18)
            samples[k + uint64(5 * LANES)] = _centred(int32(v5 + middle) >> 18)
            samples[k + uint64(6 * LANES)] = _centred(int32(v6 + middle) >> 18)
            samples[k + uint64(7 * LANES)] = _centred(int32(v7 + middle) >> 18)


@njit
def _four_point(i0: int, i1: int, i2: int, i3: int, i5: int, i6: int, i7: int) -> Point:
    """Sums of neighbours in `_eight_point`'s result, 14 bits of fraction, rounded as libjpeg does.

    Each output is (out[2k] + out[2k + 1]) / 2 of the eight; coefficient 4 falls out of it.
    """
    even0 = int32(i0 << int32(14))
    even2 = int32(int32(i2 * int32(15137)) - int32(i6 * int32(6270)))
    e0, e1 = int32(even0 + even2), int32(even0 - even2)
    o1 = int32(
        int32(i7 * int32(-1730))
        + int32(i5 * int32(11893))
        - int32(i3 * int32(17799))
        + int32(i1 * int32(8697))
    )
    o0 = int32(
        int32(i7 * int32(-4176))
        - int32(i5 * int32(4926))
        + int32(i3 * int32(7373))
        + int32(i1 * int32(20995))
    )
    return int32(e0 + o0), int32(e1 + o1), int32(e1 - o1), int32(e0 - o0)


@njit
def _eight_point(i0: int, i1: int, i2: int, i3: int, i4: int, i5: int, i6: int, i7: int) -> Point:
    """One dimension of the accurate integer transform, 13 bits of fraction.

    Loeffler, Ligtenberg and Moschytz, Practical fast 1-D DCT algorithms with 11 multiplications,
    ICASSP 1989, figure 1; the multiplications as libjpeg places and rounds them.
    """
    z1 = int32(int32(i2 + i6) * int32(4433))
    even2, even3 = int32(z1 - int32(i6 * int32(15137))), int32(z1 + int32(i2 * int32(6270)))
    even0, even1 = (
        int32(int32(int16(i0 + i4)) << int32(13)),
        int32(int32(int16(i0 - i4)) << int32(13)),
    )
    e0, e3 = int32(even0 + even3), int32(even0 - even3)
    e1, e2 = int32(even1 + even2), int32(even1 - even2)
    z3, z4 = int32(int16(i7 + i3)), int32(int16(i5 + i1))
    z5 = int32(int32(z3 + z4) * int32(9633))
    z1, z2 = int32(int32(i7 + i1) * int32(-7373)), int32(int32(i5 + i3) * int32(-20995))
    z3, z4 = int32(int32(z3 * int32(-16069)) + z5), int32(int32(z4 * int32(-3196)) + z5)
    o0 = int32(int32(i7 * int32(2446)) + z1 + z3)
    o1 = int32(int32(i5 * int32(16819)) + z2 + z4)
    o2 = int32(int32(i3 * int32(25172)) + z2 + z3)
    o3 = int32(int32(i1 * int32(12299)) + z1 + z4)
    return (
        int32(e0 + o3),
        int32(e1 + o2),
        int32(e2 + o1),
        int32(e3 + o0),
        int32(e3 - o0),
        int32(e2 - o1),
        int32(e1 - o2),
        int32(e0 - o3),
    )


@njit
def _sample(value: int) -> int:
    return uint8(
        int32(0) if value < int32(0) else (int32(255) if value > int32(255) else int32(value))
    )


@njit
def _centred(value: int) -> int:
    """The sample of a value around 0."""
    return _sample(int32(int32(value) + int32(128)))


@njit
def _short(value: int) -> int:
    """What 16 bits hold of it: libjpeg-turbo keeps no more between the dimensions."""
    return int32(
        int32(-32768)
        if value < int32(-32768)
        else (int32(32767) if value > int32(32767) else value)
    )


@njit
def _lay_fours(samples: Bytes, words: npt.NDArray[np.uint32], here: int) -> None:
    """Lay samples [4 x 4, lane] side by side in 4 rows, from a word on; a word holds four."""
    stride = uint64(len(words)) // uint64(4)
    for row in range(uint64(4)):
        at, to = row * uint64(4 * LANES), here + row * stride
        for lane in range(uint64(LANES)):
            word = uint32(samples[at + lane])
            for x in range(1, 4):
                word = uint32(
                    word | uint32(uint32(samples[at + lane + uint64(x * LANES)]) << uint32(8 * x))
                )
            words[to + lane] = word


@njit
def _lay_eights(
    samples: Bytes, right: int, n_rows: int, words: npt.NDArray[np.uint64], first: int, stride: int
) -> None:
    """The same with words of eight: four samples, and four that lie `right` of them."""
    # Halves that come from two blocks lie one block apart; those of one lie in the same row.
    row_lanes = uint64(4 * LANES) if n_rows == uint64(4) else uint64(8 * LANES)
    for row in range(n_rows):
        at, to = row * row_lanes, first + row * stride
        for lane in range(uint64(LANES)):
            word = uint64(0)
            for x in range(4):
                left = at + lane + uint64(x * LANES)
                word |= uint64(samples[left]) << uint64(8 * x)
                word |= uint64(samples[left + right]) << uint64(8 * x + 32)
            words[to + lane] = word


@njit
def _widened(row: Bytes, start: int, width: int, wide: Bytes) -> None:
    """Twice as many samples as the `width` from `start` on: three parts nearer, one farther."""
    last = width - uint64(1)
    wide[uint64(0)] = row[start]
    wide[last + last + uint64(1)] = row[start + last]
    for at in range(last):
        left, right = int32(row[start + at]), int32(row[start + at + uint64(1)])
        to = at + at + uint64(1)
        wide[to] = uint8(int32(int32(left * int32(3)) + right + int32(2)) >> 2)
        wide[to + uint64(1)] = uint8(int32(int32(right * int32(3)) + left + int32(1)) >> 2)


@njit
def _coloured(
    luma: Bytes,
    luma_at: int,
    blue: Bytes,
    red: Bytes,
    chroma_at: int,
    width: int,
    out: Bytes,
    to: int,
) -> None:
    """One row of Y, Cb, Cr to RGB (ITU-T T.871, section 7), 16 bits of fraction."""
    half = int32(1 << 15)
    for at in range(width):
        y = int32(luma[luma_at + at])
        cb = int32(int32(blue[chroma_at + at]) - int32(128))
        cr = int32(int32(red[chroma_at + at]) - int32(128))
        r = int32(int32(int32(91881) * cr) + half) >> 16
        g = int32(half - int32(int32(22554) * cb) - int32(int32(46802) * cr)) >> 16
        b = int32(int32(int32(116130) * cb) + half) >> 16
        pixel = to + at * uint64(3)
        out[pixel] = _sample(int32(y + int32(r)))
        out[pixel + uint64(1)] = _sample(int32(y + int32(g)))
        out[pixel + uint64(2)] = _sample(int32(y + int32(b)))


@njit
def _woven(
    first: Bytes, second: Bytes, third: Bytes, start: int, width: int, out: Bytes, to: int
) -> None:
    """One row of three channels that are RGB already."""
    for at in range(width):
        pixel = to + at * uint64(3)
        out[pixel] = first[start + at]
        out[pixel + uint64(1)] = second[start + at]
        out[pixel + uint64(2)] = third[start + at]
