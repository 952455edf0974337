"""Outlines cover exactly what the squares cover, with rings as GeoJSON wants them."""

from __future__ import annotations

import tracemalloc
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
GROWN_ROOM = 2 * ROOM
"""Squares may grow by a cell, of at most 8 px here."""


def drawn(xy: npt.NDArray[np.int64], side: int, room: int = ROOM) -> npt.NDArray[np.bool_]:
    cells = np.zeros((room, room), bool)
    for x, y in xy:
        cells[y : y + side, x : x + side] = True
    return cells


def inside(ring: Ring, room: int = ROOM) -> npt.NDArray[np.bool_]:
    """Cells whose centre lies inside the ring, by counting the edges to their left."""
    crossings = np.zeros((room, room + 1), int)
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


@given(places, st.integers(1, 4), st.integers(9, 200))
def test_past_the_bound_every_square_is_grown_to_whole_cells(
    corners: list[tuple[int, int]], side: int, most: int
) -> None:
    xy = np.array(corners)
    with pytest.MonkeyPatch.context() as bound:
        bound.setattr(module, "MOST_CELLS", most)
        polygons = outline(xy, side)
    cells = drawn(xy, side, GROWN_ROOM)
    total = np.zeros_like(cells)
    for shell, *holes in polygons:
        piece = inside(shell, GROWN_ROOM)
        for hole in holes:
            piece &= ~inside(hole, GROWN_ROOM)
        total |= piece
    assert (cells <= total).all(), "nothing that is covered is lost"
    if len({x for x, _ in corners}) * len({y for _, y in corners}) * 4 <= most:
        assert np.array_equal(total, cells)


def test_tiles_on_no_grid_keep_an_outline_in_bounded_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_CELLS", 1_000_000)
    room, side, n = 100_000, 448, 20_000
    xy = np.random.default_rng(0).integers(0, room, (n, 2))
    tracemalloc.start()
    polygons = outline(xy, side)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 * module.MOST_CELLS  # nine bytes a cell, and the rings
    shells = sum(abs(area(shell)) for shell, *_ in polygons)
    holes = sum(abs(area(hole)) for _, *holes in polygons for hole in holes)
    # Of squares thrown at random, grown by a cell of 101 px: 1 - exp(-n side^2 / area).
    share = 1 - np.exp(-n * (side + 101) ** 2 / room**2)
    assert (shells - holes) / room**2 == pytest.approx(share, rel=0.05)


def area(ring: Ring) -> float:
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(ring)) / 2
