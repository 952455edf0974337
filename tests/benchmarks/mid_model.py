"""What all servers of the service's benchmark share: a model between the toy and the giant."""

from __future__ import annotations

from dataclasses import fields

from ray_pipeline.encoders.registry import MODELS, get_spec
from ray_pipeline.encoders.spec import ModelSpec

MID = "mid"
BATCH = 8
"""Tiles of a forward pass."""
IN_HAND = 256
"""Tiles the service takes in hand before it refuses more."""


def add() -> None:
    """Make it known to this process: a ViT-S of the giant's kind, with random weights."""
    toy = get_spec("toy")
    values = {field.name: getattr(toy, field.name) for field in fields(toy)}
    arch = {**toy.arch_kwargs, "embed_dim": 384, "depth": 12, "num_heads": 6}
    values |= {"name": MID, "dim": 384, "arch_kwargs": arch, "parameters": 26_000_000}
    assert isinstance(MODELS, dict)
    MODELS[MID] = ModelSpec(**values)
