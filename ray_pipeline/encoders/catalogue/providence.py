"""Providence and Microsoft: the tile encoder of Prov-GigaPath."""

from __future__ import annotations

from ray_pipeline.encoders.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec

ENTRIES = (
    # https://github.com/prov-gigapath/prov-gigapath, README.md (gate, transform, 1536 numbers) and
    # LICENSE (research only). Architecture as in https://github.com/mahmoodlab/TRIDENT,
    # trident/patch_encoder_models/load.py, which loads the file strictly. The published transform
    # cuts the middle 224 px out of tiles of 256: the scale is the tile's.
    ModelSpec(
        name="gigapath",
        description="ViT-g/16, the tile encoder of Prov-GigaPath (Providence, Microsoft).",
        arch="vit_giant_patch14_dinov2",
        arch_kwargs={
            "img_size": 224,
            "patch_size": 16,
            "init_values": 1e-5,
            "num_classes": 0,
            "dynamic_img_size": False,
        },
        tile_px=224,
        published_resize="shorter side to 256, bicubic, centre 224",
        mpp=0.5,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        dim=1536,
        pooling="cls",
        prefix_tokens=1,
        tokens=197,
        parameters=1_134_953_984,
        licence="Prov-GigaPath",
        non_commercial=True,
        gated=True,
        hub_id="prov-gigapath/prov-gigapath",
        weights_file="pytorch_model.bin",
        unverified=("arch", "arch_kwargs", "mpp", "pooling", "weights_file"),
    ),
)
