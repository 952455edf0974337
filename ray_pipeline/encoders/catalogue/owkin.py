"""Owkin: Phikon, Phikon-v2."""

from __future__ import annotations

from ray_pipeline.encoders.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec

ENTRIES = (
    # https://huggingface.co/owkin/phikon, config.json at e9ad8d13dfecc267131006c852b537fde98e151c:
    # a ViTModel of transformers, whose norms have another epsilon than timm's 1e-6. 0.5 mpp:
    # https://github.com/owkin/HistoSSLscaling, README.md.
    ModelSpec(
        name="phikon",
        description="ViT-B/16, iBOT on 40 million tiles of TCGA (Owkin).",
        arch="vit_base_patch16_224",
        arch_kwargs={
            "img_size": 224,
            "norm_layer": "LayerNorm(eps=1e-12)",
            "num_classes": 0,
            "dynamic_img_size": False,
        },
        tile_px=224,
        mpp=0.5,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        dim=768,
        pooling="cls",
        prefix_tokens=1,
        tokens=197,
        parameters=85_798_656,
        licence="Owkin non-commercial",
        non_commercial=True,
        hub_id="owkin/phikon",
        weights_file="model.safetensors",
        layout="transformers",
        unverified=("mean", "std", "pooling", "gated", "weights_file"),
    ),
    # https://huggingface.co/owkin/phikon-v2/commit/419e8285b80eac3b60beca0d9b91942d48ad7b8e (card:
    # ViT-L/16 of DINOv2, licence); pooling, transform as in https://github.com/mahmoodlab/TRIDENT,
    # trident/patch_encoder_models/load.py.
    ModelSpec(
        name="phikon-v2",
        description="ViT-L/16, DINOv2 on 460 million tiles of public slides (Owkin).",
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
        licence="Owkin non-commercial",
        non_commercial=True,
        hub_id="owkin/phikon-v2",
        weights_file="model.safetensors",
        layout="transformers",
        unverified=(
            "arch_kwargs",
            "published_resize",
            "mpp",
            "mean",
            "std",
            "pooling",
            "gated",
            "weights_file",
        ),
    ),
)
