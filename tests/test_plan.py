"""Plans: the same slide always gives the same tiles, and every tile that passes is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ray_pipeline.coordinates import Coordinates
from ray_pipeline.errors import CoordinatesError, TooCoarseError
from ray_pipeline.plan import TilePlan, plan_slide, tiles_in_shards
from ray_pipeline.ranged_file import ReadCounts
from ray_pipeline.recipe import SHARD_TILES
from ray_pipeline.slides.grid import TilingRule, grid_origins
from ray_pipeline.slides.levels import Level, Mpp, Overview
from ray_pipeline.slides.slide import open_slide
from ray_pipeline.slides.tissue import TissueRule
from ray_pipeline.synthetic import GLASS, STROMA, write_slide

RULE = TissueRule()


class Drawn:
    """A slide of one level at 0.5 microns per pixel, of which only the overview is there."""

    size_bytes, vendor, reader = 1, "drawn", "drawn"
    icc_profile: bytes | None = None

    def __init__(self, tissue: npt.NDArray[np.bool_], *, etag: str = "1", name: str = "a") -> None:
        self.slide_id, self.uri, self.etag = name, f"/{name}.svs", etag
        self.counts = ReadCounts()
        self.rgb = np.where(tissue[..., None], STROMA, GLASS).astype(np.uint8)
        height, width = (side * 16 for side in tissue.shape)
        self.levels: tuple[Level, ...] = (
            Level(index=0, width_px=width, height_px=height, downsample=1.0, mpp=0.5),
        )
        self.mpp = Mpp(value=0.5, source="file", found=0.5)

    def overview(self, mpp: float) -> Overview:
        assert mpp == RULE.overview_mpp
        return Overview(rgb=self.rgb, downsample_x=16.0, downsample_y=16.0)

    def read_tiles(self, **how: Any) -> npt.NDArray[np.uint8]:
        raise AssertionError("a plan reads no tiles")

    def read_parts(self, **how: Any) -> Iterator[npt.NDArray[np.uint8]]:
        raise AssertionError("a plan reads no tiles")

    def compressed_bytes(self, **how: Any) -> int:
        raise AssertionError("a plan counts no bytes")

    def ranges(self, **how: Any) -> int:
        raise AssertionError("a plan counts no requests")

    def close(self) -> None:
        raise AssertionError("whoever opened a slide closes it")


def island(height: int = 300, width: int = 420) -> npt.NDArray[np.bool_]:
    y, x = np.mgrid[0:height, 0:width]
    inside: npt.NDArray[np.bool_] = (y - 140) ** 2 / 110**2 + (x - 200) ** 2 / 170**2 < 1
    return inside


def plan(slide: Drawn, tissue: TissueRule = RULE, max_tiles: int | None = None) -> TilePlan:
    return plan_slide(slide, TilingRule(), tissue, max_tiles=max_tiles)


@pytest.mark.parametrize("least", [0.25, 0.5, 0.95])
def test_every_tile_with_enough_tissue_is_kept_and_no_other(least: float) -> None:
    slide = Drawn(island())
    found = plan(slide, replace(RULE, min_tissue=least))
    every = grid_origins(slide.levels[0], found.geometry)
    cells = np.repeat(np.repeat(island(), 16, axis=0), 16, axis=1)
    truth = np.array([cells[y : y + 224, x : x + 224].mean() for x, y in every])
    kept = {tuple(tile) for tile in found.xy.tolist()}
    # The mask is smoothed over 3 x 3 px of the overview: tiles on the verge may fall either way.
    for tile, share in zip(every.tolist(), truth.tolist(), strict=True):
        if share > least + 0.05 and share > 0:
            assert tuple(tile) in kept
        elif share < least - 0.08:
            assert tuple(tile) not in kept
    assert (found.tissue >= least).all()


def test_glass_is_never_kept_even_when_everything_may_be() -> None:
    found = plan(Drawn(island()), replace(RULE, min_tissue=0))
    assert found.n_tiles > 0
    assert (found.tissue > 0).all()
    assert plan(Drawn(np.zeros((99, 99), bool)), replace(RULE, min_tissue=0)).n_tiles == 0


def test_tiles_come_in_rows_and_a_trial_takes_the_first() -> None:
    whole, trial = plan(Drawn(island())), plan(Drawn(island()), max_tiles=40)
    assert whole.xy.tolist() == sorted(whole.xy.tolist(), key=lambda tile: (tile[1], tile[0]))
    assert np.array_equal(trial.xy, whole.xy[:40])
    assert np.array_equal(trial.tissue, whole.tissue[:40])


def brought(xy: list[tuple[int, int]], size_l0: float = 224.0) -> Coordinates:
    return Coordinates(xy=np.array(xy, np.int32), size_l0=size_l0)


def plan_of(coordinates: Coordinates, tiling: TilingRule | None = None) -> TilePlan:
    return plan_slide(Drawn(island()), tiling or TilingRule(), RULE, coordinates=coordinates)


def test_tiles_that_were_brought_are_all_kept_and_told_how_much_tissue_they_are() -> None:
    """On glass, half on the island and wholly on it; off every grid."""
    corners = [(3, 1), (380, 2111), (3000, 2001)]
    found = plan_of(brought(corners))
    assert found.xy.tolist() == sorted(map(list, corners), key=lambda xy: (xy[1], xy[0]))
    by_place = dict(zip(map(tuple, found.xy.tolist()), found.tissue.tolist(), strict=True))
    assert by_place[3, 1] == 0
    assert by_place[3000, 2001] == 1
    assert 0 < by_place[380, 2111] < 1
    assert found.facts["tissue_mm2"] == plan(Drawn(island())).facts["tissue_mm2"]


def test_other_tiles_are_another_plan() -> None:
    one, other = brought([(0, 0), (224, 0)]), brought([(0, 0), (225, 0)])
    assert plan_of(one).plan_fp == plan_of(one).plan_fp != plan_of(other).plan_fp
    trial = plan_slide(Drawn(island()), TilingRule(), RULE, max_tiles=1, coordinates=one)
    assert trial.xy.tolist() == [[0, 0]]


@pytest.mark.parametrize("size_l0", [220.0, 228.0, 224.0])
def test_tiles_as_large_as_the_recipes_within_two_percent_are_taken(size_l0: float) -> None:
    assert plan_of(brought([(0, 0)], size_l0)).geometry.size_l0 == 224


@pytest.mark.parametrize("size_l0", [219.0, 229.0, 448.0])
def test_tiles_of_another_size_are_refused_with_both(size_l0: float) -> None:
    words = rf"^a: its coordinates are of tiles of {size_l0:g} px at level 0, and 224 px at 0\.5 "
    with pytest.raises(CoordinatesError, match=words + r".* are 224 px there, more than 2% off"):
        plan_of(brought([(0, 0)], size_l0))
    with pytest.raises(CoordinatesError, match="are 448 px there"):
        plan_of(brought([(0, 0)]), TilingRule(mpp=1.0))


@pytest.mark.parametrize("corner", [(-1, 0), (0, -1), (6720 - 223, 0), (0, 4800 - 223), (10**6, 5)])
def test_the_first_tile_that_is_not_on_the_slide_is_named(corner: tuple[int, int]) -> None:
    edge = (6720 - 224, 4800 - 224)
    assert plan_of(brought([(0, 0), edge])).n_tiles == 2
    x, y = corner
    with pytest.raises(CoordinatesError, match=rf"^a: 1 of its coordinates.* x {x}, y {y}, are"):
        plan_of(brought([(0, 0), corner, edge]))


def test_shards_part_the_tiles() -> None:
    found = plan(Drawn(island()))
    assert found.n_shards == -(-found.n_tiles // SHARD_TILES) > 1
    parts = [np.arange(found.n_tiles)[found.shard(index)] for index in range(found.n_shards)]
    assert np.array_equal(np.concatenate(parts), np.arange(found.n_tiles))
    assert [tiles_in_shards(found.n_tiles, {index}) for index in range(found.n_shards)] == [
        len(part) for part in parts
    ]


def test_the_fingerprint_tells_what_would_change_the_tiles_and_only_that() -> None:
    same = plan(Drawn(island())).plan_fp
    assert plan(Drawn(island(), name="b")).plan_fp == same
    others = {
        plan(Drawn(island(), etag="2")).plan_fp,
        plan(Drawn(island()[:, :-120])).plan_fp,
        plan(Drawn(island()), max_tiles=40).plan_fp,
        plan(Drawn(island()), replace(RULE, min_tissue=0.5)).plan_fp,
        plan_slide(Drawn(island()), TilingRule(stride_px=112), RULE).plan_fp,
        plan_slide(Drawn(island()), TilingRule(mpp=1.0), RULE).plan_fp,
    }
    assert len(others - {same}) == 6


def test_the_facts_say_what_was_asked_and_what_was_had() -> None:
    facts = plan_slide(Drawn(island()), TilingRule(mpp=1.1), RULE).facts
    assert (facts["mpp_found"], facts["mpp_source"], facts["mpp_used"]) == (0.5, "file", 0.5)
    assert (facts["mpp_asked"], facts["mpp_achieved"], facts["resampled"]) == (1.1, 1.1, True)
    assert facts["tile_size_l0"] == pytest.approx(224 * 2.2)
    assert facts["tissue_mm2"] == pytest.approx(island().sum() * 64e-6, rel=0.03)


def test_a_slide_too_coarse_is_refused_before_its_overview_is_read() -> None:
    slide = Drawn(island())
    slide.rgb = np.empty(0, np.uint8)
    with pytest.raises(TooCoarseError, match=r"^a: "):
        plan_slide(slide, TilingRule(mpp=0.25), RULE)


def test_a_tile_is_kept_for_its_tissue_not_for_pen(tmp_path: Path) -> None:
    truth = write_slide(tmp_path / "a.svs", width_px=3600, height_px=2800, seed=0)
    found = plan_slide(open_slide(str(tmp_path / "a.svs")), TilingRule(), RULE)
    side = round(found.geometry.size_l0 / truth.downsample)
    assert found.n_tiles > 50
    for x, y in np.rint(found.xy / truth.downsample).astype(int):
        under = slice(y, y + side), slice(x, x + side)
        assert truth.tissue[under].mean() > RULE.min_tissue - 0.05
        assert truth.pen[under].mean() < 1 - RULE.min_tissue
