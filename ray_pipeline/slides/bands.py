"""Which compressed tiles lie under which tiles, when each is decoded, and what is copied where.

Pure arithmetic over one `TileTable`: nothing is fetched or decoded here. Tiles come in read order,
row by row, so the compressed tiles under them form bands; those under two rows of tiles are decoded
once and kept from one to the other, as far as the room for them goes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ray_pipeline.slides.tables import TileTable

GROUP_TILES = 64
"""Tiles whose compressed tiles are decoded together."""

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

    def part(self, where: slice) -> Windows:
        """Some of them."""
        return Windows(
            left=self.left[where],
            top=self.top[where],
            width=self.width[where],
            height=self.height[where],
        )


@dataclass(frozen=True)
class Job:
    """One compressed tile and the pixels it gives to the windows of a group."""

    tile: int
    """Its index in the table."""
    load: int | None
    """Which load decodes it; None where it is still there from an earlier group."""
    keep: bool
    """Whether a later group takes it from here."""
    pastes: list[Paste]
    """What is copied where."""


@dataclass(frozen=True)
class Group:
    """Neighbouring tiles of one part."""

    part: int
    """Which part."""
    tiles: slice
    """Which tiles of the part."""
    jobs: list[Job]
    """The compressed tiles under them."""


@dataclass
class StreamPlan:
    """How a run of parts is read."""

    groups: list[Group] = field(default_factory=list)
    """In read order."""
    loads: list[int] = field(default_factory=list)
    """The compressed tile of each load, in the order in which they are first wanted."""


def tiles_under(table: TileTable, windows: Windows, reduce: int) -> Ints:
    """The compressed tiles under any of the windows, each once, in rising order."""
    return np.unique(_pairs(table, windows, reduce)[1])


def plan_stream(
    table: TileTable,
    parts: Sequence[Windows],
    reduce: int,
    *,
    resident: Collection[int],
    room: int,
) -> StreamPlan:
    """Plan the reading of `parts` at 1/`reduce` of the table's level.

    `resident` are compressed tiles that are decoded already, and `room` is how many may be kept
    from one group to the next. Those under the last row of tiles are kept for the next stream.
    """
    slices = [
        (part, slice(start, min(start + GROUP_TILES, len(windows.left))))
        for part, windows in enumerate(parts)
        for start in range(0, len(windows.left), GROUP_TILES)
    ]
    pasted = [_pastes(table, parts[part].part(where), reduce) for part, where in slices]
    last_use = {tile: group for group, pastes in enumerate(pasted) for tile in pastes}
    lingering = set(pasted[_first_of_last_row(parts, slices)]) if slices else set()
    if slices:
        for pastes in pasted[_first_of_last_row(parts, slices) :]:
            lingering.update(pastes)
    plan = StreamPlan()
    here = {tile for tile in resident if tile in last_use}
    for index, ((part, where), pastes) in enumerate(zip(slices, pasted, strict=True)):
        jobs = []
        for tile, copies in pastes.items():
            load = None
            if tile not in here:
                load = len(plan.loads)
                plan.loads.append(tile)
            again = last_use[tile] > index or tile in lingering
            keep = again and (tile in here or len(here) < room)
            if keep:
                here.add(tile)
            else:
                here.discard(tile)
            jobs.append(Job(tile, load, keep, copies))
        plan.groups.append(Group(part, where, jobs))
    return plan


def _first_of_last_row(parts: Sequence[Windows], slices: list[tuple[int, slice]]) -> int:
    """The first group from which on all tiles lie on one row."""
    row = parts[slices[-1][0]].top[-1]
    first = len(slices) - 1
    while first > 0:
        part, where = slices[first - 1]
        if (parts[part].top[where] != row).any():
            break
        first -= 1
    return first


def _pastes(table: TileTable, windows: Windows, reduce: int) -> dict[int, list[Paste]]:
    window, tile, rows, columns = _pairs(table, windows, reduce)
    width, height = _reduced_tile(table, reduce)
    left, top = windows.left[window], windows.top[window]
    x0 = np.maximum(left, columns * width)
    x1 = np.minimum(left + windows.width[window], (columns + 1) * width)
    y0 = np.maximum(top, rows * height)
    y1 = np.minimum(top + windows.height[window], (rows + 1) * height)
    copies = np.stack(
        [
            *(window, y0 - top, y1 - top, x0 - left, x1 - left),
            *(y0 - rows * height, y1 - rows * height),
            *(x0 - columns * width, x1 - columns * width),
        ],
        axis=1,
    )
    order = np.argsort(tile, kind="stable")
    pastes: dict[int, list[Paste]] = {}
    for index, copy in zip(tile[order].tolist(), copies[order].tolist(), strict=True):
        pastes.setdefault(index, []).append(tuple(copy))
    return pastes


def _pairs(table: TileTable, windows: Windows, reduce: int) -> tuple[Ints, Ints, Ints, Ints]:
    """Every window with every compressed tile under it: window, tile, the tile's row, column."""
    width, height = _reduced_tile(table, reduce)
    column0, row0 = windows.left // width, windows.top // height
    across = (windows.left + windows.width - 1) // width - column0 + 1
    down = (windows.top + windows.height - 1) // height - row0 + 1
    each = across * down
    window = np.repeat(np.arange(len(each)), each)
    within = np.arange(len(window)) - np.repeat(np.cumsum(each) - each, each)
    rows = row0[window] + within // across[window]
    columns = column0[window] + within % across[window]
    return window, rows * table.columns + columns, rows, columns


def _reduced_tile(table: TileTable, reduce: int) -> tuple[int, int]:
    return -(-table.tile_width_px // reduce), -(-table.tile_height_px // reduce)
