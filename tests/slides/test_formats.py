"""Every layout on the fast path reads as OpenSlide reads it, and any other is refused by name."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openslide
import pytest
import tifffile
from PIL import Image

from ray_pipeline.errors import DamagedSlideError, NotASlideError
from ray_pipeline.slides.levels import Level
from ray_pipeline.slides.slide import Slide, open_slide
from tests.slides import slide_files as files
from tests.slides.slide_files import SIZES, TILE, Pixels, Size

NDPI = "test3-DAPI-2-387.ndpi"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A layout, how it is written, and what is told of it."""

    name: str
    write: Callable[[Path], None]
    suffix: str = ".tif"
    vendor: str = "generic-tiff"
    mpp: float = 0.25
    sizes: tuple[Size, ...] = SIZES
    theirs: int = len(SIZES)
    """How many of the levels OpenSlide gives; tifffile's decode stands for the others."""
    reader: str = "direct"
    like: bool = True
    """The finest level looks like `picture`: it was not read as other colours than it has."""


def _aperio(name: str, write: Callable[[Path], None], **told: Any) -> Layout:
    return Layout(
        name=f"aperio {name}", write=write, suffix=".svs", vendor="aperio", mpp=0.2528, **told
    )


def _generic(name: str, *, theirs: int = len(SIZES), **options: Any) -> Layout:
    return Layout(name=name, write=partial(files.write_pyramid, **options), theirs=theirs)


def _ome(name: str, *, theirs: int = len(SIZES), size: float = 0.25, **options: Any) -> Layout:
    unit = {"PhysicalSizeXUnit": options.pop("unit"), "PhysicalSizeYUnit": "nm"}
    write = partial(
        files.write_pyramid,
        ome=True,
        compression="deflate",
        # What the tags say is not what the XML says.
        resolution=(1e4, 1e4),
        metadata={"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeY": 250.0, **unit},
        **options,
    )
    return Layout(
        name=f"ome {name}", write=write, suffix=".ome.tif", vendor="ome-tiff", theirs=theirs
    )


def _philips(name: str, sizes: tuple[Size, ...], clipped: tuple[Size, ...], **more: Any) -> Layout:
    return Layout(
        name=f"philips {name}",
        write=partial(files.write_philips, sizes=sizes, **more),
        suffix=".tiff",
        vendor="philips",
        mpp=0.226899,
        sizes=clipped,
        theirs=len(clipped),
        like="sparse" not in more,
    )


def _adobe_that_lies(whole: bytes) -> bytes:
    says_rgb = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
    return b"\xff\xd8" + says_rgb + files.without_markers(whole)[2:]


def _late(whole: bytes) -> bytes:
    return files.with_jfif(whole, after=b"\xff\xfe\x00\x06note")


def _tiles(encode: Callable[[Pixels], bytes], pixels: Pixels) -> list[bytes]:
    return [encode(tile) for tile in files.tiles_of(pixels)]


def _in_components(pixels: Pixels) -> bytes:
    return files.jpeg2000(files.ycbcr_of_rgb(pixels))


CODECS = (None, "jpeg", "lzw", "deflate", "zstd")
UNKNOWN_TO_OPENSLIDE = ("webp", "jpeg2000")
FOUR = (*SIZES[:2], (37, 25), (5, 3))
"""Levels whose factors differ, some past what tifffile looks for."""
PADDED = ((320, 256), (192, 128), (128, 64))
CLIPPED = ((320, 256), (160, 128), (80, 64))

LAYOUTS = [
    *(
        _aperio(
            f"jpeg {colours} {tables} tables",
            partial(
                files.write_svs_jpeg,
                ycbcr=colours != "rgb",
                subsampling=colours if colours != "rgb" else "444",
                shared_tables=tables == "shared",
            ),
        )
        for colours in ("rgb", "444", "422", "420")
        for tables in ("shared", "own")
    ),
    *(
        _aperio(f"jpeg {name}", partial(files.write_svs_jpeg, ycbcr=ycbcr, dress=dress))
        for name, ycbcr, dress in (
            ("rgb that JFIF says is ycbcr", False, files.with_jfif),
            ("rgb that a late JFIF says is ycbcr", False, _late),
            ("rgb with Adobe's marker", False, bytes),
            ("ycbcr with JFIF", True, files.with_jfif),
            ("ycbcr that Adobe's marker says is rgb", True, _adobe_that_lies),
        )
    ),
    _aperio(
        "jpeg with restart intervals",
        partial(
            files.write_svs,
            photometric="ycbcr",
            subsampling=(2, 2),
            compression=7,
            tiles=partial(_tiles, files.jpeg_with_restarts),
        ),
    ),
    _aperio(
        "33005",
        partial(
            files.write_svs,
            photometric="rgb",
            compression=33005,
            tiles=partial(_tiles, files.jpeg2000),
        ),
    ),
    _aperio(
        "without a thumbnail",
        partial(
            files.write_svs,
            photometric="rgb",
            compression=33005,
            tiles=partial(_tiles, files.jpeg2000),
            thumbnail=False,
        ),
    ),
    _aperio(
        "33003",
        partial(
            files.write_svs,
            photometric="ycbcr",
            compression=33003,
            tiles=partial(_tiles, _in_components),
        ),
    ),
    *(
        _aperio(
            f"{compression} subsampled {chroma}",
            partial(files.write_svs_subsampled, chroma=chroma, compression=compression),
            sizes=((75, 51), (37, 25)),
            theirs=2,
            like=False,
        )
        for chroma in files.SUBSAMPLED
        for compression in (33003, 33005)
    ),
    *(_generic(f"pages {codec}", compression=codec) for codec in CODECS),
    *(_generic(f"pages {codec}", compression=codec, theirs=0) for codec in UNKNOWN_TO_OPENSLIDE),
    *(_generic(f"SubIFDs {codec}", subifds=True, compression=codec, theirs=1) for codec in CODECS),
    *(
        _generic(f"SubIFDs {codec}", subifds=True, compression=codec, theirs=0)
        for codec in UNKNOWN_TO_OPENSLIDE
    ),
    *(
        _generic(f"strips {codec}", strips=True, compression=codec, theirs=0)
        for codec in (*CODECS, "webp")
    ),
    *(
        _generic(f"predictor {codec}", compression=codec, predictor=2)
        for codec in ("lzw", "deflate", "zstd")
    ),
    *(
        _generic(f"predictor strips {codec}", compression=codec, predictor=2, strips=True, theirs=0)
        for codec in ("lzw", "deflate", "zstd")
    ),
    *(
        _generic(
            f"ycbcr {across}x{down}",
            compression="jpeg",
            subsampling=(across, down),
        )
        for across, down in ((1, 1), (2, 1), (2, 2))
    ),
    _generic("inches", resolution=(101_600, 101_600), resolutionunit="INCH"),
    _generic("rgb in jpeg", compression="jpeg", compressionargs={"outcolorspace": "rgb"}),
    *(_generic(f"bigtiff {codec}", bigtiff=True, compression=codec) for codec in (None, "jpeg")),
    # OpenSlide reads no classic TIFF of that byte order as tifffile writes it.
    *(
        _generic(f"big endian {codec}", byteorder=">", compression=codec, theirs=0)
        for codec in (None, "jpeg", "lzw")
    ),
    *(
        _generic(f"big endian bigtiff {codec}", byteorder=">", bigtiff=True, compression=codec)
        for codec in (None, "jpeg", "lzw")
    ),
    *(
        Layout(
            name=f"factors of 2, 4 and 8 in {'SubIFDs' if subifds else 'pages'}",
            write=partial(files.write_pyramid, sizes=FOUR, subifds=subifds, compression="lzw"),
            sizes=FOUR,
            theirs=1 if subifds else len(FOUR),
        )
        for subifds in (True, False)
    ),
    *(
        _ome(f"{unit} in {where}", unit=unit, size=size, subifds=subifds, theirs=theirs)
        for unit, size in (("µm", 0.25), ("nm", 250.0), ("mm", 0.00025))
        for where, subifds, theirs in (("SubIFDs", True, 1), ("pages", False, 3))
    ),
    Layout(
        name="ome that leaves the size to the tags",
        write=partial(files.write_pyramid, ome=True, subifds=True, metadata={"axes": "YXS"}),
        suffix=".ome.tif",
        vendor="ome-tiff",
        theirs=1,
    ),
    Layout(
        name="ome of several images",
        write=partial(
            files.write_ome_images,
            sizes=((96, 64), SIZES[0], (75, 40)),
            PhysicalSizeX=0.25,
            PhysicalSizeY=0.25,
        ),
        suffix=".ome.tif",
        vendor="ome-tiff",
        sizes=SIZES[:1],
        theirs=0,
    ),
    *(
        Layout(
            name=f"sparse {codec}",
            write=partial(files.write_sparse, compression=codec),
            sizes=SIZES[:1],
            theirs=1,
            like=False,
        )
        for codec in (None, "jpeg", "lzw")
    ),
    *(_philips(chroma, PADDED, CLIPPED, subsampling=chroma) for chroma in ("444", "422", "420")),
    _philips("odd", (SIZES[0], *PADDED[1:]), SIZES),
    _philips("padded by more than a tile", ((320, 256), (256, 192), (192, 192)), CLIPPED),
    _philips("sparse", PADDED, CLIPPED, sparse=True),
    _philips("of one level", PADDED[:1], CLIPPED[:1]),
    *(
        Layout(
            name=f"hamamatsu in {'stripes' if restarts else 'one piece'}",
            write=partial(files.write_ndpi, restarts=restarts),
            suffix=".ndpi",
            vendor="hamamatsu",
            sizes=((384, 208), (192, 104)),
            theirs=2,
        )
        for restarts in (True, False)
    ),
    Layout(
        name="leica",
        write=files.write_scn,
        suffix=".scn",
        vendor="leica",
        mpp=0.5,
        sizes=((512, 384), (256, 192)),
        theirs=2,
        reader="tiffslide",
        like=False,
    ),
    Layout(
        name="ventana",
        write=files.write_bif,
        suffix=".bif",
        vendor="ventana",
        sizes=((320, 256), (160, 128)),
        theirs=2,
        reader="tiffslide",
    ),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_every_pixel_of_every_level_is_openslides(tmp_path: Path, layout: Layout) -> None:
    path = tmp_path / f"a{layout.suffix}"
    layout.write(path)
    slide = open_slide(str(path))
    assert (slide.reader, slide.vendor) == (layout.reader, layout.vendor)
    assert [(level.width_px, level.height_px) for level in slide.levels] == [*layout.sizes]
    assert slide.mpp.found == pytest.approx(layout.mpp, abs=1e-6)
    theirs = openslide_levels(path)
    assert len([size for size in layout.sizes if size in theirs]) == layout.theirs
    for level in slide.levels:
        size = (level.width_px, level.height_px)
        expected = theirs[size] if size in theirs else tifffile_level(path, level.index)
        assert np.array_equal(whole(slide, level), expected)
    if layout.like:
        finest = slide.levels[0]
        drawn = files.picture(finest.width_px, finest.height_px)
        assert np.abs(whole(slide, finest).astype(int) - drawn).mean() < 8


def whole(slide: Slide, level: Level) -> Pixels:
    """A level read in tiles; those at the right and bottom edges end there."""
    side = min(TILE, level.width_px, level.height_px)
    lefts, tops = (
        [*range(0, length - side, side), length - side]
        for length in (level.width_px, level.height_px)
    )
    spots = np.array([[x, y] for y in tops for x in lefts])
    xy = np.ceil(spots * level.downsample).astype(np.int32)
    pixels = np.zeros((level.height_px, level.width_px, 3), np.uint8)
    tiles = slide.read_tiles(level=level.index, xy=xy, side_px=side, tile_px=side)
    for tile, (x, y) in zip(tiles, spots, strict=True):
        pixels[y : y + side, x : x + side] = tile
    return pixels


def openslide_levels(path: Path) -> Mapping[Size, Pixels]:
    """OpenSlide's levels by their sizes, white where it has none; empty if it can't read them."""
    try:
        with openslide.OpenSlide(path) as slide:
            regions = [
                np.array(slide.read_region((0, 0), level, size))
                for level, size in enumerate(slide.level_dimensions)
            ]
    except openslide.OpenSlideError:
        return {}
    for region in regions:
        region[region[..., 3] == 0] = 255
    return {(region.shape[1], region.shape[0]): region[..., :3] for region in regions}


def tifffile_level(path: Path, index: int) -> npt.NDArray[Any]:
    """What tifffile decodes of the largest picture's levels, in order of size."""
    with tifffile.TiffFile(path) as file:
        top: Any = max(file.pages, key=lambda page: page.imagewidth * page.imagelength)  # type: ignore[union-attr]
        pages = [top, *(top.pages or ()), *(page for page in file.pages if page.is_reduced)]  # type: ignore[union-attr]
        return np.asarray(pages[index].asarray())


@pytest.mark.parametrize("level", range(4))
def test_the_real_ndpi_is_openslides_at_every_level(real_slides: Path, level: int) -> None:
    slide = open_slide(str(real_slides / NDPI))
    assert (slide.reader, slide.vendor) == ("direct", "hamamatsu")
    assert len(slide.levels) == 4
    chosen = slide.levels[level]
    size = np.array([chosen.width_px, chosen.height_px])
    corners = size - 224
    rng = np.random.default_rng(level)
    spots = np.concatenate(
        [
            rng.integers(0, corners + 1, (60, 2)),
            # All four edges, and the corners.
            np.stack((rng.integers(0, corners[0], 8), np.repeat((0, corners[1]), 4)), axis=-1),
            np.stack((np.repeat((0, corners[0]), 4), rng.integers(0, corners[1], 8)), axis=-1),
            [[0, 0], [corners[0], 0], [0, corners[1]], corners],
        ]
    )
    xy = np.ceil(spots * chosen.downsample).astype(np.int32)
    tiles = slide.read_tiles(level=level, xy=xy, side_px=224, tile_px=224)
    with openslide.OpenSlide(real_slides / NDPI) as oracle:
        assert slide.mpp.found == pytest.approx(float(oracle.properties["openslide.mpp-x"]))
        assert tuple(size) == oracle.level_dimensions[level]
        pixels = np.asarray(oracle.read_region((0, 0), level, tuple(size.tolist())).convert("RGB"))
    for tile, (x, y) in zip(tiles, spots, strict=True):
        assert np.array_equal(tile, pixels[y : y + 224, x : x + 224])


def test_a_philips_slide_whose_levels_can_not_be_told_apart_is_refused(tmp_path: Path) -> None:
    files.write_philips(tmp_path / "a.tiff", sizes=PADDED)
    data = (tmp_path / "a.tiff").read_bytes()
    (tmp_path / "a.tiff").write_bytes(data.replace(b"0.001000", b"nothing!"))
    with pytest.raises(DamagedSlideError, match=r"^a: .*can't be read .*upload it again"):
        open_slide(str(tmp_path / "a.tiff"))


# ---------------------------------------------------------------- refusals


def _tiff(path: Path, shape: tuple[int, ...], dtype: str = "u1", **options: Any) -> None:
    pixels = np.zeros(shape, dtype)
    tifffile.imwrite(path, pixels, **{"tile": (TILE, TILE), "photometric": "rgb"} | options)


def _grey(path: Path, **options: Any) -> None:
    _tiff(path, (128, 128), photometric="minisblack", **options)


def _palette(path: Path) -> None:
    colours = np.zeros((3, 256), np.uint16)
    _tiff(path, (128, 128), photometric="palette", colormap=colours)


def _compressed(path: Path, compression: int) -> None:
    """The directory alone says enough: no tile is read."""
    _tiff(path, (128, 128, 3))
    files.patch_tag(path, "Compression", compression)


def _ycbcr(path: Path, compression: str | None) -> None:
    _tiff(path, (128, 128, 3), photometric="ycbcr", compression=compression)


def _ome_planes(path: Path, shape: tuple[int, ...], axes: str, photometric: str) -> None:
    _tiff(path, shape, ome=True, photometric=photometric, metadata={"axes": axes})


REFUSED: list[tuple[Callable[[Path], None], str, str]] = [
    (_grey, ".tif", "1 channels of uint8"),
    (partial(_grey, description="Aperio Image|MPP = 0.25", metadata=None), ".svs", "1 channel"),
    (partial(_tiff, shape=(128, 128, 3), dtype="u2"), ".tif", "3 channels of uint16"),
    (partial(_tiff, shape=(128, 128, 3), dtype="f4"), ".tif", "3 channels of float32"),
    (partial(_tiff, shape=(128, 128, 4), extrasamples=["unassalpha"]), ".tif", "4 channels"),
    (partial(_tiff, shape=(128, 128, 3), photometric="cielab"), ".tif", "CIELAB"),
    (_palette, ".tif", "PALETTE"),
    (
        partial(_tiff, shape=(3, 128, 128), planarconfig="separate"),
        ".tif",
        "each colour in a plane of its own",
    ),
    (partial(_tiff, shape=(3, 128, 128, 3)), ".tif", "3 planes"),
    (
        partial(_ome_planes, shape=(4, 128, 128, 3), axes="ZYXS", photometric="rgb"),
        ".ome.tif",
        "4 planes",
    ),
    (
        partial(_ome_planes, shape=(3, 128, 128), axes="CYX", photometric="minisblack"),
        ".ome.tif",
        "3 planes",
    ),
    (partial(_ycbcr, compression="lzw"), ".tif", "YCbCr in LZW compression"),
    (partial(_ycbcr, compression=None), ".tif", "YCbCr in NONE compression"),
    (partial(_compressed, compression=32773), ".tif", "PACKBITS compression"),
    (partial(_compressed, compression=34892), ".tif", "JPEG_LOSSY compression"),
    (partial(_compressed, compression=34715), ".tif", "JBIG2 compression"),
    (partial(_compressed, compression=60123), ".tif", "60123 compression"),
    (partial(_compressed, compression=34925), ".tif", "LZMA compression"),
    (partial(_compressed, compression=50002), ".tif", "JPEGXL compression"),
]


@pytest.mark.parametrize(
    ("write", "suffix", "words"), REFUSED, ids=[words for _, _, words in REFUSED]
)
def test_other_pixels_are_refused_by_name(
    tmp_path: Path, write: Callable[[Path], None], suffix: str, words: str
) -> None:
    path = tmp_path / f"a{suffix}"
    write(path)
    with pytest.raises(NotASlideError, match=words) as caught:
        open_slide(str(path), mpp_override=0.25)
    assert_one_sentence(caught.value)
    assert "RGB" in str(caught.value)


def _png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG")
    return out.getvalue()


def _zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("slide.svs", b"II*\0")
    return out.getvalue()


OTHERS = [
    (_png(), "a.png", "it is a PNG picture"),
    (_zip(), "a.zip", "it is a ZIP archive"),
    (b"\r\n<!DOCTYPE HTML><html></html>", "a.svs", "it is an HTML page"),
    (b"<html><body>Sign in</body></html>", "a.tif", "it is an HTML page"),
    (b"\xef\xbb\xbf[GENERAL]\r\nSLIDE_VERSION = 01.02\r\n", "a.ini", "of a MIRAX slide"),
    (files.jpeg(files.picture(16, 16), ycbcr=True), "a.mrxs", "of a MIRAX slide"),
    (files.czi(), "a.czi", "it is a Zeiss CZI slide"),
    (b"SIS\0" + struct.pack("<II", 64, 3) + bytes(60), "frame_t.ets", "an Olympus VSI slide"),
    (b'<DataObject ObjectType="DPUfsImport">', "a.isyntax", "a Philips iSyntax slide"),
    (b"notes of the pathologist", "a.txt", "its first bytes are not those of"),
    (b"I", "a.svs", "its first bytes are not those of"),
]


@pytest.mark.parametrize(
    ("data", "name", "words"), OTHERS, ids=[f"{name}: {words}" for _, name, words in OTHERS]
)
def test_other_formats_are_refused_by_name(
    tmp_path: Path, data: bytes, name: str, words: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(NotASlideError, match=f"is no slide: .*{words}") as caught:
        open_slide(str(tmp_path / name))
    assert_one_sentence(caught.value)
    assert "SVS, NDPI, Philips TIFF, OME-TIFF" in str(caught.value)


def test_the_vsi_beside_its_ets_is_no_slide(tmp_path: Path) -> None:
    files.write_pyramid(tmp_path / "a.vsi")
    with pytest.raises(NotASlideError, match=r"^a\.vsi: .*Olympus VSI") as caught:
        open_slide(str(tmp_path / "a.vsi"))
    assert_one_sentence(caught.value)


def assert_one_sentence(error: NotASlideError) -> None:
    text = str(error)
    assert "\n" not in text
    assert text.endswith(".")
    assert ". " not in text
