"""One job on a real local Ray whose stages do nothing; staging and commits are real.

    python -m tests.benchmarks.scale_ray_job --slides URI --output URI [--pixels] ...

In a process of its own, so that CPU, memory and object store are nobody else's. The slides' names
tell how many tiles they have (`null_key`); vectors are those of the toy model, all zero. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any, Self

import ray

from ray_pipeline import graph
from ray_pipeline.cluster import IDLE_MS, disconnect
from ray_pipeline.pipeline import embed
from ray_pipeline.progress import Reporter
from ray_pipeline.settings import JobSettings
from tests.benchmarks.null_stages import BlackRead, NullEncode, NullPlan, NullRead
from tests.benchmarks.report import peak_gb

LOOK_EVERY_S = 0.05
"""Seconds between two looks at Ray's object store."""
CPUS = 2
"""Of the local Ray, whatever the machine has."""


def null_job(*options: str, env: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """This module in a process of its own; what it told."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.scale_ray_job", *options],
        env={**env, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": ""},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


class ObjectStore:
    """Ray's object store of this machine, looked at again and again while something runs."""

    def __init__(self) -> None:
        self.most_bytes, self.looks = 0.0, 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self.size_bytes = ray.cluster_resources()["object_store_memory"]  # type: ignore[no-untyped-call]
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(LOOK_EVERY_S):
            free = ray.available_resources()["object_store_memory"]  # type: ignore[no-untyped-call]
            self.most_bytes = max(self.most_bytes, self.size_bytes - free)
            self.looks += 1


def main() -> None:
    """Run the job."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--pixels", action="store_true", help="tiles have pixels")
    parser.add_argument("--readers", type=int, default=1)
    parser.add_argument("--object-store-bytes", type=int, default=1 << 30)
    asked = parser.parse_args()
    for name, stand_in in (
        ("PlanSlide", NullPlan),
        ("ReadTiles", BlackRead if asked.pixels else NullRead),
        ("EncodeTiles", NullEncode),
    ):
        setattr(graph, name, stand_in)
    settings = JobSettings(
        slides=[asked.slides],
        output=asked.output,
        model="toy",
        readers=asked.readers,
        reader_cpus=0.3,
        encoders=1,
        encoder_cpus=0.3,
    )
    # What Ray's nodes say goes to standard error.
    with redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as spilled:
        ray.init(
            address="local",
            num_cpus=CPUS,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=asked.object_store_bytes,
            object_spilling_directory=spilled,
            _system_config={"idle_worker_killing_time_threshold_ms": IDLE_MS},
        )
        cpu_s, wall_s = time.process_time(), time.monotonic()
        with ObjectStore() as objects:
            report = embed(settings, Reporter(sys.stderr, every_s=30))
        cpu_s, wall_s = time.process_time() - cpu_s, time.monotonic() - wall_s
        spilled_files = sum(len(names) for _, _, names in os.walk(spilled))
        disconnect()
    assert not report.failures, report.failures[:3]
    told = {
        "slides": report.slides_done,
        "tiles": report.tiles,
        "wall_s": round(wall_s, 2),
        "driver_cpu_s": round(cpu_s, 2),
        "driver_rss_gb": peak_gb(),
        "object_store_bytes": objects.size_bytes,
        "object_store_most_bytes": objects.most_bytes,
        "object_store_looks": objects.looks,
        "spilled_files": spilled_files,
    }
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
