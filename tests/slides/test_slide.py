"""Reading slides: the pixels are OpenSlide's, and what is wrong with a file is one sentence."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from copy import copy
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
    UnreachableError,
)
from ray_pipeline.slides.grid import TilingRule, choose_geometry, grid_origins
from ray_pipeline.slides.slide import open_slide
from ray_pipeline.store import Store
from ray_pipeline.synthetic import write_slide
from tests.slides.oracles import cubic_resampled

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
    assert slide.reader == "direct"
    assert slide.counts.bytes_fetched <= 1.25 * (real_slides / CMU).stat().st_size


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


@pytest.mark.parametrize("size", [(2100, 1501), (1501, 2100), (2000, 3001)])
def test_levels_of_odd_slides_are_read_where_they_are_asked_for(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    rng = np.random.default_rng(1)
    finest, lower = (
        rng.integers(0, 256, (size[1] // d, size[0] // d, 3), np.uint8) for d in (1, 4)
    )
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        options: dict[str, Any] = {"tile": (64, 64), "resolutionunit": "CENTIMETER"}
        file.write(finest, subifds=1, resolution=(4e4, 4e4), **options)
        file.write(lower, subfiletype=1, **options)
    slide = open_slide(str(tmp_path / "a.tif"))
    scale = slide.levels[1].downsample
    assert scale != 4.0
    spots = np.array([[x, y] for y in (0, 61, 250) for x in (0, 1, 61, 62, 63, 250)])
    xy = np.ceil(spots * scale).astype(np.int32)
    tiles = slide.read_tiles(level=1, xy=xy, side_px=100, tile_px=100)
    for tile, (x, y) in zip(tiles, spots, strict=True):
        assert np.array_equal(tile, lower[y : y + 100, x : x + 100])


@pytest.mark.parametrize("compression", [None, "jpeg", "deflate"])
def test_tiles_the_file_leaves_out_are_glass(tmp_path: Path, compression: str | None) -> None:
    def tiles() -> Iterator[npt.NDArray[np.uint8] | None]:
        for index in range(16):
            yield None if index % 2 else np.full((64, 64, 3), 120, np.uint8)

    tifffile.imwrite(
        tmp_path / "a.tif",
        tiles(),
        shape=(256, 256, 3),
        dtype=np.uint8,
        tile=(64, 64),
        photometric="rgb",
        compression=compression,
        resolution=(2e4, 2e4),
        resolutionunit="CENTIMETER",
    )
    slide = open_slide(str(tmp_path / "a.tif"))
    xy = np.array([[0, 0], [64, 0]], np.int32)
    held, left_out = slide.read_tiles(level=0, xy=xy, side_px=64, tile_px=64)
    assert np.abs(held.astype(int) - 120).max() <= 2
    assert (left_out == 255).all()


def test_resampling_is_the_stated_filter_to_within_one_grey_level(
    tmp_path: Path, pyramid: Path
) -> None:
    with openslide.OpenSlide(pyramid) as oracle:
        pixels = np.asarray(oracle.read_region((700, 400), 0, (600, 600)).convert("RGB"))
    assert pixels.std() > 10
    slide = open_slide(str(tiff(tmp_path / "a.tif", pixels, resolution=(4e4, 4e4))))
    scale = 0.5 / 0.2528
    origins = np.array([[0, 0], [37, 101]], np.int32)
    tiles = slide.read_tiles(level=0, xy=origins, side_px=224 * scale, tile_px=224)
    for tile, (left, top) in zip(tiles, origins, strict=True):
        # Pillow rounds to whole grey levels between its two passes.
        error = tile - cubic_resampled(pixels, left, top, 224 * scale, 224)
        assert np.abs(error).max() <= 1.5
        assert np.sqrt(np.mean(error**2)) <= 0.45


@pytest.mark.parametrize("scale", [0.5 / 0.2528, 1.1, 3.7])
def test_a_resampled_tile_is_the_same_in_any_company(tmp_path: Path, scale: float) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (700, 900, 3), np.uint8)
    slide = open_slide(str(tiff(tmp_path / "a.tif", pixels, resolution=(4e4, 4e4))))
    step = int(64 * scale)
    places = [(x * step, y * step) for y in range(2) for x in range(3)]
    xy = np.array([*places, (17, 5), (60, 5)], np.int32)

    def read(chosen: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
        return slide.read_tiles(level=0, xy=chosen, side_px=64 * scale, tile_px=64)

    alone = np.concatenate([read(one[None]) for one in xy])
    assert np.array_equal(read(xy), alone)
    assert np.array_equal(read(xy[::-1])[::-1], alone)


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


def test_an_overview_is_the_mean_over_boxes(pyramid: Path) -> None:
    slide = open_slide(str(pyramid))
    overview = slide.overview(3.0)
    assert overview.rgb.shape == (125, 175, 3)
    assert overview.downsample_x == overview.downsample_y == 12.0
    with openslide.OpenSlide(pyramid) as oracle:
        level = oracle.read_region((0, 0), 2, oracle.level_dimensions[2]).convert("RGB")
    boxes = np.asarray(level, np.float64)[:375, :525].reshape(125, 3, 175, 3, 3)
    assert np.abs(overview.rgb - boxes.mean(axis=(1, 3))).max() <= 0.5 + 1e-9


def test_an_overview_costs_one_or_two_requests_and_no_finer_level(pyramid: Path) -> None:
    slide = open_slide(str(pyramid))
    before = copy(slide.counts)
    slide.overview(1.0)
    with tifffile.TiffFile(pyramid) as file:
        level: Any = file.series[0].levels[2].pages[0]
    cost = slide.counts.since(before)
    assert cost.gets <= 2
    assert cost.bytes_needed == sum(level.databytecounts)


def test_a_slide_of_one_level_has_an_overview(tmp_path: Path) -> None:
    pixels = np.zeros((330, 200, 3), np.uint8)
    pixels[:160] = 200
    slide = open_slide(str(tiff(tmp_path / "a.tif", pixels, resolution=(2e4, 2e4))))
    overview = slide.overview(8.0)
    assert overview.downsample_x == overview.downsample_y == 16.0
    assert overview.rgb.shape == (21, 13, 3)
    assert (overview.rgb[:10] == 200).all()
    assert (overview.rgb[10:] == 0).all()


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


def test_what_is_no_slide_is_said(tmp_path: Path) -> None:
    (tmp_path / "text.svs").write_text("notes of the pathologist")
    with pytest.raises(NotASlideError, match=r"^text: .*is no slide"):
        open_slide(str(tmp_path / "text.svs"))
    (tmp_path / "empty.svs").write_bytes(b"")
    with pytest.raises(EmptySlideError, match=r"^empty: .*is empty"):
        open_slide(str(tmp_path / "empty.svs"))


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


def test_layouts_that_can_not_be_read_are_not_called_damage(tmp_path: Path) -> None:
    planes = np.zeros((3, 128, 128), np.uint8)
    path = tiff(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate")
    with pytest.raises(NotASlideError, match=r"^a: .*has a layout that can't be read .*: convert"):
        open_slide(str(path))
    path = tiff(tmp_path / "lab.tif", np.zeros((128, 128, 3), np.uint8), photometric="cielab")
    with pytest.raises(NotASlideError, match=r"CIELAB"):
        open_slide(str(path))


@pytest.mark.parametrize("words", ["unknown", "0,2528", ""])
def test_an_mpp_that_is_no_number_is_none(tmp_path: Path, words: str) -> None:
    about = f"Aperio Image Library\r\n128x128 (64x64) JPEG/RGB Q=30|AppMag = 20|MPP = {words}"
    pixels = np.zeros((128, 128, 3), np.uint8)
    path = tiff(tmp_path / "a.svs", pixels, description=about, metadata=None, compression="jpeg")
    with pytest.raises(NoMppError, match=r"^a: the file states no microns per pixel"):
        open_slide(str(path))
    assert open_slide(str(path), mpp_override=0.25).mpp.found is None


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
    with pytest.raises(TooLargeError, match=r"^bomb: .* claims 2000000 x 2000000 px at level 0"):
        open_slide(str(tmp_path / "bomb.tif"), mpp_override=0.5)


def test_a_picture_in_one_enormous_piece_is_refused_unread(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", np.zeros((64, 64, 3), np.uint8), resolution=(2e4, 2e4))
    with tifffile.TiffFile(path, mode="r+") as file:
        tags: Any = file.pages[0].tags  # type: ignore[union-attr]
        for name in ("ImageWidth", "ImageLength", "TileWidth", "TileLength"):
            tags[name].overwrite(1 << 15, dtype=tags[name].dtype)
    with pytest.raises(TooLargeError, match=r"^a: .* in pieces of 32768 x 32768 px at level 0"):
        open_slide(str(path))


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
    with pytest.raises(
        DamagedSlideError, match=r"^bad: .*level 0: the compressed tile 0 at x 0, y 0"
    ):
        slide.read_tiles(level=0, xy=np.array([[0, 0]], np.int32), side_px=224, tile_px=224)
    far = np.array([[1024, 1024]], np.int32)
    assert slide.read_tiles(level=0, xy=far, side_px=224, tile_px=224).any()


@pytest.mark.parametrize("what", ["end", "frame"])
@pytest.mark.parametrize("base", ["synthetic", "real"])
def test_tiles_that_decoders_would_fill_up_or_make_room_for_are_errors(
    request: pytest.FixtureRequest, tmp_path: Path, base: str, what: str
) -> None:
    whole: Path = request.getfixturevalue("pyramid")
    if base == "real":
        whole = request.getfixturevalue("real_slides") / CMU
    data = bytearray(whole.read_bytes())
    with tifffile.TiffFile(whole) as file:
        page: Any = file.pages[0]
    start, stop = page.dataoffsets[0], page.dataoffsets[0] + page.databytecounts[0]
    if what == "end":
        data[stop - 1000 : stop] = bytes(1000)
    else:
        frame = data.index(b"\xff\xc0", start, stop)
        data[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    (tmp_path / "bad.svs").write_bytes(data)
    slide = open_slide(str(tmp_path / "bad.svs"))
    words = {"end": "a JPEG without an end", "frame": "a JPEG of 65000 x 65000 px in a tile of"}
    with pytest.raises(DamagedSlideError, match=f"^bad: .*compressed tile 0 .*{words[what]}"):
        slide.read_tiles(level=0, xy=np.array([[0, 0]], np.int32), side_px=224, tile_px=224)


def test_a_slide_replaced_while_it_is_read_is_an_error(tmp_path: Path, pyramid: Path) -> None:
    path = tmp_path / "a.svs"
    path.write_bytes(pyramid.read_bytes())
    slide = open_slide(str(path))
    path.write_bytes(pyramid.read_bytes() + b"more")
    now = Store.open(str(tmp_path)).head("a.svs").etag
    assert now != slide.etag
    with pytest.raises(ObjectReplacedError, match=f"was {slide.etag}, is {now}"):
        slide.read_tiles(level=0, xy=np.array([[512, 512]], np.int32), side_px=224, tile_px=224)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.1, 0.3, 0.6, 0.9])
def test_what_the_store_says_is_never_taken_for_damage(
    pyramid: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    read = Store.get_range
    gets = 0

    def whole() -> int:
        nonlocal gets
        gets = 0
        slide = open_slide(str(pyramid))
        slide.overview(8.0)
        xy = np.array([[x, y] for y in (0, 512, 1200) for x in (0, 1200)], np.int32)
        slide.read_tiles(level=0, xy=xy, side_px=224, tile_px=224)
        return gets

    def failing(self: Store, *args: Any, **options: Any) -> memoryview:
        nonlocal gets
        gets += 1
        if gets > fatal:
            raise UnreachableError("a: no answer.")
        return read(self, *args, **options)

    monkeypatch.setattr(Store, "get_range", failing)
    fatal = 1 << 30
    fatal = int(whole() * share)
    with pytest.raises(UnreachableError):
        whole()


def test_a_slide_replaced_after_listing_is_an_error(tmp_path: Path, pyramid: Path) -> None:
    path = tmp_path / "a.svs"
    path.write_bytes(pyramid.read_bytes())
    etag = open_slide(str(path)).etag
    write_slide(path, width_px=600, height_px=600, seed=1)
    with pytest.raises(ObjectReplacedError, match="was replaced after it was listed"):
        open_slide(str(path), etag=etag)


def test_label_and_macro_are_never_read(real_slides: Path, tmp_path: Path) -> None:
    data = bytearray((real_slides / CMU).read_bytes())
    with tifffile.TiffFile(real_slides / CMU) as file:
        others: list[Any] = list(file.pages)[1:]
    assert len(others) == 3
    for page in others:
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            data[offset : offset + count] = bytes(count)
    (tmp_path / CMU).write_bytes(data)
    xy = np.array([[0, 0], [1000, 1000]], np.int32)
    spared, whole = open_slide(str(tmp_path / CMU)), open_slide(str(real_slides / CMU))
    assert np.array_equal(spared.overview(8.0).rgb, whole.overview(8.0).rgb)
    one, other = (s.read_tiles(level=0, xy=xy, side_px=224, tile_px=224) for s in (spared, whole))
    assert np.array_equal(one, other)


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
