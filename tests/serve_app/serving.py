"""The service in one process, over the toy encoder or one that the test holds in its hand."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import numpy as np
import numpy.typing as npt
from fastapi import FastAPI
from prometheus_client import Metric
from starlette.types import ASGIApp

from serve_app.api import create_api
from serve_app.auth import Tokens
from serve_app.batching import TileQueue
from serve_app.fleet import Fleet, LocalFleet
from serve_app.metrics import IngressMetrics
from serve_app.replica import EncoderFacts, EncoderReplica, Reply
from serve_app.service import Service
from serve_app.settings import ServiceSettings, service_settings

TOKEN = "token-for-tests-0123456789"
HEADERS = {"authorization": f"Bearer {TOKEN}"}
TOY: dict[str, Any] = {
    "models": [{"encoder": {"model": "toy", "device": "cpu", "batch_size": 8, "precision": "fp32"}}]
}


def service_over(fleet: Fleet, **said: Any) -> Service:
    return Service(settings_of(**said), fleet, IngressMetrics("test"))


def settings_of(**said: Any) -> ServiceSettings:
    return service_settings({**TOY, **said})


def api_over(service: Service) -> FastAPI:
    return create_api(service, Tokens([TOKEN]))


def toy_replica() -> EncoderReplica:
    """Not loaded yet: `reconfigure` it in the loop it is to live in."""
    return EncoderReplica("toy", queue_tiles=2048)


def toy_service(replica: EncoderReplica, **said: Any) -> Service:
    return service_over(LocalFleet({"toy": replica}), **said)


@asynccontextmanager
async def client_of(api: ASGIApp) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(api)
    async with httpx2.AsyncClient(
        transport=transport, base_url="http://service", headers=HEADERS
    ) as client:
        yield client


class HeldFleet:
    """A fleet over a real queue, whose encoder comes back only while `gate` is open."""

    def __init__(self, *, batch_size: int = 4, most_waiting: int = 10_000) -> None:
        self.gate, self.started = threading.Event(), threading.Event()
        self.computed = 0
        self.queue = TileQueue(self._encode, batch_size=batch_size, most_waiting=most_waiting)

    def _encode(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
        self.started.set()
        assert self.gate.wait(30)
        self.computed += len(tiles)
        return np.zeros((len(tiles), 64), np.float16)

    async def busy(self) -> None:
        """Come back when a batch is on the device."""
        assert await asyncio.to_thread(self.started.wait, 30)

    async def embed(self, model: str, tiles: npt.NDArray[np.uint8], *, timeout_s: float) -> Reply:
        embedded = await self.queue.embed(tiles, timeout_s=timeout_s)
        return Reply(vectors=embedded.vectors, fingerprint="held", queue_s=embedded.queue_s)

    async def facts(self, model: str) -> Sequence[EncoderFacts]:
        return []

    async def metrics(self) -> Sequence[Metric]:
        return []


@dataclass(frozen=True)
class ErrorJson:
    """An error's JSON, taken apart; fails where it has another shape."""

    status: int
    type: str
    message: str
    param: str | None

    @classmethod
    def of(cls, response: httpx2.Response) -> ErrorJson:
        body = response.json()
        assert set(body) == {"error"}, body
        error = body["error"]
        assert set(error) == {"type", "message", "param"}, body
        return cls(response.status_code, error["type"], error["message"], error["param"])
