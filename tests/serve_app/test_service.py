"""Under load and at its end: bounded and prompt, and what nobody waits for is not computed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import httpx2
import numpy as np
import pytest
from starlette.types import Message, Receive, Scope, Send

from serve_app.service import Service
from tests.serve_app.pictures import encoded, random_tiles
from tests.serve_app.serving import (
    HEADERS,
    TOY,
    ErrorJson,
    HeldFleet,
    api_over,
    client_of,
    service_over,
    toy_replica,
    toy_service,
)

PNG = encoded(random_tiles(1)[0])
IMAGE = {"content-type": "image/png"}


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(coroutine)


async def sent(client: httpx2.AsyncClient, n: int = 1) -> httpx2.Response:
    files = [("image", (f"{i}.png", PNG, "image/png")) for i in range(n)]
    return await client.post("/v1/tiles", files=files)


async def until_in_hand(service: Service, tiles: int) -> None:
    while service.tiles.held != tiles:
        await asyncio.sleep(0.005)


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield bytes(4096)
        await asyncio.sleep(0)


async def slow() -> AsyncIterator[bytes]:
    yield PNG[:100]
    await asyncio.sleep(60)
    yield PNG[100:]


def test_who_comes_while_another_s_body_takes_the_room_is_told_at_the_door() -> None:
    async def scenario() -> None:
        fleet = HeldFleet()
        fleet.gate.set()
        service = service_over(fleet, limits={"tiles_in_hand": 6, "request_tiles": 6})
        async with client_of(api_over(service)) as client:
            assert (await sent(client, 4)).status_code == 200  # now it is known how large tiles are
            form = client.build_request(
                "POST",
                "/v1/tiles",
                files=[("image", (f"{i}.png", PNG, "image/png")) for i in range(4)],
            )
            headers = {name: form.headers[name] for name in ("content-type", "content-length")}
            body, first, second = form.read(), asyncio.Event(), asyncio.Event()

            def coming(arrived: asyncio.Event) -> asyncio.Task[httpx2.Response]:
                async def late() -> AsyncIterator[bytes]:
                    yield body[:100]
                    await arrived.wait()
                    yield body[100:]

                return asyncio.create_task(
                    client.post("/v1/tiles", content=late(), headers=headers)
                )

            enough = coming(first)
            await until_in_hand(service, 4)
            short = coming(second)  # gets what is left, which may yet be enough
            await until_in_hand(service, 6)
            refused = await client.post("/v1/tiles", content=endless(), headers=headers)
            assert refused.status_code == 429
            second.set()
            assert (await short).status_code == 429
            assert service.tiles.held == 4
            first.set()
            assert (await enough).status_code == 200
            assert service.tiles.held == 0

    run(scenario())


def test_nobody_is_refused_for_the_small_tiles_of_others() -> None:
    async def scenario() -> None:
        fleet = HeldFleet()
        fleet.gate.set()
        service = service_over(fleet, limits={"tiles_in_hand": 6, "request_tiles": 6})
        small = encoded(np.zeros((224, 224, 3), np.uint8))
        assert 6 * len(small) < len(PNG)
        async with client_of(api_over(service)) as client:
            files = [("image", ("black.png", small, "image/png"))] * 6
            assert (await client.post("/v1/tiles", files=files)).status_code == 200
            with service.tiles.hold(1):
                assert (await sent(client, 2)).status_code == 200

    run(scenario())


def test_who_comes_past_the_bound_is_told_at_once_and_when_to_come_back() -> None:
    async def scenario() -> None:
        fleet = HeldFleet()
        service = service_over(fleet, limits={"tiles_in_hand": 6, "request_tiles": 6})
        async with client_of(api_over(service)) as client:
            first = asyncio.create_task(sent(client, 4))
            await until_in_hand(service, 4)
            for n in (3, 6):
                refused = await sent(client, n)
                assert ErrorJson.of(refused).type == "overloaded"
                assert refused.status_code == 429
                assert int(refused.headers["retry-after"]) >= 1
            second = asyncio.create_task(sent(client, 2))
            await until_in_hand(service, 6)
            # Full: refused before a byte of an endless body is looked at.
            refused = await client.post("/v1/tiles", content=endless(), headers=IMAGE)
            assert refused.status_code == 429
            assert not first.done()
            fleet.gate.set()
            assert [(await first).status_code, (await second).status_code] == [200, 200]
            assert service.tiles.held == 0
            assert (await sent(client, 6)).status_code == 200

    run(scenario())


def test_bodies_in_hand_are_bounded_together() -> None:
    async def scenario() -> None:
        limits = {"body_bytes": 4096, "bytes_in_hand": 6000, "body_s": 0.3}
        service = service_over(HeldFleet(), limits=limits)
        async with client_of(api_over(service)) as client:
            first = asyncio.create_task(client.post("/v1/tiles", content=slow(), headers=IMAGE))
            while service.bytes.held != 4096:
                await asyncio.sleep(0.005)
            refused = await client.post("/v1/tiles", content=bytes(2000), headers=IMAGE)
            assert ErrorJson.of(refused).status == 429
            error = ErrorJson.of(await first)
            assert (error.status, error.type) == (408, "slow-body")
            assert service.bytes.held == 0

    run(scenario())


@pytest.mark.parametrize("path", ["/v1/tiles", "/v1/embeddings", "/v1/regions"])
def test_a_large_body_is_cut_off(path: str) -> None:
    async def scenario() -> None:
        service = service_over(HeldFleet(), limits={"body_bytes": 100_000})
        headers = IMAGE if path == "/v1/tiles" else {"content-type": "application/json"}
        async with client_of(api_over(service)) as client:
            for content in (endless(), bytes(100_001)):
                error = ErrorJson.of(await client.post(path, content=content, headers=headers))
                assert (error.status, error.type) == (413, "body-too-large")
            assert service.bytes.held == 0

    run(scenario())


def test_a_request_whose_time_is_up_is_not_computed() -> None:
    async def scenario() -> None:
        fleet = HeldFleet(batch_size=2)
        service = service_over(fleet, limits={"request_s": 0.3})
        async with client_of(api_over(service)) as client:
            responses = await asyncio.gather(sent(client, 2), sent(client, 5))
            for response in responses:
                assert ErrorJson.of(response).type == "deadline"
                assert response.status_code == 503
                assert "retry-after" in response.headers
            fleet.gate.set()
            await fleet.queue.drain()
            assert fleet.computed == 2, "the batch that was on the device, and no other"

    run(scenario())


def test_a_request_whose_client_went_away_is_not_computed() -> None:
    async def scenario() -> None:
        fleet = HeldFleet(batch_size=2)
        service = service_over(fleet)
        api = api_over(service)
        async with client_of(api) as client:
            first = asyncio.create_task(sent(client))
            await fleet.busy()
            gone = asyncio.Event()
            messages: list[Message] = [{"type": "http.request", "body": PNG}]

            async def receive() -> Message:
                if messages:
                    return messages.pop()
                await gone.wait()
                return {"type": "http.disconnect"}

            async def send(message: Message) -> None:
                pass

            headers = [(k.encode(), v.encode()) for k, v in {**HEADERS, **IMAGE}.items()]
            scope = {
                "type": "http",
                "method": "POST",
                "path": "/v1/tiles",
                "raw_path": b"/v1/tiles",
                "query_string": b"",
                "headers": headers,
            }
            leaving = asyncio.create_task(api(scope, receive, send))
            await until_in_hand(service, 2)
            while fleet.queue.waiting != 1:
                await asyncio.sleep(0.005)
            gone.set()
            await leaving
            assert (service.tiles.held, fleet.queue.waiting) == (1, 0)
            fleet.gate.set()
            assert (await first).status_code == 200
            assert fleet.computed == 1
            text = (await client.get("/metrics")).text
            assert 'cause="client-gone"' in text

    run(scenario())


def test_draining_answers_what_was_accepted_and_refuses_the_rest() -> None:
    async def scenario() -> None:
        fleet = HeldFleet()
        service = service_over(fleet)
        async with client_of(api_over(service)) as client:
            accepted = [asyncio.create_task(sent(client, 3)) for _ in range(4)]
            await until_in_hand(service, 12)
            draining = asyncio.create_task(service.drain())
            await asyncio.sleep(0)
            refused = await sent(client)
            assert ErrorJson.of(refused).type == "unavailable"
            assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
            ready = await client.get("/ready")
            assert (ready.status_code, ready.json()) == (503, {"status": "draining"})
            assert (await client.get("/health")).status_code == 200
            assert not draining.done()
            fleet.gate.set()
            assert [(await task).status_code for task in accepted] == [200] * 4
            await draining

    run(scenario())


def test_draining_lasts_until_the_last_reply_has_been_sent() -> None:
    async def scenario() -> None:
        fleet, sends = HeldFleet(), asyncio.Event()
        service = service_over(fleet)
        api = api_over(service)

        async def held(scope: Scope, receive: Receive, send: Send) -> None:
            async def late(message: Message) -> None:
                await sends.wait()
                await send(message)

            await api(scope, receive, late)

        async with client_of(held) as client:
            accepted = asyncio.create_task(sent(client))
            await until_in_hand(service, 1)
            draining = asyncio.create_task(service.drain())
            fleet.gate.set()
            while service.tiles.held:
                await asyncio.sleep(0)
            await asyncio.sleep(0.05)
            assert not draining.done()
            sends.set()
            assert (await accepted).status_code == 200
            assert 0 <= await draining < 60
            assert await toy_service(toy_replica()).drain() > 60, "no reply is on its way"

    run(scenario())


def test_it_is_ready_once_the_model_is_loaded_and_not_before() -> None:
    async def scenario() -> None:
        replica = toy_replica()
        service = toy_service(replica)
        async with client_of(api_over(service)) as client:
            starting = await client.get("/ready")
            assert (starting.status_code, starting.json()) == (503, {"status": "starting"})
            early = await sent(client)
            assert (early.status_code, "retry-after" in early.headers) == (503, True)
        await replica.reconfigure(TOY["models"][0]["encoder"])
        async with client_of(api_over(toy_service(replica))) as client:
            assert (await client.get("/ready")).json() == {"status": "ok"}
            assert (await sent(client)).status_code == 200
        await replica.close()

    run(scenario())


def test_an_encoder_that_fails_is_said_to_be_replaced() -> None:
    async def scenario() -> None:
        fleet = HeldFleet()
        fleet.gate.wait = _broken  # type: ignore[method-assign]
        service = service_over(fleet)
        async with client_of(api_over(service)) as client:
            error = ErrorJson.of(await sent(client))
            assert (error.status, error.type) == (503, "encoder-failed")
            assert "secret" not in error.message

    run(scenario())


def _broken(timeout: float | None = None) -> bool:
    raise RuntimeError("device lost at secret address")
