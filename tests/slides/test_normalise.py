"""Normalisation in the plan and in reading: fitted once, carried along, said when it can't be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageCms

from ray_pipeline.errors import NormaliseError
from ray_pipeline.plan import plan_slide
from ray_pipeline.rows import ShardRow
from ray_pipeline.slides.grid import TilingRule
from ray_pipeline.slides.normalise import Normaliser, NormaliseRule
from ray_pipeline.slides.slide import open_slide
from ray_pipeline.slides.stains import fit_from_json
from ray_pipeline.slides.tissue import TissueRule
from ray_pipeline.sources import SlideSource
from ray_pipeline.stages import PlanSlide, ReadTiles, slide_task
from ray_pipeline.store import Store
from ray_pipeline.synthetic import write_slide

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "a.svs"
    write_slide(path, width_px=4096, height_px=4096, mpp=0.5, seed=2)
    return path


def rows(path: Path, rule: NormaliseRule) -> list[ShardRow]:
    info = Store.open(str(path.parent)).head(path.name)
    source = SlideSource(slide_id="a", uri=str(path), etag=info.etag, size_bytes=info.size_bytes)
    task = json.loads(slide_task(source, {})["slide"])
    return list(PlanSlide(TilingRule(), TissueRule(), rule).rows(task))


@pytest.mark.parametrize("stain", ["macenko", "reinhard"])
def test_the_fit_of_the_plan_is_what_tiles_are_read_with(slide: Path, stain: str) -> None:
    rule = NormaliseRule(stain=stain)  # type: ignore[arg-type]
    own, shards = rows(slide, NormaliseRule())[1], rows(slide, rule)[1:]
    fits = {shard.info["stain_fit"] for shard in shards}
    assert len(fits) == 1
    (plain,) = ReadTiles(NormaliseRule()).read([own])
    (normalised,) = ReadTiles(rule).read([shards[0]])
    assert plain.pixels is not None
    assert normalised.pixels is not None
    expected = fit_from_json(fits.pop()).apply(plain.pixels)
    assert np.array_equal(normalised.pixels, expected)
    assert not np.array_equal(normalised.pixels, plain.pixels)


def test_the_rule_is_part_of_the_plans_fingerprint(slide: Path) -> None:
    opened = open_slide(str(slide))
    plans = [
        plan_slide(opened, TilingRule(), TissueRule(), NormaliseRule(stain=stain))
        for stain in ("own", "macenko", "reinhard")
    ]
    assert len({plan.plan_fp for plan in plans}) == 3
    assert plans[0].stain_fit is None


def test_a_slide_without_a_staining_is_one_failed_row(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    write_slide(path, width_px=2048, height_px=2048, mpp=0.5, seed=2)
    rule = NormaliseRule(stain="macenko", stain_sample_tiles=1)
    opened = open_slide(str(path))
    grey = np.full((1, 224, 224, 3), 120, np.uint8)
    normaliser = Normaliser(rule, slide_id=opened.slide_id, icc_profile=None)
    with pytest.raises(NormaliseError, match=r"^a: the sample shows no two stains.*stain: own"):
        normaliser.fit_stain(grey)


def test_a_broken_profile_is_said_and_none_is_no_fault() -> None:
    rule = NormaliseRule(colour="srgb")
    tiles = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), np.uint8)
    assert np.array_equal(Normaliser(rule, slide_id="a", icc_profile=None)(tiles), tiles)
    same = Normaliser(rule, slide_id="a", icc_profile=SRGB)(tiles)
    assert np.abs(same.astype(int) - tiles).max() <= 1
    unread = Normaliser(replace(rule, colour="scanner"), slide_id="a", icc_profile=b"junk")
    assert np.array_equal(unread(tiles), tiles)
    with pytest.raises(NormaliseError, match=r"^a: the ICC profile of 4 bytes is broken"):
        Normaliser(rule, slide_id="a", icc_profile=b"junk")
