"""Reading slides: the pixels are OpenSlide's, and what is wrong with a file is one sentence."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openslide
import pytest
import tifffile

from ray_pipeline.errors import (
    DamagedSlideError,
    EmptySlideError,
    NoMppError,
    NotASlideError,
    ObjectReplacedError,
    SlideError,
    TooLargeError,
)
from ray_pipeline.ranged_file import RangedFile
from ray_pipeline.slides import fallback
from ray_pipeline.slides.grid import TilingRule, choose_geometry, grid_origins
from ray_pipeline.slides.slide import open_slide
from ray_pipeline.synthetic import write_slide

CMU = "CMU-1-Small-Region.svs"


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "pyramid.svs"
    write_slide(path, width_px=2100, height_px=1500, mpp=0.25, seed=3, downsample=2)
    return path


def tiff(path: Path, pixels: npt.NDArray[Any], **options: Any) -> Path:
    tifffile.imwrite(path, pixels, tile=(64, 64), resolutionunit="CENTIMETER", **options)
    return path


def test_every_tile_of_the_real_slide_is_openslides(real_slides: Path) -> None:
    slide = open_slide(str(real_slides / CMU))
    xy = grid_origins(slide.levels[0], choose_geometry(slide.levels, TilingRule(), slide_id="a"))
    tiles = slide.read_tiles(level=0, xy=xy, side_px=224, tile_px=224)
    with openslide.OpenSlide(real_slides / CMU) as oracle:
        for tile, (x, y) in zip(tiles, xy.tolist(), strict=True):
            expected = oracle.read_region((x, y), 0, (224, 224)).convert("RGB")
            assert np.array_equal(tile, np.asarray(expected))
    assert slide.gets == 1


@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_level_is_openslides_where_nothing_is_resampled(pyramid: Path, level: int) -> None:
    slide = open_slide(str(pyramid))
    scale = 2**level
    xy = np.array([[x * scale, y * scale] for y in (0, 100, 151) for x in (0, 64, 301)], np.int32)
    tiles = slide.read_tiles(level=level, xy=xy, side_px=224, tile_px=224)
    with openslide.OpenSlide(pyramid) as oracle:
        for tile, (x, y) in zip(tiles, xy.tolist(), strict=True):
            expected = oracle.read_region((x, y), level, (224, 224)).convert("RGB")
            assert np.array_equal(tile, np.asarray(expected))


def test_resampled_tiles_are_the_field_averaged_at_sub_pixel_places(tmp_path: Path) -> None:
    y, x = np.mgrid[0:700, 0:900]
    smooth = np.stack([128 + 100 * np.sin(x / 40), 128 + 100 * np.cos(y / 50), (x + y) / 8], -1)
    path = tiff(tmp_path / "a.tif", np.rint(smooth).astype(np.uint8), resolution=(4e4, 4e4))
    side = 224 * 0.5 / 0.2528
    origins = np.array([[0, 0], [113, 57], [301, 200]], np.int32)
    slide = open_slide(str(path))
    tiles = slide.read_tiles(level=0, xy=origins, side_px=side, tile_px=224)
    centres = (np.arange(224) + 0.5) * side / 224 - 0.5
    for tile, (left, top) in zip(tiles, origins, strict=True):
        u, v = np.meshgrid(left + centres, top + centres)
        expected = np.stack(
            [128 + 100 * np.sin(u / 40), 128 + 100 * np.cos(v / 50), (u + v) / 8], -1
        )
        assert np.abs(tile[2:-2, 2:-2] - expected[2:-2, 2:-2]).max() <= 1.5


def test_overviews_read_in_strips_equal_one_piece(
    pyramid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_slide(str(pyramid)).overview(3.0)
    monkeypatch.setattr(fallback, "STRIP_PX", 20_000)
    strips = open_slide(str(pyramid)).overview(3.0)
    assert np.array_equal(whole.rgb, strips.rgb)
    assert whole.rgb.shape == (125, 175, 3)
    assert whole.downsample_x == 12.0


def test_compressed_bytes_count_each_compressed_tile_once(pyramid: Path) -> None:
    slide = open_slide(str(pyramid))
    with tifffile.TiffFile(pyramid) as file:
        counts = file.pages[0].databytecounts
    one = slide.compressed_bytes(level=0, xy=np.array([[0, 0]], np.int32), side_px=224)
    assert one == counts[0]
    twice = np.array([[0, 0], [10, 10], [224, 0]], np.int32)
    assert slide.compressed_bytes(level=0, xy=twice, side_px=224) == counts[0] + counts[1]


@pytest.mark.parametrize("share", [0.0001, 0.1, 0.5, 0.95])
def test_a_truncated_slide_is_one_sentence(real_slides: Path, tmp_path: Path, share: float) -> None:
    data = (real_slides / CMU).read_bytes()
    (tmp_path / "cut.svs").write_bytes(data[: int(len(data) * share)])
    with pytest.raises((DamagedSlideError, NotASlideError), match=r"^cut: .*upload it again") as e:
        open_slide(str(tmp_path / "cut.svs"))
    assert "\n" not in str(e.value)


def test_what_is_no_slide_is_said(tmp_path: Path, real_slides: Path) -> None:
    (tmp_path / "text.svs").write_text("notes of the pathologist")
    with pytest.raises(NotASlideError, match=r"^text: .*is no slide"):
        open_slide(str(tmp_path / "text.svs"))
    (tmp_path / "empty.svs").write_bytes(b"")
    with pytest.raises(EmptySlideError, match=r"^empty: .*is empty"):
        open_slide(str(tmp_path / "empty.svs"))
    with pytest.raises(NotASlideError, match="is a DICOM file"):
        open_slide(str(real_slides / "small_dicom.dcm"))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((128, 128), np.uint8), ((128, 128, 3), np.uint16), ((128, 128, 4), np.uint8)],
    ids=["grey", "16 bit", "four channels"],
)
def test_other_pixels_than_rgb_are_refused_not_guessed(
    tmp_path: Path, shape: tuple[int, ...], dtype: type
) -> None:
    path = tiff(tmp_path / "a.tif", np.zeros(shape, dtype), resolution=(2e4, 2e4))
    with pytest.raises(NotASlideError, match=r"only 8-bit RGB slides"):
        open_slide(str(path))


def test_a_file_without_mpp_is_mended_by_an_override(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", np.zeros((128, 128, 3), np.uint8), resolution=(72 / 2.54,) * 2)
    with pytest.raises(NoMppError, match=r"a: the file states 352\.7.* --mpp-override"):
        open_slide(str(path))
    slide = open_slide(str(path), mpp_override=0.5)
    assert (slide.mpp.value, slide.mpp.source) == (0.5, "override")
    assert slide.mpp.found == pytest.approx(352.78, abs=0.1)


def test_a_claim_of_gigapixels_is_refused_unread(tmp_path: Path) -> None:
    side = 2_000_000
    entries = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1)]
    entries += [(262, 3, 1, 2), (273, 4, 1, 8), (277, 3, 1, 3), (278, 4, 1, side), (279, 4, 1, 64)]
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    data = b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + b"\0" * 100
    (tmp_path / "bomb.tif").write_bytes(data)
    with pytest.raises((TooLargeError, DamagedSlideError, NotASlideError)) as caught:
        open_slide(str(tmp_path / "bomb.tif"), mpp_override=0.5)
    assert str(caught.value).startswith("bomb: ")


def test_damage_inside_a_tile_is_an_error_when_that_tile_is_read(
    pyramid: Path, tmp_path: Path
) -> None:
    with tifffile.TiffFile(pyramid) as file:
        page: Any = file.pages[0]
        offset, count = page.dataoffsets[0], page.databytecounts[0]
    data = bytearray(pyramid.read_bytes())
    data[offset : offset + count] = b"\x5a" * count
    (tmp_path / "bad.svs").write_bytes(data)
    slide = open_slide(str(tmp_path / "bad.svs"))
    with pytest.raises(DamagedSlideError, match=r"^bad: .*pixels at level 0, x 0, y 0"):
        slide.read_tiles(level=0, xy=np.array([[0, 0]], np.int32), side_px=224, tile_px=224)
    far = np.array([[1024, 1024]], np.int32)
    assert slide.read_tiles(level=0, xy=far, side_px=224, tile_px=224).any()


def test_a_slide_replaced_after_listing_is_an_error(tmp_path: Path, pyramid: Path) -> None:
    path = tmp_path / "a.svs"
    path.write_bytes(pyramid.read_bytes())
    etag = open_slide(str(path)).etag
    write_slide(path, width_px=600, height_px=600, seed=1)
    with pytest.raises(ObjectReplacedError, match="was replaced after it was listed"):
        open_slide(str(path), etag=etag)


def test_label_and_macro_are_never_read(real_slides: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tifffile.TiffFile(real_slides / CMU) as file:
        pages: list[Any] = list(file.pages)
        others = [
            (offset, offset + count)
            for page in pages[1:]
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
        ]
    assert others
    read: list[tuple[int, int]] = []
    real = RangedFile.read

    def noting(self: RangedFile, size: int | None = -1) -> bytes:
        start = self.tell()
        data = real(self, size)
        read.append((start, start + len(data)))
        return data

    monkeypatch.setattr(RangedFile, "read", noting)
    slide = open_slide(str(real_slides / CMU))
    slide.overview(8.0)
    xy = np.array([[0, 0], [1000, 1000]], np.int32)
    slide.read_tiles(level=0, xy=xy, side_px=224, tile_px=224)
    assert read
    # What lies in a label or macro is never asked for; 32 KB is tifffile's own read of a directory.
    for start, stop in read:
        if stop - start > 32_768 or (start, stop) in others:
            assert all(stop <= low or start >= high for low, high in others)


@pytest.mark.parametrize("seed", range(40))
def test_scribbled_headers_raise_only_our_errors(pyramid: Path, tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = np.frombuffer(pyramid.read_bytes(), np.uint8).copy()
    with tifffile.TiffFile(pyramid) as file:
        starts = [page.offset for page in file.pages]
    where = rng.choice(starts) + rng.integers(0, 200, 6)
    data[np.minimum(where, len(data) - 1)] = rng.integers(0, 256, 6)
    (tmp_path / "x.svs").write_bytes(data.tobytes())
    with contextlib.suppress(SlideError):
        slide = open_slide(str(tmp_path / "x.svs"), mpp_override=0.25)
        slide.read_tiles(level=0, xy=np.array([[0, 0]], np.int32), side_px=224, tile_px=224)
