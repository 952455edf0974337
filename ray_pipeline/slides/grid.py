"""Where tiles lie: which level is read, how large a tile is there, and the grid of origins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_pipeline.errors import TooCoarseError
from ray_pipeline.slides.levels import Level

MPP_TOLERANCE = 0.02
"""A level within 2 % of the mpp asked for is taken as it is: scanners state 0.4990 for 0.5, and
resampling over that would cost more than it tells."""


@dataclass(frozen=True, kw_only=True)
class TilingRule:
    """What tiles a job asks for."""

    tile_px: int = 224
    """Side of a tile as the model takes it, px."""
    stride_px: int = 224
    """Step between tiles, in the same px."""
    mpp: float = 0.5
    """Microns per pixel of a tile."""


@dataclass(frozen=True, kw_only=True)
class ReadGeometry:
    """How the tiles of one slide are read."""

    level: int
    """Index of the level that is read."""
    level_mpp: float
    """Microns per pixel of that level."""
    reduce: int
    """By what the level is read smaller: 2 where every other pixel of it is enough."""
    downsample: float
    """Level-0 px per px that is read."""
    side_px: float
    """Side of a tile, px that are read; equal to `tile_px` when tiles are not resampled."""
    stride_level_px: float
    """Step between tiles, px that are read."""
    resampled: bool
    """Whether tiles are other than the level's own pixels: reduced, or resampled to `tile_px`."""
    mpp_achieved: float
    """Microns per pixel of the tiles as the model sees them."""

    @property
    def size_l0(self) -> float:
        """Side of a tile, level-0 px."""
        return self.side_px * self.downsample


def choose_geometry(levels: Sequence[Level], rule: TilingRule, *, slide_id: str) -> ReadGeometry:
    """The coarsest level not coarser than the rule's mpp, reduced as far as that still holds.

    Raises TooCoarseError when level 0 is coarser by more than MPP_TOLERANCE: detail that was
    never scanned can't be made.
    """
    fine = [level for level in levels if level.mpp <= rule.mpp * (1 + MPP_TOLERANCE)]
    if not fine:
        raise TooCoarseError(
            f"{slide_id}: the finest level has {levels[0].mpp:g} microns per pixel, coarser than "
            f"the {rule.mpp:g} asked for; ask for a coarser mpp with a model that takes it."
        )
    level = max(fine, key=lambda candidate: candidate.mpp)
    finest = rule.mpp * (1 + MPP_TOLERANCE)
    reduce = max(reduce for reduce in level.reduces if reduce == 1 or level.mpp * reduce <= finest)
    ratio = rule.mpp / (level.mpp * reduce)
    as_it_is = abs(ratio - 1) <= MPP_TOLERANCE
    scale = 1.0 if as_it_is else ratio
    return ReadGeometry(
        level=level.index,
        level_mpp=level.mpp,
        reduce=reduce,
        downsample=level.downsample * reduce,
        side_px=rule.tile_px * scale,
        stride_level_px=rule.stride_px * scale,
        resampled=reduce > 1 or not as_it_is,
        mpp_achieved=level.mpp * reduce if as_it_is else rule.mpp,
    )


def grid_origins(level0: Level, geometry: ReadGeometry) -> npt.NDArray[np.int32]:
    """Left top corners of all tiles, level-0 px: int32 [n, 2], row by row from (0, 0).

    Every tile lies wholly inside the slide; what is left at the right and bottom edge, narrower
    than a tile, is not tiled.
    """
    columns = _starts(level0.width_px, geometry)
    rows = _starts(level0.height_px, geometry)
    y, x = np.meshgrid(rows, columns, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int32)


def read_order(xy: npt.NDArray[np.int32]) -> npt.NDArray[np.intp]:
    """The order in which tiles are read: row by row, left to right; a permutation of 0..n-1.

    The rows of a level's compressed tiles lie one after another in the file, so this reads it
    from front to back.
    """
    return np.lexsort((xy[:, 0], xy[:, 1]))


def _starts(length_l0: int, geometry: ReadGeometry) -> npt.NDArray[np.int64]:
    stride_l0 = geometry.stride_level_px * geometry.downsample
    room = length_l0 - geometry.size_l0
    if room < -1e-9:
        return np.empty(0, np.int64)
    count = int(np.floor(room / stride_l0 + 1e-9)) + 1
    # Rounded down, so that no tile reaches past the edge by a fraction of a pixel.
    starts: npt.NDArray[np.int64] = np.floor(np.arange(count) * stride_l0 + 1e-6).astype(np.int64)
    return starts
