"""How close the whole job comes to its encoder alone, and to its reader alone.

    python -m tests.benchmarks.pipeline [--quick] [--model NAME] [--out FILE]

Slides are mosaics of a synthetic field behind a range server of our own, with 30 ms before each
reply and 80 MB/s on each connection. A job's rate counts from the first tiles that are staged to
the last, so that what a job does once, like loading the model, does not count. In the same run the
encoder and the reader work alone, with the same threads.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ray_pipeline import graph
from ray_pipeline.cluster import disconnect
from ray_pipeline.dataset.report import RunReport
from ray_pipeline.encoders.agreement import sample_tiles
from ray_pipeline.encoders.encoder import Encoder
from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.encoders.spec import EncoderIdentity
from ray_pipeline.encoders.weights import resolve_weights
from ray_pipeline.pipeline import embed
from ray_pipeline.progress import Counts, Reporter
from ray_pipeline.rows import from_table, to_table
from ray_pipeline.settings import JobSettings
from ray_pipeline.slides.slide import open_slide
from ray_pipeline.slides.tiled import TiledSlide
from ray_pipeline.stages import EncodeTiles
from tests.benchmarks.reader_measures import planned, read
from tests.benchmarks.report import finish
from tests.benchmarks.slides import FIELD_PX, write_field, write_mosaic
from tests.servers.ranges import RangeServer

WANTED = {"pipeline_over_encoder": ">= 0.95", "null_pipeline_over_reader": ">= 0.6"}
LATENCY_MS, MB_PER_S = 30.0, 80.0
SLIDES = 6
"""Of each job."""
PACKAGES = ("ray", "torch", "obstore", "pyarrow")


class NullEncode:
    """An `EncodeTiles` that computes nothing: every vector is zero."""

    def __init__(self, identity: EncoderIdentity, weights: str | None, **_made: Any) -> None:
        self._dim = identity.dim

    def __call__(self, table: pa.Table) -> pa.Table:
        """See `EncodeTiles`."""
        return to_table(
            replace(
                row,
                pixels=None,
                embedding=np.zeros((len(row.pixels), self._dim), np.float16),
                info={**row.info, "dim": self._dim},
            )
            if row.to_do and row.pixels is not None
            else row
            for row in from_table(table)
        )


@dataclass(frozen=True)
class Bench:
    """Where slides lie, and where outputs go."""

    folder: Path
    turns: int

    def rate(self, **asked: Any) -> tuple[float, RunReport]:
        """tiles/s of the job once tiles come, median over turns, and the last report."""
        rates, reports = [], []
        for _ in range(self.turns):
            watch, output = Watch(), self.folder / "out"
            shutil.rmtree(output, ignore_errors=True)
            uris = [f"s3://slides/{number}.tif" for number in range(SLIDES)]
            reports.append(embed(JobSettings(slides=uris, output=str(output), **asked), watch))
            assert reports[-1].slides_failed == 0, reports[-1].failures
            rates.append(watch.rate)
            print(f"{watch.rate} tiles a second", file=sys.stderr)
        return statistics.median(rates), reports[-1]


class Watch(Reporter):
    """Notes when which tiles were staged."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.seen: list[tuple[float, int]] = []

    def show(self, counts: Counts, *, final: bool = False) -> None:
        """See `Reporter`."""
        self.seen.append((time.monotonic(), counts.tiles))

    @property
    def rate(self) -> float:
        """tiles/s from the first tiles to the last."""
        began, first = next(moment for moment in self.seen if moment[1] > 0)
        ended, last = next(moment for moment in self.seen if moment[1] == self.seen[-1][1])
        return (last - first) / (ended - began)


def main() -> None:
    """Make the slides, run the jobs, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the toy model, for trying it out")
    parser.add_argument("--model", help="default: h-optimus-0")
    parser.add_argument("--out", help="write the report here too")
    asked = parser.parse_args()
    model = asked.model or ("toy" if asked.quick else "h-optimus-0")
    few = {"max_tiles_per_slide": 256 if model == "toy" else 16}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), turns=1 if asked.quick else 3)
        bucket = bench.folder / "slides"
        bucket.mkdir()
        field = bench.folder / "field.svs"
        write_field(field, mpp=0.5, side_px=4096 if asked.quick else FIELD_PX)
        times = 1 if asked.quick else 2
        write_mosaic(field, bucket / "0.tif", across=times, down=times, mpp=0.5)
        for number in range(1, SLIDES):
            (bucket / f"{number}.tif").hardlink_to(bucket / "0.tif")
        with RangeServer(bench.folder, latency_ms=LATENCY_MS, mb_per_s=MB_PER_S) as server:
            os.environ.update(server.env)
            reader = _reader_alone(turns=bench.turns)
            setattr(graph, "EncodeTiles", NullEncode)  # noqa: B010 - a stand-in, unknown to types
            null, _ = bench.rate(model="toy", readers=1, reader_cpus=1.0, encoder_cpus=0.1)
            setattr(graph, "EncodeTiles", EncodeTiles)  # noqa: B010
            whole, report = bench.rate(model=model, weights="random", compile=False, **few)
            disconnect()
            threads = max(1, int(report.placement["encoder_cpus"]))
            encoder = _encoder_alone(model, threads=threads, turns=bench.turns)
    finish(
        "pipeline",
        ratios={
            "pipeline_over_encoder": whole / encoder,
            "null_pipeline_over_reader": null / reader,
        },
        wanted=WANTED,
        figures={
            "quick": asked.quick,
            "model": model,
            "latency_ms": LATENCY_MS,
            "mb_per_s": MB_PER_S,
            "tiles_per_s": {
                "pipeline": whole,
                "encoder": encoder,
                "null_pipeline": null,
                "reader": reader,
            },
            "placement": report.placement,
            "device_busy_share": report.device_busy_share,
            "batch_fill": report.batch_fill,
        },
        packages=PACKAGES,
        out=asked.out,
    )


def _reader_alone(*, turns: int) -> float:
    slide = open_slide("s3://slides/0.tif")
    assert isinstance(slide, TiledSlide)
    plan = planned(slide)
    seconds = []
    for _ in range(turns + 1):
        started = time.perf_counter()
        read(slide, plan)
        seconds.append(time.perf_counter() - started)
    return plan.n_tiles / statistics.median(seconds[1:])


def _encoder_alone(model: str, *, threads: int, turns: int) -> float:
    spec = get_spec(model)
    encoder = Encoder(spec, resolve_weights(spec, "random"), threads=threads)
    tiles = sample_tiles(spec.tile_px, 2 * encoder.batch_size)
    seconds = []
    for _ in range(turns + 1):
        started = time.perf_counter()
        encoder.encode(tiles)
        seconds.append(time.perf_counter() - started)
    return len(tiles) / statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
