"""Every entry builds its network, and pools its tokens as it says."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ray_pipeline.encoders.encoder import Encoder, probe_identity
from ray_pipeline.encoders.forward import leave_out_unseen_tokens
from ray_pipeline.encoders.model import build_model
from ray_pipeline.encoders.registry import MODELS, get_spec
from ray_pipeline.encoders.spec import ModelSpec
from ray_pipeline.encoders.tensors import RandomTensors
from ray_pipeline.encoders.weights import resolve_weights

SMALL_PARAMETERS = 30_000_000
"""Up to here a network is filled and run within a second or two."""

every_model = pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS.keys())
every_model_slow_if_large = pytest.mark.parametrize(
    "spec",
    [
        pytest.param(
            spec, id=name, marks=[pytest.mark.slow] if spec.parameters > SMALL_PARAMETERS else []
        )
        for name, spec in MODELS.items()
    ],
)


def narrowed(spec: ModelSpec) -> ModelSpec:
    """The same network with two blocks of 64 numbers, so that it runs in no time."""
    narrow = {"embed_dim": 64, "depth": 2, "num_heads": 2, "mlp_ratio": 4.0}
    dim = 128 if spec.pooling == "cls+mean" else 64
    return replace(spec, name="narrow", arch_kwargs={**spec.arch_kwargs, **narrow}, dim=dim)


def filled(spec: ModelSpec) -> Any:
    """The network with seeded weights, ready to run."""
    model = build_model(spec)
    source = RandomTensors(
        spec.name, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    )
    model = model.to_empty(device="cpu").eval()
    model.load_state_dict({name: source.read(name) for name in source.shapes})
    return model


def images(spec: ModelSpec, count: int = 2) -> torch.Tensor:
    shape = (count, 3, spec.tile_px, spec.tile_px)
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


@every_model
def test_entry_equals_its_architecture(spec: ModelSpec) -> None:
    model = build_model(spec)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in model.parameters()) == spec.parameters
    # A buffer outside the state dict would stay uninitialised after loading.
    assert {name for name, _ in model.named_buffers()} <= set(model.state_dict())


@every_model
def test_tokens_and_vector_are_as_the_entry_says(spec: ModelSpec) -> None:
    model = cast(Any, build_model(spec))
    tile = torch.empty((2, 3, spec.tile_px, spec.tile_px), device="meta")
    tokens = model.forward_features(tile)
    assert tokens.shape[:2] == (2, spec.tokens)
    assert model.num_prefix_tokens == spec.prefix_tokens
    assert math.isqrt(spec.tokens - spec.prefix_tokens) ** 2 == spec.tokens - spec.prefix_tokens
    assert model(tile).shape == (2, spec.dim)
    assert spec.dim == tokens.shape[2] * (2 if spec.pooling == "cls+mean" else 1)


@every_model
@torch.inference_mode()
def test_vector_is_made_of_class_and_patch_tokens_alone(spec: ModelSpec) -> None:
    narrow = narrowed(spec)
    model, tiles = filled(narrow), images(narrow)
    tokens, vectors = model.forward_features(tiles), model(tiles)
    patches = tokens[:, narrow.prefix_tokens :]
    assert patches.shape[1] == narrow.tokens - narrow.prefix_tokens
    expected = tokens[:, 0]
    if narrow.pooling == "cls+mean":
        expected = torch.cat([expected, patches.double().mean(1).float()], dim=1)
    torch.testing.assert_close(vectors, expected, atol=1e-6, rtol=0)


@every_model
@torch.inference_mode()
def test_vector_does_not_look_at_registers(spec: ModelSpec) -> None:
    narrow = narrowed(spec)
    model, tiles = filled(narrow), images(narrow)
    before = model(tiles)

    def vectors_with(first: int, stop: int) -> torch.Tensor:
        def perturb(_module: object, _args: object, tokens: torch.Tensor) -> torch.Tensor:
            tokens = tokens.clone()
            tokens[:, first:stop] += 1000
            return tokens

        hook = model.norm.register_forward_hook(perturb)
        try:
            return cast(torch.Tensor, model(tiles))
        finally:
            hook.remove()

    assert torch.equal(vectors_with(1, narrow.prefix_tokens), before)
    assert not torch.equal(vectors_with(0, 1), before)
    sees_patches = narrow.pooling == "cls+mean"
    for patch in (narrow.prefix_tokens, narrow.tokens - 1):
        assert torch.equal(vectors_with(patch, patch + 1), before) != sees_patches


@every_model
@torch.inference_mode()
def test_vector_needs_no_more_of_the_last_block_than_its_pooling_sees(spec: ModelSpec) -> None:
    narrow = narrowed(spec)
    model, tiles = filled(narrow), images(narrow)
    whole = model(tiles)
    assert leave_out_unseen_tokens(model, narrow) == (narrow.pooling == "cls")
    torch.testing.assert_close(model(tiles), whole, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_mean_is_taken_in_float32() -> None:
    model = build_model(narrowed(get_spec("virchow2")))
    # 2049 is no number of bfloat16: a mean summed in it would stay at 2048.
    tokens = torch.tensor([0.0] * 5 + [2048.0, 2050.0]).bfloat16().view(1, 7, 1)
    assert cast(Any, model).head(tokens).tolist() == [[0.0, 2048.0]]


def test_epsilon_of_norms_is_the_publishers() -> None:
    def epsilons(name: str) -> set[float]:
        norms = [m for m in build_model(get_spec(name)).modules() if hasattr(m, "eps")]
        return {cast(float, norm.eps) for norm in norms}

    assert epsilons("phikon") == {1e-12}
    assert epsilons("uni") == epsilons("h-optimus-0") == {1e-6}


@every_model_slow_if_large
def test_identity_is_probed_with_random_weights(spec: ModelSpec) -> None:
    identity = probe_identity(spec.name, "random", "fp32", "cpu")
    assert (identity.model, identity.dim, identity.pooling) == (spec.name, spec.dim, spec.pooling)
    assert not identity.meaningful
    assert identity.preprocessing.tile_px == spec.tile_px


@every_model_slow_if_large
def test_real_network_gives_a_vector(spec: ModelSpec) -> None:
    tile = np.random.default_rng(3).integers(0, 255, (1, spec.tile_px, spec.tile_px, 3), np.uint8)
    encoder = Encoder(spec, resolve_weights(spec, "random"), device="cpu", batch_size=1)
    vectors = encoder.encode(tile)
    assert vectors.shape == (1, spec.dim)
    assert np.isfinite(vectors).all()
    assert vectors.std() > 0.01


def peak_bytes(code: str, *arguments: str) -> int:
    """By how much `code` raises a fresh process's most resident memory, bytes.

    Linux's own mark, for `ru_maxrss` comes from the parent where that is larger.
    """
    peak = "int(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
    imports = "import sys\nfrom ray_pipeline.encoders.encoder import *\n"
    script = f"{imports}before = {peak}\n{code}\nprint({peak} - before)\n"
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) * 1024


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("model", "precision"), [("uni", "bf16"), ("uni", "fp32"), ("h-optimus-0", "fp32")]
)
def test_loading_needs_little_more_memory_than_the_file_has_bytes(
    tmp_path: Path, model: str, precision: str
) -> None:
    spec = get_spec(model)
    path = tmp_path / "weights.safetensors"
    shapes = {name: tuple(t.shape) for name, t in build_model(spec).state_dict().items()}
    source = RandomTensors(spec.name, shapes)
    save_file({name: source.read(name) for name in shapes}, path)
    load = (
        "spec = get_spec(sys.argv[1])\n"
        "Encoder(spec, resolve_weights(spec, sys.argv[2]), device='cpu', precision=sys.argv[3])"
    )
    try:
        peak = peak_bytes(load, model, str(path), precision)
        assert peak < 1.3 * path.stat().st_size
    finally:
        path.unlink()  # pytest keeps the folders of three runs


@pytest.mark.slow
def test_probing_needs_a_fraction_of_the_weights_memory() -> None:
    peak = peak_bytes("probe_identity('virchow2', 'random', 'fp32', 'cpu')")
    assert peak < 0.1 * get_spec("virchow2").parameters * 4
