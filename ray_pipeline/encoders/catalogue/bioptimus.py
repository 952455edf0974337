"""Bioptimus: H-optimus-0, H-optimus-1, H0-mini."""

from __future__ import annotations

from ray_pipeline.encoders.spec import ModelSpec, Rgb

MEAN: Rgb = (0.707223, 0.578729, 0.703617)
STD: Rgb = (0.211883, 0.230117, 0.177517)

_GIANT = {"img_size": 224, "init_values": 1e-5, "num_classes": 0, "dynamic_img_size": False}

ENTRIES = (
    # https://huggingface.co/bioptimus/H-optimus-0 (card, config.json) and
    # https://github.com/bioptimus/releases, models/h-optimus/v0/README.md.
    # The card of 2024 asks for no agreement; whether the hub does by now is not known.
    ModelSpec(
        name="h-optimus-0",
        description="ViT-g/14 with 4 registers, trained on 500,000 H&E slides (Bioptimus).",
        arch="vit_giant_patch14_reg4_dinov2",
        arch_kwargs=_GIANT,
        tile_px=224,
        mpp=0.5,
        mean=MEAN,
        std=STD,
        dim=1536,
        pooling="cls",
        prefix_tokens=5,
        tokens=261,
        parameters=1_134_774_272,
        licence="Apache-2.0",
        hub_id="bioptimus/H-optimus-0",
        weights_file="pytorch_model.bin",
        weights_sha256="bf47b8467403079798661601b6ab06533be789da48d3f8b510aaefe2fbc55cd3",
        unverified=("gated",),
    ),
    # https://github.com/bioptimus/h1-jumpstart, README.md: 1.1 billion parameters, 224 px at 0.5
    # mpp, 1536 numbers. Requests and their refusal to companies:
    # https://huggingface.co/bioptimus/H-optimus-1/discussions/22. Architecture and statistics as
    # in https://github.com/mahmoodlab/TRIDENT, trident/patch_encoder_models/load.py.
    ModelSpec(
        name="h-optimus-1",
        description="ViT-g/14 with 4 registers, trained on a million H&E slides (Bioptimus).",
        arch="vit_giant_patch14_reg4_dinov2",
        arch_kwargs=_GIANT,
        tile_px=224,
        mpp=0.5,
        mean=MEAN,
        std=STD,
        dim=1536,
        pooling="cls",
        prefix_tokens=5,
        tokens=261,
        parameters=1_134_774_272,
        licence="CC-BY-NC-ND-4.0",
        non_commercial=True,
        gated=True,
        hub_id="bioptimus/H-optimus-1",
        weights_file="model.safetensors",
        unverified=(
            "arch",
            "arch_kwargs",
            "mean",
            "std",
            "pooling",
            "licence",
            "non_commercial",
            "weights_file",
        ),
    ),
    # https://huggingface.co/bioptimus/H0-mini/discussions/4: access is asked for. The rest from
    # copies of the card's example: SwiGLUPacked with SiLU, 261 tokens of 768, class token and
    # mean of patches together 1536. Its first 768 numbers are the class token alone.
    ModelSpec(
        name="h0-mini",
        description="ViT-B/14 with 4 registers, distilled from H-optimus-0 (Bioptimus, Owkin).",
        arch="vit_base_patch14_reg4_dinov2",
        arch_kwargs={
            "img_size": 224,
            "init_values": 1e-5,
            "mlp_ratio": 2.66667 * 2,
            "mlp_layer": "SwiGLUPacked",
            "act_layer": "SiLU",
            "num_classes": 0,
            "dynamic_img_size": False,
        },
        tile_px=224,
        mpp=0.5,
        mean=MEAN,
        std=STD,
        dim=1536,
        pooling="cls+mean",
        prefix_tokens=5,
        tokens=261,
        parameters=85_739_520,
        licence="CC-BY-NC-ND-4.0",
        non_commercial=True,
        gated=True,
        hub_id="bioptimus/H0-mini",
        weights_file="model.safetensors",
        unverified=(
            "arch",
            "arch_kwargs",
            "mpp",
            "mean",
            "std",
            "pooling",
            "dim",
            "licence",
            "non_commercial",
            "weights_file",
        ),
    ),
)
