"""What happens between a request's bytes and its vectors. Knows neither routes nor Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Scope

from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.encoders.spec import ModelSpec
from serve_app.admission import Budget, Guesses
from serve_app.bodies import (
    check_media_type,
    declared_bytes,
    decoded_inputs,
    form_images,
    media_type_of,
    parse_json,
    read_body,
    require_json,
    said_bytes,
    too_many,
    while_connected,
)
from serve_app.errors import (
    BadRequestError,
    ImageError,
    MediaTypeError,
    OverloadedError,
    UnavailableError,
    UnknownModelError,
)
from serve_app.fleet import Fleet
from serve_app.images import claimed_px, decode_tile
from serve_app.metrics import IngressMetrics
from serve_app.regions import RegionReader
from serve_app.replica import EncoderFacts
from serve_app.replies import Vectors
from serve_app.schemas import EmbeddingRequest, RegionRequest, Source
from serve_app.settings import ServiceSettings

T = TypeVar("T")
Settle = Callable[[int, int], None]
"""(tiles, bytes of the body): what a request turned out to hold. Raises OverloadedError."""
_ACCEPTED = "historay.accepted"
"""Stands in the scope of a request that is to get a reply before the service stops."""
FACTS_FRESH_S = 1.0
"""How long what replicas told is taken as so: probes then cost a replica one call a second."""


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model as clients know it."""

    name: str
    """What they write."""
    spec: ModelSpec
    """What it is."""


class Service:
    """One ingress: what it has in hand, what it reads, and the encoders behind it."""

    def __init__(self, settings: ServiceSettings, fleet: Fleet, metrics: IngressMetrics) -> None:
        self.settings, self.fleet, self.metrics = settings, fleet, metrics
        self.models = {
            model.served_as: ServedModel(name=model.served_as, spec=get_spec(model.encoder.model))
            for model in settings.models
        }
        limits = settings.limits
        self.tiles = Budget(limits.tiles_in_hand, "tiles in hand")
        self.bytes = Budget(limits.bytes_in_hand, "bytes in hand")
        self._guesses: dict[str, Guesses] = {}
        self.regions = RegionReader(settings.regions)
        metrics.watch_in_hand(lambda: self.tiles.held)
        self._threads = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        self._in_hand, self._answered_at = 0, float("-inf")
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False
        self._facts: dict[str, tuple[float, Sequence[EncoderFacts]]] = {}
        self._asking = asyncio.Lock()

    def model(self, name: str | None) -> ServedModel:
        """The model of this name, or the first. Raises UnknownModelError."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise UnknownModelError(
                f"no model of this name is served here: there are {', '.join(self.models)}."
            )
        return self.models[name]

    async def embed_inputs(self, request: Request) -> tuple[EmbeddingRequest, Vectors]:
        """`POST /v1/embeddings`."""
        require_json(request.headers)

        def images_of(body: bytes) -> tuple[EmbeddingRequest, ServedModel, list[bytes]]:
            asked = parse_json(EmbeddingRequest, body)
            model = self.model(asked.model)
            if asked.dimensions not in (None, model.spec.dim):
                raise BadRequestError(
                    f"'dimensions': vectors of {model.name} have {model.spec.dim} numbers, and are "
                    "never cut: leave it out."
                )
            inputs = [asked.input] if isinstance(asked.input, str) else asked.input
            self._check_count(len(inputs))
            return asked, model, decoded_inputs(inputs)

        with self._entered(request, "inputs") as (give_up_at, settle):
            with self.bytes.hold(declared_bytes(request, self.settings.limits)):
                body = await read_body(request, self.settings.limits)
                asked, model, images = await self._in_thread(lambda: images_of(body))
                settle(len(images), len(body))
                tiles = await self._decoded(images, model.spec, "input", resize=asked.resize)
            return asked, await while_connected(request, self._embedded(model, tiles, give_up_at))

    async def embed_images(
        self, request: Request, model_name: str | None, *, resize: bool
    ) -> Vectors:
        """`POST /v1/tiles`: one raw image, or a form of many."""
        model = self.model(model_name)
        headers = Headers(raw=request.headers.raw)
        media_type = media_type_of(headers)
        if media_type != "multipart/form-data":
            if not media_type:
                raise MediaTypeError("no Content-Type: send that of the image.")
            check_media_type(media_type, "the body")
        of_many = media_type == "multipart/form-data"
        with self._entered(request, "form" if of_many else None) as (give_up_at, settle):
            with self.bytes.hold(declared_bytes(request, self.settings.limits)):
                body = await read_body(request, self.settings.limits)
                images = [body]
                if of_many:
                    most = self.settings.limits.request_tiles
                    images = await self._in_thread(lambda: form_images(body, headers, most))
                settle(len(images), len(body))
                tiles = await self._decoded(images, model.spec, "image", resize=resize)
            return await while_connected(request, self._embedded(model, tiles, give_up_at))

    async def embed_regions(self, request: Request) -> Vectors:
        """`POST /v1/regions`."""
        require_json(request.headers)
        with self._entered(request, "regions") as (give_up_at, settle):
            with self.bytes.hold(declared_bytes(request, self.settings.limits)):
                body = await read_body(request, self.settings.limits)
                asked = await self._in_thread(lambda: parse_json(RegionRequest, body))
            model = self.model(asked.model)
            self._check_count(len(asked.tiles))
            settle(len(asked.tiles), len(body))
            self.regions.check(asked.uri)
            return await while_connected(request, self._read_and_embed(model, asked, give_up_at))

    async def facts(self, name: str) -> Sequence[EncoderFacts]:
        """What each running replica of a model has loaded, as of a second ago at most."""
        async with self._asking:
            known = self._facts.get(name)
            if known is None or time.monotonic() - known[0] > FACTS_FRESH_S:
                known = time.monotonic(), await self.fleet.facts(name)
                self._facts[name] = known
            return known[1]

    async def ready(self) -> bool:
        """Whether every model has a replica that is loaded and warm."""
        return all([await self.facts(name) for name in self.models])

    async def drain(self) -> float:
        """Refuse what comes from now on, and come back when all accepted requests have replies.

        Returns the seconds since the last reply was handed over.
        """
        self.draining = True
        await self._idle.wait()
        return time.monotonic() - self._answered_at

    def answered(self, scope: Scope) -> None:
        """Note that the reply to a request was handed over, or that nobody is there to get it."""
        if scope.pop(_ACCEPTED, False):
            self._answered_at = time.monotonic()
            self._in_hand -= 1
            if not self._in_hand:
                self._idle.set()

    def retry_after_s(self, error: Exception) -> int:
        """Seconds for `Retry-After`."""
        return self.tiles.retry_after_s if isinstance(error, OverloadedError) else 2

    def close(self) -> None:
        """Let go of threads and slides."""
        self._threads.shutdown(wait=False)
        self.regions.close()

    @contextmanager
    def _entered(self, request: Request, kind: str | None) -> Iterator[tuple[float, Settle]]:
        """A request in hand: when (monotonic) it is given up, and whom to tell its tiles.

        Before a byte of the body is read it holds what such a body will need, so that those who
        come meanwhile are told at the door. `kind` is the shape of the body, None that of one tile.
        """
        if self.draining:
            raise UnavailableError("this service is being stopped: send the request again.")
        guesses = None if kind is None else self._guesses.setdefault(kind, Guesses())
        guess = 1 if guesses is None else guesses.of(said_bytes(request))
        guess = min(guess, self.settings.limits.request_tiles)
        # A guess alone refuses nobody: what is left may yet be enough.
        with self.tiles.hold(guess, least=1) as place:

            def settle(tiles: int, body_bytes: int) -> None:
                if guesses is not None:
                    guesses.seen(body_bytes, tiles)
                place.settle(tiles)

            request.scope[_ACCEPTED] = True
            self._in_hand += 1
            self._idle.clear()
            yield time.monotonic() + self.settings.limits.request_s, settle

    def _check_count(self, tiles: int) -> None:
        if tiles > self.settings.limits.request_tiles:
            raise too_many(str(tiles), self.settings.limits.request_tiles)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _decoded(
        self, images: Sequence[bytes], spec: ModelSpec, named: str, *, resize: bool
    ) -> Awaitable[npt.NDArray[np.uint8]]:
        """uint8 [n, tile_px, tile_px, 3], decoded in a thread once all headers were looked at."""
        limits = self.settings.limits

        def work() -> npt.NDArray[np.uint8]:
            total_px = 0
            for index, image in enumerate(images):
                if len(image) > limits.image_bytes:
                    raise ImageError(
                        f"{named}[{index}] has {len(image)} bytes, past the limit of "
                        f"{limits.image_bytes} bytes an image."
                    )
                name = f"{named}[{index}]"
                total_px += claimed_px(image, named=name, most_px=limits.image_px)
                if total_px > limits.request_px:
                    raise ImageError(
                        f"the images claim more than {limits.request_px} px together: send fewer "
                        "at a time."
                    )
            tiles = np.empty((len(images), spec.tile_px, spec.tile_px, 3), np.uint8)
            for index, image in enumerate(images):
                decode_tile(
                    image,
                    tiles[index],
                    resize=resize,
                    named=f"{named}[{index}]",
                    most_px=limits.image_px,
                )
            return tiles

        return self._in_thread(work)

    async def _read_and_embed(
        self, model: ServedModel, asked: RegionRequest, give_up_at: float
    ) -> Vectors:
        xy = np.array(asked.tiles, np.int32)
        region = await self.regions.read(
            asked.uri,
            xy,
            model.spec,
            mpp=asked.mpp,
            mpp_override=asked.mpp_override,
            timeout_s=max(0.001, give_up_at - time.monotonic()),
        )
        source = Source(etag=region.etag, level=region.level, mpp=region.mpp)
        return await self._embedded(model, region.tiles, give_up_at, xy=xy, source=source)

    async def _embedded(
        self,
        model: ServedModel,
        tiles: npt.NDArray[np.uint8],
        give_up_at: float,
        *,
        xy: npt.NDArray[np.int32] | None = None,
        source: Source | None = None,
    ) -> Vectors:
        left_s = max(0.001, give_up_at - time.monotonic())
        reply = await self.fleet.embed(model.name, tiles, timeout_s=left_s)
        return Vectors(
            model=model.name,
            encoder=reply.fingerprint,
            values=reply.vectors,
            tokens=model.spec.tokens,
            xy=xy,
            source=source,
        )
