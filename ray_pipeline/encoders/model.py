"""A model's architecture, from its spec: names and shapes, and its forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import timm
import torch
from timm.layers.mlp import SwiGLUPacked
from timm.layers.norm import LayerNorm
from torch import nn

from ray_pipeline.encoders.spec import ModelSpec

LAYERS: Mapping[str, object] = {
    "SwiGLUPacked": SwiGLUPacked,
    "SiLU": nn.SiLU,
    "LayerNorm(eps=1e-12)": partial(LayerNorm, eps=1e-12),
}
"""What the layer names in a spec's `arch_kwargs` stand for."""


class ClassAndPatchMean(nn.Module):
    """Tokens [N, T, D], `prefix_tokens` of them before the patches -> vectors float32 [N, 2 D].

    The class token, then the mean of the patch tokens; the registers between them are left out.
    """

    def __init__(self, prefix_tokens: int) -> None:
        super().__init__()
        self.prefix_tokens = prefix_tokens

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """The vectors; sums are in float32 whatever the tokens' type."""
        tokens = tokens.float()
        return torch.cat([tokens[:, 0], tokens[:, self.prefix_tokens :].mean(1)], dim=1)


def build_model(spec: ModelSpec) -> nn.Module:
    """The architecture on the meta device: all names and shapes, no memory.

    Its forward pass takes float32 [N, 3, tile_px, tile_px], and gives the tokens after the final
    norm pooled as `spec.pooling` says, [N, dim].
    """
    kwargs: dict[str, Any] = {
        name: LAYERS[value] if isinstance(value, str) else value
        for name, value in spec.arch_kwargs.items()
    }
    kwargs["global_pool"] = "token" if spec.pooling == "cls" else ""
    with torch.device("meta"):
        model = timm.create_model(spec.arch, pretrained=False, **kwargs)
    if spec.pooling == "cls+mean":
        # Unpooled, timm hands all tokens to its head, which is empty without classes.
        model.head = ClassAndPatchMean(spec.prefix_tokens)
    return model
