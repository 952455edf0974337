"""The fallback reads what only tiffslide knows, and elsewhere gives the direct path's pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ray_pipeline.slides.fallback import TiffSlideReader
from ray_pipeline.slides.grid import TilingRule, choose_geometry, grid_origins
from ray_pipeline.slides.slide import open_slide
from ray_pipeline.store import Store
from ray_pipeline.synthetic import write_slide


def fallback(path: Path) -> TiffSlideReader:
    file = Store.open(str(path.parent)).open_file(path.name)
    return TiffSlideReader(file, uri=str(path), slide_id=path.stem, mpp_override=None)


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "pyramid.svs"
    write_slide(path, width_px=2100, height_px=1500, mpp=0.25, seed=3, downsample=2)
    return path


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "test3-DAPI-2-387.ndpi"])
def test_both_paths_tell_and_read_the_same_of_a_real_slide(real_slides: Path, name: str) -> None:
    ours, theirs = open_slide(str(real_slides / name)), fallback(real_slides / name)
    assert (ours.reader, theirs.reader) == ("direct", "tiffslide")
    assert (ours.vendor, ours.mpp) == (theirs.vendor, theirs.mpp)
    assert len(ours.levels) == len(theirs.levels)
    for mine, its in zip(ours.levels, theirs.levels, strict=True):
        assert (mine.width_px, mine.height_px) == (its.width_px, its.height_px)
        assert (mine.downsample, mine.mpp) == (its.downsample, its.mpp)
    rng = np.random.default_rng(1)
    for level in ours.levels:
        room = (level.width_px - 224, level.height_px - 224)
        xy = (rng.integers(0, room, (6, 2)) * level.downsample).astype(np.int32)
        one, other = (
            slide.read_tiles(level=level.index, xy=xy, side_px=224, tile_px=224)
            for slide in (ours, theirs)
        )
        assert np.array_equal(one, other)


@pytest.mark.parametrize("scale", [1.3, 0.5 / 0.2528])
def test_both_paths_resample_the_same(pyramid: Path, scale: float) -> None:
    ours, theirs = open_slide(str(pyramid)), fallback(pyramid)
    side = 224 * scale
    xy = np.array([[x, y] for y in (0, 440, 1009) for x in (0, 331, 1650)], np.int32)
    xy = np.minimum(xy, (int(2100 - side), int(1500 - side))).astype(np.int32)
    one, other = (
        slide.read_tiles(level=0, xy=xy, side_px=side, tile_px=224) for slide in (ours, theirs)
    )
    assert np.array_equal(one, other)


def test_overviews_are_nearly_the_same(pyramid: Path) -> None:
    """The direct path scales in the DCT, where a mean is not rounded to whole pixels before."""
    one, other = open_slide(str(pyramid)).overview(8.0), fallback(pyramid).overview(8.0)
    assert one.rgb.shape == other.rgb.shape
    assert one.downsample_x == other.downsample_x
    difference = np.abs(one.rgb.astype(int) - other.rgb)
    assert difference.mean() < 1.5


def test_parts_are_read_one_after_another(pyramid: Path) -> None:
    slide = fallback(pyramid)
    xy = grid_origins(slide.levels[0], choose_geometry(slide.levels, TilingRule(), slide_id="a"))
    parts = [xy[:3], xy[3:3], xy[3:7]]
    read = list(slide.read_parts(level=1, parts=parts, side_px=224, tile_px=224))
    assert [len(tiles) for tiles in read] == [3, 0, 4]
    whole = slide.read_tiles(level=1, xy=xy[:7], side_px=224, tile_px=224)
    assert np.array_equal(np.concatenate(read), whole)
