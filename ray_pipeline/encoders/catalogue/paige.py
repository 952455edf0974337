"""Paige: Virchow, Virchow2."""

from __future__ import annotations

from ray_pipeline.encoders.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec

# ViT-H/14 whose SwiGLU has 3416 hidden units: 1280 * 5.3375 / 2.
_HUGE: dict[str, int | float | bool | str] = {
    "img_size": 224,
    "init_values": 1e-5,
    "mlp_ratio": 5.3375,
    "mlp_layer": "SwiGLUPacked",
    "act_layer": "SiLU",
    "num_classes": 0,
    "dynamic_img_size": False,
}

ENTRIES = (
    # Licence and gate: https://huggingface.co/paige-ai/Virchow, README.md. 632 million parameters:
    # https://arxiv.org/abs/2309.07778. Architecture, statistics and pooling as in
    # https://github.com/mahmoodlab/TRIDENT, trident/patch_encoder_models/load.py, which loads the
    # file strictly.
    ModelSpec(
        name="virchow",
        description="ViT-H/14, DINOv2 on 1.5 million H&E slides (Paige).",
        arch="vit_huge_patch14_224",
        arch_kwargs=_HUGE,
        tile_px=224,
        published_resize="shorter side to 224, bicubic",
        mpp=0.5,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        dim=2560,
        pooling="cls+mean",
        prefix_tokens=1,
        tokens=257,
        parameters=631_229_184,
        licence="Apache-2.0",
        gated=True,
        hub_id="paige-ai/Virchow",
        weights_file="model.safetensors",
        unverified=("arch_kwargs", "mpp", "mean", "std", "pooling", "weights_file"),
    ),
    # Licence and gate: https://huggingface.co/paige-ai/Virchow2/discussions/18. 632 million
    # parameters, mixed magnifications: https://arxiv.org/abs/2408.00738. The rest as above. The
    # four registers have positions of their own here: 261 of them.
    ModelSpec(
        name="virchow2",
        description="ViT-H/14 with 4 registers, DINOv2 on 3.1 million slides (Paige).",
        arch="vit_huge_patch14_224",
        arch_kwargs={**_HUGE, "reg_tokens": 4},
        tile_px=224,
        published_resize="shorter side to 224, bicubic",
        mpp=0.5,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        dim=2560,
        pooling="cls+mean",
        prefix_tokens=5,
        tokens=261,
        parameters=631_239_424,
        licence="CC-BY-NC-ND-4.0",
        non_commercial=True,
        gated=True,
        hub_id="paige-ai/Virchow2",
        weights_file="model.safetensors",
        unverified=("arch_kwargs", "mpp", "mean", "std", "pooling", "weights_file"),
    ),
)
