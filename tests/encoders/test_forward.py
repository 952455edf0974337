"""Faster paths give the reference's vectors, or refuse to run."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ray_pipeline.encoders.agreement import agreement, check_agreement, sample_tiles
from ray_pipeline.encoders.cuda import MOST_BATCH_SIZE, batch_for, ran_out_of_memory
from ray_pipeline.encoders.encoder import Encoder
from ray_pipeline.encoders.forward import (
    ClassTokenBlock,
    Forward,
    Fp8Linear,
    leave_out_unseen_tokens,
    lower_blocks_to_fp8,
)
from ray_pipeline.encoders.model import build_model
from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.encoders.tensors import RandomTensors
from ray_pipeline.encoders.weights import resolve_weights
from ray_pipeline.errors import InexactError, SettingsError

TOY = get_spec("toy")
TILES = sample_tiles(224, 5)


def model_of(depth: int = 2) -> nn.Module:
    """The toy model on the CPU with seeded weights."""
    model = build_model(replace(TOY, arch_kwargs={**TOY.arch_kwargs, "depth": depth}))
    source = RandomTensors("toy", {n: tuple(t.shape) for n, t in model.state_dict().items()})
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    model.load_state_dict({name: source.read(name) for name in source.shapes}, strict=True)
    return model


@torch.no_grad()
def vectors(model: nn.Module) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.asarray(Forward(model, TOY, "fp32")(torch.from_numpy(TILES)).float().numpy())


@pytest.mark.parametrize("depth", [1, 3])
def test_leaving_out_unseen_tokens_is_exact(depth: int) -> None:
    model = model_of(depth)
    whole = vectors(model)
    assert leave_out_unseen_tokens(model, TOY)
    last: Any = model.blocks[-1]  # type: ignore[index]
    assert isinstance(last, ClassTokenBlock)
    seen: list[torch.Size] = []
    last.block.mlp.register_forward_hook(lambda _m, _i, output: seen.append(output.shape))
    found = agreement(vectors(model), whole)
    assert found.least_cosine > 0.9999999
    assert found.largest_error < 2e-3  # one step of float16
    assert seen == [torch.Size([5, 1, 64])]


def test_blocks_of_another_kind_are_left_alone() -> None:
    model = model_of()
    last: Any = model.blocks[-1]  # type: ignore[index]
    last.attn = nn.Identity()
    assert not leave_out_unseen_tokens(model, TOY)


@pytest.mark.parametrize(("n_in", "n_out"), [(256, 96), (152, 96), (256, 100), (3416, 100)])
def test_float8_rounds_each_row_and_nothing_else(n_in: int, n_out: int) -> None:
    rng = torch.Generator().manual_seed(4)
    linear = nn.Linear(n_in, n_out).requires_grad_(False)
    inputs = torch.randn(4, 33, n_in, generator=rng) * torch.logspace(-3, 3, 33).view(1, 33, 1)
    wanted, found = linear(inputs), Fp8Linear(linear)(inputs)
    assert found.shape == wanted.shape
    assert found.dtype == inputs.dtype
    # Rows differ by a million in size; a scale for all of them would lose the small ones.
    rows = agreement(found.reshape(-1, n_out).numpy(), wanted.reshape(-1, n_out).numpy())
    assert rows.least_cosine > 0.998


def test_float8_blocks_stay_close_and_attention_is_not_touched() -> None:
    model = model_of()
    whole = vectors(model)
    lower_blocks_to_fp8(model)
    lowered = [name for name, module in model.named_modules() if isinstance(module, Fp8Linear)]
    assert len(lowered) == 2 * 4
    assert all(name.startswith("blocks.") for name in lowered)
    assert 0.99 < agreement(vectors(model), whole).least_cosine < 1


def test_float8_blocks_agree_though_the_last_gives_the_class_token_alone() -> None:
    model = model_of()
    whole = vectors(model)
    assert leave_out_unseen_tokens(model, TOY)
    lower_blocks_to_fp8(model)
    assert not [m for m in model.blocks.modules() if isinstance(m, nn.Linear)]  # type: ignore[union-attr]
    assert 0.99 < agreement(vectors(model), whole).least_cosine < 1


@pytest.mark.parametrize("spoil", ["sign", "nan", "swapped"])
def test_other_vectors_are_refused(spoil: str) -> None:
    right = vectors(model_of())
    wrong = right.copy()
    if spoil == "sign":
        wrong[2] *= -1
    elif spoil == "nan":
        wrong[0, 0] = np.nan
    else:
        wrong[[0, 1]] = wrong[[1, 0]]
    with pytest.raises(InexactError, match=r"toy: the compiled path .* below 0\.999"):
        check_agreement(TOY, "compiled", wrong, right, right)
    with pytest.raises(InexactError, match="float32"):
        check_agreement(TOY, "compiled", right, right, wrong)


def test_one_number_far_off_is_refused_though_the_cosine_is_near_one() -> None:
    right = vectors(model_of())
    wrong = right.copy()
    wrong[3, 7] += 0.3 * float(np.sqrt(np.mean(right[3] ** 2)))
    assert agreement(wrong, right).least_cosine > TOY.least_cosine
    for reference, exact in ((right, wrong), (wrong, right)):
        with pytest.raises(InexactError, match=r"toy: the fp8 path .* off .*, above 0\.25"):
            check_agreement(TOY, "fp8", wrong, reference, exact)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_compiled_path_is_compared_and_agrees(precision: Any) -> None:
    source = resolve_weights(TOY, None)
    plain = Encoder(TOY, source, device="cpu", precision=precision)
    fast = Encoder(TOY, source, device="cpu", precision=precision, compile=True, batch_size=4)
    assert (plain.path, fast.path) == ("reference", "compiled")
    assert fast.identity == plain.identity
    assert fast.agreements is not None
    beside, below = fast.agreements
    assert beside.least_cosine >= 0.999
    assert below.least_cosine >= 0.999
    assert agreement(fast.encode(TILES), plain.encode(TILES)).least_cosine >= 0.9995


@pytest.mark.slow
def test_what_one_process_has_compiled_the_next_one_finds(tmp_path: Path) -> None:
    code = """
from ray_pipeline.encoders.encoder import Encoder
from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.encoders.weights import resolve_weights
spec = get_spec("toy")
Encoder(spec, resolve_weights(spec, None), device="cpu", compile=True, batch_size=2)
"""
    environment = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"}
    environment["HISTORAY_CACHE"] = str(tmp_path)
    found = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        libraries = (tmp_path / "compiled").rglob("*.so")
        found.append({path: path.stat().st_mtime_ns for path in libraries})
    assert found[0]
    assert found[1] == found[0]


@pytest.mark.slow
def test_a_path_that_misses_its_threshold_refuses_to_run() -> None:
    strict = replace(TOY, least_cosine=1.1)
    with pytest.raises(InexactError, match="run with compile: false"):
        Encoder(strict, resolve_weights(TOY, None), device="cpu", precision="bf16", compile=True)


def test_float8_is_refused_where_no_device_has_it() -> None:
    with pytest.raises(SettingsError, match="fp8 needs an NVIDIA GPU"):
        Encoder(TOY, resolve_weights(TOY, None), device="cpu", precision="fp8")


def test_out_of_memory_is_known_whoever_says_so() -> None:
    said = RuntimeError("CUDA error: out of memory")
    assert ran_out_of_memory(torch.OutOfMemoryError("Tried to allocate 2 GiB."))
    assert ran_out_of_memory(said)
    assert not ran_out_of_memory(RuntimeError("an illegal memory access was encountered"))
    broken = RuntimeError("the capture was invalidated")
    assert not ran_out_of_memory(broken)
    broken.__context__ = said
    assert ran_out_of_memory(broken)


@pytest.mark.parametrize(
    ("free", "per_tile", "tiles"),
    [(70e9, 20e6, MOST_BATCH_SIZE), (1e9, 20e6, 32), (1e9, 2e9, 1), (0, 1e6, 1), (70e9, 0, 256)],
)
def test_batches_fit_the_free_memory(free: float, per_tile: float, tiles: int) -> None:
    assert batch_for(int(free), per_tile) == tiles
