"""Errors planted in what a manifest says."""

from __future__ import annotations

import copy
from typing import Any


def planted(said: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """A copy with another value at a place such as `applications.0.name`; None takes it away."""
    changed = copy.deepcopy(said)
    *path, last = place.split(".")
    at: Any = changed
    for key in path:
        at = at[int(key)] if isinstance(at, list) else at.setdefault(key, {})
    if value is None:
        del at[last]
    else:
        at[last] = value
    return changed
