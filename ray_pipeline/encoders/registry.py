"""The models historay knows, as data. A new model is a new entry here and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from ray_pipeline.encoders.spec import ModelSpec
from ray_pipeline.errors import SettingsError

_H_OPTIMUS_MEAN = (0.707223, 0.578729, 0.703617)
_H_OPTIMUS_STD = (0.211883, 0.230117, 0.177517)

_ENTRIES = (
    # Facts from the model card, https://huggingface.co/bioptimus/H-optimus-0
    ModelSpec(
        name="h-optimus-0",
        description="ViT-g/14 with 4 registers, trained on 500,000 H&E slides (Bioptimus).",
        arch="vit_giant_patch14_reg4_dinov2",
        arch_kwargs={
            "img_size": 224,
            "init_values": 1e-5,
            "num_classes": 0,
            "dynamic_img_size": False,
        },
        tile_px=224,
        mpp=0.5,
        mean=_H_OPTIMUS_MEAN,
        std=_H_OPTIMUS_STD,
        dim=1536,
        pooling="cls",
        prefix_tokens=5,
        tokens=261,
        parameters=1_134_774_272,
        licence="Apache-2.0",
        hub_id="bioptimus/H-optimus-0",
        weights_file="pytorch_model.bin",
        weights_sha256="bf47b8467403079798661601b6ab06533be789da48d3f8b510aaefe2fbc55cd3",
    ),
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
        mean=_H_OPTIMUS_MEAN,
        std=_H_OPTIMUS_STD,
        dim=64,
        pooling="cls",
        prefix_tokens=5,
        tokens=261,
        parameters=138_368,
        licence="Apache-2.0",
    ),
)

MODELS: Mapping[str, ModelSpec] = {spec.name: spec for spec in _ENTRIES}
"""Every known model by name, in the order they are listed to users."""


def get_spec(name: str) -> ModelSpec:
    """The entry called `name`. Raises SettingsError naming the known models."""
    spec = MODELS.get(name)
    if spec is None:
        raise SettingsError(f"model '{name}' is not known; choose one of {', '.join(MODELS)}.")
    return spec
