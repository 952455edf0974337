"""Made-up slides: shaped like a scanner's, the same every time, and true to what they claim."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openslide
import pytest
import tifffile
from scipy import ndimage

from ray_pipeline.synthetic import GLASS, TISSUE_SHARE, SyntheticTruth, write_slide

SIZE: dict[str, Any] = {"width_px": 2048, "height_px": 1536}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SyntheticTruth]:
    path = tmp_path_factory.mktemp("synthetic") / "a.svs"
    return path, write_slide(path, **SIZE, seed=1)


def pixels(path: Path, level: int) -> npt.NDArray[np.uint8]:
    with openslide.OpenSlide(path) as slide:
        size = slide.level_dimensions[level]
        return np.asarray(slide.read_region((0, 0), level, size).convert("RGB"))


def at_truth(rgb: npt.NDArray[np.uint8], truth: SyntheticTruth) -> npt.NDArray[np.float64]:
    """The mean colour under each px of the truth."""
    step = round(truth.downsample)
    height, width = truth.tissue.shape
    cells = rgb.reshape(height, step, width, step, 3)
    means: npt.NDArray[np.float64] = cells.mean(axis=(1, 3))
    return means


def test_openslide_takes_it_for_an_aperio_slide(drawn: tuple[Path, SyntheticTruth]) -> None:
    with openslide.OpenSlide(drawn[0]) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert float(slide.properties["openslide.mpp-x"]) == 0.5
        assert slide.properties["openslide.objective-power"] == "20"
        assert slide.level_dimensions == ((2048, 1536), (512, 384), (128, 96))
        assert slide.level_downsamples == (1, 4, 16)


def test_the_levels_are_tiles_of_jpeg(drawn: tuple[Path, SyntheticTruth]) -> None:
    with tifffile.TiffFile(drawn[0]) as file:
        levels: list[Any] = [level.pages[0] for level in file.series[0].levels]
    assert len(levels) == 3
    for page in levels:
        assert page.compression == tifffile.COMPRESSION.JPEG
        assert (page.tilewidth, page.tilelength) == (256, 256)


@pytest.mark.parametrize("options", [{}, {"blank": True}, {"vendor": "generic"}])
def test_the_same_arguments_write_the_same_bytes(tmp_path: Path, options: dict[str, Any]) -> None:
    for name in ("a", "b"):
        write_slide(tmp_path / name, width_px=700, height_px=500, seed=7, **options)
    write_slide(tmp_path / "c", width_px=700, height_px=500, seed=8, **options)
    first, second, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == second
    assert first != other


def test_the_colours_are_where_the_truth_says(drawn: tuple[Path, SyntheticTruth]) -> None:
    path, truth = drawn
    colour = at_truth(pixels(path, 0), truth)
    far = np.abs(colour - GLASS).max(axis=-1)
    # Rims of islands and strokes share a px of the truth with glass: one px is left out.
    tissue, pen = (ndimage.binary_erosion(mask) for mask in (truth.tissue, truth.pen))
    glass = ~ndimage.binary_dilation(truth.tissue | truth.pen)
    assert (far[glass] < 6).all()
    assert (far[pen] > 150).all()
    # Fat is white and yet tissue: a few px lie wholly inside a vacuole.
    assert 0.97 < (far[tissue] > 15).mean() < 1


def test_tissue_and_pen_each_have_their_share_and_never_meet(
    drawn: tuple[Path, SyntheticTruth],
) -> None:
    truth = drawn[1]
    assert (truth.downsample, truth.mpp) == (16.0, 0.5)
    assert truth.tissue.shape == truth.pen.shape == (96, 128)
    assert truth.tissue.mean() > 0.2
    assert 0.01 < truth.pen.mean() < 0.25
    assert not (truth.tissue & truth.pen).any()


def test_tissue_has_stroma_nuclei_and_fat(drawn: tuple[Path, SyntheticTruth]) -> None:
    path, truth = drawn
    step = round(truth.downsample)
    tissue = np.repeat(np.repeat(truth.tissue, step, 0), step, 1)
    red, green, blue = np.moveaxis(pixels(path, 0)[tissue].astype(int), -1, 0)
    purple = (blue > green + 30) & (blue > red + 10) & (red < 130)
    pink = (red > blue + 10) & (red > green + 30)
    white = np.minimum(np.minimum(red, green), blue) > 215
    assert 0.02 < purple.mean() < 0.5
    assert pink.mean() > 0.2
    assert 0.005 < white.mean() < 0.25


@pytest.mark.parametrize("downsample", [2, 4])
def test_each_level_is_the_one_above_averaged(tmp_path: Path, downsample: int) -> None:
    path = tmp_path / "a.svs"
    write_slide(path, width_px=1024, height_px=768, seed=3, downsample=downsample)
    for level in (1, 2):
        finer, coarser = pixels(path, level - 1), pixels(path, level)
        height, width = coarser.shape[:2]
        cells = finer.reshape(height, downsample, width, downsample, 3).mean(axis=(1, 3))
        # Both have been through JPEG since; a level one px off is told apart all the same.
        in_place = np.abs(cells - coarser).mean()
        for axis in (0, 1):
            assert in_place < 0.6 * np.abs(np.roll(cells, 1, axis) - coarser).mean()
        assert abs((cells - coarser).mean()) < 0.5


def test_blank_is_glass_alone(tmp_path: Path) -> None:
    truth = write_slide(tmp_path / "a.svs", width_px=600, height_px=400, blank=True)
    assert not truth.tissue.any()
    assert not truth.pen.any()
    assert np.abs(pixels(tmp_path / "a.svs", 0).astype(int) - GLASS).max() <= 8


def test_without_pen_there_is_none_and_the_tissue_below_shows(tmp_path: Path) -> None:
    with_pen = write_slide(tmp_path / "a.svs", **SIZE, seed=1)
    without = write_slide(tmp_path / "b.svs", **SIZE, seed=1, pen=False)
    assert not without.pen.any()
    assert without.tissue.mean() == pytest.approx(TISSUE_SHARE, abs=0.01)
    assert np.array_equal(without.tissue & ~with_pen.pen, with_pen.tissue)


@pytest.mark.parametrize(
    ("vendor", "mpp_tag", "stated"),
    [
        ("aperio", True, 0.2528),
        ("aperio", False, None),
        ("generic", True, 0.2528),
        ("generic", False, None),
    ],
)
def test_what_the_file_says_of_its_microns_per_pixel(
    tmp_path: Path, vendor: Any, mpp_tag: bool, stated: float | None
) -> None:
    path = tmp_path / "a.tif"
    write_slide(path, width_px=600, height_px=400, mpp=0.2528, vendor=vendor, mpp_tag=mpp_tag)
    with openslide.OpenSlide(path) as slide:
        found = slide.properties.get("openslide.mpp-x")
        kind = "aperio" if vendor == "aperio" else "generic-tiff"
        assert slide.properties["openslide.vendor"] == kind
    assert (None if found is None else float(found)) == pytest.approx(stated)


def test_one_seed_is_one_slide_at_any_mpp(tmp_path: Path) -> None:
    coarse = write_slide(tmp_path / "a.svs", width_px=1024, height_px=768, mpp=0.5, seed=4)
    fine = write_slide(tmp_path / "b.svs", width_px=2048, height_px=1536, mpp=0.25, seed=4)
    assert np.array_equal(coarse.tissue, fine.tissue)
    assert np.array_equal(coarse.pen, fine.pen)


def test_a_taller_slide_needs_no_more_memory(tmp_path: Path) -> None:
    def peak_bytes(height_px: int) -> int:
        tracemalloc.start()
        write_slide(tmp_path / "a.svs", width_px=1024, height_px=height_px, blank=True, pen=False)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    raster = 1024 * 6144 * 3
    assert peak_bytes(6144) - peak_bytes(1024) < raster / 6


def test_nests_are_dark_lie_in_tissue_and_change_nothing_else(
    drawn: tuple[Path, SyntheticTruth], tmp_path: Path
) -> None:
    nested = write_slide(tmp_path / "nested.svs", **SIZE, seed=1, nests=2)
    assert not drawn[1].nests.any()
    assert nested.nests.any()
    assert not (nested.nests & ~nested.tissue).any()
    assert np.array_equal(nested.tissue, drawn[1].tissue)
    plain, dark = (
        at_truth(pixels(path, 0), nested) for path in (drawn[0], tmp_path / "nested.svs")
    )
    inside = ndimage.binary_erosion(nested.nests, iterations=2)
    outside = ~ndimage.binary_dilation(nested.nests, iterations=4)
    assert dark[inside].mean() < plain[inside].mean() - 15
    assert np.array_equal(dark[outside], plain[outside])
