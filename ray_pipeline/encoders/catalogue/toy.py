"""A model of our own, for trials and tests."""

from __future__ import annotations

from ray_pipeline.encoders.catalogue.bioptimus import MEAN, STD
from ray_pipeline.encoders.spec import ModelSpec

ENTRIES = (
    # The giant's own architecture, narrow and shallow: patches of 14 px, 4 registers, SwiGLU.
    ModelSpec(
        name="toy",
        description="Tiny ViT with random weights for trials: its vectors mean nothing.",
        arch="vit_giant_patch14_reg4_dinov2",
        arch_kwargs={
            "img_size": 224,
            "init_values": 1e-5,
            "num_classes": 0,
            "dynamic_img_size": False,
            "embed_dim": 64,
            "depth": 2,
            "num_heads": 2,
            "mlp_ratio": 4.0,
        },
        tile_px=224,
        mpp=0.5,
        mean=MEAN,
        std=STD,
        dim=64,
        pooling="cls",
        prefix_tokens=5,
        tokens=261,
        parameters=138_368,
        licence="Apache-2.0",
    ),
)
