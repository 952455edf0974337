"""Laws of the tile grid, for any slide, scale and stride."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ray_pipeline.slides.grid import (
    ReadGeometry,
    TilingRule,
    choose_geometry,
    grid_origins,
    read_order,
)
from ray_pipeline.slides.levels import Level
from ray_pipeline.slides.tissue import TissueMask, tissue_fractions


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Level, ReadGeometry]:
    mpp = draw(st.sampled_from([0.5, 0.499, 0.2528, 0.25, 0.12]) | st.floats(0.1, 0.5))
    width, height = draw(st.integers(100, 6000)), draw(st.integers(100, 6000))
    downsample = draw(st.sampled_from([2.0, 4.0, 4.0003]))
    levels = [
        Level(
            index=index,
            width_px=max(1, int(width / d)),
            height_px=max(1, int(height / d)),
            downsample=d,
            mpp=mpp * d,
        )
        for index, d in enumerate((1.0, downsample))
    ]
    rule = TilingRule(stride_px=draw(st.sampled_from([224, 112, 200, 300])))
    return levels[0], choose_geometry(levels, rule, slide_id="a")


@given(layouts())
def test_tiles_stay_inside_and_never_repeat(layout: tuple[Level, ReadGeometry]) -> None:
    level0, geometry = layout
    xy = grid_origins(level0, geometry)
    assert len(np.unique(xy, axis=0)) == len(xy)
    assert (xy >= 0).all()
    assert (xy[:, 0] + geometry.size_l0 <= level0.width_px + 1e-6).all()
    assert (xy[:, 1] + geometry.size_l0 <= level0.height_px + 1e-6).all()


@given(layouts())
def test_only_a_remainder_narrower_than_a_step_is_left_at_the_edges(
    layout: tuple[Level, ReadGeometry],
) -> None:
    level0, geometry = layout
    xy = grid_origins(level0, geometry)
    if not len(xy):
        assert geometry.size_l0 > min(level0.width_px, level0.height_px)
        return
    step = geometry.stride_level_px * geometry.downsample
    right = level0.width_px - (xy[:, 0].max() + geometry.size_l0)
    bottom = level0.height_px - (xy[:, 1].max() + geometry.size_l0)
    assert max(right, bottom) < step + 1


@given(layouts())
def test_neighbours_are_one_step_apart_to_within_a_pixel(
    layout: tuple[Level, ReadGeometry],
) -> None:
    level0, geometry = layout
    columns = np.unique(grid_origins(level0, geometry)[:, 0])
    step = geometry.stride_level_px * geometry.downsample
    assert np.allclose(columns, np.arange(len(columns)) * step, atol=1)


@given(layouts(), st.integers(0, 99))
def test_read_order_is_the_same_however_the_tiles_come(
    layout: tuple[Level, ReadGeometry], seed: int
) -> None:
    level0, geometry = layout
    xy = grid_origins(level0, geometry)
    shuffled = np.random.default_rng(seed).permutation(xy)
    assert np.array_equal(shuffled[read_order(shuffled)], xy[read_order(xy)])


@given(layouts(), st.integers(0, 99), st.sampled_from([4.0, 16.0, 17.3]))
def test_tissue_fractions_are_the_mean_of_the_mask_under_the_tile(
    layout: tuple[Level, ReadGeometry], seed: int, downsample: float
) -> None:
    level0, geometry = layout
    shape = tuple(int(np.ceil(n / downsample)) for n in (level0.height_px, level0.width_px))
    rng = np.random.default_rng(seed)
    mask = TissueMask(
        mask=rng.random(shape) < 0.4,
        downsample_x=downsample,
        downsample_y=downsample,
        otsu=0,
        threshold=0,
        tissue_mm2=0,
        pen_fraction=0,
    )
    xy = grid_origins(level0, geometry)[:5]
    found = tissue_fractions(mask, xy, geometry.size_l0)
    for (x, y), fraction in zip(xy, found, strict=True):
        weights = [
            np.clip(
                np.minimum(edges[1:], start + geometry.size_l0) - np.maximum(edges[:-1], start),
                0,
                None,
            )
            for edges, start in (
                (np.arange(shape[0] + 1) * downsample, y),
                (np.arange(shape[1] + 1) * downsample, x),
            )
        ]
        expected = weights[0] @ mask.mask @ weights[1] / geometry.size_l0**2
        assert abs(expected - fraction) < 1e-4
