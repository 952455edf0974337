"""A million slides on a hundred GPUs, on paper: the tables of infra/scale/README.md.

    python -m tests.benchmarks.scale_paper          # writes them anew

Figures come from the reports in `results/`, or are constants here that name their source.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_pipeline.estimate import h100_tiles_per_s
from ray_pipeline.recipe import SHARD_TILES
from tests.benchmarks.scale import LATENCY_MS, RESUME_FAR

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).resolve().parents[2] / "infra" / "scale" / "README.md"
BLOCK = re.compile(r"(<!-- scale_paper -->\n).*?(\n<!-- end -->)", re.DOTALL)

SLIDES, GPUS, TILES = 1_000_000, 100, 10_000
"""Slides, H100s, and tiles of a slide."""
TILE_BYTES = {"0.5": 12_500.0, "0.25": 50_000.0}
"""Compressed bytes under a tile by the slide's mpp: assumed, two bits a pixel."""
VECTOR_BYTES, FRAGMENT_BYTES = 2_700.0, 1536 * 2 + 16.0
"""Of a tile in a slide's file (ARCHITECTURE.md), and while it is staged: float16 and its place."""
LATENCY_S = 0.03
"""Of one request to the store: assumed, as the reader's benchmark plays it."""
PREFIX_PUTS_PER_S, PREFIX_GETS_PER_S = 3_500.0, 5_500.0
"""That S3 takes below one prefix before it splits it (Amazon S3 user guide, "Best practices design
patterns: optimizing Amazon S3 performance")."""
USD_PER_GPU_HOUR = 6.88
"""An eighth of a p5.48xlarge, us-east-1, on demand, list price of November 2026."""
USD_PER_GB_MONTH = 0.023
"""S3 Standard, us-east-1, list price of November 2026."""

Row = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the benchmarks found."""

    read_tiles_per_s: Mapping[str, float]
    """Of one core from a store 30 ms away, by the slide's mpp."""
    gets_per_tile: float
    """Ranged GETs, 0.5 mpp."""
    bytes_over_needed: float
    """Bytes fetched over those of the tiles."""
    driver_cpu_s_per_slide: float
    """Bookkeeping without Ray."""
    ray_cpu_s_per_shard: float
    """The driver's process with Ray Data in it."""
    commit_cpu_s: float
    """Of one slide's commit."""
    compact_cpu_s_per_slide: float
    """The slides table."""
    requests_per_slide: Mapping[str, float]
    """To the output, by verb."""
    usd_per_1000: Mapping[str, float]
    """By verb."""
    driver_rss_gb: float
    """Of `SLIDES` slides; on the line through the two largest jobs where none had as many."""
    resume_s: float
    """Until a job of `SLIDES` finished slides has found nothing to do; likewise."""
    resume_far_s: float
    """The same, each reply of the store LATENCY_MS later."""

    @classmethod
    def of(cls, reports: Mapping[str, Mapping[str, Any]]) -> Measured:
        """From the reports of `reader`, `scale` and `scale-ray`."""
        reader, scale = reports["reader"], reports["scale"]["figures"]
        sizes = {int(slides): told for slides, told in scale["sizes"].items()}
        rss = {n: max(one["fresh_rss_gb"], one["finished_rss_gb"]) for n, one in sizes.items()}
        return cls(
            read_tiles_per_s={
                "0.5": reader["figures"]["jpeg"]["tiles_per_s"]["remote"],
                "0.25": reader["figures"]["half"]["tiles_per_s"]["remote_beside_tiffslide"],
            },
            gets_per_tile=reader["ratios"]["gets_per_tile"],
            bytes_over_needed=reader["ratios"]["bytes_over_needed"],
            driver_cpu_s_per_slide=sizes[max(sizes)]["driver_cpu_us_per_slide"] / 1e6,
            ray_cpu_s_per_shard=reports["scale-ray"]["ratios"]["driver_cpu_ms_per_shard"] / 1e3,
            commit_cpu_s=scale["commit_cpu_s"],
            compact_cpu_s_per_slide=scale["compact"]["cpu_us_per_slide"] / 1e6,
            requests_per_slide=scale["requests_per_slide"],
            usd_per_1000=scale["usd_per_1000_requests"],
            driver_rss_gb=at_scale(rss),
            resume_s=at_scale({n: one["resume_s"] for n, one in sizes.items()}),
            resume_far_s=at_scale({n: one[RESUME_FAR] for n, one in sizes.items()}),
        )


def at_scale(by_slides: Mapping[int, float]) -> float:
    """The figure at `SLIDES` slides, on the line through those of the two largest jobs."""
    (n, low), (m, high) = sorted(by_slides.items())[-2:]
    return high + (high - low) / (m - n) * (SLIDES - m)


def read_reports() -> dict[str, dict[str, Any]]:
    """The reports, by name."""
    names = ("reader", "scale", "scale-ray")
    return {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in names}


@dataclass(frozen=True)
class Paper:
    """The calculation."""

    found: Measured

    @property
    def gpu_tiles_per_s(self) -> float:
        """Pace of one GPU."""
        return h100_tiles_per_s("h-optimus-0")

    @property
    def shards(self) -> int:
        """Of one slide."""
        return -(-TILES // SHARD_TILES)

    def hours(self) -> list[Row]:
        """How long it takes, and what the GPUs cost."""
        pace = GPUS * self.gpu_tiles_per_s
        hours = SLIDES * TILES / pace / 3600
        return [
            ("tiles", f"{SLIDES * TILES:.1e}"),
            ("tiles/s", f"{pace:,.0f}"),
            ("slides/s; shards/s", f"{pace / TILES:.1f}; {pace / TILES * self.shards:.0f}"),
            ("hours; GPU-hours", f"{hours:.1f}; {hours * GPUS:,.0f}"),
            ("dollars for GPUs", f"{hours * GPUS * USD_PER_GPU_HOUR:,.0f}"),
        ]

    def reading(self) -> list[Row]:
        """What the slides cost."""
        rows: list[Row] = []
        for mpp, rate in self.found.read_tiles_per_s.items():
            fetched = TILE_BYTES[mpp] * self.found.bytes_over_needed
            whole, pace = SLIDES * TILES * fetched, GPUS * self.gpu_tiles_per_s * fetched
            rows += [
                (f"reading cores per GPU, {mpp} mpp", f"{self.gpu_tiles_per_s / rate:.2f}"),
                (f"TB read, {mpp} mpp; GB/s", f"{whole / 1e12:,.0f}; {pace / 1e9:.2f}"),
            ]
        gets = SLIDES * TILES * self.found.gets_per_tile
        dollars = gets * self.found.usd_per_1000["GET"] / 1000
        return [*rows, ("GETs of slides, 0.5 mpp; dollars", f"{gets:.2e}; {dollars:,.0f}")]

    def writing(self) -> list[Row]:
        """What the output costs."""
        found, stored_gb = self.found, SLIDES * TILES * VECTOR_BYTES / 1e9
        asked = {verb: SLIDES * count for verb, count in found.requests_per_slide.items()}
        dollars = {verb: n * found.usd_per_1000[verb] / 1000 for verb, n in asked.items()}
        slides_per_s = GPUS * self.gpu_tiles_per_s / TILES
        commit_s = found.commit_cpu_s + self.shards * LATENCY_S
        return [
            *((f"{verb}s; dollars", f"{n:.2e}; {dollars[verb]:,.0f}") for verb, n in asked.items()),
            (
                "TB of vectors; dollars a month",
                f"{stored_gb / 1e3:,.0f}; {stored_gb * USD_PER_GB_MONTH:,.0f}",
            ),
            ("TB staged and deleted again", f"{SLIDES * TILES * FRAGMENT_BYTES / 1e12:,.0f}"),
            ("cores that commit", f"{slides_per_s * found.commit_cpu_s:.1f}"),
            ("commits at once", f"{slides_per_s * commit_s:.0f}"),
        ]

    def driving(self) -> list[Row]:
        """What the driver takes."""
        found, slides_per_s = self.found, GPUS * self.gpu_tiles_per_s / TILES
        return [
            ("cores, without Ray", f"{slides_per_s * found.driver_cpu_s_per_slide:.3f}"),
            ("cores, with Ray", f"{slides_per_s * self.shards * found.ray_cpu_s_per_shard:.2f}"),
            ("memory without Ray, GB", f"{found.driver_rss_gb:.2f}"),
            ("seconds to find a finished job finished", f"{found.resume_s:.0f}"),
            (f"the same, the store {LATENCY_MS:g} ms away", f"{found.resume_far_s:.0f}"),
            (
                "minutes of one core for the slides table",
                f"{SLIDES * found.compact_cpu_s_per_slide / 60:.0f}",
            ),
        ]

    def limits(self) -> list[tuple[str, float]]:
        """What gives out at how many GPUs, the first first."""
        shards_per_s = self.gpu_tiles_per_s / TILES * self.shards
        limits = {
            "one driver's core, with Ray": 1 / (shards_per_s * self.found.ray_cpu_s_per_shard),
            "S3's PUTs below one prefix, of fragments": PREFIX_PUTS_PER_S / shards_per_s,
            "S3's GETs below one prefix, of slides": PREFIX_GETS_PER_S
            / (self.gpu_tiles_per_s * self.found.gets_per_tile),
        }
        return sorted(limits.items(), key=lambda limit: limit[1])

    def tables(self) -> str:
        """All of it, as Markdown."""
        parts = {
            "Time": self.hours(),
            "Slides": self.reading(),
            "Output": self.writing(),
            "Driver": self.driving(),
            "What gives out at how many GPUs": [(what, f"{n:.0f}") for what, n in self.limits()],
        }
        what, gpus = self.limits()[0]
        first = f"The first to give out is {what}, at {gpus:.0f} GPUs."
        return "\n\n".join([*(_table(title, rows) for title, rows in parts.items()), first])


def _table(title: str, rows: Sequence[Row]) -> str:
    lines = [f"| {title} | |", "|---|--:|", *(f"| {what} | {figure} |" for what, figure in rows)]
    return "\n".join(lines)


def written(page: str, reports: Mapping[str, Mapping[str, Any]]) -> str:
    """The page with its tables as `reports` have them."""
    tables = Paper(Measured.of(reports)).tables()
    text, count = BLOCK.subn(lambda found: f"{found[1]}{tables}{found[2]}", page)
    assert count == 1, "the page has one place for the tables"
    return text


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(), read_reports()))
