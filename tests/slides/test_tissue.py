"""The mask against slides whose tissue is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ray_pipeline.plan import plan_slide
from ray_pipeline.slides.grid import TilingRule
from ray_pipeline.slides.levels import Overview
from ray_pipeline.slides.slide import open_slide
from ray_pipeline.slides.tissue import TissueRule, find_tissue
from ray_pipeline.synthetic import CELLULAR, GLASS, PENS, STROMA, write_slide

RULE = TissueRule()


def flat(colour: tuple[int, ...], side: int = 64) -> Overview:
    rgb = np.broadcast_to(np.asarray(colour, np.uint8), (side, side, 3)).copy()
    return Overview(rgb=rgb, downsample_x=16.0, downsample_y=16.0)


@pytest.mark.parametrize(("seed", "mpp"), [(0, 0.5), (1, 0.5), (2, 0.5), (3, 0.5), (4, 1.0)])
def test_the_mask_finds_the_tissue_and_not_the_pen(tmp_path: Path, seed: int, mpp: float) -> None:
    width, height = int(1800 / mpp), int(1400 / mpp)
    path = tmp_path / "a.svs"
    truth = write_slide(path, width_px=width, height_px=height, mpp=mpp, seed=seed)
    slide = open_slide(str(path))
    found = find_tissue(slide.overview(RULE.overview_mpp), slide.mpp.value, RULE)
    height, width = (min(pair) for pair in zip(found.mask.shape, truth.tissue.shape, strict=True))
    mask, tissue = found.mask[:height, :width], truth.tissue[:height, :width]
    pen = truth.pen[:height, :width]
    assert (mask & tissue).sum() / (mask | tissue).sum() >= 0.9
    assert (mask & pen).sum() <= 0.02 * pen.sum()
    assert found.numbers()["pen_fraction"] > 0.01


def test_a_blank_slide_has_no_tiles(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.svs", width_px=2048, height_px=2048, seed=1, blank=True)
    plan = plan_slide(open_slide(str(tmp_path / "a.svs")), TilingRule(), RULE)
    assert (plan.n_tiles, plan.n_shards) == (0, 0)
    assert plan.facts["tissue_mm2"] == 0


def test_a_slide_full_of_tissue_is_not_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    overview = flat(STROMA)
    overview.rgb[:] = np.clip(overview.rgb + rng.integers(-25, 25, overview.rgb.shape), 0, 255)
    assert find_tissue(overview, 0.5, RULE).mask.mean() > 0.98


@pytest.mark.parametrize("colour", [STROMA, CELLULAR])
def test_tissue_that_fills_the_slide_is_all_kept(colour: tuple[int, int, int]) -> None:
    assert find_tissue(flat(colour), 0.5, RULE).mask.all()


@pytest.mark.parametrize("colour", PENS)
def test_pens_of_each_colour_are_no_tissue(colour: tuple[int, int, int]) -> None:
    overview = flat(GLASS, 128)
    overview.rgb[10:60, 10:60] = STROMA
    overview.rgb[30:100, 50:110] = colour
    found = find_tissue(overview, 0.5, RULE)
    assert found.mask[12:58, 12:45].all()
    assert not found.mask[30:100, 50:110].any()
    assert not found.mask[:, 70:].any()


@pytest.mark.parametrize("side", [2, 3, 5, 10])
def test_specks_of_black_pigment_are_no_pen(side: int) -> None:
    overview = flat(STROMA, 200)
    for y in range(10, 180, 30):
        for x in range(10, 180, 30):
            overview.rgb[y : y + side, x : x + side] = (30, 26, 30)
    found = find_tissue(overview, 0.5, RULE)
    assert found.mask.all()
    assert found.pen_fraction == 0


@pytest.mark.parametrize("colour", [GLASS, (230, 230, 230), (200, 198, 196), (0, 0, 0)])
def test_glass_of_any_tint_has_no_tissue(colour: tuple[int, int, int]) -> None:
    assert not find_tissue(flat(colour), 0.5, RULE).mask.any()


def test_small_holes_are_closed_and_specks_dropped() -> None:
    overview = flat(GLASS, 256)
    overview.rgb[40:200, 40:200] = STROMA
    overview.rgb[100:110, 100:110] = GLASS
    overview.rgb[220:228, 220:228] = STROMA
    mask = find_tissue(overview, 0.5, RULE).mask
    assert mask[105, 105]
    assert not mask[224, 224]


def test_the_real_slide_keeps_its_tissue(real_slides: Path) -> None:
    slide = open_slide(str(real_slides / "CMU-1-Small-Region.svs"))
    plan = plan_slide(slide, TilingRule(), RULE)
    assert 45 <= plan.n_tiles <= 65
    assert plan.facts["tissue_mm2"] == pytest.approx(0.62, abs=0.1)
