"""Whatever the API's description allows, and much that it does not, gets an answer of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from prometheus_client import Metric
from schemathesis.checks import not_a_server_error

from serve_app.replica import EncoderFacts, Reply
from tests.serve_app.serving import HEADERS, api_over, service_over


class _ZeroFleet:
    """Answers at once, in whatever loop it is asked."""

    async def embed(self, model: str, tiles: npt.NDArray[np.uint8], *, timeout_s: float) -> Reply:
        vectors = np.zeros((len(tiles), 64), np.float16)
        return Reply(vectors=vectors, fingerprint="zero", queue_s=0.0)

    async def facts(self, model: str) -> Sequence[EncoderFacts]:
        return []

    async def metrics(self) -> Sequence[Metric]:
        return []


@schemathesis.serializer("image/jpeg", "image/png", "image/webp", "image/tiff")
def as_it_is(context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else repr(value).encode()


API = api_over(service_over(_ZeroFleet()))
schema = schemathesis.openapi.from_dict(API.openapi())
schema.app = API


@schema.parametrize()
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_is_an_error_of_the_server(case: Any) -> None:
    if case.path == "/ready":
        pytest.skip("503 until a model is loaded, and so it is here")
    response = case.call(headers=HEADERS)
    case.validate_response(response, checks=[not_a_server_error])
    if response.status_code >= 400:
        assert set(response.json()) == {"error"}
