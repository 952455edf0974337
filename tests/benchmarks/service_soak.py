"""Whether anything is lost while the service is updated, drained and shot at.

    python -m tests.benchmarks.service_soak [--quick] [--kills-s SECONDS] [--updates N] [--out FILE]

`historay-serve` runs the toy with two ingress replicas. First it is updated again and again under
load, by turns another precision of the encoder and another number of ingress replicas, of which
one then drains: what its clients, who never try again, were not refused in words must be answered.
Then a replica is killed every 30 s, by turns the encoder's and an ingress, while the package's own
clients go on, each with its retries.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ray_pipeline.encoders.encoder import resolve_precision
from ray_pipeline.errors import HistorayError
from serve_app.client import Client
from tests.benchmarks.report import finish
from tests.serve.running import PNG, TOY, Load, Running, historay_serve
from tests.serve_app.serving import TOKEN

WANTED = {"updates_lost": "<= 0", "updates_taken_up": ">= 1", "kills_success": ">= 0.999"}
PACKAGES = ("ray", "fastapi", "starlette", "uvicorn", "httpx2", "torch")
KILL_EVERY_S = 30.0
BETWEEN_UPDATES = 40
"""Requests answered between two updates."""
CLIENTS, TILES = 3, 4
TITLES = ("ray::ServeReplica:historay:encoder-toy", "ray::ServeReplica:historay:ingress")
"""Of the processes that are killed, by turns."""


def main() -> None:
    """Update, kill, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two of each, for trying it out")
    parser.add_argument("--kills-s", type=float, help="length of the killing; default: 600")
    parser.add_argument("--updates", type=int, help="default: 20")
    parser.add_argument("--out", help="write the report here too")
    asked = parser.parse_args()
    every_s = 10.0 if asked.quick else KILL_EVERY_S
    kills_s = asked.kills_s or (2 * every_s if asked.quick else 600.0)
    updates = asked.updates or (2 if asked.quick else 20)
    with (
        tempfile.TemporaryDirectory() as folder,
        historay_serve(Path(folder), ingress_replicas=2) as running,
    ):
        updated = update(running, updates)
        print(f"updates: {updated}", file=sys.stderr)
        killed = kill(running, every_s, kills_s)
        print(f"kills: {killed}", file=sys.stderr)
    finish(
        "service_soak",
        ratios={
            "updates_lost": updated["lost"],
            "updates_taken_up": updated["taken_up"] / updates,
            "kills_success": killed["successes"] / killed["calls"],
        },
        wanted=WANTED,
        figures={"quick": asked.quick, "updates": updated, "kills": killed},
        packages=PACKAGES,
        out=asked.out,
    )


def update(running: Running, times: int) -> dict[str, Any]:
    """Change the file and send SIGHUP so many times, with load that never tries again."""
    settings = yaml.safe_load(running.config.read_text())
    inherent = resolve_precision("cpu", "auto")
    other = "bf16" if inherent == "fp32" else "fp32"
    precisions, ingresses = itertools.cycle((other, inherent)), itertools.cycle((1, 2))
    taken_up = 0
    with Load(running.url, clients=CLIENTS, tiles=TILES) as load:
        for turn in range(times):
            load.wait_for(BETWEEN_UPDATES)
            before = load.latest
            if turn % 2 == 0:
                encoder = {**TOY["encoder"], "precision": next(precisions)}
                settings["models"][0]["encoder"] = encoder
                taken = partial(_another, load, before)
            else:
                wanted = settings["ingress_replicas"] = next(ingresses)
                taken = partial(_so_many, running, wanted)
            running.config.write_text(yaml.safe_dump(settings))
            running.process.send_signal(signal.SIGHUP)
            taken_up += _within(90, taken)
        load.wait_for(BETWEEN_UPDATES)
    answered = sum(n for outcome, n in load.outcomes.items() if outcome in {"200", "429", "503"})
    return {
        "times": times,
        "taken_up": taken_up,
        "outcomes": dict(load.outcomes),
        "lost": load.outcomes.total() - answered,
    }


def kill(running: Running, every_s: float, seconds: float) -> dict[str, Any]:
    """SIGKILL a replica every `every_s` seconds; what became of the calls meanwhile."""
    calls = Counter[str]()
    longest_s, lock, stop = 0.0, threading.Lock(), threading.Event()

    def call() -> None:
        nonlocal longest_s
        with Client(running.url, TOKEN) as client:
            while not stop.is_set():
                started = time.monotonic()
                try:
                    client.embed([PNG] * TILES)
                    outcome = "success"
                except HistorayError as error:
                    outcome = error.kind
                with lock:
                    calls[outcome] += 1
                    longest_s = max(longest_s, time.monotonic() - started)

    threads = [threading.Thread(target=call) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    kills, began = Counter[str](), time.monotonic()
    for turn, title in zip(range(round(seconds / every_s)), itertools.cycle(TITLES), strict=False):
        time.sleep(max(0.0, began + (turn + 1) * every_s - time.monotonic()))
        with suppress(ProcessLookupError):  # it is still being replaced
            running.kill(title)
            kills[title.rpartition(":")[2]] += 1
    time.sleep(every_s)
    stop.set()
    for thread in threads:
        thread.join()
    return {
        "kills": dict(kills),
        "calls": calls.total(),
        "successes": calls["success"],
        "outcomes": dict(calls),
        "longest_call_s": round(longest_s, 2),
    }


def _another(load: Load, before: str) -> bool:
    """Whether the last reply's encoder is another."""
    return load.latest != before


def _so_many(running: Running, ingresses: int) -> bool:
    """Whether so many ingress replicas tell of themselves."""
    with running.client() as client:
        page = client.get("/metrics").text
    told = {line for line in page.splitlines() if line.startswith("historay_tiles_in_hand{")}
    return len(told) == ingresses


def _within(seconds: float, happened: Callable[[], bool]) -> bool:
    """Whether it happens in that time."""
    give_up_at = time.monotonic() + seconds
    while time.monotonic() < give_up_at:
        if happened():
            return True
        time.sleep(0.5)
    return False


if __name__ == "__main__":
    main()
