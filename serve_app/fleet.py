"""The encoders as an ingress sees them: by the name of their model, wherever they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from prometheus_client import Metric

from ray_pipeline.errors import HistorayError
from serve_app.replica import EncoderFacts, EncoderReplica, Reply


class Fleet(Protocol):
    """All replicas of all models."""

    async def embed(self, model: str, tiles: npt.NDArray[np.uint8], *, timeout_s: float) -> Reply:
        """Vectors of uint8 [n, tile_px, tile_px, 3] by any replica of `model`, all by the same.

        Raises BusyErrors, EncoderFailedError, NotFiniteError.
        """
        ...

    async def facts(self, model: str) -> Sequence[EncoderFacts]:
        """What each running replica has loaded: one, or two kinds while an update goes round."""
        ...

    async def metrics(self) -> Sequence[Metric]:
        """What all other processes have counted: the encoders' replicas, and other ingresses."""
        ...


class LocalFleet:
    """Replicas of this very process, one for each model."""

    def __init__(self, replicas: Mapping[str, EncoderReplica]) -> None:
        self._replicas = dict(replicas)

    async def embed(self, model: str, tiles: npt.NDArray[np.uint8], *, timeout_s: float) -> Reply:
        """See `Fleet.embed`."""
        return taken(await self._replicas[model].embed(tiles, timeout_s))

    async def facts(self, model: str) -> Sequence[EncoderFacts]:
        """See `Fleet.facts`."""
        found = await self._replicas[model].facts()
        return [] if found is None else [found]

    async def metrics(self) -> Sequence[Metric]:
        """See `Fleet.metrics`."""
        return [m for replica in self._replicas.values() for m in await replica.metrics()]


def taken(answer: Reply | HistorayError) -> Reply:
    """A replica's reply; the error that it returned is raised here."""
    if isinstance(answer, HistorayError):
        raise answer
    return answer
