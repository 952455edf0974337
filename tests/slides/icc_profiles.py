"""Made-up ICC profiles: a scanner's colours as a matrix or as a table."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

WHITE = np.array([0.9642, 1.0, 0.8249])
"""D50, the white of all profiles."""
SRGB = np.array(
    [
        [0.4360747, 0.2225045, 0.0139322],
        [0.3850649, 0.7168786, 0.0971045],
        [0.1430804, 0.0606169, 0.7141733],
    ]
)
"""XYZ of sRGB's red, green and blue, moved to D50 by Bradford's method."""
WIDE = np.array(
    [
        [0.6097559, 0.3111242, 0.0194811],
        [0.2052401, 0.6256560, 0.0608902],
        [0.1492240, 0.0632197, 0.7448387],
    ]
)
"""The same of Adobe RGB (1998)."""


def fixed(*values: float) -> bytes:
    """Numbers as s15Fixed16Number."""
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def icc(
    tags: dict[bytes, bytes], *, space: bytes = b"RGB ", pcs: bytes = b"XYZ ", intent: int = 0
) -> bytes:
    """A profile of version 2.4: a header of 128 bytes, the table of tags, the tags."""
    tags = {b"wtpt": b"XYZ \0\0\0\0" + fixed(*WHITE), **tags}
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    size = struct.pack(">I", 128 + len(table) + len(body))
    kind = struct.pack(">4xI", 0x02400000) + b"scnr" + space + pcs
    header = size + kind + bytes(12) + b"acsp" + bytes(24) + struct.pack(">I", intent)
    return (header + fixed(*WHITE)).ljust(128, b"\0") + table + body


def matrix_profile(primaries: Floats, gamma: float) -> bytes:
    """A profile of three primaries [3, 3], XYZ at D50, and one curve for all."""
    tags = {}
    for name, xyz in zip(b"rgb", primaries, strict=True):
        tags[bytes([name]) + b"XYZ"] = b"XYZ \0\0\0\0" + fixed(*xyz)
        tags[bytes([name]) + b"TRC"] = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    return icc(tags)


def table(primaries: Floats, gamma: float, grid: int = 33) -> bytes:
    """The same colours as a table of L*, a* and b* (lut16Type)."""
    axis = np.linspace(0, 1, grid)
    rgb = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    ratio = rgb**gamma @ primaries / WHITE
    cube = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * (29 / 6) ** 2 / 3 + 4 / 29)
    light = 116 * cube[..., 1] - 16
    a, b = 500 * (cube[..., 0] - cube[..., 1]), 200 * (cube[..., 1] - cube[..., 2])
    lab = np.stack([light * 652.8, (a + 128) * 256, (b + 128) * 256], axis=-1)
    straight = struct.pack(">2H", 0, 65535) * 3
    numbers = bytes(np.clip(np.rint(lab), 0, 65535).astype(">u2").tobytes())
    identity = fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    shape = bytes([3, 3, grid, 0]) + identity + struct.pack(">2H", 2, 2)
    return b"mft2\0\0\0\0" + shape + straight + numbers + straight
