"""What an opened slide tells: its levels, its overview, and its microns per pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_pipeline.errors import NoMppError, SettingsError

MPP_TRUSTED = (0.05, 20.0)
"""Microns per pixel outside this range are not believed: no slide scanner makes them, but a
72-dpi tag (352.8) or a unit taken for another does."""
MPP_SQUARE = 1.05
"""Pixels longer than wide (or the reverse) by more than this are refused."""


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
