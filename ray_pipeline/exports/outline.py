"""The outline of squares: polygons with holes around what they cover together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Point = tuple[int, int]
Ring = list[Point]
"""A closed ring of corners (x, y): the last is the first again."""

MOST_CELLS = 16_000_000
"""Of the grid that the squares' edges make, nine bytes each: 144 MB."""

_RIGHT, _DOWN, _LEFT, _UP = range(4)
_STEPS: tuple[Point, ...] = ((1, 0), (0, 1), (-1, 0), (0, -1))


def outline(xy: npt.NDArray[np.integer], side: int) -> list[list[Ring]]:
    """Around the union of squares whose left top corners are `xy` int [n, 2].

    One polygon per piece, pieces that meet at a corner only being two: its outer ring, then its
    holes. Exact, unless the squares' edges make a grid of more than MOST_CELLS, as those of many
    tiles do that lie on no grid themselves: then each square is grown to whole cells of a coarser
    grid of as many.
    """
    if not len(xy):
        return []
    first, last = xy.astype(np.int64), xy.astype(np.int64) + side
    xs, ys = _edges(first, last)
    if len(xs) * len(ys) > MOST_CELLS:
        step = math.ceil(math.sqrt(np.prod((np.ptp(xs), np.ptp(ys)), dtype=float) / MOST_CELLS))
        first, last = first // step * step, -(-last // step) * step
        xs, ys = _edges(first, last)
    left, right = (np.searchsorted(xs, corners[:, 0]) for corners in (first, last))
    top, bottom = (np.searchsorted(ys, corners[:, 1]) for corners in (first, last))
    # Corners of the squares, summed twice, count the squares over each cell.
    counts = np.zeros((len(ys), len(xs)), np.int32)
    for rows, columns, sign in (
        *((top, left, 1), (bottom, right, 1)),
        *((top, right, -1), (bottom, left, -1)),
    ):
        np.add.at(counts, (rows, columns), sign)
    for axis in (0, 1):
        np.cumsum(counts, axis=axis, out=counts)
    covered = counts[:-1, :-1] > 0
    labels, _ = ndimage.label(covered)
    polygons = []
    for number, where in enumerate(ndimage.find_objects(labels), start=1):
        x0, y0 = where[1].start, where[0].start
        rings = [
            [(int(xs[x + x0]), int(ys[y + y0])) for x, y in ring]
            for ring in _rings(labels[where] == number)
        ]
        rings.sort(key=lambda ring: -abs(_doubled_area(ring)))
        polygons.append(rings)
    return polygons


def _edges(
    first: npt.NDArray[np.int64], last: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """All x and all y of the squares' corners, each once, in order."""
    xs, ys = (np.unique(np.concatenate((first[:, i], last[:, i]))) for i in (0, 1))
    return xs, ys


def _rings(cells: npt.NDArray[np.bool_]) -> Iterator[Ring]:
    """The rings around one 4-connected piece of a grid, in grid corners, corners at turns only.

    Walked with the piece on the right hand. Where four edges meet at a corner the walk crosses over
    to the other cell, so that no ring meets itself.
    """
    padded = np.pad(cells, 1)
    above, below = padded[:-1, 1:-1], padded[1:, 1:-1]
    before, after = padded[1:-1, :-1], padded[1:-1, 1:]
    starts = {
        _RIGHT: np.argwhere(below & ~above),
        _LEFT: np.argwhere(above & ~below) + np.array((0, 1)),
        _UP: np.argwhere(after & ~before) + np.array((1, 0)),
        _DOWN: np.argwhere(before & ~after),
    }
    edges: dict[Point, set[int]] = {}
    for heading, corners in starts.items():
        for y, x in corners.tolist():
            edges.setdefault((x, y), set()).add(heading)
    left = {(corner, heading) for corner, headings in edges.items() for heading in headings}
    while left:
        (at, heading), ring = next(iter(left)), Ring()
        while (at, heading) in left:
            left.remove((at, heading))
            ring.append(at)
            at = (at[0] + _STEPS[heading][0], at[1] + _STEPS[heading][1])
            # To the left first: across, where the piece lies on both sides of the corner.
            turns = [(heading + turn) % 4 for turn in (3, 0, 1)]
            heading = next(turn for turn in turns if turn in edges[at])
        yield _turns_only(ring)


def _turns_only(ring: Ring) -> Ring:
    corners = [
        ring[i]
        for i in range(len(ring))
        # Across on one side of the corner and down on the other.
        if (ring[i - 1][0] == ring[i][0]) != (ring[i][0] == ring[(i + 1) % len(ring)][0])
    ]
    return [*corners, corners[0]]


def _doubled_area(ring: Ring) -> int:
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(ring))
