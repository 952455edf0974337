"""A replica changes its encoder between requests, never within one."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest

from ray_pipeline.encoders.encoder import Encoder
from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.encoders.weights import resolve_weights
from ray_pipeline.errors import SettingsError
from serve_app.replica import Reply, fingerprint_of
from tests.serve_app.pictures import random_tiles
from tests.serve_app.serving import toy_replica

EXACT = {"model": "toy", "device": "cpu", "batch_size": 4, "precision": "fp32"}
ROUNDED = {**EXACT, "precision": "bf16"}


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(coroutine)


def test_an_update_under_load_loses_nothing_and_mixes_nothing() -> None:
    tiles = random_tiles(10)
    spec = get_spec("toy")
    expected = {}
    for settings in (EXACT, ROUNDED):
        encoder = Encoder(
            spec,
            resolve_weights(spec, None),
            device="cpu",
            batch_size=4,
            precision=settings["precision"],  # type: ignore[arg-type]
        )
        expected[fingerprint_of(encoder.identity)] = encoder.encode(tiles)

    async def scenario() -> None:
        replica = toy_replica()
        await replica.reconfigure(EXACT)
        done = asyncio.Event()
        seen: list[str] = []

        async def load() -> None:
            while not done.is_set():
                reply = await replica.embed(tiles)
                assert isinstance(reply, Reply)
                assert (reply.vectors == expected[reply.fingerprint]).all()
                seen.append(reply.fingerprint)

        loads = [asyncio.create_task(load()) for _ in range(3)]
        for settings in (ROUNDED, EXACT, ROUNDED):
            await replica.reconfigure(settings)
            await replica.updated()
            already = len(seen)
            while len(seen) < already + 6:
                await asyncio.sleep(0.005)
        done.set()
        await asyncio.gather(*loads)
        assert set(seen) == set(expected)
        facts = await replica.facts()
        assert facts is not None
        assert facts.identity.precision == "bf16"
        await replica.close()

    run(scenario())


def test_an_update_that_fails_leaves_the_old_encoder() -> None:
    async def scenario() -> None:
        replica = toy_replica()
        await replica.reconfigure(EXACT)
        before = await replica.facts()
        await replica.reconfigure({**EXACT, "weights": "/nowhere/model.safetensors"})
        await replica.updated()
        assert await replica.facts() == before
        assert isinstance(await replica.embed(random_tiles(1)), Reply)
        (failed,) = [m for m in await replica.metrics() if m.name == "historay_failed_updates"]
        assert [s.value for s in failed.samples if s.name.endswith("_total")] == [1.0]
        with pytest.raises(SettingsError, match="'precison': is no known key"):
            await replica.reconfigure({**EXACT, "precison": "fp32"})
        with pytest.raises(SettingsError, match="under a name of its own"):
            await replica.reconfigure({**EXACT, "model": "h-optimus-0"})
        await replica.close()

    run(scenario())


def test_a_device_that_failed_makes_the_replica_unhealthy() -> None:
    async def scenario() -> None:
        replica = toy_replica()
        await replica.reconfigure(EXACT)
        replica.check_health()
        # Tiles of a size the encoder refuses stand for any error of the device.
        answer = await replica.embed(np.zeros((1, 8, 8, 3), np.uint8))
        assert not isinstance(answer, Reply)
        assert answer.kind == "encoder-failed"
        with pytest.raises(type(answer)):
            replica.check_health()
        await replica.close()

    run(scenario())
