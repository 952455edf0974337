"""Running a model: uint8 tiles in, float16 vectors out, the same in batch jobs and online."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ray_pipeline.encoders.model import build_model
from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.encoders.spec import AskedPrecision, EncoderIdentity, ModelSpec, Precision
from ray_pipeline.encoders.tensors import (
    RandomTensors,
    Shapes,
    TensorSource,
    check_fit,
    digest_entry,
    digest_of,
    open_tensors,
    weights_digest,
)
from ray_pipeline.encoders.weights import (
    WeightsSource,
    check_original,
    local_file,
    resolve_weights,
)
from ray_pipeline.errors import SettingsError

CUDA_BATCH_SIZE = 64
"""Tiles per forward pass on a GPU."""
CPU_BATCH_SIZE = 8
"""Tiles per forward pass on a CPU: more gains nothing once the matrices fill the caches."""
CPUINFO = Path("/proc/cpuinfo")
"""Where Linux lists the instruction sets of the processor."""
_BF16_FLAGS = {"amx_bf16", "avx512_bf16"}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_logger = logging.getLogger(__name__)


class Encoder:
    """A loaded model on one device.

    `encode` may be called from several threads at once. The vector of a tile does not depend on
    the tiles beside it: every forward pass has the same shape.
    """

    def __init__(
        self,
        spec: ModelSpec,
        source: WeightsSource,
        *,
        device: str = "auto",
        precision: AskedPrecision = "auto",
        batch_size: int | None = None,
        threads: int | None = None,
    ) -> None:
        """Load the weights, strictly, onto the device.

        `batch_size` is in tiles per forward pass (default: by the device). `threads` sets torch's
        thread count for this whole process. Raises WeightsError, SettingsError.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        self.spec = spec
        self.device = _resolve_device(device)
        resolved = resolve_precision(device, precision)
        default = CUDA_BATCH_SIZE if self.device.type == "cuda" else CPU_BATCH_SIZE
        self.batch_size = default if batch_size is None else batch_size
        if self.batch_size < 1:
            raise SettingsError(f"batch_size must be at least 1 tile, not {batch_size}.")
        self._dtype = _DTYPES[resolved]
        self._mean = torch.tensor(spec.mean, device=self.device).view(3, 1, 1)
        self._std = torch.tensor(spec.std, device=self.device).view(3, 1, 1)
        model = build_model(spec)
        tensors = _open_weights(spec, source, model)
        _hold_products_in(model, self._dtype)
        self._model = model.to_empty(device=self.device).eval().requires_grad_(False)
        self.identity = EncoderIdentity.of(
            spec,
            weights_digest=_fill(self._model, tensors),
            meaningful=source.meaningful,
            precision=resolved,
        )
        if not source.meaningful:
            _logger.warning("%s has random weights: its vectors mean nothing.", spec.name)

    def encode(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
        """Vectors float16 [N, dim] of RGB tiles uint8 [N, tile_px, tile_px, 3].

        Raises ValueError for any other dtype or shape.
        """
        side_px = self.spec.tile_px
        if tiles.dtype != np.uint8 or tiles.ndim != 4 or tiles.shape[1:] != (side_px, side_px, 3):
            raise ValueError(
                f"{self.spec.name} takes tiles of uint8 [N, {side_px}, {side_px}, 3], "
                f"not {tiles.dtype} {list(tiles.shape)}."
            )
        vectors = np.empty((len(tiles), self.spec.dim), np.float16)
        for start in range(0, len(tiles), self.batch_size):
            part = tiles[start : start + self.batch_size]
            batch = np.zeros((self.batch_size, *tiles.shape[1:]), np.uint8)
            batch[: len(part)] = part
            vectors[start : start + len(part)] = self._forward(batch)[: len(part)]
        return vectors

    @torch.inference_mode()
    def _forward(self, batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
        pixels = torch.from_numpy(batch).to(self.device).permute(0, 3, 1, 2)
        # Planes, and in place: a third of the time that interleaved colours take on a CPU.
        images = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        images.div_(self.spec.preprocessing.scale).sub_(self._mean).div_(self._std)
        lowered = self._dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self._dtype, enabled=lowered):
            pooled = self._model(images)
        return cast(npt.NDArray[np.float16], pooled.to(torch.float16).cpu().numpy())


def resolve_precision(device: str, asked: AskedPrecision) -> Precision:
    """What `asked` means on `device` (`auto`, `cpu`, `cuda`, `cuda:N`) of this machine.

    `auto` is fp16 on a GPU, bf16 on a CPU with AMX or AVX-512 instructions for it, else fp32.
    Raises SettingsError for an unknown precision or device, and for fp16 on a CPU.
    """
    kind = _resolve_device(device).type
    if asked not in get_args(AskedPrecision):
        names = ", ".join(get_args(AskedPrecision))
        raise SettingsError(f"precision '{asked}' is not known; choose one of {names}.")
    if asked == "fp16" and kind == "cpu":
        raise SettingsError("precision fp16 needs a GPU: use bf16, fp32 or auto on a CPU.")
    if asked != "auto":
        return asked
    if kind == "cuda":
        return "fp16"
    return "bf16" if _cpu_multiplies_bf16() else "fp32"


def probe_identity(
    model: str,
    weights: str | None,
    precision: AskedPrecision = "auto",
    device: str = "auto",
) -> EncoderIdentity:
    """The identity an `Encoder` on this machine would have, without building the model.

    Weights are digested tensor by tensor. Raises SettingsError, WeightsError.
    """
    spec = get_spec(model)
    resolved = resolve_precision(device, precision)
    source = resolve_weights(spec, weights)
    tensors = _open_weights(spec, source, build_model(spec))
    return EncoderIdentity.of(
        spec,
        weights_digest=digest_of(tensors),
        meaningful=source.meaningful,
        precision=resolved,
    )


def _open_weights(spec: ModelSpec, source: WeightsSource, model: nn.Module) -> TensorSource:
    """The tensors of `source`, known to fit `model` by name and shape."""
    shapes: Shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    if source.kind == "random":
        return RandomTensors(spec.name, shapes)
    path = local_file(spec, source)
    check_original(spec, path)
    tensors = open_tensors(path)
    check_fit(tensors.shapes, shapes, what=source.location)
    return tensors


def _hold_products_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep matrices in the type autocast would cast them to before each product.

    The results are the same bits; without it every pass casts all the weights anew (autocast
    remembers casts of trainable parameters only).
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.to(dtype)


@torch.inference_mode()
def _fill(model: nn.Module, tensors: TensorSource) -> str:
    """Copy every tensor into `model` and return the digest of what was read, in one pass."""
    entries = []
    for name, parameter in model.state_dict().items():
        tensor = tensors.read(name)
        entries.append(digest_entry(name, tensor))
        parameter.copy_(tensor)
    return weights_digest(entries)


def _resolve_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise SettingsError(f"device '{device}' is not known; use auto, cpu, cuda or cuda:N.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise SettingsError(f"device '{device}' was asked for, but torch sees no GPU here.")
    return torch.device(device)


def _cpu_multiplies_bf16() -> bool:
    """Whether the processor has bf16 products; without them bf16 is slower than fp32."""
    if not CPUINFO.exists():
        return False
    lines = CPUINFO.read_text().splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return not _BF16_FLAGS.isdisjoint(flags.split())
