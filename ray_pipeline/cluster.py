"""The Ray cluster of a job: joining and leaving it, what it offers, and what its errors mean."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError

from ray_pipeline.errors import ClusterError, HistorayError
from ray_pipeline.local_ray import join, told_in
from ray_pipeline.placement import Node

IDLE_MS = 30_000
"""How long a local cluster keeps a worker without work, milliseconds. Ray's own 1,000 are less than
the time between two commits, and a worker takes seconds of a CPU to start."""
ORDINARY = frozenset({"CPU", "GPU", "memory", "object_store_memory"})
"""What Ray counts on every node, beside resources that a node may have or not."""


def connect() -> None:
    """Join the cluster of `RAY_ADDRESS`, or start a local one. Raises ClusterError."""
    if ray.is_initialized():
        return
    on_term = signal.getsignal(signal.SIGTERM)
    # Ray's own C++ messages, meant for its developers, would stand between ours.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    logging.getLogger("ray").setLevel(logging.ERROR)
    with warnings.catch_warnings(), _hushed_stderr(), _no_handler_for_sigterm():
        warnings.simplefilter("ignore")
        if not (address := os.environ.get("RAY_ADDRESS")):
            # Two at least: the actors and the tasks between them need that much room on paper.
            cpus = max(2, len(os.sched_getaffinity(0)))
            quiet |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
            quiet["_system_config"] = {"idle_worker_killing_time_threshold_ms": IDLE_MS}
        join(address, quiet)
    # Ray has put its own handler there, in C, which prints a stack.
    if callable(on_term) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_term)


def disconnect() -> None:
    """Leave the cluster, and end it where `connect` started it. Ray prints nothing after this."""
    ray.shutdown()


@contextmanager
def _no_handler_for_sigterm() -> Iterator[None]:
    """Within, Ray puts no handler there, in Python: its own raises wherever the process stands.

    Where that is inside a lock of `logging`, the job hangs later on.
    """
    set_handler = signal.signal

    def set_others(one: Any, handler: Any) -> Any:
        return signal.getsignal(one) if one == signal.SIGTERM else set_handler(one, handler)

    signal.signal = set_others  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = set_handler


@contextmanager
def _hushed_stderr() -> Iterator[None]:
    """Send what C++ writes to standard error nowhere; Python's errors still come as exceptions."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def cluster_nodes() -> list[Node]:
    """The living nodes of the cluster and what each offers."""
    return [
        Node(
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            memory_bytes=int(node["Resources"].get("memory", 0)),
            resources=frozenset(
                name for name in node["Resources"] if name not in ORDINARY and name[:5] != "node:"
            ),
            id=node["NodeID"],
        )
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]


def free_now() -> Node:
    """What all nodes together have free at this moment, as if they were one."""
    free = ray.available_resources()  # type: ignore[no-untyped-call]
    return Node(cpus=free.get("CPU", 0.0), gpus=free.get("GPU", 0.0))


def own_error(error: RayError) -> HistorayError:
    """The error of ours inside one of Ray's, or a ClusterError telling of Ray's in one sentence."""
    inner: BaseException | None = error
    while inner is not None:
        cause = getattr(inner, "cause", None)
        if isinstance(cause, HistorayError):
            return cause
        inner = cause if isinstance(cause, BaseException) else inner.__cause__
    told = str(error)
    if (ours := told_in(told)) is not None:
        return ours
    if isinstance(error, OutOfMemoryError) or "running low on memory" in told:
        return ClusterError(
            "Ray killed a worker because its node ran short of memory; what is done stays done: "
            "lower readers or batch_size, or take nodes with more memory, and run again to go on."
        )
    last = (told.strip().splitlines() or [""])[-1].strip()
    # Ray Data follows what a stage raised with advice on settings of its own.
    if raised := re.search(r"^(?!ray\.)(?:\w+\.)*\w+(?:Error|Exception): .+", told, re.MULTILINE):
        last = raised.group().strip()
    if isinstance(error, ActorDiedError):
        return ClusterError(
            f"an actor died while it started, again and again ({last}); what is done stays done: "
            "look at its node, then run again to go on."
        )
    return ClusterError(
        f"Ray gave up on the job ({type(error).__name__}: {last}); "
        "what is done stays done: run again to go on."
    )
