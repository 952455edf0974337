"""Outlines cover exactly what the squares cover, with rings as GeoJSON wants them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from ray_pipeline.exports import outline as module
from ray_pipeline.exports.outline import Ring, outline

ROOM = 24


def drawn(xy: npt.NDArray[np.int64], side: int) -> npt.NDArray[np.bool_]:
    cells = np.zeros((ROOM, ROOM), bool)
    for x, y in xy:
        cells[y : y + side, x : x + side] = True
    return cells


def inside(ring: Ring) -> npt.NDArray[np.bool_]:
    """Cells whose centre lies inside the ring, by counting the edges to their left."""
    crossings = np.zeros((ROOM, ROOM + 1), int)
    for (x0, y0), (x1, y1) in pairwise(ring):
        if x0 == x1:
            crossings[min(y0, y1) : max(y0, y1), x0] += 1
    result: npt.NDArray[np.bool_] = crossings.cumsum(axis=1)[:, :-1] % 2 == 1
    return result


places = st.lists(
    st.tuples(st.integers(0, ROOM - 4), st.integers(0, ROOM - 4)), min_size=1, max_size=60
)


@given(places, st.integers(1, 4))
def test_polygons_cover_what_the_squares_cover(corners: list[tuple[int, int]], side: int) -> None:
    xy = np.array(corners)
    cells = drawn(xy, side)
    polygons = outline(xy, side)
    assert len(polygons) == ndimage.label(cells)[1]
    total = np.zeros((ROOM, ROOM), int)
    for shell, *holes in polygons:
        piece = inside(shell)
        for hole in holes:
            assert (inside(hole) <= piece).all()
            piece = piece & ~inside(hole)
        assert ndimage.label(piece)[1] == 1
        total += piece
    assert np.array_equal(total, cells)


@given(places, st.integers(1, 4))
def test_rings_are_closed_simple_and_have_corners_only(
    corners: list[tuple[int, int]], side: int
) -> None:
    for polygon in outline(np.array(corners), side):
        for ring in polygon:
            assert ring[0] == ring[-1]
            assert len(set(ring)) == len(ring) - 1 >= 4, "a ring meets itself at no corner"
            turns = [(a[0] == b[0]) for a, b in pairwise(ring)]
            assert all(one != other for one, other in pairwise(turns)), "only at turns"


def test_a_ring_of_squares_has_a_hole() -> None:
    xy = np.array([(x, y) for x in (0, 10, 20) for y in (0, 10, 20) if (x, y) != (10, 10)])
    ((shell, hole),) = outline(xy, 10)
    assert set(shell) == {(0, 0), (30, 0), (30, 30), (0, 30)}
    assert set(hole) == {(10, 10), (20, 10), (20, 20), (10, 20)}


def test_squares_that_meet_at_a_corner_are_two_pieces() -> None:
    assert len(outline(np.array([(0, 0), (10, 10)]), 10)) == 2


def test_no_squares_have_no_outline() -> None:
    assert outline(np.empty((0, 2), np.int64), 10) == []


def test_a_grid_past_the_bound_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CELLS", 8)
    assert outline(np.array([(0, 0), (3, 4), (7, 9)]), 2) == []
    assert len(outline(np.array([(0, 0)]), 2)) == 1
