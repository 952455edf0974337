"""Level choice: the coarsest that is not too coarse, resampled only when it must be."""

from __future__ import annotations

import pytest

from ray_pipeline.errors import TooCoarseError
from ray_pipeline.slides.grid import TilingRule, choose_geometry, grid_origins
from ray_pipeline.slides.levels import Level


def pyramid(mpp: float, downsamples: tuple[float, ...] = (1, 4, 16)) -> list[Level]:
    return [
        Level(
            index=index,
            width_px=int(8000 / d),
            height_px=int(6000 / d),
            downsample=d,
            mpp=mpp * d,
        )
        for index, d in enumerate(downsamples)
    ]


@pytest.mark.parametrize(
    ("level0_mpp", "asked", "level", "side_px", "achieved"),
    [
        (0.5, 0.5, 0, 224, 0.5),
        (0.499, 0.5, 0, 224, 0.499),
        (0.2528, 0.5, 0, 224 * 0.5 / 0.2528, 0.5),
        (0.125, 0.5, 1, 224, 0.5),
        (0.12, 0.5, 1, 224 * 0.5 / 0.48, 0.5),
        (0.25, 8.0, 2, 448, 8.0),
        (0.509, 0.5, 0, 224, 0.509),
    ],
)
def test_level_side_and_what_is_achieved(
    level0_mpp: float, asked: float, level: int, side_px: float, achieved: float
) -> None:
    geometry = choose_geometry(pyramid(level0_mpp), TilingRule(mpp=asked), slide_id="a")
    assert geometry.level == level
    assert geometry.side_px == pytest.approx(side_px)
    assert geometry.resampled == (geometry.side_px != 224)
    assert geometry.mpp_achieved == pytest.approx(achieved)


def test_detail_that_was_never_scanned_is_refused() -> None:
    with pytest.raises(TooCoarseError, match="slide-7: the finest level has 1 microns per pixel"):
        choose_geometry(pyramid(1.0), TilingRule(mpp=0.5), slide_id="slide-7")


def test_a_slide_smaller_than_a_tile_has_none() -> None:
    levels = [Level(index=0, width_px=223, height_px=999, downsample=1.0, mpp=0.5)]
    geometry = choose_geometry(levels, TilingRule(), slide_id="a")
    assert grid_origins(levels[0], geometry).shape == (0, 2)
