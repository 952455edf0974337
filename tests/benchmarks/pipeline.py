"""How close the whole job comes to its encoder alone, and to its reader alone.

    python -m tests.benchmarks.pipeline [--quick] [--model NAME] [--turns N] [--out FILE]

Slides are mosaics of a synthetic field behind a range server of our own, with 30 ms before each
reply and 80 MB/s on each connection. A job's rate counts from the first tiles that are staged to
the last, so that what a job does once, like loading the model, does not count; with a null encoder
from the half on, when what was read before that was there is long gone. In the same run the
encoder alone has the whole machine, before the first job and after each, without a Ray beside it,
whose idle processes cost some 5 % of two cores; every job is compared with what it reached just
before and just after. So is the reader alone, in one thread; in its job it has two calls under way,
and one CPU, to which Ray does not hold it.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ray_pipeline import graph
from ray_pipeline.cluster import disconnect
from ray_pipeline.dataset.report import RunReport
from ray_pipeline.encoders.agreement import sample_tiles
from ray_pipeline.encoders.encoder import Encoder
from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.encoders.weights import resolve_weights
from ray_pipeline.pipeline import embed
from ray_pipeline.progress import Counts, Reporter
from ray_pipeline.settings import JobSettings
from ray_pipeline.slides.slide import open_slide
from ray_pipeline.slides.tiled import TiledSlide
from ray_pipeline.stages import EncodeTiles
from tests.benchmarks.null_stages import NullEncode
from tests.benchmarks.reader_measures import planned, read
from tests.benchmarks.report import finish
from tests.benchmarks.slides import FIELD_PX, write_field, write_mosaic
from tests.servers.ranges import RangeServer

WANTED = {"pipeline_over_encoder": ">= 0.95", "null_pipeline_over_reader": ">= 0.6"}
LATENCY_MS, MB_PER_S = 30.0, 80.0
SLIDES, NULL_SLIDES = 6, 16
"""Of each job with an encoder, and of each with none."""
FEW_TILES, TOY_TILES = 16, 256
"""Tiles a slide gives on a CPU, of a real model and of the toy; on a GPU it gives all."""
ALONE_BATCHES = {"cpu": 2, "cuda": 64}
"""Batches of each measure of the encoder alone, by device."""
PACKAGES = ("ray", "torch", "obstore", "pyarrow")


@dataclass(frozen=True)
class Bench:
    """Where slides lie, and where outputs go."""

    folder: Path
    turns: int

    def job(self, *, slides: int, after: float = 0.0, **asked: Any) -> tuple[float, RunReport]:
        """tiles/s of one job once that share of its tiles is staged, and its report."""
        watch, output = Watch(), self.folder / "out"
        shutil.rmtree(output, ignore_errors=True)
        uris = [f"s3://slides/{number}.tif" for number in range(slides)]
        report = embed(JobSettings(slides=uris, output=str(output), **asked), watch)
        disconnect()
        assert report.slides_failed == 0, report.failures
        rate = watch.rate(after)
        print(f"{rate:.4g} tiles a second", file=sys.stderr)
        return rate, report


class Watch(Reporter):
    """Notes when which tiles were staged."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.seen: list[tuple[float, int]] = []

    def show(self, counts: Counts, *, final: bool = False) -> None:
        """See `Reporter`."""
        self.seen.append((time.monotonic(), counts.tiles))

    def rate(self, after: float) -> float:
        """tiles/s from when that share of all tiles was there, one at least, to the last."""
        ended, last = next(moment for moment in self.seen if moment[1] == self.seen[-1][1])
        least = max(1, after * last)
        began, first = next(moment for moment in self.seen if moment[1] >= least)
        return (last - first) / (ended - began)


def main() -> None:
    """Make the slides, run the jobs, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the toy model, for trying it out")
    parser.add_argument("--model", help="default: h-optimus-0")
    parser.add_argument("--out", help="write the report here too")
    parser.add_argument("--turns", type=int, help="jobs of each kind; default: 3, quickly 1")
    asked = parser.parse_args()
    model = asked.model or ("toy" if asked.quick else "h-optimus-0")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), turns=asked.turns or (1 if asked.quick else 3))
        bucket = bench.folder / "slides"
        bucket.mkdir()
        field = bench.folder / "field.svs"
        write_field(field, mpp=0.5, side_px=4096 if asked.quick else FIELD_PX)
        times = 1 if asked.quick else 2
        write_mosaic(field, bucket / "0.tif", across=times, down=times, mpp=0.5)
        for number in range(1, NULL_SLIDES):
            (bucket / f"{number}.tif").hardlink_to(bucket / "0.tif")
        with RangeServer(bench.folder, latency_ms=LATENCY_MS, mb_per_s=MB_PER_S) as server:
            os.environ.update(server.env)
            over_reader, rates = _null(bench)
            over_encoder, more, report = _whole(bench, model)
    finish(
        "pipeline",
        ratios={
            "pipeline_over_encoder": statistics.median(over_encoder),
            "null_pipeline_over_reader": statistics.median(over_reader),
        },
        wanted=WANTED,
        figures={
            "quick": asked.quick,
            "model": model,
            "latency_ms": LATENCY_MS,
            "mb_per_s": MB_PER_S,
            "tiles_per_s": rates | more,
            "by_job": {"over_encoder": over_encoder, "over_reader": over_reader},
            "tiles": report.tiles,
            "placement": report.placement,
            "device_busy_share": report.device_busy_share,
            "batch_fill": report.batch_fill,
        },
        packages=PACKAGES,
        out=asked.out,
    )


def _null(bench: Bench) -> tuple[list[float], dict[str, float]]:
    """Jobs with a null encoder over the reader alone just before and just after, and medians."""
    setattr(graph, "EncodeTiles", NullEncode)  # noqa: B010 - a stand-in, unknown to types
    alone, jobs = [_reader_alone()], []
    for _ in range(bench.turns):
        rate, _ = bench.job(
            slides=NULL_SLIDES,
            after=0.5,
            model="toy",
            readers=1,
            reader_cpus=1.0,
            encoder_cpus=0.1,
        )
        jobs.append(rate)
        alone.append(_reader_alone())
    setattr(graph, "EncodeTiles", EncodeTiles)  # noqa: B010
    rates = {"null_pipeline": statistics.median(jobs), "reader": statistics.median(alone)}
    return _over_neighbours(jobs, alone), rates


def _whole(bench: Bench, model: str) -> tuple[list[float], dict[str, float], RunReport]:
    """Whole jobs over the encoder alone just before and just after, medians, the last report."""
    on_gpu = torch.cuda.is_available()
    asked: dict[str, Any] = {"model": model, "weights": "random", "compile": on_gpu}
    if not on_gpu:
        asked["max_tiles_per_slide"] = TOY_TILES if model == "toy" else FEW_TILES
    spec = get_spec(model)
    threads = None if on_gpu else len(os.sched_getaffinity(0))
    source = resolve_weights(spec, "random")
    encoder = Encoder(spec, source, threads=threads, compile=on_gpu)
    count = ALONE_BATCHES[encoder.device.type] * encoder.batch_size
    tiles = sample_tiles(spec.tile_px, count)
    encoder.encode(tiles[: encoder.batch_size])

    def encoder_alone() -> float:
        started = time.perf_counter()
        encoder.encode(tiles)
        return count / (time.perf_counter() - started)

    alone, jobs, reports = [encoder_alone()], [], []
    for _ in range(bench.turns):
        rate, report = bench.job(slides=SLIDES, **asked)
        jobs.append(rate)
        reports.append(report)
        alone.append(encoder_alone())
    rates = {"pipeline": statistics.median(jobs), "encoder": statistics.median(alone)}
    return _over_neighbours(jobs, alone), rates, reports[-1]


def _over_neighbours(jobs: list[float], alone: list[float]) -> list[float]:
    """Each job's rate over the mean of what was measured before and after it."""
    return [
        job / statistics.mean(beside) for job, beside in zip(jobs, pairwise(alone), strict=True)
    ]


def _reader_alone() -> float:
    """tiles/s of one reader on one slide that it has read before."""
    slide = open_slide("s3://slides/0.tif")
    assert isinstance(slide, TiledSlide)
    plan = planned(slide)
    read(slide, plan)
    started = time.perf_counter()
    read(slide, plan)
    return plan.n_tiles / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
