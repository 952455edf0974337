"""Which compressed tiles lie under which tiles, in what order, and what is copied where.

Pure arithmetic over one `TileTable`: nothing is fetched or decoded here. Tiles come in read order,
row by row, so the compressed tiles under them form bands. Each is decoded once, when the first tile
needs it, and gives its pixels to all tiles above it at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ray_pipeline.slides.tables import TileTable

Ints = npt.NDArray[np.int64]
Paste = tuple[int, int, int, int, int, int, int, int, int]
"""(window, its top, bottom, left, right, the compressed tile's top, bottom, left, right), px."""


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
    """How a run of windows is read."""

    steps: list[Step]
    """In the order in which the windows first need them."""
    last_step: Ints
    """int64 [n]: the step after which each window is whole."""
    first_lingering: int
    """The first compressed tile under the last row of windows; those that follow may need it again,
    or any after it."""

    @property
    def lingering(self) -> list[int]:
        """Compressed tiles of the plan that may be needed again."""
        return [step.tile for step in self.steps if step.tile >= self.first_lingering]


def tiles_under(table: TileTable, windows: Windows, reduce: int) -> Ints:
    """The compressed tiles under any of the windows, each once, in rising order."""
    return np.unique(_pairs(table, windows, reduce)[1])


def plan_bands(table: TileTable, windows: Windows, reduce: int) -> BandPlan:
    """Plan the reading of `windows` at 1/`reduce` of the table's level."""
    if not len(windows.left):
        return BandPlan([], np.empty(0, np.int64), 0)
    window, tile, rows, columns = _pairs(table, windows, reduce)
    width, height = reduced_tile(table, reduce)
    left, top = windows.left[window], windows.top[window]
    x0 = np.maximum(left, columns * width)
    x1 = np.minimum(left + windows.width[window], (columns + 1) * width)
    y0 = np.maximum(top, rows * height)
    y1 = np.minimum(top + windows.height[window], (rows + 1) * height)
    order, step_of = _steps(tile)
    by_step = np.argsort(step_of, kind="stable")
    copies = (
        *(window, y0 - top, y1 - top, x0 - left, x1 - left),
        *(y0 - rows * height, y1 - rows * height),
        *(x0 - columns * width, x1 - columns * width),
    )
    pastes: list[Paste] = list(zip(*(part[by_step].tolist() for part in copies), strict=True))
    edges = [0, *np.cumsum(np.bincount(step_of)).tolist()]
    bounds = zip(order.tolist(), edges[:-1], edges[1:], strict=True)
    steps = [Step(number, pastes[start:stop]) for number, start, stop in bounds]
    last_step = np.maximum.reduceat(step_of, np.flatnonzero(np.diff(window, prepend=-1)))
    return BandPlan(steps, last_step, int(windows.top[-1]) // height * table.columns)


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
