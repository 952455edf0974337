"""How much of its encoder the service delivers, and how fast, against LitServe and @serve.batch.

    python -m tests.benchmarks.service [--quick] [--overload-s SECONDS] [--out FILE]

On two cores: in every server the encoder computes in one thread on core 0, which is the device, and
all else (proxy, ingress, decoding, Ray, the load's own client) shares core 1. A server's tiles per
second are divided by those of the same encoder alone, on core 0 with nothing beside it. Servers are
measured one after the other in processes of their own, with requests of one JPEG tile each, in
rounds; the encoder alone before and after each.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2

from tests.benchmarks.mid_model import BATCH, IN_HAND, MID, OTHER_CPUS
from tests.benchmarks.report import finish
from tests.benchmarks.service_load import Asked, Outcome, closed_loop, open_loop
from tests.serve_app.pictures import encoded, random_tiles
from tests.servers.s3 import free_port

WANTED = {
    "service_over_encoder": ">= 0.85",
    "service_over_litserve": "> 1",
    "service_over_serve_batch": "> 1",
    "p99_half_load_over_batch": "<= 3",
    "overload_p99_rejection_s": "<= 0.1",
    "overload_rss_growth": "<= 0.05",
    "overload_p50_after_over_before": "<= 1.5",
}
PACKAGES = ("ray", "fastapi", "starlette", "uvicorn", "litserve", "httpx2", "torch", "timm")
PATHS = {"historay": "/v1/tiles", "litserve": "/predict", "serve_batch": "/"}
HEALTH = {"historay": "/ready", "litserve": "/health", "serve_batch": "/-/healthz"}
JPEG = encoded(random_tiles(1)[0], "JPEG")
CLIENTS = 4 * BATCH
LOADS = (0.25, 0.5, 1.0, 2.0)
OVERLOAD, OVERLOAD_TILES = 10, 64
ROUNDS = 4
"""In which each server is started and measured; a ratio is the median of theirs."""


def main() -> None:
    """Measure each server, then report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="the toy, a few seconds each, for trying it"
    )
    parser.add_argument("--overload-s", type=float, default=60, help="length of the overload")
    parser.add_argument("--out", help="write the report here too")
    asked = parser.parse_args()
    os.sched_setaffinity(0, OTHER_CPUS)
    seconds, overload_s = (4.0, 5.0) if asked.quick else (24.0, asked.overload_s)
    figures: dict[str, Any] = {"quick": asked.quick, "seconds": seconds, "batch": BATCH}
    ratios: dict[str, float] = {}
    judged = "toy" if asked.quick else MID
    for model in dict.fromkeys((judged, "toy")):
        rounds = 1 if asked.quick or model != judged else ROUNDS
        found = measured(
            model, seconds, rounds=rounds, overload_s=overload_s if model == judged else 0
        )
        figures[model] = found
        # The toy is so light that HTTP is the work: its ratios tell of that, and have no bound.
        if model == judged:
            ratios = found.pop("ratios")
        print(f"{model}: {json.dumps(found)}", file=sys.stderr)
    finish(
        "service", ratios=ratios, wanted=WANTED, figures=figures, packages=PACKAGES, out=asked.out
    )


def measured(model: str, seconds: float, *, rounds: int, overload_s: float) -> dict[str, Any]:
    """All servers with one model, in rounds, and what ours does under loads of all sizes."""
    alone = [encoder_alone(model)]
    per_s: dict[str, list[float]] = {kind: [] for kind in PATHS}
    for turn in range(rounds):
        # There and back again, so that a machine that becomes slower or faster favours none.
        for kind in list(PATHS)[:: -1 if turn % 2 else 1]:
            with server(kind, model) as (url, _):
                per_s[kind].append(saturated(one_tile(url, kind), seconds))
        alone.append(encoder_alone(model))
    figures: dict[str, Any] = {}
    ours = per_s["historay"]
    beside = [statistics.mean(pair) for pair in pairwise(alone)]
    ratios = {
        "service_over_encoder": _median_over(ours, beside),
        "service_over_litserve": _median_over(ours, per_s["litserve"]),
        "service_over_serve_batch": _median_over(ours, per_s["serve_batch"]),
    }
    with server("historay", model) as (url, pid):
        asked = one_tile(url, "historay")
        per_tile_s = 1 / saturated(asked, seconds)
        figures["loads"] = loads(asked, 1 / per_tile_s, seconds)
        half = figures["loads"]["0.5"]["p99_s"]
        ratios["p99_half_load_over_batch"] = half / (BATCH * per_tile_s)
        if overload_s:
            ratios |= overloaded(url, pid, 1 / per_tile_s, overload_s)
    return {"ratios": ratios, "encoder_tiles_per_s": alone, "tiles_per_s": per_s, **figures}


def saturated(asked: Asked, seconds: float) -> float:
    """tiles/s of a server with more clients than a few batches, once as many wait as ever will."""
    closed_loop(asked, clients=CLIENTS, seconds=seconds / 4)
    warm_s = seconds / 6
    outcome = closed_loop(asked, clients=CLIENTS, seconds=warm_s + seconds)
    return outcome.steady_per_s(BATCH, warm_s, warm_s + seconds)


def _median_over(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(our / their for our, their in zip(ours, theirs, strict=True))


def loads(asked: Asked, capacity: float, seconds: float) -> dict[str, Any]:
    """Open loops below and above the capacity, and how full the batches were."""
    found = {}
    for share in LOADS:
        before = batches(asked.url)
        outcome = open_loop(asked, per_s=share * capacity, seconds=seconds)
        after = batches(asked.url)
        count, total = (now - then for now, then in zip(after, before, strict=True))
        found[f"{share:g}"] = {**shown(outcome), "batch_fill": total / count if count else 0.0}
    return found


def overloaded(url: str, pid: int, capacity: float, seconds: float) -> dict[str, float]:
    """Ten times the capacity, in large requests; and back to normal."""
    single = one_tile(url, "historay")
    many = Asked(url=single.url, tiles=OVERLOAD_TILES, options=form_of(OVERLOAD_TILES))
    before = open_loop(single, per_s=capacity / 4, seconds=10)
    per_s = OVERLOAD * capacity / OVERLOAD_TILES
    # Long enough to fill what may be in hand twice over.
    seconds = max(seconds, 2 * IN_HAND / (OVERLOAD * capacity))
    open_loop(many, per_s=per_s, seconds=seconds / 4)
    rss = rss_bytes(pid)
    outcome = open_loop(many, per_s=per_s, seconds=seconds)
    growth = rss_bytes(pid) / rss - 1
    assert set(outcome.statuses) <= {200, 429, 503}, outcome.statuses
    time.sleep(5)
    after = open_loop(single, per_s=capacity / 4, seconds=10)
    print(f"overload: {json.dumps(shown(outcome))}", file=sys.stderr)
    return {
        "overload_p99_rejection_s": outcome.percentile(0.99, 429),
        "overload_rss_growth": growth,
        "overload_p50_after_over_before": after.percentile(0.5, 200) / before.percentile(0.5, 200),
    }


def one_tile(url: str, kind: str) -> Asked:
    if kind == "litserve":
        image = base64.b64encode(JPEG).decode()
        return Asked(url=url + PATHS[kind], tiles=1, options={"json": {"image": image}})
    headers = {"content-type": "image/jpeg", "accept": "application/octet-stream"}
    options = {"content": JPEG, "headers": headers}
    return Asked(url=url + PATHS[kind], tiles=1, options=options)


def form_of(tiles: int) -> dict[str, Any]:
    """A request's body, made once: its making is no part of a reply's time."""
    files = [("image", ("tile.jpg", JPEG, "image/jpeg"))] * tiles
    form = httpx2.Request("POST", "http://localhost", files=files)
    return {"content": form.read(), "headers": {"content-type": form.headers["content-type"]}}


def shown(outcome: Outcome) -> dict[str, Any]:
    return {
        "tiles_per_s": round(outcome.tiles / outcome.seconds, 2),
        "statuses": {str(status): n for status, n in sorted(outcome.statuses.items())},
        "p50_s": round(outcome.percentile(0.5, 200), 4),
        "p99_s": round(outcome.percentile(0.99, 200), 4),
    }


def batches(tiles_url: str) -> tuple[float, float]:
    """Batches so far, and the sum of their fills."""
    lines = httpx2.get(tiles_url.removesuffix(PATHS["historay"]) + "/metrics").text.splitlines()
    name = "historay_batch_fill"
    count, total = (
        sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}_{what}"))
        for what in ("count", "sum")
    )
    return count, total


def encoder_alone(model: str) -> float:
    command = [sys.executable, "-m", "tests.benchmarks.service_peers", "encoder", model, "0"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


@contextmanager
def server(kind: str, model: str) -> Iterator[tuple[str, int]]:
    """A server in processes of its own: its URL, and the process they all descend from."""
    port = free_port()
    command = [sys.executable, "-m", "tests.benchmarks.service_peers", kind, model, str(port)]
    env = {**os.environ, "RAY_ADDRESS": "", "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen(command, env=env, stdout=sys.stderr, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            if answers(url + HEALTH[kind]):
                break
            if process.poll() is not None:
                raise RuntimeError(f"{kind} ended before it answered")
            time.sleep(0.5)
        yield url, process.pid
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        # LitServe leaves its workers behind.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


def rss_bytes(ancestor: int) -> int:
    """Resident memory of Ray Serve's replicas and proxies below `ancestor`."""
    total = 0
    for pid in descendants(ancestor):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            continue
        if title.startswith((b"ray::ServeReplica", b"ray::ProxyActor")):
            total += pages * os.sysconf("SC_PAGE_SIZE")
    return total


def descendants(ancestor: int) -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int(
                    (entry / "stat").read_text().rpartition(")")[2].split()[1]
                )
            except OSError:
                continue
    below, found = [ancestor], []
    while below:
        parent = below.pop()
        children = [pid for pid, above in parents.items() if above == parent]
        found.extend(children)
        below.extend(children)
    return found


if __name__ == "__main__":
    main()
