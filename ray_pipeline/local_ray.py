"""Starting Ray, or joining the one that runs: what the job and the service have in common."""

from __future__ import annotations

from typing import Any

import ray

from ray_pipeline.errors import ClusterError

STARTS = 3
"""How often it is tried to start a local cluster: Ray gives its node 30 s, which a busy machine may
miss as long as nothing of Ray is in its page cache."""


def join(address: str | None, settings: dict[str, Any]) -> None:
    """`ray.init(**settings)`, which leads to `address` or starts a local cluster.

    That is tried again where its node was too slow. Raises ClusterError.
    """
    for left in reversed(range(1 if address else STARTS)):
        try:
            ray.init(**settings)
        except Exception as error:  # noqa: BLE001 (where a node starts too slowly, Ray raises a bare one)
            if not left or "timed out" not in str(error):
                raise ClusterError(_not_joined(address, error)) from None
        else:
            return


def _not_joined(address: str | None, error: Exception) -> str:
    why = " ".join(str(error).split()).rstrip(".")
    if not address:
        return f"Ray did not start on this machine ({why}): run again when it is less busy."
    mend = "start one, or unset RAY_ADDRESS to run on this machine."
    if isinstance(error, ConnectionError):
        return f"no Ray cluster answers at RAY_ADDRESS={address}: {mend}"
    return f"RAY_ADDRESS={address} leads to no Ray cluster that can be joined ({why}): {mend}"
