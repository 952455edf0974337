"""Which compressed tiles lie under which tiles, in what order, and what is copied where.

Pure arithmetic over one `TileTable`: nothing is fetched or decoded here. Tiles come in read order,
row by row, so the compressed tiles under them form bands. Each is decoded once, when the first tile
needs it, and gives its pixels to all tiles above it at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ray_pipeline.slides.tables import TileTable

Ints = npt.NDArray[np.int64]
Paste = list[int]
"""[window, its top, bottom, left, right, the compressed tile's top, bottom, left, right], px."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Rectangles of pixels of one level as it is read, one per tile: int64 [n] each."""

    left: Ints
    top: Ints
    width: Ints
    height: Ints

    @classmethod
    def joined(cls, parts: Sequence[Windows]) -> Windows:
        """Those of all parts, one after another."""
        columns = ("left", "top", "width", "height")
        return cls(**{c: np.concatenate([getattr(part, c) for part in parts]) for c in columns})


class Step(NamedTuple):
    """One compressed tile and the pixels it gives."""

    tile: int
    """Its index in the table."""
    pastes: list[Paste]
    """What is copied where."""


@dataclass(frozen=True)
class BandPlan:
    """How a run of windows is read, step by step in the order in which the windows need them."""

    tiles: Ints
    """int64 [s]: the compressed tile of each step."""
    last_step: Ints
    """int64 [n]: the step after which each window is whole."""
    first_lingering: int
    """The first compressed tile under the last row of windows; those that follow may need it again,
    or any after it."""
    copies: npt.NDArray[np.int32]
    """int32 [p, 9]: the pastes of all steps, one after another."""
    edges: Ints
    """int64 [s + 1]: where in `copies` those of each step start, and where the last ones end."""

    def steps(self, first: int, stop: int) -> list[Step]:
        """Those with the numbers from `first` to before `stop`.

        A few at a time: Python's garbage collector goes through all that there are, and to make
        them at once costs twice as much.
        """
        edges = self.edges[first : stop + 1].tolist()
        start = edges[0]
        pastes: list[Paste] = self.copies[start : edges[-1]].tolist()
        bounds = pairwise(edges)
        return [
            Step(tile, pastes[begin - start : end - start])
            for tile, (begin, end) in zip(self.tiles[first:stop].tolist(), bounds, strict=True)
        ]

    @property
    def lingering(self) -> Ints:
        """Compressed tiles of the plan that may be needed again."""
        return self.tiles[self.tiles >= self.first_lingering]


def tiles_under(table: TileTable, windows: Windows, reduce: int) -> Ints:
    """The compressed tiles under any of the windows, each once, in rising order."""
    return np.unique(_pairs(table, windows, reduce)[1])


def plan_bands(table: TileTable, windows: Windows, reduce: int) -> BandPlan:
    """Plan the reading of `windows` at 1/`reduce` of the table's level."""
    if not len(windows.left):
        none = np.empty(0, np.int64)
        return BandPlan(none, none, 0, np.empty((0, 9), np.int32), np.zeros(1, np.int64))
    window, tile, rows, columns = _pairs(table, windows, reduce)
    width, height = reduced_tile(table, reduce)
    left, top = windows.left[window], windows.top[window]
    x0 = np.maximum(left, columns * width)
    x1 = np.minimum(left + windows.width[window], (columns + 1) * width)
    y0 = np.maximum(top, rows * height)
    y1 = np.minimum(top + windows.height[window], (rows + 1) * height)
    order, step_of = _steps(tile)
    copies = (
        *(window, y0 - top, y1 - top, x0 - left, x1 - left),
        *(y0 - rows * height, y1 - rows * height),
        *(x0 - columns * width, x1 - columns * width),
    )
    return BandPlan(
        tiles=order,
        last_step=np.maximum.reduceat(step_of, np.flatnonzero(np.diff(window, prepend=-1))),
        first_lingering=int(windows.top[-1]) // height * table.columns,
        copies=np.stack(copies, axis=1, dtype=np.int32)[np.argsort(step_of, kind="stable")],
        edges=np.concatenate(([0], np.cumsum(np.bincount(step_of)))),
    )


def reduced_tile(table: TileTable, reduce: int) -> tuple[int, int]:
    """Width and height of a compressed tile as it is read, px."""
    return -(-table.tile_width_px // reduce), -(-table.tile_height_px // reduce)


def _steps(tile: Ints) -> tuple[Ints, Ints]:
    """The distinct values of `tile` as they first appear, and the place among them of each."""
    number = tile - tile.min()
    # Of assignments to one place the last one stays: backwards, that is the first.
    first = np.full(number.max() + 1, len(tile))
    first[number[::-1]] = np.arange(len(tile))[::-1]
    found = np.sort(first[first < len(tile)])
    place = np.empty_like(first)
    place[number[found]] = np.arange(len(found))
    return tile[found], place[number]


def _pairs(table: TileTable, windows: Windows, reduce: int) -> tuple[Ints, Ints, Ints, Ints]:
    """Every window with every compressed tile under it: window, tile, the tile's row, column."""
    width, height = reduced_tile(table, reduce)
    column0, row0 = windows.left // width, windows.top // height
    across = (windows.left + windows.width - 1) // width - column0 + 1
    down = (windows.top + windows.height - 1) // height - row0 + 1
    each = across * down
    window = np.repeat(np.arange(len(each)), each)
    within = np.arange(len(window)) - np.repeat(np.cumsum(each) - each, each)
    rows = row0[window] + within // across[window]
    columns = column0[window] + within % across[window]
    return window, rows * table.columns + columns, rows, columns
