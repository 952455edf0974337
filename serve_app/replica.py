"""One loaded encoder behind a queue: what Ray Serve runs as a replica, and tests run as it is."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client import Metric

from ray_pipeline.encoders.spec import EncoderIdentity, ModelSpec
from ray_pipeline.errors import HistorayError, SettingsError
from serve_app.batching import Batch, TileQueue
from serve_app.errors import EncoderFailedError, UnavailableError
from serve_app.metrics import EncoderMetrics
from serve_app.settings import EncoderSettings, encoder_settings

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EncoderFacts:
    """What a replica tells of its encoder."""

    identity: EncoderIdentity
    """All that determines its vectors, as it stands in a batch job's recipe."""
    fingerprint: str
    """First 12 hex digits of the SHA-256 of the identity's canonical JSON."""
    device: str
    """`cpu`, `cuda:0`, ..."""
    batch_size: int
    """Tiles of a forward pass."""
    versions: Mapping[str, str]
    """Of torch and timm."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A replica's answer to one request."""

    vectors: npt.NDArray[np.float16]
    """float16 [n, dim], in the order of the tiles."""
    fingerprint: str
    """Of the one encoder that made them all."""
    queue_s: float
    """Seconds until the first tile went to the device."""


class EncoderReplica:
    """Holds an encoder, and changes it without a break when it is told other settings.

    `reconfigure` must have been called before anything else is.
    """

    def __init__(self, name: str, queue_tiles: int) -> None:
        self._name, self._queue_tiles = name, queue_tiles
        self._metrics = EncoderMetrics(name, uuid.uuid4().hex[:8])
        self._metrics.watch_waiting(lambda: self._loaded.queue.waiting if self._loaded else 0)
        self._loaded: _Loaded | None = None
        self._settings: EncoderSettings | None = None
        self._updates: set[asyncio.Task[None]] = set()
        self._one_update = asyncio.Lock()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load what `user_config` (the values of EncoderSettings) says.

        The first time this comes back when the encoder is loaded and warm. Later it comes back at
        once and the old encoder serves on until the new one is warm: Ray Serve sends nothing to a
        replica while it reconfigures. An update that fails leaves the old encoder in place.
        Raises SettingsError, WeightsError.
        """
        settings = encoder_settings(user_config)
        if self._settings is not None and settings.model != self._settings.model:
            raise SettingsError(
                f"'{self._name}' serves {self._settings.model}, and {settings.model} has other "
                "vectors: serve it under a name of its own."
            )
        self._settings = settings
        if self._loaded is None:
            self._loaded = await self._load(settings)
            return
        task = asyncio.create_task(self._update(settings))
        self._updates.add(task)
        task.add_done_callback(self._updates.discard)

    async def embed(
        self, tiles: npt.NDArray[np.uint8], timeout_s: float | None = None
    ) -> Reply | HistorayError:
        """Vectors of uint8 [n, tile_px, tile_px, 3].

        What `TileQueue.embed` raises is returned instead: Ray Serve would log each with its stack.
        """
        # One encoder for all tiles of a request, even where an update comes in between.
        loaded = self._loaded
        if loaded is None:
            return UnavailableError(f"'{self._name}' is not loaded yet: try again.")
        try:
            embedded = await loaded.queue.embed(tiles, timeout_s=timeout_s)
        except HistorayError as error:
            return error
        self._metrics.queued(embedded.queue_s)
        return Reply(
            vectors=embedded.vectors,
            fingerprint=loaded.facts.fingerprint,
            queue_s=embedded.queue_s,
        )

    async def facts(self) -> EncoderFacts | None:
        """What is loaded; None before it is."""
        return self._loaded.facts if self._loaded else None

    async def metrics(self) -> list[Metric]:
        """What this replica has counted."""
        return self._metrics.collect()

    def check_health(self) -> None:
        """Raise EncoderFailedError once the device gave an error, for Serve to replace it."""
        if self._loaded is not None and self._loaded.queue.failure is not None:
            raise EncoderFailedError(str(self._loaded.queue.failure))

    async def updated(self) -> None:
        """Come back when no update is under way."""
        await asyncio.gather(*self._updates)

    async def close(self) -> None:
        """Finish what was taken, and let go of the device."""
        if self._loaded is not None:
            await self._loaded.queue.close()

    async def _update(self, settings: EncoderSettings) -> None:
        async with self._one_update:
            if settings != self._settings:
                return  # a later update is waiting
            try:
                fresh = await self._load(settings)
            except HistorayError as error:
                self._metrics.failed_update()
                _logger.warning("%s: not updated, the old encoder serves on: %s", self._name, error)
                return
            assert self._loaded is not None
            old, self._loaded = self._loaded, fresh
            await old.queue.close()
            _logger.info("%s: now encoder %s", self._name, fresh.facts.fingerprint)

    async def _load(self, settings: EncoderSettings) -> _Loaded:
        loop = asyncio.get_running_loop()
        encode, facts = await loop.run_in_executor(self._loader, _load_encoder, settings)
        queue = TileQueue(
            encode,
            batch_size=facts.batch_size,
            most_waiting=self._queue_tiles,
            on_batch=lambda batch: self._count(batch, facts.batch_size),
        )
        return _Loaded(queue, facts)

    def _count(self, batch: Batch, places: int) -> None:
        self._metrics.batch(batch.tiles, places, batch.device_s)


@dataclass(frozen=True)
class _Loaded:
    queue: TileQueue
    facts: EncoderFacts


def _load_encoder(settings: EncoderSettings) -> tuple[Any, EncoderFacts]:
    """The loaded, warm encoder's `encode`, and what it is."""
    # torch and timm take many seconds to import: an ingress never does.
    from ray_pipeline.encoders.encoder import Encoder  # noqa: PLC0415
    from ray_pipeline.encoders.registry import get_spec  # noqa: PLC0415
    from ray_pipeline.encoders.weights import resolve_weights  # noqa: PLC0415

    spec = get_spec(settings.model)
    encoder = Encoder(
        spec,
        resolve_weights(spec, settings.weights),
        device=settings.device,
        precision=settings.precision,
        batch_size=settings.batch_size,
        threads=settings.threads,
    )
    _warm(encoder, spec)
    facts = EncoderFacts(
        identity=encoder.identity,
        fingerprint=fingerprint_of(encoder.identity),
        device=str(encoder.device),
        batch_size=encoder.batch_size,
        versions={name: version(name) for name in ("torch", "timm")},
    )
    return encoder.encode, facts


def _warm(encoder: Any, spec: ModelSpec) -> None:
    """One whole batch, so that the first request does not pay for kernels and buffers."""
    encoder.encode(np.zeros((encoder.batch_size, spec.tile_px, spec.tile_px, 3), np.uint8))


def fingerprint_of(identity: EncoderIdentity) -> str:
    """First 12 hex digits of the SHA-256 of the identity's canonical JSON."""
    text = json.dumps(identity.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
