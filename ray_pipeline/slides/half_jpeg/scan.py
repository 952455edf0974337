"""A scan's bits to pixels, in one loop that numba compiles; see `blocks` for how it is written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from numba import config, int16, int32, int64, njit, types, uint8, uint64

from ray_pipeline.slides.half_jpeg.blocks import (
    BLOCK_ROWS,
    LANES,
    Bytes,
    are_sound,
    to_pixels,
    to_rows,
)
from ray_pipeline.slides.half_jpeg.tables import (
    AC_BITS,
    CODES_ROW,
    DC_BITS,
    END_OF_BLOCK,
    LONGEST_CODE,
    NATURAL,
)

_PADDING = 512
"""Zero bytes behind the scan: more than one block can take."""
# Where the coefficient of a zigzag place goes; all places past the last share one row.
_PLACE = np.full(256, 64 * LANES, np.uint64)
_PLACE[:64] = np.array(NATURAL) * LANES

_SIGNATURE = (
    uint64[::1],
    int32[::1],
    int64[::1],
    int32[::1],
    int32[::1],
    types.Array(uint8, 1, "C", readonly=True),
    uint8[::1],
)


def compiled() -> Callable[..., bool] | None:
    """`decode`, compiled; None where numba is told not to. Raises what numba and LLVM raise."""
    if config.DISABLE_JIT:
        return None
    decode.compile(_SIGNATURE)
    kernel: Callable[..., bool] = decode
    return kernel


@njit(nogil=True)
def decode(
    layout: npt.NDArray[np.uint64],
    fast_dc: npt.NDArray[np.int32],
    fast_ac: npt.NDArray[np.int64],
    codes: npt.NDArray[np.int32],
    steps: npt.NDArray[np.int32],
    scan: Bytes,
    out: Bytes,
) -> bool:
    """Decode a scan into `out`, uint8 [h * w * 3] at half the frame's size.

    False where it is damaged, or not simple enough to be sure. All else are the arrays of
    `HalfTables`; `scan` goes from behind SOS to EOI.
    """
    across, down, mcus_x, mcus_y = layout[0], layout[1], layout[2], layout[3]
    ycbcr, which = layout[4] != uint64(0), layout[5:]
    data = np.empty(len(scan) + _PADDING, np.uint8)
    counted = _unstuffed(scan, data)
    if counted < int64(0):
        return False
    length = uint64(counted)
    for at in range(uint64(_PADDING)):
        data[length + at] = uint8(0)
    lanes = uint64(LANES)
    n_dc_tables = uint64(len(fast_dc)) >> uint64(DC_BITS)
    lumas = across * down
    n_blocks = lumas + uint64(2)
    block_size = uint64(BLOCK_ROWS * LANES)
    groups = (mcus_x + lanes - uint64(1)) // lanes
    blocks = np.empty(n_blocks * block_size, np.int16)
    columns = np.empty(64 * LANES, np.int32)
    samples = np.empty(64 * LANES, np.uint8)
    # A channel that is stored at half the size already is not halved again.
    luma_bytes = groups * lanes * across * uint64(4)
    chroma_bytes = groups * lanes * down * uint64(4)
    luma = np.empty(down * uint64(4) * luma_bytes, np.uint8)
    blue = np.empty(down * uint64(4) * chroma_bytes, np.uint8)
    red = np.empty(down * uint64(4) * chroma_bytes, np.uint8)
    width = mcus_x * across * uint64(4)
    wide_blue, wide_red = np.empty(width, np.uint8), np.empty(width, np.uint8)
    predicted = np.zeros(3, np.int32)
    channel_of, dc_of = np.zeros(n_blocks, np.uint64), np.empty(n_blocks, np.uint64)
    ac_of, fast_of = np.empty(n_blocks, np.uint64), np.empty(n_blocks, np.uint64)
    step_of = np.empty(n_blocks, np.uint64)
    for block in range(n_blocks):
        if block >= lumas:
            channel_of[block] = block - lumas + uint64(1)
        channel = channel_of[block]
        dc_of[block], ac_of[block] = which[channel], which[channel + uint64(3)]
        fast_of[block] = (ac_of[block] - n_dc_tables) * uint64(1 << AC_BITS)
        step_of[block] = channel * uint64(256)
    position, bits, n_bits = uint64(0), uint64(0), uint64(0)
    for mcu_row in range(mcus_y):
        for group in range(groups):
            blocks[:] = int16(0)
            for lane in range(min(lanes, mcus_x - group * lanes)):
                for block in range(n_blocks):
                    dc_table, ac_table, fast = dc_of[block], ac_of[block], fast_of[block]
                    channel = channel_of[block]
                    base, step = block * block_size + lane, step_of[block]
                    # At least 56 bits are at hand before each code, of which it takes at most 31.
                    bits |= _eight_bytes(data, position) >> n_bits
                    position += (uint64(63) - n_bits) >> uint64(3)
                    n_bits |= uint64(56)
                    short = fast_dc[
                        dc_table * uint64(1 << DC_BITS) + (bits >> uint64(64 - DC_BITS))
                    ]
                    if short != int32(0):
                        used = uint64(short & int32(255))
                        bits <<= used
                        n_bits -= used
                        predicted[channel] += short >> int32(16)
                    else:
                        used, size = _long_code(bits, dc_table, codes)
                        if used == uint64(0) or size > uint64(15):
                            return False
                        bits <<= used
                        n_bits -= used
                        if size > uint64(0):
                            predicted[channel] += _extended(bits, size)
                            bits <<= size
                            n_bits -= size
                    blocks[base] = int16(predicted[channel] * steps[step])
                    at = uint64(0)
                    while at < uint64(63):
                        bits |= _eight_bytes(data, position) >> n_bits
                        position += (uint64(63) - n_bits) >> uint64(3)
                        n_bits |= uint64(56)
                        pair = fast_ac[fast + (bits >> uint64(64 - AC_BITS))]
                        if pair != int64(0):
                            first = at + uint64((pair >> int64(16)) & int64(255))
                            at = first + uint64((pair >> int64(24)) & int64(255))
                            blocks[base + _PLACE[first]] = int16(
                                int32(int16(pair >> int64(32))) * steps[step + first]
                            )
                            blocks[base + _PLACE[at]] = int16(
                                int32(pair >> int64(48)) * steps[step + at]
                            )
                            used = uint64(pair & int64(255))
                            if at >= uint64(63):
                                if first == uint64(63):
                                    # What follows is the next block's.
                                    used = uint64((pair >> int64(8)) & int64(255))
                                elif uint64(63) < first < uint64(END_OF_BLOCK) or uint64(
                                    63
                                ) < at < uint64(END_OF_BLOCK):
                                    return False
                            bits <<= used
                            n_bits -= used
                        else:
                            used, symbol = _long_code(bits, ac_table, codes)
                            if used == uint64(0):
                                return False
                            bits <<= used
                            n_bits -= used
                            size = symbol & uint64(15)
                            at += (symbol >> uint64(4)) + uint64(1)
                            if size == uint64(0):
                                if symbol < uint64(0xF0):
                                    break
                                continue
                            if at > uint64(63):
                                return False
                            blocks[base + _PLACE[at]] = int16(
                                _extended(bits, size) * steps[step + at]
                            )
                            bits <<= size
                            n_bits -= size
                    if position > length + uint64(8):
                        return False
            if not are_sound(blocks, n_blocks):
                return False
            to_rows(blocks, across, down, group, columns, samples, luma, blue, red)
        to_pixels(luma, blue, red, across, down, ycbcr, mcu_row, width, wide_blue, wide_red, out)
    # Bits that were made up behind the end are no pixels.
    return position * uint64(8) - n_bits <= length * uint64(8)


@njit
def _unstuffed(scan: Bytes, data: Bytes) -> int:
    """Copy a scan without the zero after each 0xFF; its length, or -1 unless it ends in EOI."""
    length, at, to = uint64(len(scan)), uint64(0), uint64(0)
    while at + uint64(1) < length:
        byte = scan[at]
        data[to] = byte
        at += uint64(1)
        if byte == uint8(0xFF):
            following = scan[at]
            if following != uint8(0):
                return int64(to) if following == uint8(0xD9) else int64(-1)
            at += uint64(1)
        to += uint64(1)
    return int64(-1)


@njit
def _long_code(bits: int, table: int, codes: npt.NDArray[np.int32]) -> tuple[int, int]:
    """(length, symbol) of the code that `bits` start with; length 0 where there is none."""
    first = int64(bits >> uint64(48))
    limits = table * uint64(CODES_ROW)
    offsets = limits + uint64(LONGEST_CODE + 1)
    symbols = offsets + uint64(LONGEST_CODE + 1)
    for length in range(uint64(1), uint64(LONGEST_CODE + 1)):
        if first < int64(codes[limits + length]):
            index = (first >> int64(uint64(16) - length)) + int64(codes[offsets + length])
            return length, uint64(codes[symbols + uint64(index)])
    return uint64(0), uint64(0)


@njit
def _extended(bits: int, size: int) -> int:
    """The number that `size` bits stand for (ITU-T T.81, F.2.2.1)."""
    number = int32(bits >> (uint64(64) - size))
    if number < (int32(1) << int32(size - uint64(1))):
        number += int32(1) - (int32(1) << int32(size))
    return number


@njit
def _eight_bytes(data: Bytes, at: int) -> int:  # big-endian; becomes one load
    word = uint64(data[at])
    for step in range(1, 8):
        word = (word << uint64(8)) | uint64(data[at + uint64(step)])
    return word
