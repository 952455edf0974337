"""Starting Ray, or joining the one that runs: what the job and the service have in common."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
from ray._private import ray_constants

from ray_pipeline import errors
from ray_pipeline.errors import ClusterError, HistorayError

STARTS = 3
"""How often it is tried to start a local cluster: Ray gives its node 30 s, which a busy machine may
miss as long as nothing of Ray is in its page cache."""


def join(address: str | None, settings: dict[str, Any]) -> None:
    """`ray.init(**settings)`, which leads to `address` or starts a local cluster, on loopback only.

    That is tried again where its node was too slow. Raises ClusterError.
    """
    for left in reversed(range(1 if address else STARTS)):
        try:
            with nullcontext() if address else _on_loopback():
                ray.init(**settings)
        except Exception as error:  # noqa: BLE001 (where a node starts too slowly, Ray raises a bare one)
            if not left or "timed out" not in str(error):
                raise ClusterError(_not_joined(address, error)) from None
        else:
            return


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Within, Ray takes 127.0.0.1 for the address of a node it starts, as it does on a Mac.

    Its processes then listen there alone. They ask nobody who he is, and unpickle what he sends.
    """
    kept = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = kept


def told_in(text: str) -> HistorayError | None:
    """The error of ours in a text of Ray's: what an actor raised while it started comes so."""
    for name, sentence in re.findall(r"ray_pipeline\.errors\.(\w+): (.+)", text):
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, HistorayError):
            return kind(sentence)
    return None


def _not_joined(address: str | None, error: Exception) -> str:
    why = " ".join(str(error).split()).rstrip(".")
    if not address:
        return f"Ray did not start on this machine ({why}): run again when it is less busy."
    mend = "start one, or unset RAY_ADDRESS to run on this machine."
    if isinstance(error, ConnectionError):
        return f"no Ray cluster answers at RAY_ADDRESS={address}: {mend}"
    return f"RAY_ADDRESS={address} leads to no Ray cluster that can be joined ({why}): {mend}"
