"""A client of the service: batches, retries with backoff, vectors as float16 on the wire.

    with Client("http://127.0.0.1:8000", token) as client:
        vectors = client.embed(tiles)                       # float32 [N, dim]
        vectors = client.embed_regions("s3://lab-slides/a.svs", xy)

`AsyncClient` is the same with `await`. What the service refuses is raised as the class that it was
refused by; what may succeed later is tried again first.
"""

from __future__ import annotations

import asyncio
import io
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self

import httpx2
import numpy as np
import numpy.typing as npt
from PIL import Image

from ray_pipeline.errors import HistorayError
from serve_app.errors import ServiceError, UnavailableError

Picture = bytes | npt.NDArray[np.uint8]
"""An encoded image, or RGB pixels uint8 [px, px, 3]."""
Vectors = npt.NDArray[np.float32]
Reply = httpx2.Response | httpx2.TransportError
RETRIED = (429, 503)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 10.0
_DTYPES = {"float16": "<f2", "float32": "<f4"}
_BYTES = {"accept": "application/octet-stream"}


class _Talk:
    """What both clients know: requests to send, and what replies mean."""

    def __init__(self, token: str | None, *, model: str | None, batch: int, tries: int) -> None:
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._model, self._batch, self._tries = model, batch, tries

    def _of_images(self, images: Sequence[Picture], *, resize: bool) -> Iterator[dict[str, Any]]:
        params = {"resize": str(resize).lower()}
        if self._model is not None:
            params["model"] = self._model
        for start in range(0, len(images), self._batch):
            part = images[start : start + self._batch]
            files = [("image", (f"{i}", _encoded(image), "")) for i, image in enumerate(part)]
            yield {"url": "/v1/tiles", "files": files, "params": params, "headers": _BYTES}

    def _of_regions(
        self, uri: str, xy: npt.NDArray[np.int32], **said: float | None
    ) -> Iterator[dict[str, Any]]:
        more: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
        if self._model is not None:
            more["model"] = self._model
        for start in range(0, len(xy), self._batch):
            tiles = xy[start : start + self._batch].tolist()
            asked = {"uri": uri, "tiles": tiles, **more}
            yield {"url": "/v1/regions", "json": asked, "headers": _BYTES}

    def _pause_s(self, attempt: int, reply: Reply) -> float | None:
        """Seconds to wait before the next try; None where there is none."""
        if attempt + 1 >= self._tries:
            return None
        said = ""
        if isinstance(reply, httpx2.Response):
            if reply.status_code not in RETRIED and not _from_a_proxy(reply):
                return None
            said = reply.headers.get("retry-after", "")
        backoff = FIRST_PAUSE_S * 2**attempt
        # Spread, so that those who were refused together do not come back together.
        least = float(said) if said.isdigit() else backoff
        return min(LONGEST_PAUSE_S, least * random.uniform(0.75, 1.25))  # noqa: S311


class Client(_Talk):
    """Sync. Used by one thread at a time."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        model: str | None = None,
        batch: int = 64,
        tries: int = 8,
        timeout_s: float = 120,
    ) -> None:
        """`batch` tiles go in one request, which is tried so many times in all."""
        super().__init__(token, model=model, batch=batch, tries=tries)
        self._http = httpx2.Client(base_url=url, headers=self._headers, timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def embed(self, images: Sequence[Picture], *, resize: bool = False) -> Vectors:
        """Vectors float32 [N, dim] of N >= 1 images. Raises the service's errors."""
        return np.concatenate([self._sent(one) for one in self._of_images(images, resize=resize)])

    def embed_regions(
        self,
        uri: str,
        xy: npt.NDArray[np.int32],
        *,
        mpp: float | None = None,
        mpp_override: float | None = None,
    ) -> Vectors:
        """Vectors float32 [N, dim] of a slide's tiles: `xy` int32 [N, 2], level-0 px, N >= 1."""
        requests = self._of_regions(uri, xy, mpp=mpp, mpp_override=mpp_override)
        return np.concatenate([self._sent(request) for request in requests])

    def _sent(self, request: dict[str, Any]) -> Vectors:
        attempt = 0
        while True:
            try:
                reply: Reply = self._http.post(**request)
            except httpx2.TransportError as error:
                reply = error
            if isinstance(reply, httpx2.Response) and reply.status_code == 200:
                return _vectors(reply)
            pause_s = self._pause_s(attempt, reply)
            if pause_s is None:
                raise _error(reply)
            time.sleep(pause_s)
            attempt += 1


class AsyncClient(_Talk):
    """The same for asyncio; requests of one call are sent one after the other."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        model: str | None = None,
        batch: int = 64,
        tries: int = 8,
        timeout_s: float = 120,
    ) -> None:
        """As `Client`."""
        super().__init__(token, model=model, batch=batch, tries=tries)
        self._http = httpx2.AsyncClient(base_url=url, headers=self._headers, timeout=timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def embed(self, images: Sequence[Picture], *, resize: bool = False) -> Vectors:
        """See `Client.embed`."""
        requests = self._of_images(images, resize=resize)
        return np.concatenate([await self._sent(request) for request in requests])

    async def embed_regions(
        self,
        uri: str,
        xy: npt.NDArray[np.int32],
        *,
        mpp: float | None = None,
        mpp_override: float | None = None,
    ) -> Vectors:
        """See `Client.embed_regions`."""
        requests = self._of_regions(uri, xy, mpp=mpp, mpp_override=mpp_override)
        return np.concatenate([await self._sent(request) for request in requests])

    async def _sent(self, request: dict[str, Any]) -> Vectors:
        attempt = 0
        while True:
            try:
                reply: Reply = await self._http.post(**request)
            except httpx2.TransportError as error:
                reply = error
            if isinstance(reply, httpx2.Response) and reply.status_code == 200:
                return _vectors(reply)
            pause_s = self._pause_s(attempt, reply)
            if pause_s is None:
                raise _error(reply)
            await asyncio.sleep(pause_s)
            attempt += 1


def _encoded(image: Picture) -> bytes:
    if isinstance(image, bytes):
        return image
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _vectors(response: httpx2.Response) -> Vectors:
    n, dim, dtype = response.headers["historay-shape"].split(",")
    found = np.frombuffer(response.content, _DTYPES[dtype]).reshape(int(n), int(dim))
    return found.astype(np.float32)


def _error(reply: Reply) -> HistorayError:
    """The error a reply tells of, as the class that the service raised."""
    if isinstance(reply, httpx2.TransportError):
        return UnavailableError(
            f"the service gave no answer ({type(reply).__name__}): check its address, or try later."
        )
    if (words := _words(reply)) is None:
        return ServiceError(f"the server answered {reply.status_code}, and not as this service.")
    kind, message = words
    return _class_of(kind, HistorayError)(message)


def _from_a_proxy(reply: httpx2.Response) -> bool:
    """Whether a proxy says this because who had the request is gone, and not the service itself."""
    return reply.status_code >= 500 and _words(reply) is None


def _words(reply: httpx2.Response) -> tuple[str, str] | None:
    """Type and message of an error, where it is in the service's form."""
    try:
        error = reply.json()["error"]
        return str(error["type"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        return None


def _class_of(kind: str, root: type[HistorayError]) -> type[HistorayError]:
    below = [root]
    while below:
        one = below.pop()
        if one.kind == kind:
            return one
        below.extend(one.__subclasses__())
    return ServiceError
