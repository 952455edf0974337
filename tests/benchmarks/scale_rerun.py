"""A finished job, run again as a user would: how long that takes, and what it asks of the store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ray_pipeline.dataset.layout import Layout
from ray_pipeline.store import Store
from ray_pipeline.synthetic import write_slide
from tests.benchmarks.scale_filled import OUTPUT, SOURCES, fill_finished, fill_sources
from tests.servers.buckets import BucketServer

SIDE_PX = 1024
"""Of the one slide that is really embedded."""


def rerun(slides: int) -> dict[str, Any]:
    """`historay embed` on `slides` slides, all of them finished: seconds, and requests by kind.

    One of them was embedded by a job before. Of the others the store holds what such jobs leave.
    """
    with BucketServer() as server:
        os.environ.update(server.env)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "real.svs"
            write_slide(path, width_px=SIDE_PX, height_px=SIDE_PX, seed=1)
            Store.open(SOURCES).put(path.name, path.read_bytes())
        first, _ = _embed()
        assert first["slides_done"] == 1, first["failures"]
        output, layout = Store.open(OUTPUT), Layout(first["recipe_fp"])
        standing = pq.read_table(output.open_file(layout.slides_table))
        fill_sources(server, slides - 1)
        fill_finished(server, layout, slides - 1, beside=standing)
        server.reset_counters()
        again, seconds = _embed()
        counted = server.counters()
    assert again["slides_finished_before"] == slides, again
    return {
        "slides": slides,
        "seconds": round(seconds, 2),
        "of_the_job_s": again["seconds"],
        "source_reads": _asked(counted, "slides GET") + _asked(counted, "slides HEAD"),
        "puts_under_embeddings": _asked(counted, "results PUT embeddings"),
        "requests": counted,
    }


def _embed() -> tuple[dict[str, Any], float]:
    """Report and wall seconds of the command, from nothing: Python, Ray and all."""
    command = ["embed", "--slides", SOURCES, "--output", OUTPUT, "--model", "toy", "--json"]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "ray_pipeline", *command],
        env={**os.environ, "RAY_ADDRESS": "", "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report, time.monotonic() - started


def _asked(counted: dict[str, int], kind: str) -> int:
    return sum(count for what, count in counted.items() if what.startswith(kind))
