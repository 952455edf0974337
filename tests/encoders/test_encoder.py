"""The encoder equals plain timm, gives each tile its own vector, and says what it is."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import timm
import torch
from safetensors.torch import save_file

from ray_pipeline.encoders import encoder as encoder_module
from ray_pipeline.encoders.encoder import Encoder, probe_identity, resolve_precision
from ray_pipeline.encoders.model import build_model
from ray_pipeline.encoders.registry import MODELS, get_spec
from ray_pipeline.encoders.spec import AskedPrecision, ModelSpec, Precision
from ray_pipeline.encoders.tensors import RandomTensors, convert_to_safetensors, open_tensors
from ray_pipeline.encoders.weights import resolve_weights
from ray_pipeline.errors import SettingsError, WeightsError

Tiles = npt.NDArray[np.uint8]
TOY = get_spec("toy")
GIANT_DIGEST = "e79b09925deb16dc13edc5efd78b1df48f09faa340144841f18152b94670a0cd"
TOY_DIGEST = "cb3023422561ab2ceab50b3d5b27e5433111f70795bbfad9772babfd7bfedf7d"


@pytest.fixture(scope="module")
def tiles() -> Tiles:
    """Smooth coloured tiles uint8 [11, 224, 224, 3], each unlike the others."""
    rng = np.random.default_rng(7)
    coarse = rng.integers(60, 255, (11, 14, 14, 3)).astype(np.float32)
    fine = rng.integers(-20, 20, (11, 224, 224, 3))
    mixed = coarse.repeat(16, axis=1).repeat(16, axis=2) + fine
    return cast(Tiles, np.clip(mixed, 0, 255).astype(np.uint8))


def toy(precision: AskedPrecision = "fp32", batch_size: int | None = None) -> Encoder:
    source = resolve_weights(TOY, None)
    return Encoder(TOY, source, device="cpu", precision=precision, batch_size=batch_size)


def state_dict_of(spec: ModelSpec) -> dict[str, torch.Tensor]:
    shapes = {name: tuple(t.shape) for name, t in build_model(spec).state_dict().items()}
    source = RandomTensors(spec.name, shapes)
    return {name: source.read(name) for name in shapes}


def plain_timm(spec: ModelSpec) -> torch.nn.Module:
    """The architecture as the model card builds it, with this spec's seeded weights."""
    kwargs: dict[str, Any] = dict(spec.arch_kwargs)
    model = timm.create_model(spec.arch, pretrained=False, **kwargs)
    model.load_state_dict(state_dict_of(spec), strict=True)
    return model.eval()


def normalised(spec: ModelSpec, tiles: Tiles) -> torch.Tensor:
    """Float32 [N, 3, H, W], by numpy in float64."""
    scaled = (tiles / 255 - np.array(spec.mean)) / np.array(spec.std)
    return torch.from_numpy(scaled.transpose(0, 3, 1, 2).astype(np.float32))


def cosines(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return cast(npt.NDArray[np.float64], (a * b).sum(1) / lengths)


def test_forward_equals_plain_timm_in_fp32(tiles: Tiles) -> None:
    encoder = toy()
    seen: list[torch.Tensor] = []
    model = encoder._model
    model.register_forward_hook(lambda _module, _args, output: seen.append(output))
    vectors = encoder.encode(tiles[: encoder.batch_size])
    with torch.inference_mode():
        expected = plain_timm(TOY)(normalised(TOY, tiles[: encoder.batch_size]))
    assert expected.shape == (encoder.batch_size, 64)
    np.testing.assert_allclose(seen[0].numpy(), expected.numpy(), atol=1e-5, rtol=0)
    np.testing.assert_array_equal(vectors, seen[0].to(torch.float16).numpy())


def test_vector_is_the_class_token_after_the_norm(tiles: Tiles) -> None:
    reference = cast(Any, plain_timm(TOY))
    with torch.inference_mode():
        tokens = reference.forward_features(normalised(TOY, tiles))
        pooled = reference(normalised(TOY, tiles))
    assert tokens.shape == (len(tiles), TOY.tokens, TOY.dim)
    assert reference.num_prefix_tokens == TOY.prefix_tokens
    assert torch.equal(pooled, tokens[:, 0])


def test_bf16_equals_plain_autocast(tiles: Tiles) -> None:
    encoder = toy("bf16", batch_size=len(tiles))
    # Normalised in fp32, as model cards do it: one rounding apart, a pixel may become another
    # number in bf16, and how far that carries is the processor's affair.
    mean, std = (np.array(values, np.float32) for values in (TOY.mean, TOY.std))
    pixels = torch.from_numpy((tiles.astype(np.float32) / np.float32(255) - mean) / std)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = plain_timm(TOY)(pixels.permute(0, 3, 1, 2).contiguous())
    # Matrices held in bf16 are the very matrices autocast would make.
    assert cosines(encoder.encode(tiles), expected.float().numpy()).min() >= 0.9999999


def test_bf16_is_close_to_fp32(tiles: Tiles) -> None:
    low, full = toy("bf16").encode(tiles), toy("fp32").encode(tiles)
    assert cosines(low, full).min() >= 0.999


def test_tiles_are_told_apart_and_finite(tiles: Tiles) -> None:
    vectors = toy().encode(tiles)
    assert vectors.dtype == np.float16
    assert np.isfinite(vectors).all()
    pairs = [(i, j) for i in range(len(tiles)) for j in range(i)]
    first, second = (vectors[[pair[k] for pair in pairs]] for k in (0, 1))
    assert cosines(first, second).max() < 0.999


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_vector_does_not_depend_on_companions(
    tiles: Tiles, precision: AskedPrecision, batch_size: int
) -> None:
    encoder = toy(precision, batch_size=batch_size)
    together = encoder.encode(tiles)
    for row in (0, 3, 10):
        np.testing.assert_array_equal(encoder.encode(tiles[row : row + 1])[0], together[row])


def test_read_only_and_strided_tiles_are_taken(tiles: Tiles) -> None:
    encoder = toy()
    frozen = tiles.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(encoder.encode(frozen), encoder.encode(tiles))
    np.testing.assert_array_equal(encoder.encode(tiles[::2]), encoder.encode(tiles)[::2])


def test_no_tiles_give_no_vectors() -> None:
    assert toy().encode(np.empty((0, 224, 224, 3), np.uint8)).shape == (0, 64)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 224, 224, 3), np.float32),
        np.zeros((224, 224, 3), np.uint8),
        np.zeros((1, 256, 256, 3), np.uint8),
        np.zeros((1, 3, 224, 224), np.uint8),
        np.zeros((1, 224, 224, 4), np.uint8),
    ],
    ids=["floats", "one tile", "256 px", "channels first", "alpha"],
)
def test_other_input_is_refused_by_name(wrong: npt.NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"toy takes tiles of uint8 \[N, 224, 224, 3\], not"):
        toy().encode(wrong)


def test_toy_says_that_its_vectors_mean_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        encoder = toy()
    assert not encoder.identity.meaningful
    assert "mean nothing" in caplog.text


def test_conditions_of_a_licence_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    spec = replace(
        TOY, name="strict", licence="CC-BY-NC-4.0", non_commercial=True, gated=True, hub_id="a/b"
    )
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            Encoder(spec, resolve_weights(spec, "random"), device="cpu", precision="fp32")
    (said,) = [line for line in caplog.messages if "licence" in line]
    for words in ("strict", "CC-BY-NC-4.0", "commercial use is forbidden", "hf.co/a/b"):
        assert words in said


def test_a_free_licence_is_not_spoken_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        toy()
    assert "licence" not in caplog.text


def test_toy_weights_are_the_same_everywhere_and_forever() -> None:
    assert toy().identity.weights_digest == TOY_DIGEST


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_probe_equals_the_encoder(precision: AskedPrecision) -> None:
    assert probe_identity("toy", None, precision, "cpu") == toy(precision).identity


def test_threads_are_set() -> None:
    before = torch.get_num_threads()
    try:
        Encoder(TOY, resolve_weights(TOY, None), device="cpu", threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_an_encoder_let_go_of_gives_back_its_memory_and_its_thread(tiles: Tiles) -> None:
    before = set(threading.enumerate())
    encoder = toy()
    encoder.encode(tiles[:1])
    (worker,) = set(threading.enumerate()) - before
    parameter = weakref.ref(next(encoder._model.parameters()))
    del encoder
    gc.collect()
    worker.join(timeout=30)
    assert not worker.is_alive()
    gc.collect()
    assert parameter() is None


def test_what_was_asked_for_comes_though_the_encoder_is_let_go_of(tiles: Tiles) -> None:
    expected = toy().encode(tiles)
    assert np.array_equal(toy(batch_size=2).submit(tiles).result().vectors, expected)


def test_passes_use_the_memory_of_the_ones_before() -> None:
    code = """
import resource
import numpy as np
from ray_pipeline.encoders.encoder import Encoder
from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.encoders.weights import resolve_weights
spec = get_spec("toy")
encoder = Encoder(spec, resolve_weights(spec, None), device="cpu", precision="fp32", batch_size=32)
tiles = np.zeros((32, 224, 224, 3), np.uint8)
for _ in range(3):
    encoder.encode(tiles)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
encoder.encode(tiles)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pages_of_the_input = 32 * 224 * 224 * 3 * 4 // 4096
    assert int(done.stdout) < pages_of_the_input / 4


@pytest.mark.parametrize("last", ["encoder.close()", "del encoder", "pass", "encoder.submit(many)"])
def test_a_process_ends_well_right_after_it_encoded(last: str) -> None:
    code = f"""
import numpy as np
from ray_pipeline.encoders.encoder import Encoder
from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.encoders.weights import resolve_weights
spec = get_spec("toy")
encoder = Encoder(spec, resolve_weights(spec, None), device="cpu")
encoder.encode(np.zeros((3, 224, 224, 3), np.uint8))
many = np.zeros((500, 224, 224, 3), np.uint8)
{last}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_batch_of_nothing_is_refused() -> None:
    with pytest.raises(SettingsError, match="batch_size"):
        toy(batch_size=0)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """A registered model of the toy's size whose weights come from files."""
    spec = replace(TOY, name="tiny", hub_id="someone/tiny", weights_file="pytorch_model.bin")
    monkeypatch.setitem(cast(dict[str, ModelSpec], MODELS), "tiny", spec)
    return spec


def test_file_formats_give_one_identity_and_the_same_vectors(
    tiny: ModelSpec, tiles: Tiles, tmp_path: Path
) -> None:
    pickled, converted = tmp_path / "w.bin", tmp_path / "w.safetensors"
    torch.save(state_dict_of(TOY), pickled)
    convert_to_safetensors(pickled, converted)
    loaded = [
        Encoder(tiny, resolve_weights(tiny, str(path)), device="cpu", precision="fp32")
        for path in (pickled, converted)
    ]
    assert loaded[0].identity == loaded[1].identity
    assert loaded[0].identity.meaningful
    assert loaded[0].identity.weights_digest == TOY_DIGEST
    for encoder in loaded:
        np.testing.assert_array_equal(encoder.encode(tiles), toy().encode(tiles))
    probed = probe_identity("tiny", str(converted), "fp32", "cpu")
    assert probed == loaded[0].identity


def test_loading_reads_each_tensor_once_and_digests_it_on_the_way(
    tiny: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    save_file(state_dict_of(TOY), path)
    reads: list[str] = []

    class Counted:
        def __init__(self, path: Path) -> None:
            self.source = open_tensors(path)
            self.shapes = self.source.shapes

        def read(self, name: str) -> torch.Tensor:
            reads.append(name)
            return self.source.read(name)

    monkeypatch.setattr(encoder_module, "open_tensors", Counted)
    encoder = Encoder(tiny, resolve_weights(tiny, str(path)), device="cpu", precision="fp32")
    assert encoder.identity.weights_digest == TOY_DIGEST
    assert sorted(reads) == sorted(state_dict_of(TOY))


def test_half_precision_files_are_another_identity(tiny: ModelSpec, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({name: t.half() for name, t in state_dict_of(TOY).items()}, path)
    assert probe_identity("tiny", str(path), "fp32", "cpu").weights_digest != TOY_DIGEST


def test_weights_of_another_model_are_refused(tiny: ModelSpec, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    tensors = state_dict_of(TOY)
    tensors["head.weight"] = tensors.pop("norm.bias")
    save_file(tensors, path)
    for load in (
        lambda: Encoder(tiny, resolve_weights(tiny, str(path)), device="cpu"),
        lambda: probe_identity("tiny", str(path), "auto", "cpu"),
    ):
        with pytest.raises(WeightsError, match=r"missing: norm\.bias.*unexpected: head\.weight"):
            load()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu amx_bf16 sse", "bf16"), ("fpu avx512_bf16", "bf16"), ("fpu avx512f", "fp32")],
)
def test_auto_on_a_cpu_follows_its_instructions(
    flags: str, expected: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr(encoder_module, "CPUINFO", cpuinfo)
    assert resolve_precision("cpu", "auto") == expected
    monkeypatch.setattr(encoder_module, "CPUINFO", tmp_path / "absent")
    assert resolve_precision("cpu", "auto") == "fp32"


def test_auto_on_a_gpu_is_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_precision("auto", "auto") == resolve_precision("cuda:1", "auto") == "fp16"
    assert resolve_precision("cuda", "fp32") == "fp32"


@pytest.mark.parametrize(
    ("device", "precision", "said"),
    [("cpu", "fp16", "needs a GPU"), ("cpu", "int8", "'int8'"), ("tpu", "auto", "device 'tpu'")],
)
def test_impossible_precision_or_device_is_named(device: str, precision: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        resolve_precision(device, cast(AskedPrecision, precision))


def test_absent_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="sees no GPU"):
        resolve_precision("cuda", "auto")


@pytest.mark.slow
def test_real_architecture_encodes_with_random_weights(tiles: Tiles) -> None:
    spec = get_spec("h-optimus-0")
    encoder = Encoder(spec, resolve_weights(spec, "random"), batch_size=2)
    vectors = encoder.encode(tiles[:2])
    assert vectors.shape == (2, 1536)
    assert np.isfinite(vectors).all()
    assert cosines(vectors[:1], vectors[1:]).max() < 0.999
    assert not encoder.identity.meaningful
    assert encoder.identity.weights_digest == GIANT_DIGEST
    assert probe_identity("h-optimus-0", "random") == encoder.identity
