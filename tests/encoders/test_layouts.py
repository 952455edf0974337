"""Checkpoints under their publishers' tensor names give the very tensors of timm's."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ray_pipeline.encoders.encoder import Encoder, probe_identity
from ray_pipeline.encoders.model import build_model
from ray_pipeline.encoders.registry import MODELS
from ray_pipeline.encoders.spec import ModelSpec
from ray_pipeline.encoders.tensors import RandomTensors
from ray_pipeline.encoders.weights import resolve_weights
from ray_pipeline.errors import WeightsError

Tensors = dict[str, torch.Tensor]

# As written by transformers 4 (ViTModel, Dinov2Model, Dinov2WithRegistersModel) and by DINOv2.
TRANSFORMERS = {
    r"cls_token": "embeddings.cls_token",
    r"reg_token": "embeddings.register_tokens",
    r"pos_embed": "embeddings.position_embeddings",
    r"patch_embed\.proj\.(.*)": r"embeddings.patch_embeddings.projection.\1",
    r"blocks\.(\d+)\.attn\.proj\.(.*)": r"encoder.layer.\1.attention.output.dense.\2",
    r"blocks\.(\d+)\.ls(\d)\.gamma": r"encoder.layer.\1.layer_scale\2.lambda1",
    r"norm\.(.*)": r"layernorm.\1",
}
VIT = {
    r"blocks\.(\d+)\.norm1\.(.*)": r"encoder.layer.\1.layernorm_before.\2",
    r"blocks\.(\d+)\.norm2\.(.*)": r"encoder.layer.\1.layernorm_after.\2",
    r"blocks\.(\d+)\.mlp\.fc1\.(.*)": r"encoder.layer.\1.intermediate.dense.\2",
    r"blocks\.(\d+)\.mlp\.fc2\.(.*)": r"encoder.layer.\1.output.dense.\2",
}
DINOV2_OF_TRANSFORMERS = {r"blocks\.(\d+)\.norm(\d)\.(.*)": r"encoder.layer.\1.norm\2.\3"}
PLAIN = {r"blocks\.(\d+)\.mlp\.(fc\d)\.(.*)": r"encoder.layer.\1.mlp.\2.\3"}
GATED = {
    r"blocks\.(\d+)\.mlp\.fc1\.(.*)": r"encoder.layer.\1.mlp.weights_in.\2",
    r"blocks\.(\d+)\.mlp\.fc2\.(.*)": r"encoder.layer.\1.mlp.weights_out.\2",
}
NAMES = {
    "hibou-b": TRANSFORMERS | DINOV2_OF_TRANSFORMERS | GATED,
    "hibou-l": TRANSFORMERS | DINOV2_OF_TRANSFORMERS | GATED,
    "phikon": TRANSFORMERS | VIT,
    "phikon-v2": TRANSFORMERS | DINOV2_OF_TRANSFORMERS | PLAIN,
    "midnight": TRANSFORMERS | DINOV2_OF_TRANSFORMERS | GATED,
    "kaiko-vitl14": {r"reg_token": "register_tokens", r"(.*)": r"\1"},
    "gpfm": {r"(.*)": r"\1"},
}
UNUSED = {
    "transformers": ("embeddings.mask_token", "pooler.dense.weight", "pooler.dense.bias"),
    "dinov2": ("mask_token",),
}
others_names = pytest.mark.parametrize("name", NAMES)


def narrowed(name: str, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """The entry with two blocks of 64 numbers, in the registry under a name of its own."""
    narrow = {"embed_dim": 64, "depth": 2, "num_heads": 2, "mlp_ratio": 4.0}
    spec = MODELS[name]
    dim = 128 if spec.pooling == "cls+mean" else 64
    spec = replace(spec, name="narrow", arch_kwargs={**spec.arch_kwargs, **narrow}, dim=dim)
    monkeypatch.setitem(cast(dict[str, ModelSpec], MODELS), "narrow", spec)
    return spec


def seeded(spec: ModelSpec) -> Tensors:
    shapes = {name: tuple(t.shape) for name, t in build_model(spec).state_dict().items()}
    source = RandomTensors(spec.name, shapes)
    return {name: source.read(name) for name in shapes}


def as_published(name: str, tensors: Tensors) -> Tensors:
    """The file its publishers would have written of these tensors."""
    tensors = dict(tensors)
    layout = MODELS[name].layout
    if "reg_token" in tensors:
        class_position = torch.full_like(tensors["cls_token"], 0.25)
        tensors["cls_token"] = tensors["cls_token"] - class_position
        tensors["pos_embed"] = torch.cat([class_position, tensors["pos_embed"]], dim=1)
    published: Tensors = {unused: torch.zeros(1, 64) for unused in UNUSED[layout]}
    for own, tensor in tensors.items():
        stacked = re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(.*)", own)
        if stacked and layout == "transformers":
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                place = f"encoder.layer.{stacked[1]}.attention.attention.{part}.{stacked[2]}"
                published[place] = third.contiguous()
            continue
        pattern = next(p for p in NAMES[name] if re.fullmatch(p, own))
        published[re.sub(f"^{pattern}$", NAMES[name][pattern], own)] = tensor
    return published


def saved(tensors: Tensors, path: Path) -> str:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return str(path)


def test_every_entry_with_names_of_others_is_tried() -> None:
    assert set(NAMES) == {name for name, spec in MODELS.items() if spec.layout != "timm"}


@others_names
def test_published_names_give_the_vectors_of_timms(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = narrowed(name, monkeypatch)
    own = seeded(spec)
    if "reg_token" in own:
        # What adding a position to the class token gives in floats, whichever file it is.
        own["cls_token"] = (own["cls_token"] - 0.25) + 0.25
    given = [
        saved(own, tmp_path / "own.safetensors"),
        saved(as_published(name, own), tmp_path / "published.safetensors"),
    ]
    encoders = [
        Encoder(spec, resolve_weights(spec, path), device="cpu", precision="fp32", batch_size=1)
        for path in given
    ]
    assert encoders[0].identity == encoders[1].identity
    assert probe_identity("narrow", given[1], "fp32", "cpu") == encoders[0].identity
    tile = np.random.default_rng(3).integers(0, 255, (1, 224, 224, 3), np.uint8)
    vectors = [encoder.encode(tile) for encoder in encoders]
    np.testing.assert_array_equal(vectors[0], vectors[1])


@others_names
def test_a_tensor_too_many_or_too_few_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = narrowed(name, monkeypatch)
    published = as_published(name, seeded(spec))
    published["classifier.weight"] = torch.zeros(1, 64)
    path = saved(published, tmp_path / "more.safetensors")
    with pytest.raises(WeightsError, match=r"1 unexpected: classifier\.weight"):
        probe_identity("narrow", path, "fp32", "cpu")
    del published["classifier.weight"]
    lost = next(key for key in published if key.endswith(("key.bias", "qkv.bias")))
    del published[lost]
    path = saved(published, tmp_path / "less.safetensors")
    with pytest.raises(WeightsError, match=r"blocks\.0\.attn\.qkv\.bias"):
        probe_identity("narrow", path, "fp32", "cpu")
