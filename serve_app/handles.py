"""The encoders as Ray Serve deployments: calls that outlive the replica they went to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client import Metric
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from serve_app.errors import (
    DeadlineError,
    EncoderFailedError,
    OverloadedError,
    ServiceError,
    UnavailableError,
)
from serve_app.fleet import taken
from serve_app.replica import EncoderFacts, EncoderReplica, Reply

TELL_TIMEOUT_S = 5.0
"""How long replicas may take to tell what they are."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
"""Between tries: a lost replica is found out and started anew in seconds."""
RETURN_S = 1.0
"""What an answer may take beyond a request's time: the replica gives up on time by itself."""

Handles = Mapping[str, DeploymentHandle[EncoderReplica]]
IngressHandle = DeploymentHandle[Any]
"""All ingresses, the one that holds it among them."""


class HandleFleet:
    """A `Fleet` over one deployment for each model, beside the other ingresses."""

    def __init__(self, handles: Handles, ingresses: IngressHandle, *, here: str) -> None:
        self._handles, self._ingresses, self._here = dict(handles), ingresses, here

    async def embed(self, model: str, tiles: npt.NDArray[np.uint8], *, timeout_s: float) -> Reply:
        """See `Fleet.embed`. A replica that dies or fails is no error while there is time.

        Embedding the same tiles twice does no harm, so the request goes to another one.
        """
        give_up_at, pause_s = time.monotonic() + timeout_s, FIRST_PAUSE_S
        while True:
            try:
                return await self._asked(model, tiles, give_up_at - time.monotonic())
            except (UnavailableError, EncoderFailedError):
                if time.monotonic() + pause_s > give_up_at:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def facts(self, model: str) -> Sequence[EncoderFacts]:
        """See `Fleet.facts`."""
        answers = await _of_all(self._handles[model], "facts")
        return [facts for facts in answers if facts is not None]

    async def metrics(self) -> Sequence[Metric]:
        """See `Fleet.metrics`."""
        answers = await asyncio.gather(
            *(_of_all(handle, "metrics") for handle in self._handles.values()),
            _of_all(self._ingresses, "metrics", self._here),
        )
        return [metric for of_kind in answers for of_one in of_kind for metric in of_one]

    async def _asked(self, model: str, tiles: npt.NDArray[np.uint8], left_s: float) -> Reply:
        """One try, by one replica."""
        response = self._handles[model].embed.remote(tiles, left_s)
        try:
            async with asyncio.timeout(left_s + RETURN_S):
                return taken(await response)
        except ServiceError:
            raise
        except TimeoutError:
            response.cancel()  # type: ignore[no-untyped-call]
            raise DeadlineError(
                f"no replica of {model} answered in time: try again later."
            ) from None
        except asyncio.CancelledError:
            response.cancel()  # type: ignore[no-untyped-call]
            raise
        except BackPressureError:
            raise OverloadedError(f"every replica of {model} is full: try again later.") from None
        except (RayActorError, RayServeException):
            raise UnavailableError(f"a replica of {model} was lost: try again.") from None


async def _of_all(handle: DeploymentHandle[Any], method: str, *said: Any) -> list[Any]:
    """The answers of a deployment's running replicas to `method`, of those that give one."""
    try:
        answers = await handle.broadcast(method, *said).results_async(
            timeout_s=TELL_TIMEOUT_S, return_exceptions=True
        )
    except (TimeoutError, RayError, RayServeException):
        return []
    return [answer for answer in answers if not isinstance(answer, BaseException)]
