"""What a million slides cost the driver and the store, by the real driver on simulated stages.

    python -m tests.benchmarks.scale [--quick | --largest SLIDES] [--out FILE]

Real: listing sources and output, choosing the work, the ledger, commit jobs, records' and report's
contents, the slides table; an S3 client speaking HTTP to a server in memory, which counts requests.
Simulated: what planning, reading, encoding and committing tell the driver. A few slides are staged
and committed for real, to count what a slide asks of the store. Each driver is a process of its
own. What Ray itself costs is in the rerun of a finished job only, which is the whole command.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray_pipeline.dataset.layout import Layout
from tests.benchmarks.report import finish
from tests.benchmarks.scale_driver import TILES, recipe
from tests.benchmarks.scale_filled import fill_finished, fill_sources
from tests.benchmarks.scale_rerun import rerun
from tests.servers.buckets import BucketServer

WANTED = {
    "cost_per_slide_1e6_over_1e4": "<= 1.2",
    "driver_rss_gb_1e6": "<= 1",
    "resume_1e6_s": "< 60",
    "rerun_1e4_s": "< 30",
}
PACKAGES = ("ray", "obstore", "pyarrow")
SIZES, QUICK_SIZES = (1_000, 10_000, 100_000, 1_000_000), (100, 1_000)
"""Slides of the simulated jobs."""
FULL_SLIDES, QUICK_FULL_SLIDES = 2_500, 250
"""Of each job, about so many have all their shards done now; the others were staged earlier."""
RERUN_SLIDES, QUICK_RERUN_SLIDES = 10_000, 100
"""Of the finished job that `historay embed` runs again, on a real Ray."""

LATENCY_MS = 40.0
"""Of a store that is not in memory: about S3's, before each of its replies."""
RESUME_FAR = f"resume_{LATENCY_MS:g}_ms_s"
"""What `resume_s` is called there."""
USD_PER_1000 = {"PUT": 0.005, "LIST": 0.005, "GET": 0.0004, "HEAD": 0.0004, "DELETE": 0.0}
"""S3 Standard, us-east-1, list prices of November 2026; deleting is free."""


@dataclass(frozen=True)
class Cost:
    """What one simulated job cost."""

    fresh: Mapping[str, Any]
    finished: Mapping[str, Any]
    finished_far: Mapping[str, Any]
    """The same, the store LATENCY_MS away."""
    lists: int
    """LIST requests of the fresh run and of its rerun."""

    @property
    def cpu_us_per_slide(self) -> float:
        """CPU of the driver for one slide with all its shards done in this run, microseconds."""
        full, slides = self.fresh["full"], self.fresh["slides"]
        once = sum(part["cpu_s"] for part in self.fresh["parts"].values())
        return float(1e6 * (full["cpu_s"] / full["slides"] + once / slides))

    @property
    def resume_s(self) -> float:
        """Wall seconds of listing a finished job, finding nothing to do, and closing."""
        return _wall_s(self.finished)

    def figures(self) -> dict[str, Any]:
        """As they stand in the report."""
        full = self.fresh["full"]
        return {
            "driver_cpu_us_per_slide": round(self.cpu_us_per_slide, 1),
            "slides_per_cpu_s": round(1e6 / self.cpu_us_per_slide, 1),
            "shards_per_cpu_s": round((full["rows"] - full["slides"]) / full["cpu_s"]),
            "fresh_rss_gb": self.fresh["rss_gb"],
            "finished_rss_gb": self.finished["rss_gb"],
            "resume_s": round(self.resume_s, 2),
            RESUME_FAR: round(_wall_s(self.finished_far), 2),
            "lists": self.lists,
            "fresh": self.fresh,
            "finished": self.finished,
            "finished_far": self.finished_far,
        }


def main() -> None:
    """Simulate every size, count a slide's requests, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, for trying it out")
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="slides of the largest job")
    parser.add_argument("--out", help="write the report here too")
    asked = parser.parse_args()
    sizes = QUICK_SIZES if asked.quick else [size for size in SIZES if size <= asked.largest]
    full = QUICK_FULL_SLIDES if asked.quick else FULL_SLIDES
    costs = {slides: simulated(slides, full) for slides in sizes}
    requests, commit_cpu_s = slide_at_the_store((1, 2) if asked.quick else (2, 4))
    compact = _compacted(slides=100 if asked.quick else 5_000)
    again = rerun(QUICK_RERUN_SLIDES if asked.quick else RERUN_SLIDES)
    largest, smaller = sizes[-1], sizes[max(0, len(sizes) - 3)]
    requests["LIST"] = round(costs[largest].lists / largest, 6)
    top = costs[largest]
    finish(
        "scale",
        ratios={
            f"cost_per_slide_{power(largest)}_over_{power(smaller)}": top.cpu_us_per_slide
            / costs[smaller].cpu_us_per_slide,
            f"driver_rss_gb_{power(largest)}": max(top.fresh["rss_gb"], top.finished["rss_gb"]),
            f"resume_{power(largest)}_s": top.resume_s,
            f"rerun_{power(again['slides'])}_s": again["seconds"],
        },
        wanted=WANTED,
        figures={
            "quick": asked.quick,
            "tiles_per_slide": TILES,
            "simulated": "what planning, reading, encoding and committing tell the driver; of all "
            f"but some {full} slides of a job, that an earlier run had staged all shards",
            "real": "driver, sources, worklist, ledger, endings and dataset; S3's protocol; "
            "fragments, files and records of the slides whose requests are counted",
            "sizes": {str(slides): cost.figures() for slides, cost in costs.items()},
            "requests_per_slide": requests,
            "commit_cpu_s": commit_cpu_s,
            "usd_per_1000_requests": USD_PER_1000,
            "usd_per_slide": round(dollars(requests), 7),
            "compact": compact,
            "rerun": again,
        },
        packages=PACKAGES,
        out=asked.out,
    )


def _wall_s(told: Mapping[str, Any]) -> float:
    return math.fsum(float(part["wall_s"]) for part in told["parts"].values())


def power(slides: int) -> str:
    """A power of ten as ratios name it: `1e6`."""
    return f"1e{round(math.log10(slides))}"


def dollars(requests: Mapping[str, float]) -> float:
    """What so many requests by verb cost, US dollars."""
    return sum(USD_PER_1000[verb] * count / 1000 for verb, count in requests.items())


def simulated(slides: int, full: int) -> Cost:
    """A job of so many slides from nothing, then the same job finished and run again."""
    with BucketServer() as server:
        fill_sources(server, slides)
        fresh = _phase(server, "fresh", one_in=max(1, slides // full))
        lists = _by_verb(server)["LIST"]
        server.reset_counters()
        os.environ.update(server.env)
        fill_finished(server, Layout(recipe().fingerprint), slides)
        finished = _phase(server, "finished")
        lists += _by_verb(server)["LIST"]
        server.set_link(latency_ms=LATENCY_MS)
        told = Cost(fresh, finished, _phase(server, "finished"), lists)
    print(f"{slides} slides: {json.dumps(told.figures())}", file=sys.stderr)
    return told


def slide_at_the_store(slides: tuple[int, int]) -> tuple[dict[str, float], float]:
    """Requests to the output for one slide, from its first fragment to the slides table, by verb.

    The difference of two small jobs, so that what a job asks once does not count. And the CPU of
    one commit, seconds.
    """
    counted, commit_cpu_s = [], 0.0
    for number in slides:
        with BucketServer() as server:
            fill_sources(server, number)
            told = _phase(server, "commit")
            assert told["slides"] == number
            commit_cpu_s = told["commit_cpu_s"]
            counted.append(_by_verb(server))
    per = slides[1] - slides[0]
    verbs = {verb: (counted[1][verb] - counted[0][verb]) / per for verb in USD_PER_1000}
    return {**verbs, "LIST": 0.0}, commit_cpu_s


def _compacted(*, slides: int) -> dict[str, Any]:
    with BucketServer() as server:
        told = _phase(server, "compact", slides=slides)
    cpu_s = told["parts"]["compact"]["cpu_s"]
    return {**told, "cpu_us_per_slide": round(1e6 * cpu_s / slides, 1)}


def _phase(server: BucketServer, phase: str, **said: int) -> dict[str, Any]:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in said.items()]
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.scale_driver", phase, *options],
        env={**os.environ, **server.env},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def _by_verb(server: BucketServer) -> Counter[str]:
    verbs = Counter[str]()
    for told, count in server.counters().items():
        verbs[told.split(" ")[1]] += count
    return verbs


if __name__ == "__main__":
    main()
