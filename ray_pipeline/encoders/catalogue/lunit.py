"""Lunit: ViT-S/16 and ViT-S/8 of the benchmark of self-supervised learning."""

from __future__ import annotations

from ray_pipeline.encoders.spec import ModelSpec

_RELEASE = (
    "https://github.com/lunit-io/benchmark-ssl-pathology/releases/download/pretrained-weights"
)


def _dino(patch_px: int, *, tokens: int, parameters: int) -> ModelSpec:
    """A model whose file bears timm's names: the publishers load it strictly."""
    file = f"dino_vit_small_patch{patch_px}_ep200.torch"
    return ModelSpec(
        name=f"lunit-vits{patch_px}",
        description=f"ViT-S/{patch_px}, DINO on 19 million tiles of TCGA (Lunit).",
        arch=f"vit_small_patch{patch_px}_224",
        arch_kwargs={"img_size": 224, "num_classes": 0, "dynamic_img_size": False},
        tile_px=224,
        mpp=0.5,
        mean=(0.70322989, 0.53606487, 0.66096631),
        std=(0.21716536, 0.26081574, 0.20723464),
        dim=384,
        pooling="cls",
        prefix_tokens=1,
        tokens=tokens,
        parameters=parameters,
        licence="Lunit non-commercial",
        non_commercial=True,
        weights_file=file,
        weights_url=f"{_RELEASE}/{file}",
        unverified=("mpp", "mean", "std"),
    )


# https://github.com/lunit-io/benchmark-ssl-pathology, README.md (network, files, licence). The
# statistics stand on the page of its release; here they are as quoted by
# https://github.com/kaiko-ai/eva, src/eva/vision/models/networks/backbones/pathology/lunit.py.
ENTRIES = (
    _dino(16, tokens=197, parameters=21_665_664),
    _dino(8, tokens=785, parameters=21_670_272),
)
