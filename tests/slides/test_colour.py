"""Scanner colours against arithmetic that knows nothing of Little CMS, on made-up profiles."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from PIL import ImageCms

from ray_pipeline.slides.colour import MAX_PROFILE_BYTES, ToSrgb

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]

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
PRIMARIES = {
    "srgb": SRGB,
    "wide": WIDE,
    "swapped": SRGB[::-1],
    "dim": SRGB * 0.8,
    "dull": 0.7 * SRGB + 0.1 * WHITE,
}
ALL = np.stack(np.meshgrid(*[np.arange(0, 256, 15, dtype=np.uint8)] * 3, indexing="ij"), axis=-1)
"""uint8 [18, 18, 18, 3]: as tiles, colours from all over the cube."""


def fixed(*values: float) -> bytes:
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


def expected(rgb: Pixels, primaries: Floats, gamma: float) -> Floats:
    """The sRGB of IEC 61966-2-1, 0..255, colours outside it cut."""
    linear = np.clip((rgb / 255) ** gamma @ primaries @ np.linalg.inv(SRGB), 0, 1)
    bright = 1.055 * linear ** (1 / 2.4) - 0.055
    return np.asarray(255 * np.where(linear <= 0.0031308, 12.92 * linear, bright))


def built_in(space: Literal["LAB", "sRGB"]) -> bytes:
    return bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes())


def test_an_srgb_profile_changes_nothing() -> None:
    assert np.abs(ToSrgb(built_in("sRGB"))(ALL).astype(int) - ALL).max() <= 1


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2])
@pytest.mark.parametrize("primaries", PRIMARIES)
def test_a_matrix_moves_colours_to_where_arithmetic_says(primaries: str, gamma: float) -> None:
    found = ToSrgb(matrix_profile(PRIMARIES[primaries], gamma))(ALL)
    assert found.shape == ALL.shape
    assert np.abs(found - expected(ALL, PRIMARIES[primaries], gamma)).max() <= 2


@pytest.mark.parametrize("primaries", ["srgb", "swapped", "dull"])
def test_a_table_moves_colours_to_where_arithmetic_says(primaries: str) -> None:
    lab = icc({b"A2B0": table(PRIMARIES[primaries], 2.2)}, pcs=b"Lab ")
    found = ToSrgb(lab)(ALL)
    assert np.abs(found - expected(ALL, PRIMARIES[primaries], 2.2)).max() <= 2


@pytest.mark.parametrize(("intent", "primaries"), [(0, "srgb"), (1, "dull")])
def test_the_profile_says_which_of_its_tables_counts(intent: int, primaries: str) -> None:
    tables = {b"A2B0": table(SRGB, 2.2), b"A2B1": table(PRIMARIES["dull"], 2.2)}
    found = ToSrgb(icc(tables, pcs=b"Lab ", intent=intent))(ALL)
    assert np.abs(found - expected(ALL, PRIMARIES[primaries], 2.2)).max() <= 2


def test_tiles_stay_as_they_were_and_keep_no_company() -> None:
    to_srgb = ToSrgb(matrix_profile(WIDE, 1.8))
    tiles = np.random.default_rng(0).integers(0, 256, (5, 31, 17, 3), np.uint8)
    before = tiles.copy()
    tiles.flags.writeable = False
    together = to_srgb(tiles)
    assert (tiles == before).all()
    for index in range(len(tiles)):
        assert (to_srgb(tiles[index : index + 1])[0] == together[index]).all()
    assert (to_srgb(tiles[:, ::-1, ::2]) == together[:, ::-1, ::2]).all()
    assert to_srgb(tiles[:0]).shape == (0, 31, 17, 3)


def test_threads_may_share_it() -> None:
    to_srgb = ToSrgb(icc({b"A2B0": table(WIDE, 1.8)}, pcs=b"Lab "))
    tiles = np.random.default_rng(0).integers(0, 256, (8, 4, 128, 128, 3), np.uint8)
    alone = [to_srgb(batch) for batch in tiles]
    with ThreadPoolExecutor(8) as pool:
        for one, other in zip(alone, pool.map(to_srgb, tiles), strict=True):
            assert (one == other).all()


WHOLE = matrix_profile(SRGB, 2.2)


@pytest.mark.parametrize(
    ("profile", "says"),
    [
        (b"", "0 bytes is broken"),
        (b"no profile at all" * 20, "broken"),
        (WHOLE[:100], "broken"),
        (WHOLE[:-60], "broken|lacks"),
        (WHOLE.replace(b"gTRC", b"xTRC"), "lacks"),
        (icc({}), "lacks"),
        (icc({b"A2B0": table(SRGB, 2.2)[:5000]}, pcs=b"Lab "), "lacks"),
        (built_in("LAB"), "for Lab colours, not RGB"),
        (WHOLE.replace(b"RGB ", b"GRAY"), "for GRAY colours, not RGB"),
        (WHOLE.replace(b"RGB ", b"CMYK"), "for CMYK colours, not RGB"),
        (WHOLE + bytes(MAX_PROFILE_BYTES), f"more than {MAX_PROFILE_BYTES}"),
    ],
)
def test_what_is_no_profile_of_a_scanner_is_refused(profile: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ToSrgb(profile)
