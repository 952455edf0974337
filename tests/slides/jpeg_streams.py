"""JPEGs as no encoder writes them: any tables, another for each channel, any coefficients.

`NUMBA_BOUNDSCHECK=1 python -m tests.slides.jpeg_streams 2000` halves so many, and as many damaged
ones, with every index checked, and prints how many of them were taken.
"""

from __future__ import annotations

import struct
import sys
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ray_pipeline.slides.half_jpeg.decoder import HalfJpeg
from ray_pipeline.slides.jpeg import scan_start

Pixels = npt.NDArray[np.uint8]
JFIF = b"JFIF\0\1\1\0\0\1\0\1\0\0"
EOB, ZRL = 0x00, 0xF0


class Table(NamedTuple):
    """A Huffman table: what a DHT segment says of it, and (code, length) by symbol."""

    stated: bytes
    codes: dict[int, tuple[int, int]]


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body


def adobe(transform: int) -> bytes:
    return segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))


def table(rng: np.random.Generator, symbols: list[int]) -> Table:
    """Random lengths for the symbols, of which the first ones get the shorter codes."""
    counts, codes, left, code = [0] * 16, {}, list(symbols), 0
    greedy = rng.random()
    for length in range(1, 17):
        code <<= 1
        room = (1 << length) - 1 - code
        take = min(len(left), int(rng.integers(0, room + 1)) if rng.random() < greedy else 0)
        # The rest must still find room at 16 bits, and one code is all ones, which none may be.
        while (room + 1 - take << 16 - length) - 1 < len(left) - take:
            take -= 1
        take = len(left) if length == 16 else take
        for symbol in left[:take]:
            codes[symbol] = code, length
            code += 1
        counts[length - 1], left = take, left[take:]
    return Table(bytes(counts) + bytes(symbols), codes)


class Bits:
    """The coded pixels as they grow."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng, self._parts = rng, [""]

    def put(self, code: tuple[int, int], size: int = 0) -> None:
        """A code, and `size` random bits behind it."""
        bits, length = code
        self._parts.append(f"{bits:0{length}b}")
        if size:
            self._parts.append(f"{int(self._rng.integers(1 << size)):0{size}b}")

    def scan(self) -> bytes:
        """Filled up with ones, stuffed, and ended."""
        bits = "".join(self._parts)
        bits += "1" * (-len(bits) % 8)
        whole = int(bits, 2).to_bytes(len(bits) // 8, "big")
        return whole.replace(b"\xff", b"\xff\0") + b"\xff\xd9"


def random_jpeg(seed: int) -> bytes:
    """A JPEG that is sound but for numbers that may overflow, the same for the same seed."""
    rng = np.random.default_rng(seed)
    across, down = [(1, 1), (2, 1), (2, 2)][rng.integers(3)]
    mcus_x, mcus_y = int(rng.integers(1, 20)), int(rng.integers(1, 4))
    most = int(rng.choice([3, 5, 10]))
    numbers = [run << 4 | size for run in range(16) for size in range(1, most + 1)]
    ends = [EOB, *(int(run) << 4 for run in rng.integers(1, 15, rng.integers(3)))]
    dc = [table(rng, rng.permutation(most + 2).tolist()) for _ in range(3)]
    ac = []
    for _ in range(3):
        some = rng.permutation(numbers)[: rng.integers(1, len(numbers))].tolist()
        symbols = [*rng.permutation([*ends, ZRL]).tolist(), *some]
        if rng.random() < 0.3:
            symbols = rng.permutation(symbols).tolist()
        ac.append(table(rng, [*dict.fromkeys(symbols)]))
    colours = [
        segment(0xE0, JFIF),
        segment(0xE0, JFIF) + adobe(0),
        adobe(1),
        b"",
        adobe(0) if across == 1 else b"",
        segment(0xE0, JFIF[:9]) + adobe(1),
    ][rng.integers(6)]
    largest = int(rng.choice([2, 16, 255]))
    steps = [rng.integers(1, largest + 1, 64, np.uint8).tobytes() for _ in range(4)]
    # The last of two tables with one name counts.
    quantisation = [bytes([i]) + s for i, s in zip([0, 0, 1, 2], steps, strict=True)]
    huffman = [bytes([i]) + t.stated for i, t in enumerate(dc)]
    huffman += [bytes([16 + i]) + t.stated for i, t in enumerate(ac)]
    of = [rng.permutation(3).tolist() for _ in range(3)]
    size = (8 * down * mcus_y, 8 * across * mcus_x)
    head = b"\xff\xd8" + colours + segment(0xDB, quantisation[0])
    head += segment(0xDB, b"".join(quantisation[1:]))
    head += segment(0xC4, b"".join(huffman[:4])) + segment(0xC4, b"".join(huffman[4:]))
    frame = [bytes([1, across << 4 | down, of[0][0]]), bytes([2, 17, of[0][1]])]
    frame.append(bytes([3, 17, of[0][2]]))
    head += segment(0xC0, struct.pack(">BHHB", 8, *size, 3) + b"".join(frame))
    chosen = list(zip([1, 2, 3], of[1], of[2], strict=True))
    named = b"".join(bytes([i, d << 4 | a]) for i, d, a in chosen)
    head += segment(0xDA, b"\3" + named + b"\0\x3f\0")
    bits = Bits(rng)
    for _ in range(mcus_x * mcus_y):
        for channel in [0] * (across * down) + [1, 2]:
            _block(bits, rng, dc[chosen[channel][1]], ac[chosen[channel][2]])
    return head + bits.scan()


def _block(bits: Bits, rng: np.random.Generator, dc: Table, ac: Table) -> None:
    size = int(rng.choice(list(dc.codes)[:4]))
    bits.put(dc.codes[size], size)
    at, stop = 0, int(rng.choice([0, 2, 8, 64]))
    symbols = list(ac.codes)
    while at < 63:
        symbol = symbols[int(len(symbols) * rng.random() ** 2)]
        further = at + (symbol >> 4) + 1
        if at >= stop or further > 63 or (symbol & 15 == 0 and symbol != ZRL):
            ends = [s for s in symbols if s & 15 == 0 and s != ZRL]
            bits.put(ac.codes[ends[rng.integers(len(ends))]])
            return
        bits.put(ac.codes[symbol], symbol & 15)
        at = further


def damaged(jpeg: bytes, seed: int) -> bytes:
    """With some bytes changed, or cut short."""
    rng = np.random.default_rng(seed)
    changed, scan = bytearray(jpeg), scan_start(jpeg)
    first, last = [(2, scan), (scan, len(jpeg)), (2, len(jpeg))][rng.integers(3)]
    for at in rng.integers(first, last, rng.integers(1, 4)):
        changed[at] = rng.integers(256)
    if rng.random() < 0.3:
        return bytes(changed[: rng.integers(scan, rng.choice([scan + 9, len(jpeg)]))]) + b"\xff\xd9"
    return bytes(changed)


def halved(jpeg: bytes, head_bytes: int, by: HalfJpeg) -> Pixels | None:
    """What comes of it, with room for frames that say they are larger than they are."""
    room = np.full(1 << 20, 7, np.uint8)
    pixels = by.decode(jpeg[:head_bytes], memoryview(jpeg)[head_bytes:], room)
    if pixels is not None:
        assert np.shares_memory(pixels, room)
        assert (room[pixels.size :] == 7).all()
    return pixels


def main(count: int) -> None:
    """Halve `count` of them, and as many damaged ones."""
    by = HalfJpeg()
    by.compile_after(0)
    taken = [0, 0]
    for seed in range(count):
        jpeg = random_jpeg(seed)
        scan = scan_start(jpeg)
        taken[0] += halved(jpeg, scan, by) is not None
        taken[1] += halved(damaged(jpeg, seed), scan, by) is not None
    sys.stdout.write(f"{taken[0]} {taken[1]}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
