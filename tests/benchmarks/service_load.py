"""Load upon a server: closed loops for its capacity, an open loop for its latency."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2
import numpy as np

NO_REPLY = 0
"""Stands for the status of a request whose reply never came."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is sent, again and again."""

    url: str
    tiles: int
    """In one request."""
    options: Mapping[str, Any]
    """Of httpx2's `post`: content or files, and headers."""


@dataclass
class Outcome:
    """What became of a load."""

    seconds: float = 0.0
    """From the first request sent to the last one answered."""
    tiles: int = 0
    """Embedded."""
    statuses: Counter[int] = field(default_factory=Counter)
    latencies_s: dict[int, list[float]] = field(default_factory=dict)
    """By status."""
    embedded_at: list[float] = field(default_factory=list)
    """Of each request that was embedded, seconds since the first one was sent."""

    def percentile(self, share: float, *statuses: int) -> float:
        """Of the latencies of these statuses, seconds; NaN without any."""
        found = [s for status in statuses for s in self.latencies_s.get(status, [])]
        return float(np.quantile(found, share)) if found else math.nan

    def note(self, status: int, seconds: float, tiles: int, at: float) -> None:
        """One request was answered, `at` seconds after the first one was sent."""
        self.statuses[status] += 1
        self.latencies_s.setdefault(status, []).append(seconds)
        if status == 200:
            self.tiles += tiles
            self.embedded_at.append(at)

    def steady_per_s(self, batch: int, start: float, stop: float) -> float:
        """Requests per second between two answers within `start` to `stop`, whole batches apart.

        Answers come in batches: between any two moments it is by chance one more or less.
        """
        seen = [at for at in sorted(self.embedded_at) if start <= at < stop]
        count = (len(seen) - 1) // batch * batch
        assert count > 0, self.statuses
        return count / (seen[count] - seen[0])


def closed_loop(asked: Asked, *, clients: int, seconds: float) -> Outcome:
    """So many clients, each sending the next request when the last is answered."""
    return asyncio.run(_closed(asked, clients, seconds))


def open_loop(asked: Asked, *, per_s: float, seconds: float) -> Outcome:
    """Requests at random (Poisson) moments, whether the last ones are answered or not."""
    return asyncio.run(_open(asked, per_s, seconds))


async def _closed(asked: Asked, clients: int, seconds: float) -> Outcome:
    outcome, started = Outcome(), time.perf_counter()
    async with _client() as client:

        async def one() -> None:
            while time.perf_counter() - started < seconds:
                await _send(client, asked, outcome, started)

        await asyncio.gather(*(one() for _ in range(clients)))
    outcome.seconds = time.perf_counter() - started
    return outcome


async def _open(asked: Asked, per_s: float, seconds: float) -> Outcome:
    outcome, started = Outcome(), time.perf_counter()
    rng = np.random.default_rng(0)
    moments = np.cumsum(rng.exponential(1 / per_s, max(1, round(per_s * seconds))))
    async with _client() as client:
        sent = []
        for moment in moments:
            await asyncio.sleep(max(0.0, started + moment - time.perf_counter()))
            sent.append(asyncio.create_task(_send(client, asked, outcome, started)))
        await asyncio.gather(*sent)
    outcome.seconds = time.perf_counter() - started
    return outcome


def _client() -> httpx2.AsyncClient:
    limits = httpx2.Limits(max_connections=2000, max_keepalive_connections=200)
    return httpx2.AsyncClient(timeout=120, limits=limits)


async def _send(
    client: httpx2.AsyncClient, asked: Asked, outcome: Outcome, load_started: float
) -> None:
    started = time.perf_counter()
    try:
        status = (await client.post(asked.url, **asked.options)).status_code
    except httpx2.TransportError:
        status = NO_REPLY
    ended = time.perf_counter()
    outcome.note(status, ended - started, asked.tiles, ended - load_started)
