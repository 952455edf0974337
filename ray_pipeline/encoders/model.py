"""A model's architecture, from its spec: names and shapes, and its forward pass."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn

from ray_pipeline.encoders.spec import ModelSpec


def build_model(spec: ModelSpec) -> nn.Module:
    """The architecture on the meta device: all names and shapes, no memory.

    Its forward pass takes float32 [N, 3, tile_px, tile_px], and gives the class token after the
    final norm, [N, dim].
    """
    kwargs: dict[str, Any] = {**spec.arch_kwargs, "global_pool": "token"}
    with torch.device("meta"):
        return timm.create_model(spec.arch, pretrained=False, **kwargs)
