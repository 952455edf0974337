"""What all servers of the service's benchmark share: a mid-size model, and a core as a device."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any

from ray_pipeline.encoders.encoder import Encoder
from ray_pipeline.encoders.registry import MODELS, get_spec
from ray_pipeline.encoders.spec import ModelSpec

MID = "mid"
BATCH = 8
"""Tiles of a forward pass."""
IN_HAND = 256
"""Tiles the service takes in hand before it refuses more."""


DEVICE_CPUS, OTHER_CPUS = {0}, {1}
"""The encoder's core while it computes, and that of all else: servers, Ray, the load's client."""


def prepare() -> None:
    """Make a process, and all that it starts, ready to serve the mid-size model or the toy."""
    _add()
    os.sched_setaffinity(0, OTHER_CPUS)
    encode: Any = Encoder.encode

    def on_its_own_core(self: Encoder, tiles: Any) -> Any:
        # The encoder's own thread is started by the first call, and inherits its core.
        os.sched_setaffinity(0, DEVICE_CPUS)
        try:
            return encode(self, tiles)
        finally:
            os.sched_setaffinity(0, OTHER_CPUS)

    Encoder.encode = on_its_own_core  # type: ignore[method-assign]


def _add() -> None:
    """Make it known to this process: a ViT-S of the giant's kind, with random weights."""
    toy = get_spec("toy")
    values = {field.name: getattr(toy, field.name) for field in fields(toy)}
    arch = {**toy.arch_kwargs, "embed_dim": 384, "depth": 12, "num_heads": 6}
    values |= {"name": MID, "dim": 384, "arch_kwargs": arch, "parameters": 26_000_000}
    assert isinstance(MODELS, dict)
    MODELS[MID] = ModelSpec(**values)
