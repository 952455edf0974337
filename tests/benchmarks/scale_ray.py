"""What Ray itself costs the driver for each shard: real jobs of two sizes whose stages do nothing.

    python -m tests.benchmarks.scale_ray [--quick] [--out FILE]

The difference of the two is the cost of shards alone: what a job, and a slide, costs once is in
both. It wants a quiet machine of two cores.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from ray_pipeline.recipe import SHARD_TILES
from tests.benchmarks.null_stages import null_key
from tests.benchmarks.report import finish
from tests.benchmarks.scale_ray_job import null_job

SLIDES, QUICK_SLIDES = 100, 10
"""Slides of each job."""
FEW, MANY = 2, 22
"""Shards of each slide in the two jobs."""
PACKAGES = ("ray", "pyarrow")


def main() -> None:
    """Run both jobs, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few slides, for trying it out")
    parser.add_argument("--out", help="write the report here too")
    asked = parser.parse_args()
    slides = QUICK_SLIDES if asked.quick else SLIDES
    few, many = (job(slides, shards) for shards in (FEW, MANY))
    between = many["shards"] - few["shards"]
    driver_ms = 1e3 * (many["driver_cpu_s"] - few["driver_cpu_s"]) / between
    wall_ms = 1e3 * (many["wall_s"] - few["wall_s"]) / between
    finish(
        "scale_ray",
        ratios={"driver_cpu_ms_per_shard": driver_ms, "wall_ms_per_shard": wall_ms},
        wanted={},
        figures={
            "quick": asked.quick,
            "simulated": "planning, reading and encoding, and no tile has pixels",
            "real": "Ray, driver, staging and commits, of the toy model's vectors",
            "jobs": {f"{slides}x{FEW}": few, f"{slides}x{MANY}": many},
        },
        packages=PACKAGES,
        out=asked.out,
    )


def job(slides: int, shards: int) -> dict[str, Any]:
    """One job; every slide has so many shards, the last one of a single tile."""
    with tempfile.TemporaryDirectory() as folder:
        sources = Path(folder) / "slides"
        write_null_slides(sources, slides, (shards - 1) * SHARD_TILES + 1)
        told = null_job("--slides", f"{sources}/", "--output", f"{folder}/out")
    assert told["slides"] == slides, told
    print(f"{slides} slides of {shards} shards: {told}", file=sys.stderr)
    return {**told, "shards": slides * shards}


def write_null_slides(folder: Path, slides: int, n_tiles: int) -> None:
    """Files that `NullPlan` gives so many tiles each."""
    folder.mkdir()
    for number in range(slides):
        (folder / null_key(number, n_tiles)).write_bytes(b"never read")


if __name__ == "__main__":
    main()
