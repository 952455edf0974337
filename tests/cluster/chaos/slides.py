"""Small slides that all differ, and the truth about them: their tiles and vectors without Ray."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile

from ray_pipeline.encoders.encoder import Encoder
from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.encoders.weights import resolve_weights
from ray_pipeline.plan import plan_slide
from ray_pipeline.recipe import tiling_of, tissue_rule_of
from ray_pipeline.settings import JobSettings
from ray_pipeline.slides.slide import open_slide
from ray_pipeline.synthetic import write_slide

MODEL, MPP, JPEG_QUALITY = "toy", 0.5, 80
FIELD_PX, SMALL_PX, LARGE_PX = 4096, 896, 6400
"""Sides of the field that slides are cut from, of a slide of one shard, and of one of several."""
LARGE_EVERY = 60
"""One slide among so many is large."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What the file of a slide has to hold."""

    xy: npt.NDArray[np.int32]
    """Left top corners of its tiles, level-0 px: int32 [n, 2]."""
    vectors: npt.NDArray[np.float32]
    """Their embeddings: float32 [n, dim]."""


def write_slides(folder: Path, count: int, seed: int) -> Iterator[Path]:
    """Write so many slides, each cut from another place of one synthetic field."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "field.svs"
        write_slide(path, width_px=FIELD_PX, height_px=FIELD_PX, mpp=MPP, seed=seed)
        field = tifffile.imread(path, level=0)
    rng = np.random.default_rng(seed)
    for number in range(count):
        side = LARGE_PX if number % LARGE_EVERY == LARGE_EVERY - 1 else SMALL_PX
        top, left = rng.integers(0, FIELD_PX, 2)
        rows, columns = (np.arange(start, start + side) % FIELD_PX for start in (top, left))
        path = folder / f"slide-{number:04d}.tif"
        _write_pyramid(path, field[np.ix_(rows, columns)])
        yield path


def _write_pyramid(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level, step in enumerate((1, 4, 16)):
            tiff.write(
                np.ascontiguousarray(pixels[::step, ::step]),
                tile=(256, 256),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": JPEG_QUALITY},
                subfiletype=int(level > 0),
                resolution=(1e4 / (MPP * step), 1e4 / (MPP * step)),
                resolutionunit="CENTIMETER",
                metadata=None,
            )


class TruthTeller:
    """Plans, reads and encodes slides in this process, from local files, as a job does."""

    def __init__(self) -> None:
        self._settings = JobSettings(slides=["unused"], output="unused", model=MODEL)
        spec = get_spec(MODEL)
        self._encoder = Encoder(spec, resolve_weights(spec, None), threads=1)

    def truth(self, path: Path) -> Truth:
        """What the slide's file has to hold."""
        slide = open_slide(str(path))
        try:
            plan = plan_slide(slide, tiling_of(self._settings), tissue_rule_of(self._settings))
            tiles = slide.read_tiles(
                level=plan.geometry.level,
                xy=plan.xy,
                side_px=plan.geometry.side_px,
                tile_px=plan.tile_px,
                reduce=plan.geometry.reduce,
            )
        finally:
            slide.close()
        return Truth(xy=plan.xy, vectors=self._encoder.encode(tiles).astype(np.float32))

    def close(self) -> None:
        """Let go of the model."""
        self._encoder.close()
