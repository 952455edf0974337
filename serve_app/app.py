"""The composition root: settings -> a Ray Serve application.

    serve run serve_app.app:app                                  (settings of the variable below)
    serve run serve_app.app:app config=serve.yaml

In the YAML of a Serve config or a RayService, `import_path: serve_app.app:app`, and `args` are
either `config: serve.yaml` or the settings themselves.
"""

from __future__ import annotations

import os
import uuid
from typing import Any, cast

import ray
from fastapi import FastAPI
from prometheus_client import Metric
from ray import serve
from ray.serve._private import replica as serve_replica
from ray.serve.config import AutoscalingConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from serve_app.allowed import AllowedUris
from serve_app.api import create_api
from serve_app.auth import check_door, is_loopback, load_tokens
from serve_app.handles import HandleFleet
from serve_app.metrics import IngressMetrics
from serve_app.replica import EncoderReplica
from serve_app.service import Service
from serve_app.settings import (
    EncoderSettings,
    ModelSettings,
    ServiceSettings,
    load_service_settings,
    service_settings,
)

CONFIG_VARIABLE = "HISTORAY_SERVE_CONFIG"
"""Names the settings' file where no argument does."""
ROOM_FOR_REFUSALS = 2
"""Requests that Ray Serve hands to a process are this many times those that it can have in hand:
past what it can, it is the process itself that says no, at once and in our words."""


def app(args: dict[str, Any]) -> serve.Application:
    """The application, of the settings in `args` or in the file that `config` names.

    Raises SettingsError.
    """
    file = args.get("config") or os.environ.get(CONFIG_VARIABLE)
    if file and set(args) <= {"config"}:
        return build(load_service_settings(str(file)))
    return build(service_settings(args))


def build(settings: ServiceSettings) -> serve.Application:
    """One ingress deployment, and a deployment for each model. Raises SettingsError."""
    check(settings)
    encoders = {model.served_as: _encoder(model, settings) for model in settings.models}
    most_requests = settings.limits.tiles_in_hand
    ingress = _deployment(Ingress).options(
        name="ingress",
        num_replicas=settings.ingress_replicas,
        max_ongoing_requests=ROOM_FOR_REFUSALS * most_requests,
        graceful_shutdown_timeout_s=settings.drain_s,
        ray_actor_options={"num_cpus": settings.ingress_cpus},
        logging_config=LoggingConfig(enable_access_log=False),
    )
    return ingress.bind(_without_encoders(settings), encoders)


def check(settings: ServiceSettings, *, host: str | None = None) -> None:
    """Raise SettingsError for what no process need be started to find out: tokens, prefixes.

    `host`: the address that will be bound, where it is ours to say.
    """
    tokens = load_tokens(settings.tokens_file)
    check_door(tokens, allow_anonymous=settings.allow_anonymous, host=host)
    AllowedUris(settings.regions)


@serve.ingress()
class Ingress:
    """The deployment that speaks HTTP."""

    def __init__(
        self, settings: dict[str, Any], encoders: dict[str, DeploymentHandle[EncoderReplica]]
    ) -> None:
        _stay_on_loopback()
        said = service_settings(settings)
        # The proxy binds the port, and not this process: so the door is held here, too.
        self._tokens = load_tokens(said.tokens_file)
        check_door(self._tokens, allow_anonymous=said.allow_anonymous)
        here, me = uuid.uuid4().hex[:8], serve.get_replica_context()
        ingresses = serve.get_deployment_handle(me.deployment, me.app_name)
        fleet = HandleFleet(encoders, ingresses, here=here)
        self._here, self._service = here, Service(said, fleet, IngressMetrics(here))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Asked for by Ray Serve once this object is made."""
        return create_api(self._service, self._tokens)

    async def metrics(self, asked_by: str) -> list[Metric]:
        """What this ingress has counted, for another one; itself it knows."""
        return [] if asked_by == self._here else self._service.metrics.collect()

    async def drain(self) -> float:
        """Refuse new requests with 503, and come back when all accepted ones are answered.

        Returns the seconds since the last reply was handed to Ray Serve.
        """
        return await self._service.drain()


class Encoder(EncoderReplica):
    """The deployment that holds an encoder."""

    def __init__(self, name: str, queue_tiles: int) -> None:
        _stay_on_loopback()
        super().__init__(name, queue_tiles)


def _stay_on_loopback() -> None:
    """Let this replica listen on loopback alone, where that is its node's address.

    For calls by gRPC, used or not, Ray Serve opens a port of every replica on all addresses of the
    machine, and unpickles whatever comes in there.
    """
    node = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    if not is_loopback(node):
        return
    replica = cast(Any, serve_replica)
    listen = replica.add_port_to_grpc_server

    def listen_at_node(server: Any, address: str) -> Any:
        return listen(server, f"{node}:{address.rpartition(':')[2]}")

    replica.add_port_to_grpc_server = listen_at_node


def _encoder(model: ModelSettings, settings: ServiceSettings) -> serve.Application:
    gpus = model.gpus
    if gpus is None:
        gpus = 1 if _cluster_gpus() >= 1 else 0
    scaling: dict[str, Any] = {"num_replicas": model.replicas}
    if model.autoscaling is not None:
        scaling = {"autoscaling_config": AutoscalingConfig(**model.autoscaling.model_dump())}
    deployment = _deployment(Encoder).options(
        name=f"encoder-{model.served_as}",
        **scaling,
        user_config=model.encoder.model_dump(),
        max_ongoing_requests=ROOM_FOR_REFUSALS * model.queue_tiles,
        graceful_shutdown_timeout_s=settings.drain_s,
        health_check_period_s=2,
        ray_actor_options={"num_cpus": model.cpus, "num_gpus": gpus},
        logging_config=LoggingConfig(enable_access_log=False),
    )
    return deployment.bind(model.served_as, model.queue_tiles)


def _deployment(kind: type) -> serve.Deployment:
    return cast(serve.Deployment, serve.deployment(kind))


def _cluster_gpus() -> float:
    if not ray.is_initialized():
        return 0
    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return found.get("GPU", 0)


def _without_encoders(settings: ServiceSettings) -> dict[str, Any]:
    """The settings as the ingress needs them: it is not restarted where only encoders change."""
    bare = [
        ModelSettings(
            name=model.served_as,
            encoder=EncoderSettings(model=model.encoder.model),
            queue_tiles=model.queue_tiles,
        )
        for model in settings.models
    ]
    return settings.model_copy(update={"models": bare}).model_dump()
