"""Made-up H&E slides whose truth is known: for the demo, tests, benchmarks and notebooks.

Islands of tissue on glass: pink fibrous stroma, purple nuclei in crowds, round fat vacuoles, pen
strokes, and, where asked for, nests of large dark nuclei. Everything is laid out in microns, so one
seed gives the same slide at any mpp. The file is a pyramid of JPEG tiles in a TIFF, shaped like
Aperio's. It teaches nothing about disease.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, ImageDraw
from scipy import ndimage

Pixels = npt.NDArray[np.uint8]
Field = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Positions = npt.NDArray[np.floating[Any]]

TRUTH_UM = 8.0
"""Microns per pixel of the truth."""
TEXTURE_UM = 640.0
"""Side of the squares of texture that the tissue is papered with."""
TISSUE_SHARE = 0.42
"""Share of the slide that lies under tissue."""
GLASS = (243, 241, 244)
STROMA = (224, 160, 196)
CELLULAR = (198, 140, 190)
NUCLEUS = (92, 62, 132)
NEST = (150, 96, 168)
NEST_UM = 210.0
"""Radius of a nest: some nine tiles of 224 px at 0.5 microns per pixel lie in it or touch it."""
VACUOLE = (238, 232, 238)
PENS = ((38, 58, 170), (30, 120, 66), (28, 28, 30))
"""Blue, green and black."""
JPEG_QUALITY = 85
THUMBNAIL_PX = 512


@dataclass(frozen=True, kw_only=True)
class SyntheticTruth:
    """What was drawn."""

    tissue: Mask
    """bool [h, w]: tissue, fat vacuoles included, parts under pen marks left out."""
    pen: Mask
    """bool [h, w]: pen marks."""
    nests: Mask
    """bool [h, w]: nests of large dark nuclei, all of them in tissue."""
    downsample: float
    """Level-0 px per px of the masks."""
    mpp: float
    """Microns per pixel of level 0."""


@dataclass(frozen=True)
class _Scene:
    """Fields over the whole slide, at TRUTH_UM per px, and the textures papered over them."""

    island: Field
    """Above 0 is tissue."""
    crowd: Field
    """0 is stroma, 1 is full of cells."""
    pen: npt.NDArray[np.uint8]
    """0 is none, else 1 + index of PENS."""
    nest: Mask
    """Whether large dark nuclei lie there."""
    stroma: Pixels
    cellular: Pixels
    nested: Pixels
    um: float
    """Microns per level-0 px."""
    seed: int


def write_slide(
    path: str | Path,
    *,
    width_px: int,
    height_px: int,
    mpp: float = 0.5,
    seed: int = 0,
    levels: int = 3,
    downsample: int = 4,
    tile_px: int = 256,
    blank: bool = False,
    pen: bool = True,
    nests: int = 0,
    mpp_tag: bool = True,
    vendor: Literal["aperio", "generic"] = "aperio",
) -> SyntheticTruth:
    """Write a slide of `width_px` x `height_px` at `mpp` microns per pixel; return its truth.

    The same arguments write the same pixels. Each of `levels` is smaller by `downsample`. `blank`
    is glass alone; `pen` adds strokes in blue, green and black, `nests` so many discs of large dark
    nuclei; without `mpp_tag` the file does not say its microns per pixel. Memory is bounded by one
    row of tiles; lower levels wait on disk.
    """
    scene = _scene(width_px, height_px, mpp, seed, blank=blank, pen=pen and not blank, nests=nests)
    shapes = [(height_px, width_px)]
    for _ in range(levels - 1):
        height, width = shapes[-1]
        shapes.append((max(1, height // downsample), max(1, width // downsample)))
    options: dict[str, Any] = {
        "photometric": "rgb",
        "compression": "jpeg",
        "compressionargs": {"level": JPEG_QUALITY},
        "subsampling": (2, 2),
        "dtype": np.uint8,
        "metadata": None,
    }
    if mpp_tag and vendor == "generic":
        options |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    elif vendor == "generic":
        options |= {"resolution": (1, 1), "resolutionunit": "NONE"}
    with tempfile.TemporaryDirectory() as folder, tifffile.TiffWriter(path, bigtiff=True) as tiff:
        below = _on_disk(Path(folder) / "1", shapes[1]) if levels > 1 else None
        rows = _painted_rows(scene, width_px, height_px, tile_px)
        tiles = _tiles(_kept(rows, below, downsample), width_px, tile_px)
        about = _aperio_description(width_px, height_px, tile_px, mpp if mpp_tag else None)
        first: dict[str, Any] = {"description": about} if vendor == "aperio" else {}
        tile = (tile_px, tile_px)
        tiff.write(tiles, shape=(*shapes[0], 3), tile=tile, subfiletype=0, **first, **options)
        if vendor == "aperio" and below is not None:
            # Aperio's second directory is a thumbnail, in strips; readers count on it.
            tiff.write(_thumbnail(below), rowsperstrip=16, description=about, **options)
        for index in range(1, levels):
            assert below is not None
            above, shape = below, shapes[index]
            last = index + 1 == levels
            below = None if last else _on_disk(Path(folder) / str(index + 1), shapes[index + 1])
            rows = (above[top : top + tile_px] for top in range(0, shape[0], tile_px))
            tiles = _tiles(_kept(rows, below, downsample), shape[1], tile_px)
            lower: dict[str, Any] = {"description": about} if vendor == "aperio" else {}
            subfile = 0 if vendor == "aperio" else 1
            tiff.write(tiles, shape=(*shape, 3), tile=tile, subfiletype=subfile, **lower, **options)
    return SyntheticTruth(
        tissue=(scene.island > 0) & (scene.pen == 0),
        pen=scene.pen > 0,
        nests=scene.nest & (scene.pen == 0),
        downsample=TRUTH_UM / mpp,
        mpp=mpp,
    )


def _scene(
    width_px: int,
    height_px: int,
    mpp: float,
    seed: int,
    *,
    blank: bool,
    pen: bool,
    nests: int,
) -> _Scene:
    rng = np.random.default_rng(seed)
    shape = (max(2, round(height_px * mpp / TRUTH_UM)), max(2, round(width_px * mpp / TRUTH_UM)))
    island = _noise(rng, shape, 260 / TRUTH_UM) + 0.15 * _noise(rng, shape, 40 / TRUTH_UM)
    rim = np.minimum(*np.ogrid[: shape[0], : shape[1]])
    far = np.minimum(rim, np.minimum(*np.ogrid[shape[0] - 1 : -1 : -1, shape[1] - 1 : -1 : -1]))
    island = island - np.clip(1 - far / (120 / TRUTH_UM), 0, 1) * 3
    island = island - np.quantile(island, 1 - TISSUE_SHARE)
    island = np.full(shape, -1, np.float32) if blank else island.astype(np.float32)
    # Drawn apart, so that a slide is the same with and without them but for the nests themselves.
    apart = np.random.default_rng((seed, 1))
    return _Scene(
        island=island,
        crowd=np.clip(_noise(rng, shape, 120 / TRUTH_UM) * 1.2 + 0.4, 0, 1).astype(np.float32),
        pen=_pen_strokes(rng, shape) if pen else np.zeros(shape, np.uint8),
        nest=_nests(apart, island, nests),
        stroma=_texture(rng, mpp, STROMA, nuclei_per_mm2=900, vacuoles_per_mm2=45),
        cellular=_texture(rng, mpp, CELLULAR, nuclei_per_mm2=5200, vacuoles_per_mm2=0),
        nested=_texture(
            apart,
            mpp,
            NEST,
            nuclei_per_mm2=2600 if nests else 0,
            vacuoles_per_mm2=0,
            nucleus_um=(5.5, 9.0),
        ),
        um=mpp,
        seed=seed,
    )


def _noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> Field:
    """Smooth noise of unit variance."""
    field: Field = ndimage.gaussian_filter(
        rng.standard_normal(shape).astype(np.float32), sigma, mode="wrap"
    )
    return field / max(float(field.std()), 1e-6)


def _nests(rng: np.random.Generator, island: Field, count: int) -> Mask:
    """So many discs around places well inside the tissue, cut at its edge."""
    found = np.zeros(island.shape, bool)
    inside = np.argwhere(island > np.quantile(island, 0.8))
    rows, columns = np.ogrid[: island.shape[0], : island.shape[1]]
    for row, column in inside[rng.integers(0, len(inside), count)] if len(inside) else ():
        found |= np.hypot(rows - row, columns - column) < NEST_UM / TRUTH_UM
    mask: Mask = found & (island > 0)
    return mask


def _pen_strokes(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    height, width = shape
    picture = Image.new("L", (width, height))
    draw = ImageDraw.Draw(picture)
    for index in range(len(PENS)):
        along = np.linspace(0.1, 0.9, 9)
        start, bend = rng.uniform(0.1, 0.9), rng.uniform(-0.12, 0.12)
        across = np.clip(start + bend * np.sin(along * rng.uniform(4, 9)), 0.02, 0.98)
        along = along * rng.uniform(0.3, 0.5) + rng.uniform(0, 0.5)
        xy = (along, across) if index % 2 else (across, along)
        points = [(x * width, y * height) for x, y in zip(*xy, strict=True)]
        draw.line(points, fill=index + 1, width=max(2, round(140 / TRUTH_UM)), joint="curve")
    return np.asarray(picture)


def _texture(
    rng: np.random.Generator,
    mpp: float,
    colour: tuple[int, int, int],
    *,
    nuclei_per_mm2: int,
    vacuoles_per_mm2: int,
    nucleus_um: tuple[float, float] = (2.8, 4.6),
) -> Pixels:
    """A square of tissue whose edges match, so that it can be laid side by side."""
    side = max(16, round(TEXTURE_UM / mpp))
    fibres = ndimage.gaussian_filter(
        rng.standard_normal((side, side)).astype(np.float32), (1.5 / mpp, 9 / mpp), mode="wrap"
    )
    fibres *= 13 / max(float(fibres.std()), 1e-6)
    tint = np.array([0.6, 1.0, 0.7], np.float32)
    base = np.asarray(colour, np.float32) + fibres[..., None] * tint
    picture = Image.fromarray(np.clip(base, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    area_mm2 = (TEXTURE_UM / 1e3) ** 2
    for what, count, low_um, high_um in (
        (VACUOLE, vacuoles_per_mm2 * area_mm2, 12, 26),
        (NUCLEUS, nuclei_per_mm2 * area_mm2, *nucleus_um),
    ):
        for _ in range(round(count)):
            x, y = rng.uniform(0, side, 2)
            a, b = rng.uniform(low_um, high_um, 2) / mpp
            shade = tuple(int(c + rng.uniform(-14, 14)) for c in what)
            for dx in (-side, 0, side):
                for dy in (-side, 0, side):
                    box = (x + dx - a, y + dy - b, x + dx + a, y + dy + b)
                    draw.ellipse(box, fill=shade)
    return np.asarray(picture)


def _painted_rows(scene: _Scene, width: int, height: int, rows_px: int) -> Iterator[Pixels]:
    """The slide at level 0, `rows_px` rows at a time: uint8 [rows, width, 3]."""
    side = len(scene.stroma)
    columns = np.arange(width)
    across: Positions = (columns + 0.5) * scene.um / TRUTH_UM - 0.5
    for top in range(0, height, rows_px):
        rows = np.arange(top, min(top + rows_px, height))
        down: Positions = (rows + 0.5) * scene.um / TRUTH_UM - 0.5
        rng = np.random.default_rng((scene.seed, top))
        glass = rng.integers(-2, 3, (len(rows), width, 1), np.int16) + np.asarray(GLASS, np.int16)
        tissue = _stretched(scene.island, down, across) > 0
        if tissue.any():
            crowd = _stretched(scene.crowd, down, across)[..., None] > 0.5
            wrapped = np.ix_(rows % side, columns % side)
            paper = np.where(crowd, scene.cellular[wrapped], scene.stroma[wrapped])
            if scene.nest.any():
                nest = _stretched(scene.nest.astype(np.float32), down, across) > 0.5
                paper = np.where(nest[..., None], scene.nested[wrapped], paper)
            glass = np.where(tissue[..., None], paper, glass)
        for index, colour in enumerate(PENS):
            stroke = _stretched((scene.pen == index + 1).astype(np.float32), down, across) > 0.5
            if stroke.any():
                glass = np.where(stroke[..., None], np.asarray(colour, np.int16), glass)
        yield np.clip(glass, 0, 255).astype(np.uint8)


def _stretched(field: Field, down: Positions, across: Positions) -> Field:
    """`field` between its pixels, linearly: first along the few rows, then along the columns."""
    y = np.clip(down, 0, field.shape[0] - 1)
    x = np.clip(across, 0, field.shape[1] - 1)
    y0, x0 = y.astype(int), x.astype(int)
    y1, x1 = np.minimum(y0 + 1, field.shape[0] - 1), np.minimum(x0 + 1, field.shape[1] - 1)
    fy, fx = (y - y0).astype(np.float32)[:, None], (x - x0).astype(np.float32)
    lines = field[y0] * (1 - fy) + field[y1] * fy
    stretched: Field = lines[:, x0] * (1 - fx) + lines[:, x1] * fx
    return stretched


def _kept(
    rows: Iterator[Pixels], below: npt.NDArray[np.uint8] | None, downsample: int
) -> Iterator[Pixels]:
    """Pass rows on, box-averaging them into the level below on their way."""
    filled, waiting = 0, np.empty((0, 0, 3), np.uint8)
    for row in rows:
        if below is not None:
            waiting = np.concatenate([waiting, row]) if waiting.size else row
            count = min(len(waiting) // downsample, len(below) - filled)
            width = below.shape[1]
            taken = waiting[: count * downsample, : width * downsample]
            cells = taken.reshape(count, downsample, width, downsample, 3)
            below[filled : filled + count] = np.rint(cells.mean(axis=(1, 3), dtype=np.float32))
            filled, waiting = filled + count, waiting[count * downsample :]
        yield row  # last: whoever writes the tiles stops asking after the last of them


def _tiles(rows: Iterator[Pixels], width: int, tile_px: int) -> Iterator[Pixels]:
    """Whole tiles from rows of tiles; those at the edges are filled up with glass."""
    for row in rows:
        for left in range(0, width, tile_px):
            part = row[:, left : left + tile_px]
            tile = np.empty((tile_px, tile_px, 3), np.uint8)
            tile[:] = GLASS
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile


def _on_disk(path: Path, shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    return np.memmap(path, np.uint8, "w+", shape=(*shape, 3))


def _thumbnail(level: npt.NDArray[np.uint8]) -> Pixels:
    step = max(1, max(level.shape[:2]) // THUMBNAIL_PX)
    return np.ascontiguousarray(level[::step, ::step])


def _aperio_description(width: int, height: int, tile_px: int, mpp: float | None) -> str:
    """What Aperio's software writes, as far as readers look at it."""
    text = (
        f"Aperio Image Library, made up by historay\r\n{width}x{height} [0,0 {width}x{height}] "
        f"({tile_px}x{tile_px}) JPEG/RGB Q={JPEG_QUALITY}"
    )
    return text if mpp is None else f"{text}|AppMag = {round(10 / mpp)}|MPP = {mpp:.4f}"
