"""Mahmood Lab: UNI, UNI2-h."""

from __future__ import annotations

from ray_pipeline.encoders.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec

ENTRIES = (
    # https://github.com/mahmoodlab/UNI, README.md (access, licence, transform) and
    # https://github.com/mahmoodlab/TRIDENT, trident/patch_encoder_models/load.py, by the same lab:
    # the file is loaded strictly into this architecture.
    ModelSpec(
        name="uni",
        description="ViT-L/16 of DINOv2, the first UNI (Mahmood Lab).",
        arch="vit_large_patch16_224",
        arch_kwargs={
            "img_size": 224,
            "init_values": 1e-5,
            "num_classes": 0,
            "dynamic_img_size": False,
        },
        tile_px=224,
        published_resize="shorter side to 224, centre 224",
        mpp=0.5,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        dim=1024,
        pooling="cls",
        prefix_tokens=1,
        tokens=197,
        parameters=303_350_784,
        licence="CC-BY-NC-ND-4.0",
        non_commercial=True,
        gated=True,
        hub_id="MahmoodLab/UNI",
        weights_file="pytorch_model.bin",
        unverified=("mpp",),
    ),
    # https://github.com/mahmoodlab/UNI, README.md, states all of it but mpp.
    ModelSpec(
        name="uni2-h",
        description="ViT-H/14 with 8 registers, DINOv2 on 200 million tiles (Mahmood Lab).",
        arch="vit_giant_patch14_224",
        arch_kwargs={
            "img_size": 224,
            "patch_size": 14,
            "depth": 24,
            "num_heads": 24,
            "init_values": 1e-5,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "num_classes": 0,
            "no_embed_class": True,
            "mlp_layer": "SwiGLUPacked",
            "act_layer": "SiLU",
            "reg_tokens": 8,
            "dynamic_img_size": False,
        },
        tile_px=224,
        published_resize="shorter side to 224, centre 224",
        mpp=0.5,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        dim=1536,
        pooling="cls",
        prefix_tokens=9,
        tokens=265,
        parameters=681_394_176,
        licence="CC-BY-NC-ND-4.0",
        non_commercial=True,
        gated=True,
        hub_id="MahmoodLab/UNI2-h",
        weights_file="pytorch_model.bin",
        unverified=("mpp",),
    ),
)
