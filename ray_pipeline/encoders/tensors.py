"""Named tensors: read from files, made at random, compared, digested, written as safetensors.

All of it goes tensor by tensor, so that the memory needed beside the weights' own destination is
that of the largest tensor (50 MB for ViT-g/14).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ray_pipeline.encoders.weights import PICKLE_SUFFIXES
from ray_pipeline.errors import WeightsError

Shapes = Mapping[str, tuple[int, ...]]
"""Shape by tensor name."""

NAMED_IN_ERRORS = 3
"""Tensor names an error lists of each sort; a wrong file misses hundreds."""
_SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}
# What torch.load is seen to raise for damaged or foreign bytes, besides its refusals.
_LOAD_ERRORS = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    OverflowError,
    ImportError,
    struct.error,
    zipfile.BadZipFile,
)


class TensorSource(Protocol):
    """Named float tensors that can be read one at a time."""

    @property
    def shapes(self) -> Shapes:
        """Every tensor's shape, known without reading values."""

    def read(self, name: str) -> torch.Tensor:
        """One tensor, in host memory."""


class RandomTensors:
    """Seeded random weights: the same bits on every machine and with every torch version."""

    def __init__(self, model: str, shapes: Shapes) -> None:
        self.model = model
        self.shapes = shapes

    def read(self, name: str) -> torch.Tensor:
        """One tensor, float32; see `random_tensor`."""
        return random_tensor(f"{self.model}/{name}", name, self.shapes[name])


class _SafetensorsFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with self._opened() as file:
                self.shapes: Shapes = {
                    name: tuple(file.get_slice(name).get_shape())
                    for name in file.keys()  # noqa: SIM118
                }
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                f"{path} is no readable safetensors file ({_first_line(error)}): download it again."
            ) from error

    def read(self, name: str) -> torch.Tensor:
        with self._opened() as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def _opened(self) -> Any:
        # Anew for each tensor: what was read stays in this process's memory while it is open.
        return cast(Any, safe_open(self._path, framework="pt"))


class _PickleFile:
    def __init__(self, path: Path) -> None:
        try:
            with warnings.catch_warnings():
                # Remarks on odd pickles; what matters of them is in our own sentences below.
                warnings.simplefilter("ignore", UserWarning)
                loaded = torch.load(
                    path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
                )
        except OSError as error:
            raise WeightsError(f"{path} can't be read ({error.strerror}).") from error
        except _LOAD_ERRORS as error:
            raise WeightsError(
                f"{path} is damaged or holds more than tensors (it was opened with "
                "weights_only=True, so nothing in it was run): download it again, or give "
                "the weights as .safetensors."
            ) from error
        if not isinstance(loaded, dict) or not all(map(_is_plain, loaded.items())):
            raise WeightsError(
                f"{path} is not a plain mapping from names to dense tensors: "
                "give a state dict of the model alone."
            )
        self.tensors: dict[str, torch.Tensor] = {name: t.detach() for name, t in loaded.items()}
        self.shapes: Shapes = {name: tuple(tensor.shape) for name, tensor in loaded.items()}

    def read(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def open_tensors(path: Path) -> TensorSource:
    """The tensors of a `.safetensors`, `.bin`, `.pth` or `.pt` file, memory-mapped where possible.

    Pickles are opened with `weights_only=True`: what is not a tensor is refused, never run.
    Raises WeightsError for a damaged, foreign or unreadable file.
    """
    return (_PickleFile if path.suffix.lower() in PICKLE_SUFFIXES else _SafetensorsFile)(path)


def check_fit(found: Shapes, expected: Shapes, *, what: str) -> None:
    """Raise WeightsError unless both have the same names and shapes. `what` names the weights."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshaped = [
        f"{name} {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    sorts = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped))
    complaints = [f"{len(names)} {sort}: {_some(names)}" for sort, names in sorts if names]
    if complaints:
        raise WeightsError(
            f"{what} does not fit this model ({'; '.join(complaints)}): "
            "give the weights of this very model."
        )


def digest_entry(name: str, tensor: torch.Tensor) -> str:
    """One tensor's line of a weights digest: name, dtype, shape, SHA-256 of its bytes.

    Raises WeightsError for a tensor that is not of floats.
    """
    values = hashlib.sha256(_bytes_of(name, tensor)).hexdigest()
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{name} {dtype} {'x'.join(map(str, tensor.shape))} {values}"


def weights_digest(entries: Iterable[str]) -> str:
    """SHA-256, hex, over the sorted lines of `digest_entry`: the order of reading is free."""
    return hashlib.sha256("\n".join(sorted(entries)).encode()).hexdigest()


def digest_of(source: TensorSource) -> str:
    """The weights digest of all tensors of `source`, read one at a time."""
    return weights_digest(digest_entry(name, source.read(name)) for name in source.shapes)


def random_tensor(seed: str, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A float32 tensor of `shape`, determined by `seed` alone.

    Uniform values from Philox's raw 16-bit words (a stream numpy keeps stable), scaled by one
    multiplication and one addition, so that every machine gets the same bits. Ranges are those of
    a network in which every block matters: LayerScale is near 0.1, not the 1e-5 with which
    training starts (that would make each block an identity, and a test of precision empty);
    matrices have variance 1/fan_in; norms are near one; biases, tokens and positions are small.
    """
    base, spread = _random_range(name, shape)
    count = math.prod(shape)
    key = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16], "little")
    words = np.random.Philox(key=key).random_raw(-(-count // 4)).astype("<u8", copy=False)
    values = words.view("<i2")[:count].astype(np.float32)
    values *= np.float32(spread / 32768)
    values += np.float32(base)
    return torch.from_numpy(values.reshape(shape))


def convert_to_safetensors(source_path: Path, target_path: Path) -> str:
    """Rewrite a `.bin`, `.pth` or `.pt` as safetensors, bit for bit; its weights digest (hex).

    The target appears whole or not at all. The source is memory-mapped: beside the page cache
    this needs the memory of one tensor. Raises WeightsError.
    """
    if source_path.suffix.lower() not in PICKLE_SUFFIXES:
        raise WeightsError(f"{source_path} is not one of {', '.join(PICKLE_SUFFIXES)}.")
    source = _PickleFile(source_path)
    part = target_path.with_name(f"{target_path.name}.{os.getpid()}.part")
    try:
        entries = _write_safetensors(source, part)
        part.replace(target_path)
    except OSError as error:
        raise WeightsError(
            f"{target_path} can't be written ({error.strerror}): check the folder and its space."
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return weights_digest(entries)


def _write_safetensors(source: _PickleFile, path: Path) -> list[str]:
    """Layout: https://huggingface.co/docs/safetensors (length, JSON header, data without gaps)."""
    tensors = source.tensors
    # Widest types first keeps every tensor aligned to its own item size.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + _bytes_of(name, tensors[name]).nbytes
        header[name] = {
            "dtype": _SAFETENSORS_DTYPES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    entries = []
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(_bytes_of(name, tensors[name]))
            entries.append(digest_entry(name, tensors[name]))
        file.flush()
        os.fsync(file.fileno())
    return entries


def _random_range(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """(centre, half-width) of the uniform values of a parameter."""
    if name.endswith(".gamma"):
        return 0.1, 0.05
    if name.endswith(".bias"):
        return 0.0, 0.03
    if name.endswith(".weight") and len(shape) == 1:
        return 1.0, 0.1
    if name.endswith(".weight"):
        return 0.0, math.sqrt(3 * shape[0] / math.prod(shape))
    return 0.0, 0.03


def _bytes_of(name: str, tensor: torch.Tensor) -> memoryview:
    if tensor.dtype not in _SAFETENSORS_DTYPES:
        raise WeightsError(f"tensor {name} is of {tensor.dtype}: weights are float tensors only.")
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data


def _is_plain(item: tuple[object, object]) -> bool:
    name, tensor = item
    return (
        isinstance(name, str)
        and isinstance(tensor, torch.Tensor)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
    )


def _some(names: list[str]) -> str:
    rest = len(names) - NAMED_IN_ERRORS
    return ", ".join(names[:NAMED_IN_ERRORS]) + (f" and {rest} more" if rest > 0 else "")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")
