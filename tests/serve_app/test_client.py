"""The client: the service's vectors, its errors by class, and patience where it helps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace

import httpx2
import numpy as np
import numpy.typing as npt
import pytest
from starlette.testclient import TestClient

from ray_pipeline.errors import NotFoundError
from serve_app.client import AsyncClient, Client
from serve_app.errors import (
    ForbiddenUriError,
    ImageError,
    OverloadedError,
    ServiceError,
    UnavailableError,
)
from tests.serve_app.conftest import BatchSlide
from tests.serve_app.pictures import encoded, random_tiles


@pytest.fixture
def ours(client: TestClient) -> Client:
    """Our client, over the application in this process."""
    made = Client("http://testserver", batch=20)
    made._http = client
    return made


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were taken, without their length."""
    taken: list[float] = []

    async def pause(seconds: float) -> None:
        taken.append(seconds)

    # The client's names, not the modules' functions: Jupyter's client leaves a thread that sleeps.
    monkeypatch.setattr("serve_app.client.time", SimpleNamespace(sleep=taken.append))
    monkeypatch.setattr("serve_app.client.asyncio", SimpleNamespace(sleep=pause))
    return taken


Reply = Callable[[], httpx2.Response]


def answering(*replies: Reply) -> httpx2.MockTransport:
    """A transport that gives these replies, one after the other, and the last one for ever."""
    left = list(replies)

    def answer(request: httpx2.Request) -> httpx2.Response:
        return (left.pop(0) if len(left) > 1 else left[0])()

    return httpx2.MockTransport(answer)


def refusal(status: int, kind: str, retry_after: str = "1") -> Reply:
    body = {"error": {"type": kind, "message": "why.", "param": None}}
    return lambda: httpx2.Response(status, json=body, headers={"retry-after": retry_after})


def lost(error: type[httpx2.TransportError]) -> Reply:
    def answer() -> httpx2.Response:
        raise error("gone")

    return answer


def gone() -> httpx2.Response:
    """What Ray Serve's proxy says for a replica that died over the request."""
    return httpx2.Response(500, text="Internal Server Error")


def vectors() -> httpx2.Response:
    headers = {"historay-shape": "1,2,float16"}
    return httpx2.Response(200, content=np.array([1, 2], "<f2").tobytes(), headers=headers)


def test_it_gives_the_vectors_of_the_batch_job(ours: Client, slide: BatchSlide) -> None:
    expected = slide.vectors[:45].astype(np.float32)
    assert len(expected) == 45
    pictures = [tile if index % 2 else encoded(tile) for index, tile in enumerate(slide.tiles[:45])]
    found = ours.embed(pictures)
    assert found.dtype == np.float32
    assert (found == expected).all()
    assert (ours.embed_regions(f"file://{slide.path}", slide.xy[:45]) == expected).all()


def test_what_the_service_refuses_is_raised_as_what_it_was(ours: Client, slide: BatchSlide) -> None:
    with pytest.raises(ImageError, match="223 x 223 px"):
        ours.embed([random_tiles(1, 223)[0]])
    with pytest.raises(ForbiddenUriError):
        ours.embed_regions("s3://other/a.svs", slide.xy[:1])
    with pytest.raises(NotFoundError):
        ours.embed_regions(f"file://{slide.path.parent}/none.svs", slide.xy[:1])


@pytest.mark.parametrize("is_async", [False, True])
def test_it_comes_back_when_it_is_told_to(no_pauses: list[float], *, is_async: bool) -> None:
    transport = answering(
        refusal(429, "overloaded", "4"),
        lost(httpx2.ConnectError),
        refusal(503, "unavailable"),
        gone,
        vectors,
    )
    assert embedded(transport, tries=5, is_async=is_async).tolist() == [[1, 2]]
    assert len(no_pauses) == 4
    assert 3 <= no_pauses[0] <= 5


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("reply", "error", "pauses"),
    [
        (refusal(429, "overloaded"), OverloadedError, 2),
        (lost(httpx2.ReadError), UnavailableError, 2),
        (refusal(422, "bad-image"), ImageError, 0),
        (refusal(500, "service"), ServiceError, 0),
        (lambda: httpx2.Response(404, text="Not Found"), ServiceError, 0),
    ],
)
def test_it_gives_up_in_the_end_and_at_once_where_it_must(
    no_pauses: list[float],
    reply: Reply,
    error: type[Exception],
    pauses: int,
    *,
    is_async: bool,
) -> None:
    with pytest.raises(error):
        embedded(answering(reply), tries=3, is_async=is_async)
    assert len(no_pauses) == pauses


def embedded(
    transport: httpx2.MockTransport, *, tries: int, is_async: bool
) -> npt.NDArray[np.float32]:
    if not is_async:
        with Client("http://service", "token", tries=tries) as sync:
            sync._http = httpx2.Client(transport=transport, base_url="http://service")
            return sync.embed([b"image"])

    async def scenario() -> npt.NDArray[np.float32]:
        async with AsyncClient("http://service", "token", tries=tries) as made:
            made._http = httpx2.AsyncClient(transport=transport, base_url="http://service")
            return await made.embed([b"image"])

    return asyncio.run(scenario())
