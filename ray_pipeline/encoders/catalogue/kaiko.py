"""kaiko.ai: Midnight-12k, and the five models of 2024."""

from __future__ import annotations

from ray_pipeline.encoders.spec import ModelSpec, Rgb

_MEAN: Rgb = (0.5, 0.5, 0.5)
_STD: Rgb = (0.5, 0.5, 0.5)
_RELEASE = "https://github.com/kaiko-ai/towards_large_pathology_fms/releases/download/0.0.1"


def _of_2024(
    name: str, size: str, arch: str, *, dim: int, tokens: int, parameters: int
) -> ModelSpec:
    """A model whose file bears timm's names: the publishers load it strictly."""
    return ModelSpec(
        name=f"kaiko-{name}",
        description=f"{size} of the five models of 2024 (kaiko.ai).",
        arch=arch,
        arch_kwargs={"img_size": 224, "num_classes": 0, "dynamic_img_size": False},
        tile_px=224,
        published_resize="shorter side to 224, centre 224",
        mpp=0.5,
        mean=_MEAN,
        std=_STD,
        dim=dim,
        pooling="cls",
        prefix_tokens=1,
        tokens=tokens,
        parameters=parameters,
        licence="Kaiko non-commercial",
        non_commercial=True,
        weights_file=f"{name}.pth",
        weights_url=f"{_RELEASE}/{name}.pth",
        unverified=("mpp",),
    )


ENTRIES = (
    # https://huggingface.co/kaiko-ai/midnight (card: 224 px, statistics, licence; hub: DINOv2 of
    # transformers, safetensors). The rest as in https://github.com/mahmoodlab/TRIDENT,
    # trident/patch_encoder_models/load.py. Its first 1536 numbers are the class token alone.
    ModelSpec(
        name="midnight",
        description="ViT-g/14, DINOv2 on 12,000 slides of TCGA: Midnight-12k (kaiko.ai).",
        arch="vit_giant_patch14_dinov2",
        arch_kwargs={
            "img_size": 224,
            "init_values": 1e-5,
            "num_classes": 0,
            "dynamic_img_size": False,
        },
        tile_px=224,
        published_resize="shorter side to 224, centre 224",
        mpp=0.5,
        mean=_MEAN,
        std=_STD,
        dim=3072,
        pooling="cls+mean",
        prefix_tokens=1,
        tokens=257,
        parameters=1_134_769_664,
        licence="MIT",
        hub_id="kaiko-ai/midnight",
        weights_file="model.safetensors",
        layout="transformers",
        unverified=("arch", "arch_kwargs", "published_resize", "mpp", "pooling", "weights_file"),
    ),
    # https://github.com/kaiko-ai/towards_large_pathology_fms: hubconf.py, README.md, LICENSE.
    _of_2024(
        "vits16", "ViT-S/16", "vit_small_patch16_224", dim=384, tokens=197, parameters=21_665_664
    ),
    _of_2024(
        "vits8", "ViT-S/8", "vit_small_patch8_224", dim=384, tokens=785, parameters=21_670_272
    ),
    _of_2024(
        "vitb16", "ViT-B/16", "vit_base_patch16_224", dim=768, tokens=197, parameters=85_798_656
    ),
    _of_2024("vitb8", "ViT-B/8", "vit_base_patch8_224", dim=768, tokens=785, parameters=85_807_872),
    # The file has DINOv2's own names and the positions of 37 x 37 patches (518 px), which timm
    # brings to the 16 x 16 of 224 px in every forward pass, as the publishers let it.
    ModelSpec(
        name="kaiko-vitl14",
        description="ViT-L/14 with 4 registers, of the five models of 2024 (kaiko.ai).",
        arch="vit_large_patch14_reg4_dinov2",
        arch_kwargs={
            "img_size": 518,
            "init_values": 1e-5,
            "num_classes": 0,
            "dynamic_img_size": True,
        },
        tile_px=224,
        published_resize="shorter side to 224, centre 224",
        mpp=0.5,
        mean=_MEAN,
        std=_STD,
        dim=1024,
        pooling="cls",
        prefix_tokens=5,
        tokens=261,
        parameters=304_370_688,
        licence="Kaiko non-commercial",
        non_commercial=True,
        weights_file="vitl14.pth",
        weights_url=f"{_RELEASE}/vitl14.pth",
        layout="dinov2",
        unverified=("mpp",),
    ),
)
