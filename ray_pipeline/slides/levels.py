"""What an opened slide tells: its levels, its overview, and its microns per pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_pipeline.errors import NoMppError, SettingsError, TooLargeError

MPP_TRUSTED = (0.05, 20.0)
"""Microns per pixel outside this range are not believed: no slide scanner makes them, but a
72-dpi tag (352.8) or a unit taken for another does."""
MPP_SQUARE = 1.05
"""Pixels longer than wide (or the reverse) by more than this are refused."""
MOST_SIDE_PX = 1 << 20
"""Longest side that is opened: four times the longest any scanner makes, at its finest."""
MOST_TILE_PX = 1 << 26
"""Largest compressed tile or strip that is decoded: 200 MB once it is."""


BOX_PX = 1 << 22
"""Pixels averaged at a time: bounds what numpy widens to 50 MB."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """One pyramid level."""

    index: int
    """0 is the finest."""
    width_px: int
    """Width, px of this level."""
    height_px: int
    """Height, px of this level."""
    downsample: float
    """Level-0 px per px of this level."""
    mpp: float
    """Microns per pixel of this level."""
    reduces: tuple[int, ...] = (1,)
    """Whole factors by which it can be read smaller, at less cost than the whole; 1 always."""
    codec: str = ""
    """How its compressed tiles are coded: `jpeg`, `jpeg2000`, `lzw`, ...; empty where tiffslide
    reads them."""


@dataclass(frozen=True, kw_only=True)
class Mpp:
    """Microns per pixel of level 0."""

    value: float
    """What is used."""
    source: str
    """`file`, or `override` when the manifest or the settings said it."""
    found: float | None
    """What the file states, believed or not; None when it states nothing."""


@dataclass(frozen=True, kw_only=True)
class Overview:
    """A small picture of the whole slide."""

    rgb: npt.NDArray[np.uint8]
    """uint8 [H, W, 3]."""
    downsample_x: float
    """Level-0 px per overview px, across."""
    downsample_y: float
    """Level-0 px per overview px, down."""


MOST_OVERVIEW_PX = 1 << 26
"""Largest overview: twice a whole glass slide, 75 x 25 mm, at 8 microns per pixel."""


def overview_reading(levels: Sequence[Level], mpp: float, *, named: str) -> tuple[Level, int, int]:
    """How the overview of about `mpp` is read: the level, its reduce, and the boxes' side.

    The coarsest level that is finer, then as much of the rest as its codec can do. Raises
    TooLargeError where the overview would pass MOST_OVERVIEW_PX.
    """
    level = max((lv for lv in levels if lv.mpp <= mpp), key=lambda lv: lv.mpp, default=levels[0])
    whole = max(1, int(mpp / level.mpp + 1e-9))
    # Decoding smaller is worth up to a quarter of the scale: 24 for 31, but not 2 for 3.
    reduce = max(r for r in level.reduces if r == 1 or whole // r * r >= 0.75 * whole)
    factor = whole // reduce
    pixels = level.width_px * level.height_px // (reduce * factor) ** 2
    if pixels > MOST_OVERVIEW_PX:
        raise TooLargeError(
            f"{named} has {levels[0].width_px} x {levels[0].height_px} px at {levels[0].mpp:g} "
            f"microns per pixel: an overview at {mpp:g} would have {pixels} px, past the limit of "
            f"{MOST_OVERVIEW_PX}; check the mpp, or ask for a coarser overview_mpp."
        )
    return level, reduce, factor


def box_mean(pixels: npt.NDArray[np.uint8], factor: int) -> npt.NDArray[np.uint8]:
    """Means over factor x factor px of uint8 [H, W, 3], the last ones over what there is."""
    if factor == 1:
        return pixels
    if not len(pixels):
        return pixels[:, ::factor]
    # numpy widens all that it is to add up before it begins.
    rows_at_once = max(1, BOX_PX // (pixels.shape[1] * factor)) * factor
    if len(pixels) > rows_at_once:
        parts = range(0, len(pixels), rows_at_once)
        return np.concatenate([box_mean(pixels[top : top + rows_at_once], factor) for top in parts])
    rows, columns = (np.arange(0, side, factor) for side in pixels.shape[:2])
    sums = np.add.reduceat(np.add.reduceat(pixels, rows, axis=0, dtype=np.uint32), columns, axis=1)
    height, width = (
        np.diff([*edges, side]) for edges, side in ((rows, len(pixels)), (columns, pixels.shape[1]))
    )
    means: npt.NDArray[np.float64] = sums / (height[:, None] * width)[..., None]
    return np.rint(means).astype(np.uint8)


def settle_mpp(
    slide_id: str, found_x: float | None, found_y: float | None, override: float | None
) -> Mpp:
    """Decide on a slide's microns per pixel. Raises NoMppError when there is none to trust."""
    stated = [value for value in (found_x, found_y) if value is not None]
    found = sum(stated) / len(stated) if stated else None
    if override is not None:
        if not MPP_TRUSTED[0] <= override <= MPP_TRUSTED[1]:
            raise SettingsError(
                f"{slide_id}: an mpp override of {override:g} is not within "
                f"{MPP_TRUSTED[0]}..{MPP_TRUSTED[1]}; give microns per pixel of level 0."
            )
        return Mpp(value=override, source="override", found=found)
    mend = "give it as the mpp column of a manifest or as --mpp-override"
    if found is None:
        raise NoMppError(f"{slide_id}: the file states no microns per pixel; {mend}.")
    if not MPP_TRUSTED[0] <= found <= MPP_TRUSTED[1]:
        raise NoMppError(
            f"{slide_id}: the file states {found:g} microns per pixel, which is not within "
            f"{MPP_TRUSTED[0]}..{MPP_TRUSTED[1]}; {mend}."
        )
    if max(stated) > MPP_SQUARE * min(stated):
        raise NoMppError(
            f"{slide_id}: the file states pixels that are not square ({found_x:g} x {found_y:g} "
            f"microns); {mend}."
        )
    return Mpp(value=found, source="file", found=found)
