"""Weights files: read strictly, digested the same in every form, refused when not to be trusted."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ray_pipeline.encoders.tensors import (
    RandomTensors,
    check_fit,
    convert_to_safetensors,
    digest_entry,
    digest_of,
    open_tensors,
    random_tensor,
    weights_digest,
)
from ray_pipeline.errors import WeightsError

TENSORS = {
    "b.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a.half": torch.ones(3, dtype=torch.float16),
    "c.brain": torch.full((1, 2), -2.5, dtype=torch.bfloat16),
    "d.scalar": torch.tensor(7.0),
}


def saved(folder: Path, tensors: dict[str, torch.Tensor], name: str = "weights.bin") -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


class Shell:
    """Runs a command when a careless reader unpickles it."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("name", ["w.bin", "w.pth", "w.pt", "w.safetensors"])
def test_digest_is_the_same_in_every_format(tmp_path: Path, name: str) -> None:
    found = open_tensors(saved(tmp_path, TENSORS, name))
    expected = weights_digest(digest_entry(name, tensor) for name, tensor in TENSORS.items())
    assert digest_of(found) == expected
    assert dict(found.shapes) == {name: tuple(t.shape) for name, t in TENSORS.items()}


def test_digest_does_not_depend_on_memory_layout(tmp_path: Path) -> None:
    straight = torch.arange(6.0).reshape(2, 3)
    turned = straight.t().contiguous().t()
    assert not turned.is_contiguous()
    assert digest_entry("w", turned) == digest_entry("w", straight)


@pytest.mark.parametrize(
    "other",
    [
        {"renamed": torch.zeros(2, 3)},
        {"w": torch.zeros(3, 2)},
        {"w": torch.zeros(2, 3, dtype=torch.float16)},
        {"w": torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1e-45]])},
        {"w": torch.zeros(2, 3), "more": torch.zeros(1)},
    ],
    ids=["name", "shape", "dtype", "one bit", "one more"],
)
def test_digest_sees_every_difference(other: dict[str, torch.Tensor]) -> None:
    lines = [digest_entry(name, tensor) for name, tensor in other.items()]
    assert weights_digest(lines) != weights_digest([digest_entry("w", torch.zeros(2, 3))])


def test_conversion_keeps_every_bit_and_the_digest(tmp_path: Path) -> None:
    source, target = saved(tmp_path, TENSORS), tmp_path / "out.safetensors"
    digest = convert_to_safetensors(source, target)
    assert digest == digest_of(open_tensors(source)) == digest_of(open_tensors(target))
    # The reference reader agrees with our writer.
    loaded = load_file(target)
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.safetensors", "weights.bin"]


def test_conversion_that_fails_leaves_nothing(tmp_path: Path) -> None:
    source = saved(tmp_path, {"ids": torch.arange(3)})
    with pytest.raises(WeightsError, match=r"ids is of torch\.int64"):
        convert_to_safetensors(source, tmp_path / "out.safetensors")
    with pytest.raises(WeightsError, match="can't be written"):
        convert_to_safetensors(saved(tmp_path, TENSORS), tmp_path / "absent" / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["weights.bin"]


def test_conversion_takes_pickles_only(tmp_path: Path) -> None:
    source = saved(tmp_path, TENSORS, "w.safetensors")
    with pytest.raises(WeightsError, match=r"\.bin, \.pth, \.pt"):
        convert_to_safetensors(source, tmp_path / "out.safetensors")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_malicious_pickle_is_refused_and_not_run(tmp_path: Path, *, zipped: bool) -> None:
    path, proof = tmp_path / "w.bin", tmp_path / "was-run"
    torch.save({"w": Shell(f"touch {proof}")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="weights_only=True"):
        open_tensors(path)
    path.write_bytes(pickle.dumps(Shell(f"touch {proof}")))
    with pytest.raises(WeightsError, match="weights_only=True"):
        open_tensors(path)
    assert not proof.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_pickle_is_one_sentence(tmp_path: Path, share: float, *, zipped: bool) -> None:
    path = tmp_path / "w.pth"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(WeightsError, match=r"w\.pth is damaged") as caught:
        open_tensors(path)
    assert "\n" not in str(caught.value)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1, exclude_max=True), junk=st.binary(min_size=1, max_size=8))
@pytest.mark.parametrize("name", ["w.pt", "legacy.pt", "w.safetensors"])
def test_scribbled_file_never_escapes_our_errors(
    tmp_path: Path, name: str, place: float, junk: bytes
) -> None:
    path = tmp_path / name
    if name == "w.safetensors":
        save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=name == "w.pt")
    damaged = bytearray(path.read_bytes())
    at = int(place * len(damaged))
    damaged[at : at + len(junk)] = junk
    path.write_bytes(damaged)
    try:
        source = open_tensors(path)
        check_fit(source.shapes, {name: tuple(t.shape) for name, t in TENSORS.items()}, what="it")
        digest_of(source)
    except WeightsError as error:
        assert "\n" not in str(error)  # noqa: PT017 - values may be scribbled on unnoticed, too


def test_damaged_safetensors_is_one_sentence(tmp_path: Path) -> None:
    path = saved(tmp_path, TENSORS, "w.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="no readable safetensors"):
        open_tensors(path)


@pytest.mark.parametrize(
    "content",
    [[torch.zeros(1)], {"model": {"w": torch.zeros(1)}}, {"w": torch.zeros(2).to_sparse()}, {3: 4}],
    ids=["list", "nested", "sparse", "numbers"],
)
def test_pickle_of_anything_but_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "w.bin"
    torch.save(content, path)
    with pytest.raises(WeightsError, match="plain mapping"):
        open_tensors(path)


def test_absent_file_is_named(tmp_path: Path) -> None:
    for name in ("w.bin", "w.safetensors"):
        with pytest.raises(WeightsError, match=name):
            open_tensors(tmp_path / name)


def test_misfit_names_a_few_of_each_sort() -> None:
    expected = {f"block.{i}": (2, 2) for i in range(9)} | {"norm": (4,)}
    with pytest.raises(WeightsError) as caught:
        check_fit({"norm": (5,), "head": (1,)}, expected, what="w.bin")
    sentence = str(caught.value)
    assert "9 missing: block.0, block.1, block.2 and 6 more" in sentence
    assert "1 unexpected: head" in sentence
    assert "norm [5] instead of [4]" in sentence


def test_random_tensors_depend_on_their_seed_alone() -> None:
    first = random_tensor("toy/a", "a.weight", (8, 6))
    assert torch.equal(first, random_tensor("toy/a", "a.weight", (8, 6)))
    assert not torch.equal(first, random_tensor("toy/b", "a.weight", (8, 6)))


def test_random_matrices_keep_the_variance_of_their_input() -> None:
    matrix = random_tensor("s", "fc.weight", (512, 300))
    assert float(matrix.std()) == pytest.approx(300**-0.5, rel=0.02)
    gamma = random_tensor("s", "ls1.gamma", (512,))
    assert 0.05 <= float(gamma.min()) < float(gamma.max()) <= 0.15


def test_random_tensors_are_made_when_read() -> None:
    source = RandomTensors("toy", {"huge.weight": (1 << 20, 1 << 20), "norm.weight": (3,)})
    assert source.read("norm.weight").shape == (3,)
