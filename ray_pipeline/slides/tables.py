"""The compressed tiles of one pyramid level: where their bytes lie and how they are decoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ray_pipeline.slides.decode import Codec, TileSize
from ray_pipeline.store import ObjectInfo


@dataclass(frozen=True, kw_only=True, eq=False)
class TileTable:
    """A level as a grid of compressed tiles, row by row from the left top corner.

    Strips and stripes are tiles as wide as the level. Whatever the container, reading pixels needs
    no more than this.
    """

    width_px: int
    """Width of the level, px."""
    height_px: int
    """Height of the level, px."""
    tile_width_px: int
    """Width of a compressed tile, px; those at the right edge may reach past the level."""
    tile_height_px: int
    """Height of a compressed tile, px; those at the bottom edge may reach past the level."""
    offsets: npt.NDArray[np.int64]
    """int64 [rows * columns]: first byte of each tile in its object."""
    counts: npt.NDArray[np.int64]
    """int64 [rows * columns]: bytes of each tile; 0 where the file leaves it out, as glass."""
    codec: Codec
    """How one tile's bytes become pixels."""
    objects: npt.NDArray[np.int32] | None = field(default=None)
    """int32 [rows * columns]: which of the slide's objects holds each tile; None for the first."""

    @cached_property
    def columns(self) -> int:
        """Tiles across."""
        return -(-self.width_px // self.tile_width_px)

    @cached_property
    def rows(self) -> int:
        """Tiles down."""
        return -(-self.height_px // self.tile_height_px)

    @cached_property
    def reduces(self) -> tuple[int, ...]:
        """By what the level can be read smaller: 1, and what its codec and tile size allow."""
        return tuple(
            reduce
            for reduce in self.codec.reduces
            if self.tile_width_px % reduce == 0
            and (self.tile_height_px % reduce == 0 or self.rows == 1)
            and min(self.width_px, self.height_px) >= reduce
        )

    def tile_size(self, index: int) -> TileSize:
        """What the directory says of one tile."""
        row, column = divmod(index, self.columns)
        return self._sizes[2 * (row == self.rows - 1) + (column == self.columns - 1)]

    @cached_property
    def _sizes(self) -> tuple[TileSize, ...]:
        """Those inside, in the last column, in the last row, in both."""
        width, height = self.tile_width_px, self.tile_height_px
        last_x = self.width_px - (self.columns - 1) * width
        last_y = self.height_px - (self.rows - 1) * height
        return tuple(
            TileSize(width, height, x, y) for y in (height, last_y) for x in (width, last_x)
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SlideIndex:
    """All that is read once of a slide, whatever its container, before its pixels."""

    vendor: str
    """Format: `aperio`, `hamamatsu`, `philips`, `ome-tiff`, `generic-tiff`, `dicom`, ..."""
    objects: tuple[ObjectInfo, ...]
    """The objects that hold the compressed tiles, keys below the store they were read from."""
    tables: tuple[TileTable, ...]
    """The pyramid, finest first."""
    mpp_x: float | None
    """Microns per pixel of level 0 across, as the file states it; None where it does not."""
    mpp_y: float | None
    """The same, down."""
    icc_profile: bytes | None
    """The scanner's colour profile; None without one."""
