"""HistAI: Hibou-B, Hibou-L."""

from __future__ import annotations

from ray_pipeline.encoders.spec import ModelSpec, Rgb

# As in https://github.com/mahmoodlab/TRIDENT, trident/patch_encoder_models/utils/constants.py.
_MEAN: Rgb = (0.7068, 0.5755, 0.722)
_STD: Rgb = (0.195, 0.2316, 0.1816)

ENTRIES = (
    # https://github.com/HistAI/hibou, hibou/models/__init__.py (`build_model`: vit_base, patches of
    # 14, swiglufused, 4 registers; SwiGLU has (768 * 4 * 2 / 3 + 7) // 8 * 8 = 2048 hidden units)
    # and vision_transformer.py (class token). Licence, revision, file (343 MB):
    # https://huggingface.co/histai/hibou-b/tree/7fdc8cce365ebfd9e7e60ee6ee9a8d4d59388f3c
    ModelSpec(
        name="hibou-b",
        description="ViT-B/14 with 4 registers, DINOv2 on a private set of slides (HistAI).",
        arch="vit_base_patch14_reg4_dinov2",
        arch_kwargs={
            "img_size": 224,
            "init_values": 1e-5,
            "mlp_ratio": 2 * 2048 / 768,
            "mlp_layer": "SwiGLUPacked",
            "act_layer": "SiLU",
            "num_classes": 0,
            "dynamic_img_size": False,
        },
        tile_px=224,
        published_resize="shorter side to 224, bicubic",
        mpp=0.5,
        mean=_MEAN,
        std=_STD,
        dim=768,
        pooling="cls",
        prefix_tokens=5,
        tokens=261,
        parameters=85_739_520,
        licence="Apache-2.0",
        hub_id="histai/hibou-b",
        revision="7fdc8cce365ebfd9e7e60ee6ee9a8d4d59388f3c",
        weights_file="model.safetensors",
        layout="transformers",
        unverified=("mpp", "mean", "std", "published_resize", "gated", "layout"),
    ),
    # https://github.com/HistAI/hibou, README.md (licence) and hibou/models/cellvit/cellvit.py
    # (`HibouEncoder`: vit_large, swiglufused, 4 registers; (1024 * 4 * 2 / 3 + 7) // 8 * 8 = 2736
    # hidden units). Gate, 304 million parameters: https://huggingface.co/histai/hibou-L
    ModelSpec(
        name="hibou-l",
        description="ViT-L/14 with 4 registers, DINOv2 on 1.2 billion private tiles (HistAI).",
        arch="vit_large_patch14_reg4_dinov2",
        arch_kwargs={
            "img_size": 224,
            "init_values": 1e-5,
            "mlp_ratio": 2 * 2736 / 1024,
            "mlp_layer": "SwiGLUPacked",
            "act_layer": "SiLU",
            "num_classes": 0,
            "dynamic_img_size": False,
        },
        tile_px=224,
        published_resize="shorter side to 224, bicubic",
        mpp=0.5,
        mean=_MEAN,
        std=_STD,
        dim=1024,
        pooling="cls",
        prefix_tokens=5,
        tokens=261,
        parameters=303_657_216,
        licence="Apache-2.0",
        gated=True,
        hub_id="histai/hibou-L",
        weights_file="model.safetensors",
        layout="transformers",
        unverified=("mpp", "mean", "std", "published_resize", "weights_file", "layout"),
    ),
)
