"""Hong Kong University of Science and Technology: GPFM."""

from __future__ import annotations

from ray_pipeline.encoders.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec

ENTRIES = (
    # https://github.com/birkhoffkiki/GPFM: models/dinov2/__init__.py (`build_model`,
    # `build_transform`) and README.md: "we prefer" 512 px of 40x (0.25 mpp), which the transform
    # brings to 224, so the network sees 512 * 0.25 / 224 mpp. Licence:
    # https://huggingface.co/majiabo/GPFM. The release on GitHub wraps its state dict; the hub's
    # file is the state dict itself, as https://github.com/mahmoodlab/TRIDENT loads it.
    ModelSpec(
        name="gpfm",
        description="ViT-L/14, distilled from UNI, CONCH and Phikon (HKUST).",
        arch="vit_large_patch14_dinov2",
        arch_kwargs={
            "img_size": 224,
            "init_values": 1e-5,
            "num_classes": 0,
            "dynamic_img_size": False,
        },
        tile_px=224,
        published_resize="512 px of 0.25 mpp to 224, bicubic",
        mpp=512 * 0.25 / 224,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        dim=1024,
        pooling="cls",
        prefix_tokens=1,
        tokens=257,
        parameters=303_227_904,
        licence="CC-BY-NC-4.0",
        non_commercial=True,
        hub_id="majiabo/GPFM",
        weights_file="GPFM.pth",
        layout="dinov2",
        unverified=("gated", "weights_file", "layout"),
    ),
)
