"""`historay-serve --config serve.yaml`: the service on this machine, or on the cluster it is in.

SIGTERM and Ctrl-C stop it once all accepted requests are answered; SIGHUP reads the file again and
takes its changes up without a break.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from typing import Annotated, Any

import ray
import typer
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.handle import DeploymentHandle

from ray_pipeline.errors import HistorayError, SettingsError, UsageError
from ray_pipeline.local_ray import join, told_in
from serve_app.app import Ingress, build, check
from serve_app.settings import ServiceSettings, load_service_settings

APPLICATION = "historay"
RAY_ENVIRONMENT = {
    # A tile travels inside its call, not through the object store.
    "RAY_max_direct_call_object_size": str(1 << 20),
    # Neither a router nor our code, which waits for nothing, takes a thread and an event loop more.
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
}
"""What Ray's processes are started with: a request then takes a quarter less of their CPU."""
REPLIES_PASS_S = 5.0
"""Time for the last replies to reach their clients: Ray Serve takes them at once, and its proxies,
which pass them on, are killed when it is shut down."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def main() -> None:
    """The console script. Exit codes: 0 stopped on request, 2 wrong settings, 1 anything else."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        command()
    except UsageError as error:
        sys.exit(_told(error, 2))
    except HistorayError as error:
        sys.exit(_told(error, 1))


@command.command()
def run(
    config: Annotated[str, typer.Option(help="The settings, YAML.")],
    host: Annotated[str | None, typer.Option(help="Address to bind; wins over the file.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind; wins over the file.")] = None,
) -> None:
    """Serve until a signal comes."""
    settings = _settings(config, host, port)
    # Before Ray starts: its threads and ours then leave signals to `sigwait`.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    _join()
    try:
        serve.start(http_options=HTTPOptions(host=settings.host, port=settings.port))
        handle = _deploy(settings)
        print(f"historay-serve: http://{settings.host}:{settings.port}", flush=True)  # noqa: T201
        while signal.sigwait(_SIGNALS) == signal.SIGHUP:
            handle = _deploy_again(config, host, port) or handle
        _drain(handle, settings.drain_s)
        serve.shutdown()  # type: ignore[no-untyped-call]
    finally:
        ray.shutdown()


def _settings(config: str, host: str | None, port: int | None) -> ServiceSettings:
    settings = load_service_settings(config)
    said = {key: value for key, value in (("host", host), ("port", port)) if value is not None}
    settings = settings.model_copy(update=said)
    check(settings, host=settings.host)
    return settings


def _join() -> None:
    """Join the cluster of RAY_ADDRESS, or start a local one. Raises ClusterError."""
    settings: dict[str, Any] = {"logging_level": logging.ERROR}
    if not (address := os.environ.get("RAY_ADDRESS")):
        cpus = max(3, len(os.sched_getaffinity(0)))
        settings |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        for name, value in RAY_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    join(address, settings)


def _deploy(settings: ServiceSettings) -> DeploymentHandle[Ingress]:
    try:
        return serve.run(build(settings), name=APPLICATION)
    except RuntimeError as error:
        why = _told_by_replicas() or f"its replicas' log says why: {_last_line(error)}"
        raise SettingsError(f"the service did not start: {why}") from None


def _told_by_replicas() -> str:
    """The sentence of ours that a replica ended with while it started; empty without one."""
    application = serve.status().applications.get(APPLICATION)
    for deployment in application.deployments.values() if application else ():
        if (ours := told_in(deployment.message)) is not None:
            return str(ours)
    return ""


def _deploy_again(
    config: str, host: str | None, port: int | None
) -> DeploymentHandle[Ingress] | None:
    """Take up a changed file; where it is wrong, say so and go on as before."""
    try:
        return _deploy(_settings(config, host, port))
    except HistorayError as error:
        _told(error, 0)
        return None


def _drain(handle: DeploymentHandle[Ingress], timeout_s: float) -> None:
    try:
        idle_s = min(handle.broadcast("drain").results(timeout_s=timeout_s))
    except TimeoutError:
        logging.getLogger(__name__).warning("some requests were not answered in %g s", timeout_s)
        idle_s = 0.0
    time.sleep(max(0.0, REPLIES_PASS_S - idle_s))


def _told(error: HistorayError, code: int) -> int:
    print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201
    return code


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
