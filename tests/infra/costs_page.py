"""`python -m tests.infra.costs_page`: writes the table of infra/costs/README.md anew."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ray_pipeline.costs import (
    READ_SHARDS,
    Prices,
    Work,
    cost_of,
    load_prices,
    reading_s,
    told,
    work_of,
)
from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.estimate import h100_tiles_per_s
from ray_pipeline.recipe import SHARD_TILES
from ray_pipeline.slides.grid import TilingRule, choose_geometry
from ray_pipeline.slides.levels import Level
from ray_pipeline.slides.normalise import NormaliseRule
from tests.conftest import ROOT

PAGE, PRICES = (ROOT / "infra" / "costs" / name for name in ("README.md", "prices.yaml"))
READER = ROOT / "tests" / "benchmarks" / "results" / "reader.json"
BLOCK = re.compile(r"(<!-- costs -->\n).*?(<!-- end -->)", re.DOTALL)
MODEL, TILES = "h-optimus-0", 10_000
JOBS = ((10_000, 16), (1_000_000, 100))
"""(slides, GPUs)"""
TILE_BYTES = 224 * 224 * 2 / 8
"""Compressed bytes under a tile: assumed, two bits a pixel."""


def slide_work(reader: Mapping[str, Any]) -> Work:
    """One slide's, by the report of the reader's benchmark."""
    level = Level(index=0, width_px=10**5, height_px=10**5, downsample=1, mpp=0.5, codec="jpeg")
    geometry = choose_geometry([level], TilingRule(), slide_id="a")
    seconds, basis = reading_s(geometry, level, tile_px=224, normalise=NormaliseRule())
    ratios = reader["ratios"]
    # For planning, and for each of the readers' turns.
    opened = 1 + -(-TILES // (SHARD_TILES * READ_SHARDS))
    return work_of(
        TILES,
        dim=get_spec(MODEL).dim,
        slide_gets=TILES * ratios["gets_per_tile"] + opened * ratios["open_requests"],
        fetch_bytes=TILES * TILE_BYTES * ratios["bytes_over_needed"]
        + opened * ratios["open_mb"] * 1e6,
        fetch_basis="assumed",
        reading_cpu_s=TILES * seconds,
        reading_basis=basis,
    )


def job_table(slides: int, gpus: int, reader: Mapping[str, Any], prices: Prices) -> str:
    """What a job of so many slides on so many GPUs costs, as Markdown."""
    one, pace = slide_work(reader), h100_tiles_per_s(MODEL)
    work = scaled(one, slides)
    cost = cost_of(work, tiles_per_s=pace, pace="expected", prices=prices)
    hours = work.tiles / pace / gpus / 3600
    cores = pace * one.reading_cpu_s / one.tiles
    _, *rows = cost.rows()
    lines = [
        f"| {slides:,} slides on {gpus} GPUs | amount | USD | figure |",
        "|---|--:|--:|---|",
        f"| hours | {told(hours)} | | expected |",
        f"| cores that read, for each GPU | {told(cores)} | | expected |",
        *("| {} | {} | {} | {} |".format(*row).replace("|  ", "| ") for row in rows),
    ]
    return "\n".join(lines)


def scaled(one: Work, slides: int) -> Work:
    """The work of so many slides, each like `one`."""
    whole = Work()
    # Doubling: a million sums of two would take their time.
    while slides:
        if slides % 2:
            whole += one
        one, slides = one + one, slides // 2
    return whole


def written(page: str, reader: Mapping[str, Any], prices: Prices) -> str:
    """The page with its tables as the figures have them."""
    tables = "\n\n".join(job_table(*job, reader, prices) for job in JOBS)
    text, count = BLOCK.subn(lambda found: f"{found[1]}{tables}\n{found[2]}", page)
    assert count == 1, "the page has one place for the tables"
    return text


if __name__ == "__main__":
    report = json.loads(READER.read_text())
    PAGE.write_text(written(PAGE.read_text(), report, load_prices(str(PRICES))))
