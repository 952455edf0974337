"""Running a model: uint8 tiles in, float16 vectors out, the same in batch jobs and online."""

from __future__ import annotations

import fcntl
import logging
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from ray_pipeline.encoders import cpu, cuda
from ray_pipeline.encoders.agreement import Agreement, check_agreement, sample_tiles
from ray_pipeline.encoders.feeder import Feeder, Pending, Runner
from ray_pipeline.encoders.forward import (
    DTYPES,
    Encode,
    Forward,
    hold_products_in,
    leave_out_unseen_tokens,
    lower_blocks_to_fp8,
)
from ray_pipeline.encoders.layouts import as_timm
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
    cache_folder,
    check_original,
    local_file,
    resolve_weights,
)
from ray_pipeline.errors import SettingsError

SAMPLE_TILES = {"cuda": 8, "cpu": 2}
"""Tiles on which a faster path is compared, by device: a pass in fp32 is slow on a CPU."""
FP8_CAPABILITY = (8, 9)
"""Compute capability of the first GPUs that multiply float8 (NVIDIA's Ada)."""
CPUINFO = Path("/proc/cpuinfo")
"""Where Linux lists the instruction sets of the processor."""
_BF16_FLAGS = {"amx_bf16", "avx512_bf16"}

_logger = logging.getLogger(__name__)


class Encoder:
    """A loaded model on one device.

    `encode` may be called from several threads at once: their tiles share batches. The vector of a
    tile does not depend on the tiles beside it: every forward pass has the same shape.
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
        compile: bool = False,  # noqa: A002 - what everyone calls it
    ) -> None:
        """Load the weights, strictly, onto the device.

        `batch_size` is in tiles per forward pass (default: by the device and its memory). `threads`
        sets torch's thread count for this whole process; on a CPU the process also keeps the memory
        it has once used (`cpu.keep_freed_memory`). With `compile`, and in fp8, a faster path
        is made ready, which takes minutes for a large model, and compared with the reference.
        Raises WeightsError, SettingsError, InexactError.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        self.spec = spec
        self.device = _resolve_device(device)
        if self.device.type == "cpu":
            cpu.keep_freed_memory()
        resolved = resolve_precision(device, precision)
        if batch_size is not None and batch_size < 1:
            raise SettingsError(f"batch_size must be at least 1 tile, not {batch_size}.")
        faster = compile or resolved == "fp8"
        model = build_model(spec)
        tensors = _open_weights(spec, source, model)
        if not faster:
            hold_products_in(model, resolved)
        self._model = model.to_empty(device=self.device).eval().requires_grad_(False)
        self.identity = EncoderIdentity.of(
            spec,
            weights_digest=_fill(self._model, tensors),
            meaningful=source.meaningful,
            precision=resolved,
        )
        _say_licence(spec)
        self.agreements: tuple[Agreement, Agreement] | None = None
        """How a faster path agrees with the reference and with float32; None for the reference."""
        encode: Encode = Forward(self._model, spec, resolved).to(self.device)
        if faster:
            encode, batch_size = self._made_faster(encode, batch_size, compile=compile)
        elif batch_size is None:
            batch_size = self._largest_batch(encode)
        self._runner = self._runner_of(encode, batch_size)
        self._feeder = Feeder(self._runner, spec.dim)
        # Else the feeder's thread would hold the model of an encoder that nobody has any more. Not
        # at exit: there nobody waits for what is still to be computed.
        weakref.finalize(self, self._feeder.close).atexit = False
        if not source.meaningful:
            _logger.warning("%s has random weights: its vectors mean nothing.", spec.name)

    @property
    def batch_size(self) -> int:
        """Tiles per forward pass; smaller than it was once the device ran out of memory."""
        return self._runner.batch_size

    @property
    def path(self) -> str:
        """`reference`: plain timm under autocast; `compiled` or `fp8` else."""
        if self.agreements is None:
            return "reference"
        return "fp8" if self.identity.precision == "fp8" else "compiled"

    def encode(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
        """Vectors float16 [N, dim] of RGB tiles uint8 [N, tile_px, tile_px, 3].

        Raises ValueError for any other dtype or shape.
        """
        return self.submit(tiles).result().vectors

    def submit(self, tiles: npt.NDArray[np.uint8]) -> Pending:
        """As `encode`, without waiting: the result has the vectors and what they took."""
        side_px = self.spec.tile_px
        if tiles.dtype != np.uint8 or tiles.ndim != 4 or tiles.shape[1:] != (side_px, side_px, 3):
            raise ValueError(
                f"{self.spec.name} takes tiles of uint8 [N, {side_px}, {side_px}, 3], "
                f"not {tiles.dtype} {list(tiles.shape)}."
            )
        return self._feeder.submit(tiles)

    def close(self) -> None:
        """Let go of the device once all that was asked for is done."""
        self._feeder.close()

    @torch.no_grad()
    def _made_faster(
        self,
        encode: Encode,
        batch_size: int | None,
        *,
        compile: bool,  # noqa: A002
    ) -> tuple[Encode, int]:
        """The faster path, ready and compared, and its batch size."""
        spec, precision = self.spec, self.identity.precision
        sample = sample_tiles(spec.tile_px, SAMPLE_TILES[self.device.type])
        tiles = torch.from_numpy(sample).to(self.device)
        exact = Forward(self._model, spec, "fp32").to(self.device)(tiles)
        hold_products_in(self._model, precision)
        reference = encode(tiles)
        leave_out_unseen_tokens(self._model, spec)
        if precision == "fp8":
            lower_blocks_to_fp8(self._model)
        if batch_size is None:
            batch_size = self._largest_batch(encode)
        if compile:
            encode = self._compiled(encode)
        with _one_at_a_time():
            fast, batch_size = self._in_batches(encode, tiles, batch_size)
        path = "fp8" if precision == "fp8" else "compiled"
        found, plain, full = (v.float().cpu().numpy() for v in (fast, reference, exact))
        self.agreements = check_agreement(spec, path, found, plain, full)
        return encode, batch_size

    @staticmethod
    def _in_batches(
        encode: Encode, tiles: torch.Tensor, batch_size: int
    ) -> tuple[torch.Tensor, int]:
        """Vectors of `tiles` in batches of `batch_size`, or of the first half of it that fits."""
        while True:
            shape = (batch_size, *tiles.shape[1:])
            try:
                batch = torch.zeros(shape, dtype=torch.uint8, device=tiles.device)
                parts = []
                for part in torch.split(tiles, batch_size):
                    batch[: len(part)] = part
                    parts.append(encode(batch)[: len(part)].clone())
                return torch.cat(parts), batch_size
            except RuntimeError as error:
                if batch_size == 1 or not cuda.ran_out_of_memory(error):
                    raise
            batch_size //= 2

    def _compiled(self, encode: Encode) -> Encode:
        if self.device.type == "cpu":
            return cpu.compiled(encode)
        dtype = DTYPES[self.identity.precision]
        attention = cuda.attention_by_speed(self._model, tokens=self.spec.tokens, dtype=dtype)
        return cuda.compiled(encode, attention)

    def _largest_batch(self, encode: Encode) -> int:
        if self.device.type == "cpu":
            return cpu.BATCH_SIZE
        return cuda.largest_batch(encode, device=self.device, tile_px=self.spec.tile_px)

    def _runner_of(self, encode: Encode, batch_size: int) -> Runner:
        tile_px = self.spec.tile_px
        if self.device.type == "cpu":
            return cpu.CpuRunner(encode, tile_px=tile_px, batch_size=batch_size)
        return cuda.CudaRunner(
            encode,
            device=self.device,
            tile_px=tile_px,
            dim=self.spec.dim,
            batch_size=batch_size,
        )


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Let one process of this machine compile; the others then find its code in the cache.

    On a CPU that is half of the time: each process packs its matrices anew.
    """
    folder = cache_folder()
    # Torch sets the variable itself when it is imported: to a folder that a restart empties.
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", default_cache_dir()) == default_cache_dir():
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "compiling.lock").open("w")
    except OSError:
        yield  # without a place for a lock each compiles for itself
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def resolve_precision(device: str, asked: AskedPrecision) -> Precision:
    """What `asked` means on `device` (`auto`, `cpu`, `cuda`, `cuda:N`) of this machine.

    `auto` is fp16 on a GPU, bf16 on a CPU with AMX or AVX-512 instructions for it, else fp32.
    Raises SettingsError for an unknown precision or device, and for one that it does not have.
    """
    kind = _resolve_device(device).type
    if asked not in get_args(AskedPrecision):
        names = ", ".join(get_args(AskedPrecision))
        raise SettingsError(f"precision '{asked}' is not known; choose one of {names}.")
    if asked == "fp16" and kind == "cpu":
        raise SettingsError("precision fp16 needs a GPU: use bf16, fp32 or auto on a CPU.")
    if asked == "fp8" and not _multiplies_fp8(_resolve_device(device)):
        raise SettingsError("precision fp8 needs an NVIDIA GPU of 2022 or later: use auto here.")
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
    tensors = as_timm(open_tensors(path), spec.layout, shapes)
    check_fit(tensors.shapes, shapes, what=source.location)
    return tensors


@cache  # once per process, however many encoders it makes
def _say_licence(spec: ModelSpec) -> None:
    if spec.licence_notice:
        _logger.warning(spec.licence_notice)


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


def _multiplies_fp8(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY


def _cpu_multiplies_bf16() -> bool:
    """Whether the processor has bf16 products; without them bf16 is slower than fp32."""
    if not CPUINFO.exists():
        return False
    lines = CPUINFO.read_text().splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return not _BF16_FLAGS.isdisjoint(flags.split())
