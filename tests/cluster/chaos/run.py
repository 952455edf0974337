"""One run: a cluster, a store, a job, and what disturbs them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from tests.cluster.chaos.driving import Driver
from tests.cluster.chaos.nodes import RayNodes
from tests.cluster.chaos.outcome import Chaos, counted
from tests.cluster.chaos.reader import PollingReader
from tests.cluster.chaos.slides import MODEL, Truth, TruthTeller, write_slides
from tests.cluster.chaos.strikes import (
    DriverStriker,
    GatewayStriker,
    NodeStriker,
    Pace,
    Striker,
    WorkerStriker,
)
from tests.cluster.chaos.verdict import judge
from tests.servers.ceph import CephCluster
from tests.servers.faults import FaultProxy, Settings
from tests.servers.s3 import S3Server

FAULTS: Settings = {
    "error_503": 0.05,
    "reset": 0.02,
    "truncate": 0.02,
    "lost_reply": 0.02,
    "stall": 0.01,
    "stall_s": 20.0,
}
"""Longer than the 15 s that the stores' clients wait for the next bytes."""
Every = tuple[float, float, float, float]
EVERY_S: Every = (4.0, 30.0, 90.0, 240.0)
"""Mean pauses between two kills of workers, gateways, nodes and drivers; shorter ones in runs in
which they would not come up."""
STRIKES_AT_LEAST = 2.0
"""Mean kills of each kind in a short run."""
NODES, CPUS = 3, 1
"""Worker nodes, and CPUs of each: the job still fits when one node is away."""
LIMITS = (
    *("--readers", "3", "--reader-cpus", "0.25", "--encoders", "2", "--encoder-cpus", "0.25"),
    *("--no-progress-s", "120"),
)
PATIENCE = 4
"""How many times its minutes a run may take to come to its end, and as many minutes more."""


def run_chaos(
    ceph: CephCluster, *, minutes: float, seed: int, slides: int, every_s: Every = EVERY_S
) -> Chaos:
    """One run on a Ceph that has been started, and is up at the end.

    Raises when the job can't be brought to its end, or when parts of ours fail.
    """
    with ExitStack() as stack:
        server = ceph.server
        proxy = stack.enter_context(FaultProxy(server.endpoint_url, **FAULTS))
        proxy.set(seed=seed)
        bucket = server.bucket()
        truths = _prepared(server, bucket, slides, seed)
        spoilt = replace(server, endpoint_url=proxy.endpoint)
        nodes = stack.enter_context(RayNodes(workers=NODES, cpus=CPUS, env=spoilt.env))
        output = f"{bucket}/out"
        job = ("embed", "--slides", f"{bucket}/slides/", "--output", output, "--model", MODEL)
        driver = Driver([*job, *LIMITS, "--json"], nodes.env)
        planned = {slide: len(truth.xy) for slide, truth in truths.items()}
        reader = PollingReader(server, output, planned, seed)
        started = time.monotonic()

        def at_work() -> subprocess.Popen[str] | None:
            return driver.process if reader.newest_at > driver.started_at else None

        def show() -> None:
            killed = sum((striker.killed for striker in strikers), Counter())
            _say(f"{time.monotonic() - started:.0f} s: {reader.files} slides, {counted(killed)}")

        def pace(every_s: float) -> Pace:
            often = min(every_s, 60 * minutes / STRIKES_AT_LEAST)
            return Pace(every_s=often, lasts_s=60 * minutes, seed=seed)

        of_workers, of_gateways, of_nodes, of_drivers = map(pace, every_s)
        strikers: list[Striker] = [
            WorkerStriker(nodes, of_workers),
            NodeStriker(nodes, of_nodes),
            GatewayStriker(ceph, of_gateways),
            DriverStriker(at_work, of_drivers),
        ]
        for thread in (reader, *strikers):
            thread.start()
        try:
            driver.drive(60 * PATIENCE * (minutes + 1), show)
            seconds = time.monotonic() - started
        finally:
            for striker in strikers:
                striker.end()
        reader.end()
        killed = sum((striker.killed for striker in strikers), Counter())
        del killed["drivers"]  # one that had ended by itself is not killed: `driver` tells
        return Chaos(
            minutes=minutes,
            every_s=every_s,
            seed=seed,
            verdict=judge(server, output, truths),
            seconds=round(seconds, 1),
            killed=dict(killed),
            faults=proxy.counts(),
            driver=dict(driver.ends),
            failures=dict(driver.failures),
            looks=reader.looks,
            slides_read=reader.slides_read,
            unanswered=reader.unanswered,
            partial=reader.partial,
            replaced=sorted(reader.replaced),
        )


def _prepared(server: S3Server, bucket: str, slides: int, seed: int) -> dict[str, Truth]:
    """Put the slides in their place; slide_id -> the truth about each."""
    truths, client, teller = {}, server.client(), TruthTeller()
    with tempfile.TemporaryDirectory() as folder:
        for path in write_slides(Path(folder), slides, seed):
            truths[path.stem] = teller.truth(path)
            name = bucket.removeprefix("s3://")
            client.put_object(Bucket=name, Key=f"slides/{path.name}", Body=path.read_bytes())
            path.unlink()
    client.close()
    teller.close()
    _say(f"{slides} slides, {sum(len(truth.xy) for truth in truths.values())} tiles")
    return truths


def _say(text: str) -> None:
    print(text, file=sys.stderr)
