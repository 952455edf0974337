"""The servers that the service is measured against, and their common encoder; one process each.

    python -m tests.benchmarks.service_peers historay|litserve|serve_batch|encoder MODEL PORT

All decode a JPEG of one tile, and run the same `Encoder` in one thread, which has a core of its own
while it computes. LitServe gets the JPEG as base64 in JSON: it hands nothing else to its workers.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import litserve
import numpy as np
import numpy.typing as npt
import ray
import simplejpeg
from fastapi import Request, Response
from ray import serve
from ray.serve.config import HTTPOptions

from ray_pipeline.encoders.encoder import Encoder
from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.encoders.weights import resolve_weights
from serve_app.app import build
from serve_app.cli import RAY_ENVIRONMENT
from serve_app.settings import service_settings
from tests.benchmarks import mid_model
from tests.benchmarks.mid_model import BATCH, IN_HAND

SECONDS = 8.0
"""How long the encoder alone is measured."""


def encoder_of(model: str) -> Encoder:
    """One batch warm, in one thread of the CPU."""
    spec = get_spec(model)
    source = resolve_weights(spec, None)
    encoder = Encoder(spec, source, device="cpu", batch_size=BATCH, threads=1)
    encoder.encode(np.zeros((BATCH, spec.tile_px, spec.tile_px, 3), np.uint8))
    return encoder


def decoded(body: bytes) -> npt.NDArray[np.uint8]:
    """As ours decodes it."""
    pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(body)
    return pixels


def encoder_alone(model: str) -> None:
    """Batch after batch; the last line of standard output is the tiles per second."""
    encoder = encoder_of(model)
    tiles = np.random.default_rng(0).integers(0, 256, (BATCH, 224, 224, 3), dtype=np.uint8)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        encoder.encode(tiles)
        done += BATCH
    print(json.dumps(done / (time.perf_counter() - started)))


def historay(model: str, port: int) -> None:
    settings = {
        "models": [
            {
                "encoder": {"model": model, "device": "cpu", "batch_size": BATCH, "threads": 1},
                "queue_tiles": IN_HAND,
            }
        ],
        "limits": {"tiles_in_hand": IN_HAND},
        "allow_anonymous": True,
    }
    _serve(build(service_settings(settings)), port)


@serve.deployment(max_ongoing_requests=512, ray_actor_options={"num_cpus": 1})
class ServeBatch:
    """Ray's own batching, as its documentation shows it, in front of the same encoder."""

    def __init__(self, model: str) -> None:
        self._encoder = encoder_of(model)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.01)
    async def _encode(self, tiles: list[npt.NDArray[np.uint8]]) -> list[bytes]:
        return [vector.tobytes() for vector in self._encoder.encode(np.stack(tiles))]

    async def __call__(self, request: Request) -> Response:
        body: bytes = await request.body()
        return Response(await self._encode(decoded(body)))


class LitEncoder(litserve.LitAPI):  # type: ignore[misc]
    """LitServe's batching, as its documentation shows it."""

    def __init__(self, model: str) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=0.01)
        self._model = model

    def setup(self, device: str) -> None:
        mid_model.prepare()
        self._encoder = encoder_of(self._model)

    def decode_request(self, request: dict[str, str]) -> bytes:
        return base64.b64decode(request["image"])

    def predict(self, bodies: list[bytes]) -> npt.NDArray[np.float16]:
        return self._encoder.encode(np.stack([decoded(body) for body in bodies]))

    def encode_response(self, output: npt.NDArray[np.float16]) -> Response:
        return Response(output.tobytes())


def _serve(app: Any, port: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
    serve.run(app)
    signal.sigwait([signal.SIGTERM])
    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


def main() -> None:
    """Run one server until SIGTERM, or measure the encoder."""
    kind, model, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    mid_model.prepare()
    if kind == "encoder":
        encoder_alone(model)
    elif kind == "litserve":
        server = litserve.LitServer(LitEncoder(model), accelerator="cpu", workers_per_device=1)
        server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error")
    else:
        if kind == "historay":
            os.environ |= RAY_ENVIRONMENT  # as `historay-serve` starts it
        paths = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={
                "worker_process_setup_hook": "tests.benchmarks.mid_model.prepare",
                "env_vars": {"PYTHONPATH": paths},
            },
        )
        if kind == "historay":
            historay(model, port)
        else:
            _serve(ServeBatch.bind(model), port)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
