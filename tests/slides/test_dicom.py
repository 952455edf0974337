"""DICOM slides: folders and files, every way to find a frame, pixels as OpenSlide has them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import openslide
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import JPEG2000, ExplicitVRLittleEndian, JPEGBaseline8Bit, JPEGLSLossless

from ray_pipeline.errors import (
    DamagedSlideError,
    NoMppError,
    NotASlideError,
    ObjectReplacedError,
    SlideError,
    TooLargeError,
)
from ray_pipeline.slides.slide import open_slide
from ray_pipeline.sources import find_slides
from tests.slides.dicom_files import coded, frames_of, picture, write_instance

SYNTAXES = pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEG2000, ExplicitVRLittleEndian])
FINEST = picture(333, 207)


def everywhere(width: int, height: int, side: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Places of tiles over all of a level, its right and bottom edge included."""
    xs = sorted({*range(0, width - side, side), width - side})
    ys = sorted({*range(0, height - side, side), height - side})
    return np.array([[x, y] for y in ys for x in xs], np.int32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three levels and a label beside them."""
    path = tmp_path / "series-1"
    path.mkdir()
    write_instance(path / "b.dcm", FINEST[::2, ::2].copy(), mpp=1.0)
    write_instance(path / "a.dcm", FINEST)
    write_instance(path / "c.dcm", FINEST[::4, ::4].copy(), mpp=2.0)
    write_instance(path / "d.dcm", picture(100, 80, 9), flavour="LABEL")
    return path


def test_a_folder_is_a_pyramid_with_openslides_pixels(folder: Path) -> None:
    slide = open_slide(str(folder))
    assert (slide.slide_id, slide.vendor, slide.reader) == ("series-1", "dicom", "direct")
    assert [(lv.width_px, lv.height_px) for lv in slide.levels] == [
        (333, 207),
        (167, 104),
        (84, 52),
    ]
    assert (slide.mpp.value, slide.mpp.source) == (0.5, "file")
    with openslide.OpenSlide(folder / "a.dcm") as oracle:
        assert [tuple(size) for size in oracle.level_dimensions] == [
            (level.width_px, level.height_px) for level in slide.levels
        ]
        for level in slide.levels:
            spots = everywhere(level.width_px, level.height_px, 48)
            xy = np.ceil(spots * level.downsample).astype(np.int32)
            tiles = slide.read_tiles(level=level.index, xy=xy, side_px=48, tile_px=48)
            whole = np.asarray(
                oracle.read_region((0, 0), level.index, oracle.level_dimensions[level.index])
            )[..., :3]
            places = np.rint(xy / level.downsample).astype(int)
            for tile, (x, y) in zip(tiles, np.minimum(places, spots.max(axis=0)), strict=True):
                assert np.array_equal(tile, whole[y : y + 48, x : x + 48])


@SYNTAXES
@pytest.mark.parametrize("table", ["basic", "extended", "none"])
def test_every_frame_is_found(tmp_path: Path, syntax: str, table: str) -> None:
    path = write_instance(tmp_path / "a.dcm", FINEST, syntax=syntax, table=table, tile=67)
    slide = open_slide(str(path))
    xy = everywhere(333, 207, 50)
    tiles = slide.read_tiles(level=0, xy=xy, side_px=50, tile_px=50)
    expected = FINEST
    if syntax == JPEGBaseline8Bit:
        parts = [
            np.asarray(imagecodecs.jpeg8_decode(f)) for f in coded(frames_of(FINEST, 67), syntax)
        ]
        rows = [np.concatenate(parts[i : i + 5], axis=1) for i in range(0, 20, 5)]
        expected = np.concatenate(rows)
    for tile, (x, y) in zip(tiles, xy.tolist(), strict=True):
        assert np.array_equal(tile, expected[y : y + 50, x : x + 50])


def test_frames_that_a_sparse_slide_leaves_out_are_glass(tmp_path: Path) -> None:
    keep = [7, 0, 3, 11]
    path = write_instance(tmp_path / "a.dcm", FINEST, sparse=True, keep=keep, syntax=JPEG2000)
    slide = open_slide(str(path))
    xy = np.array([[x, y] for y in range(0, 128, 64) for x in range(0, 320 - 63, 64)], np.int32)
    for tile, (x, y) in zip(
        slide.read_tiles(level=0, xy=xy, side_px=64, tile_px=64), xy.tolist(), strict=True
    ):
        index = y // 64 * 6 + x // 64
        there = FINEST[y : y + 64, x : x + 64] if index in keep else np.full((64, 64, 3), 255)
        assert np.array_equal(tile, there)


def test_a_concatenation_is_one_level(tmp_path: Path) -> None:
    for part, first in (("a", 0), ("b", 10)):
        write_instance(
            tmp_path / f"{part}.dcm",
            FINEST,
            keep=range(first, first + (10 if part == "a" else 14)),
            syntax=JPEG2000,
            ConcatenationUID="1.2.3",
            InConcatenationNumber=1 if part == "a" else 2,
            ConcatenationFrameOffsetNumber=first,
        )
    slide = open_slide(str(tmp_path))
    assert len(slide.levels) == 1
    xy = everywhere(333, 207, 64)
    for tile, (x, y) in zip(
        slide.read_tiles(level=0, xy=xy, side_px=64, tile_px=64), xy.tolist(), strict=True
    ):
        assert np.array_equal(tile, FINEST[y : y + 64, x : x + 64])


def test_labels_are_never_read_past_their_header(tmp_path: Path) -> None:
    write_instance(tmp_path / "a.dcm", FINEST, syntax=ExplicitVRLittleEndian)
    label = write_instance(
        tmp_path / "b.dcm", picture(900, 900), syntax=ExplicitVRLittleEndian, flavour="LABEL"
    )
    assert label.stat().st_size > 2_000_000
    slide = open_slide(str(tmp_path))
    slide.overview(0.5)
    slide.read_tiles(level=0, xy=everywhere(333, 207, 50), side_px=50, tile_px=50)
    assert slide.counts.bytes_fetched < 1_500_000


def test_the_real_slide_reads_as_pydicom_reads_it(real_slides: Path) -> None:
    path = real_slides / "small_dicom.dcm"
    with pytest.raises(NoMppError, match="not square"):
        open_slide(str(path))
    slide = open_slide(str(path), mpp_override=0.5)
    assert slide.levels[0].reduces == (1, 2, 4)
    with pytest.warns(UserWarning, match="Photometric Interpretation"):
        frames = pydicom.dcmread(path).pixel_array
    xy = np.array([[x * 500, y * 500] for y in range(5) for x in range(6)], np.int32)
    for tile, (x, y) in zip(
        slide.read_tiles(level=0, xy=xy, side_px=224, tile_px=224), xy // 500, strict=True
    ):
        # pydicom's JPEG library rounds here and there to the next grey level.
        assert np.abs(tile.astype(int) - frames[y * 7 + x][:224, :224]).max() <= 1


def test_a_listing_takes_a_series_for_one_slide(folder: Path, tmp_path: Path) -> None:
    write_instance(tmp_path / "alone.dcm", FINEST)
    found = find_slides([f"{tmp_path}/"])
    assert [source.slide_id for source in found] == ["alone", "series-1"]
    assert found[1].uri == str(folder)
    assert open_slide(found[1].uri, etag=found[1].etag).etag == found[1].etag
    (again,) = find_slides([str(folder)])
    assert (again.slide_id, again.etag) == ("series-1", found[1].etag)
    write_instance(folder / "c.dcm", FINEST[::4, ::4].copy(), mpp=2.0, tile=32)
    with pytest.raises(ObjectReplacedError, match="was replaced after it was listed"):
        open_slide(found[1].uri, etag=found[1].etag)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"PhotometricInterpretation": "MONOCHROME2", "SamplesPerPixel": 1}, "only 8-bit RGB"),
        ({"BitsAllocated": 16}, "3 channels of 16 bits"),
        ({"TotalPixelMatrixFocalPlanes": 3}, "3 focal planes"),
        ({"NumberOfOpticalPaths": 4}, "4 optical paths"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, "no volume of a DICOM whole slide"),
    ],
)
def test_what_can_not_be_read_is_refused(tmp_path: Path, tags: dict[str, Any], words: str) -> None:
    path = write_instance(tmp_path / "a.dcm", FINEST, **tags)
    with pytest.raises(NotASlideError, match=f"^a: .*{words}"):
        open_slide(str(path))


def test_other_transfer_syntaxes_are_named(tmp_path: Path) -> None:
    path = write_instance(tmp_path / "a.dcm", FINEST)
    instance = pydicom.dcmread(path)
    instance.file_meta.TransferSyntaxUID = JPEGLSLossless
    instance.save_as(path)
    with pytest.raises(NotASlideError, match=r"^a: .*transfer syntax JPEG-LS Lossless.*only JPEG"):
        open_slide(str(path))


def test_folders_of_two_slides_or_two_copies_are_refused(tmp_path: Path) -> None:
    write_instance(tmp_path / "a.dcm", FINEST)
    write_instance(tmp_path / "b.dcm", FINEST)
    with pytest.raises(NotASlideError, match=r"a\.dcm and b\.dcm are both 333 x 207 px"):
        open_slide(str(tmp_path))
    write_instance(tmp_path / "b.dcm", FINEST, SeriesInstanceUID="1.2.3.4")
    with pytest.raises(NotASlideError, match="instances of 2 series"):
        open_slide(str(tmp_path))


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.97])
@pytest.mark.parametrize("table", ["basic", "extended", "none"])
def test_a_truncated_file_is_one_sentence(tmp_path: Path, share: float, table: str) -> None:
    path = write_instance(tmp_path / "a.dcm", FINEST, table=table)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises((DamagedSlideError, NotASlideError), match=r"^a: ") as caught:
        open_slide(str(path))
    assert "\n" not in str(caught.value)


def test_claims_of_gigapixels_are_refused(tmp_path: Path) -> None:
    path = write_instance(tmp_path / "a.dcm", FINEST, TotalPixelMatrixColumns=1 << 24)
    with pytest.raises(TooLargeError, match="claims 16777216 x 207 px"):
        open_slide(str(path))
    path = write_instance(tmp_path / "a.dcm", FINEST, NumberOfFrames=10**9)
    with pytest.raises(DamagedSlideError, match="1000000000 frames for a grid of 6 x 4"):
        open_slide(str(path))


def test_frames_off_the_grid_are_refused(tmp_path: Path) -> None:
    path = write_instance(tmp_path / "a.dcm", FINEST, sparse=True)
    instance = pydicom.dcmread(path)
    groups = instance.PerFrameFunctionalGroupsSequence
    groups[2].PlanePositionSlideSequence[0].ColumnPositionInTotalImagePixelMatrix = 100
    instance.save_as(path)
    with pytest.raises(NotASlideError, match="off the grid of 64 x 64 px"):
        open_slide(str(path))


def test_mpp_and_profile_come_from_where_dicom_has_them(tmp_path: Path) -> None:
    optics = Dataset()
    optics.OpticalPathIdentifier, optics.ICCProfile = "1", b"profile!"
    path = write_instance(
        tmp_path / "a.dcm",
        FINEST,
        mpp=None,
        ImagedVolumeWidth=333 * 0.00025,
        ImagedVolumeHeight=207 * 0.00025,
        OpticalPathSequence=Items([optics]),
    )
    slide = open_slide(str(path))
    assert slide.mpp.value == pytest.approx(0.25, rel=1e-4)
    assert slide.icc_profile == b"profile!"
    path = write_instance(tmp_path / "b.dcm", FINEST, mpp=None)
    with pytest.raises(NoMppError, match="states no microns"):
        open_slide(str(path))


@pytest.mark.parametrize("seed", range(60))
def test_scribbled_headers_raise_only_our_errors(tmp_path: Path, seed: int) -> None:
    path = write_instance(tmp_path / "a.dcm", FINEST, sparse=seed % 2 == 0)
    rng = np.random.default_rng(seed)
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    where = rng.integers(128, min(3000, len(data)), 4)
    data[where] = rng.integers(0, 256, 4)
    path.write_bytes(data.tobytes())
    with contextlib.suppress(SlideError):
        slide = open_slide(str(path), mpp_override=0.5)
        slide.read_tiles(level=0, xy=np.array([[0, 0]], np.int32), side_px=64, tile_px=64)
