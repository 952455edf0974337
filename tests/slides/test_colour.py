"""Scanner colours against arithmetic that knows nothing of Little CMS, on made-up profiles."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from PIL import ImageCms

from ray_pipeline.slides.colour import MAX_PROFILE_BYTES, ToSrgb
from tests.slides.icc_profiles import SRGB, WHITE, WIDE, icc, matrix_profile, table

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]

PRIMARIES = {
    "srgb": SRGB,
    "wide": WIDE,
    "swapped": SRGB[::-1],
    "dim": SRGB * 0.8,
    "dull": 0.7 * SRGB + 0.1 * WHITE,
}
ALL = np.stack(np.meshgrid(*[np.arange(0, 256, 15, dtype=np.uint8)] * 3, indexing="ij"), axis=-1)
"""uint8 [18, 18, 18, 3]: as tiles, colours from all over the cube."""


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
