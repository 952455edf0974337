"""Plans of bands: every pixel of every window is given once, by the right compressed tile."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_pipeline.slides.bands import Windows, plan_bands, reduced_tile, tiles_under
from ray_pipeline.slides.decode import RawCodec
from ray_pipeline.slides.tables import TileTable


@st.composite
def cases(draw: st.DrawFn) -> tuple[TileTable, Windows, int]:
    """A table, windows inside of it in read order, and a reduction."""
    reduce = draw(st.sampled_from([1, 2, 4]))
    tile = draw(st.integers(1, 5)) * 8
    width, height = draw(st.integers(40, 200)), draw(st.integers(40, 200))
    across, down = -(-width // tile), -(-height // tile)
    table = TileTable(
        width_px=width,
        height_px=height,
        tile_width_px=tile,
        tile_height_px=tile,
        offsets=np.arange(across * down, dtype=np.int64) * 100,
        counts=np.full(across * down, 100, np.int64),
        codec=RawCodec("none"),
    )
    most_x, most_y = -(-width // reduce), -(-height // reduce)
    windows = []
    for _ in range(draw(st.integers(1, 12))):
        w, h = draw(st.integers(1, most_x)), draw(st.integers(1, most_y))
        windows.append((draw(st.integers(0, most_y - h)), draw(st.integers(0, most_x - w)), w, h))
    top, left, w_s, h_s = (np.array(c, np.int64) for c in zip(*sorted(windows), strict=True))
    return table, Windows(left=left, top=top, width=w_s, height=h_s), reduce


@given(case=cases())
@settings(deadline=None)
def test_every_pixel_comes_once_from_where_it_lies(case: tuple[TileTable, Windows, int]) -> None:
    table, windows, reduce = case
    tile_w, tile_h = reduced_tile(table, reduce)
    plan = plan_bands(table, windows, reduce)
    seen = [
        np.full((h, w, 2), -1)
        for w, h in zip(windows.width.tolist(), windows.height.tolist(), strict=True)
    ]
    last = np.zeros(len(seen), int)
    for index, step in enumerate(plan.steps(0, len(plan.tiles))):
        row, column = divmod(step.tile, table.columns)
        y, x = np.mgrid[0:tile_h, 0:tile_w]
        pixels = np.stack((y + row * tile_h, x + column * tile_w), -1)
        for window, top, bottom, left, right, t, b, lf, r in step.pastes:
            assert (seen[window][top:bottom, left:right] == -1).all()
            seen[window][top:bottom, left:right] = pixels[t:b, lf:r]
            last[window] = index
    for window, got in enumerate(seen):
        y, x = np.mgrid[0 : got.shape[0], 0 : got.shape[1]]
        assert (got[..., 0] == y + windows.top[window]).all()
        assert (got[..., 1] == x + windows.left[window]).all()
    assert (last == plan.last_step).all()


@given(case=cases())
@settings(deadline=None)
def test_each_compressed_tile_is_decoded_once_and_only_where_needed(
    case: tuple[TileTable, Windows, int],
) -> None:
    table, windows, reduce = case
    plan = plan_bands(table, windows, reduce)
    tiles = [step.tile for step in plan.steps(0, len(plan.tiles))]
    assert sorted(tiles) == tiles_under(table, windows, reduce).tolist()
    first = {}
    for index, step in enumerate(plan.steps(0, len(plan.tiles))):
        first[index] = min(paste[0] for paste in step.pastes)
    assert list(first.values()) == sorted(first.values())


@given(case=cases())
@settings(deadline=None)
def test_what_a_next_run_further_down_may_need_lingers(
    case: tuple[TileTable, Windows, int],
) -> None:
    table, windows, reduce = case
    plan = plan_bands(table, windows, reduce)
    _, tile_h = reduced_tile(table, reduce)
    for step in plan.steps(0, len(plan.tiles)):
        reaches = (step.tile // table.columns + 1) * tile_h > windows.top[-1]
        assert (step.tile in plan.lingering) == reaches
