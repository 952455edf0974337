"""What resampling and normalising a tile cost beside reading it, and how exact resampling is.

    python -m tests.benchmarks.pixels [--quick] [--out FILE]

Tiles of a synthetic slide, on one core. What is compared is measured in turns, and medians are
taken. Errors are of the plan's own rule against the same filter in float64.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_pipeline.slides.normalise import Normaliser, NormaliseRule
from ray_pipeline.slides.resample import resample, rim_px
from ray_pipeline.slides.slide import open_slide
from ray_pipeline.slides.tiled import TiledSlide
from ray_pipeline.synthetic import write_slide
from tests.benchmarks.reader_measures import in_turns, planned, read
from tests.benchmarks.report import finish
from tests.slides.icc_profiles import WIDE, icc, matrix_profile, table
from tests.slides.oracles import cubic_resampled

SCALES = (1.1, 0.5 / 0.2528, 0.5 / 0.1725, 3.7)
"""Side at the level over the tile's: odd ones, a 40x scanner's, a 60x scanner's, far off."""
WANTED = {"resample_rmse_grey_levels": "<= 0.5"}
PACKAGES = ("pillow", "numpy", "simplejpeg")


def main() -> None:
    """Measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small slide, for trying it out")
    parser.add_argument("--out", help="write the report here too")
    asked = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    turns, side_px = (3, 4096) if asked.quick else (9, 8192)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.svs"
        write_slide(path, width_px=side_px, height_px=side_px, mpp=0.5)
        slide = open_slide(str(path))
        assert isinstance(slide, TiledSlide)
        plan = planned(slide)
        reading = in_turns(turns, read=lambda: read(slide, plan)).per_s(plan.n_tiles)["read"]
        tiles = slide.read_tiles(
            level=0, xy=plan.xy[: 32 if asked.quick else 128], side_px=224, tile_px=224
        )
        resampled = _resampling(slide, plan.xy, turns)
    normalised = _normalising(tiles, turns)
    errors = resampled.pop("errors")
    finish(
        "pixels",
        ratios={
            **{f"{name}_over_read": rate / reading for name, rate in normalised["rates"].items()},
            **{f"resample_{s:.2f}_over_read": r / reading for s, r in resampled["rates"].items()},
            "resample_rmse_grey_levels": max(rmse for rmse, _ in errors.values()),
            # Where black pen meets glass, Pillow cuts an overshoot between its two passes.
            "resample_max_grey_levels": max(most for _, most in errors.values()),
        },
        wanted=WANTED,
        figures={
            "quick": asked.quick,
            "read_tiles_per_s": reading,
            "normalise": normalised,
            "resample": resampled,
            "errors": {f"{scale:.2f}": pair for scale, pair in errors.items()},
        },
        packages=PACKAGES,
        out=asked.out,
    )


def _resampling(slide: TiledSlide, xy: npt.NDArray[np.int32], turns: int) -> dict[str, Any]:
    """Tiles/s of the filter alone by scale, and (RMSE, largest error) on tissue, grey levels."""
    rates, errors = {}, {}
    for scale in SCALES:
        side_px, rim = 224 * scale, rim_px(224 * scale, 224)
        extent = int(np.ceil(side_px)) + 2 * rim + 1
        inside = xy[(xy + extent < [slide.levels[0].width_px, slide.levels[0].height_px]).all(1)]
        chosen = inside[:: max(1, len(inside) // 16)][:16]
        windows = slide.read_tiles(level=0, xy=chosen, side_px=extent, tile_px=extent)
        corner = rim + 0.37

        def all_of(
            windows: npt.NDArray[np.uint8] = windows, corner: float = corner, side: float = side_px
        ) -> list[npt.NDArray[np.uint8]]:
            return [resample(window, corner, corner, side, 224) for window in windows]

        rates[scale] = in_turns(turns, resample=all_of).per_s(len(windows))["resample"]
        error = np.stack(all_of()) - np.stack(
            [cubic_resampled(window, corner, corner, side_px, 224) for window in windows]
        )
        errors[scale] = (float(np.sqrt(np.mean(error**2))), float(np.abs(error).max()))
    return {"rates": rates, "errors": errors}


def _normalising(tiles: npt.NDArray[np.uint8], turns: int) -> dict[str, Any]:
    """Tiles/s by what is done to them, and the seconds that fitting a slide's staining takes."""
    matrix = matrix_profile(WIDE, 2.2)
    lut = icc({b"A2B0": table(WIDE, 2.2)}, pcs=b"Lab ")
    rules: dict[str, tuple[NormaliseRule, bytes | None]] = {
        "srgb_matrix": (NormaliseRule(colour="srgb"), matrix),
        "srgb_table": (NormaliseRule(colour="srgb"), lut),
        "macenko": (NormaliseRule(stain="macenko"), None),
        "reinhard": (NormaliseRule(stain="reinhard"), None),
    }
    works: dict[str, Callable[[], object]] = {}
    fit_seconds = {}
    for name, (rule, profile) in rules.items():
        first = Normaliser(rule, slide_id="slide", icc_profile=profile)
        started = time.perf_counter()
        fit = first.fit_stain(tiles[: rule.stain_sample_tiles])
        if fit is not None:
            fit_seconds[name] = time.perf_counter() - started
        ready = Normaliser(rule, slide_id="slide", icc_profile=profile, stain_fit=fit)
        works[name] = partial(ready, tiles)
    return {"rates": in_turns(turns, **works).per_s(len(tiles)), "fit_seconds": fit_seconds}


if __name__ == "__main__":
    main()
