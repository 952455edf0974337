"""Batches on an NVIDIA GPU: copied while others are computed, replayed as one CUDA graph."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - as everyone calls it
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ray_pipeline.encoders.feeder import OutOfMemory, Tiles, Vectors
from ray_pipeline.encoders.forward import Encode

MOST_BATCH_SIZE = 256
"""Tiles per forward pass at most: the matrices of the largest models fill any GPU well before."""
PROBE_BATCH_SIZE = 8
"""Tiles of the pass that shows how much memory one takes."""
USED_SHARE = 0.7
"""Of the free memory, what batches may be sized for: compiled code is tuned with some of it."""
TIMED_RUNS, TIMED_TILES = 10, 32
"""Runs of each attention kernel before the fastest is chosen, and tiles of each run."""
_BACKENDS = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)


@dataclass
class _Slot:
    """One batch's memory on both sides, and where it stands."""

    host_in: torch.Tensor
    device_in: torch.Tensor
    host_out: torch.Tensor
    copied: torch.cuda.Event
    begun: torch.cuda.Event
    ended: torch.cuda.Event


class CudaRunner:
    """A `Runner` with two batches under way: one computes while the other is copied.

    All streams, buffers and the graph are made at the first batch, and anew after `shrink`.
    """

    slots = 2

    def __init__(
        self, encode: Encode, *, device: torch.device, tile_px: int, dim: int, batch_size: int
    ) -> None:
        self.batch_size = batch_size
        self._encode, self._device, self._shape = encode, device, (tile_px, tile_px, 3)
        self._dim = dim
        self._ring: list[_Slot] = []
        self._graph: torch.cuda.CUDAGraph | None = None

    def room(self, slot: int) -> Tiles:
        """See `Runner.room`."""
        self._make_ready()
        return cast(Tiles, self._ring[slot].host_in.numpy())

    @torch.no_grad()
    def start(self, slot: int) -> None:
        """See `Runner.start`."""
        with self._watching_memory(), torch.cuda.device(self._device):
            self._make_ready()
            assert self._graph is not None
            at = self._ring[slot]
            with torch.cuda.stream(self._copying):
                # The slot's last batch was waited for, so its memory is free on both sides.
                at.device_in.copy_(at.host_in, non_blocking=True)
                at.copied.record(self._copying)
            with torch.cuda.stream(self._computing):
                self._computing.wait_event(at.copied)
                at.begun.record(self._computing)
                self._tiles.copy_(at.device_in)
                self._graph.replay()
                at.host_out.copy_(self._vectors, non_blocking=True)
                at.ended.record(self._computing)

    def finish(self, slot: int) -> tuple[Vectors, float]:
        """See `Runner.finish`."""
        at = self._ring[slot]
        with self._watching_memory():
            at.ended.synchronize()
        return cast(Vectors, at.host_out.numpy()), at.begun.elapsed_time(at.ended) / 1e3

    def shrink(self) -> bool:
        """See `Runner.shrink`."""
        if self.batch_size == 1:
            return False
        torch.cuda.synchronize(self._device)
        self._drop()
        self.batch_size //= 2
        return True

    @torch.no_grad()
    def _make_ready(self) -> None:
        """Compile and record the graph, unless that is done. Raises OutOfMemory."""
        if self._graph is not None:
            return
        with self._watching_memory(), torch.cuda.device(self._device):
            shape, cuda = (self.batch_size, *self._shape), self._device
            self._copying, self._computing = _stream(), _stream()
            self._tiles = torch.zeros(shape, dtype=torch.uint8, device=cuda)
            self._computing.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._computing):
                for _ in range(3):  # compiled, tuned, and all lazy set-up done
                    self._encode(self._tiles)
            self._computing.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._computing):
                self._vectors = self._encode(self._tiles)
            self._ring = [
                _Slot(
                    host_in=torch.zeros(shape, dtype=torch.uint8, pin_memory=True),
                    device_in=torch.zeros(shape, dtype=torch.uint8, device=cuda),
                    host_out=torch.zeros(
                        (self.batch_size, self._dim), dtype=torch.float16, pin_memory=True
                    ),
                    copied=_event(),
                    begun=_event(),
                    ended=_event(),
                )
                for _ in range(self.slots)
            ]
            torch.cuda.synchronize()
            self._graph = graph

    def _drop(self) -> None:
        self._graph = None
        self._ring = []
        self.__dict__.pop("_vectors", None)
        self.__dict__.pop("_tiles", None)
        gc.collect()
        torch.cuda.empty_cache()

    @contextlib.contextmanager
    def _watching_memory(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            raise OutOfMemory(str(error).partition(". ")[0]) from None


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether the device had no room, whoever says so.

    Torch's allocator has an error of its own; what else allocates (graphs, pinned memory, cuBLAS)
    says it in words; and a capture that it broke off ends with an error about the capture.
    """
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error):
        return True
    return error.__context__ is not None and ran_out_of_memory(error.__context__)


def compiled(encode: Encode, attention: Sequence[SDPBackend]) -> Encode:
    """The same, compiled and tuned for one shape, with the first attention kernel that takes it.

    CUDA graphs are the runner's, so that they belong to no thread.
    """
    fast = torch.compile(encode, mode="max-autotune-no-cudagraphs", dynamic=False)
    if not attention:
        return fast

    def run(tiles: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(list(attention), set_priority=True):
            return fast(tiles)

    return run


@torch.no_grad()
def largest_batch(encode: Encode, *, device: torch.device, tile_px: int) -> int:
    """Tiles per pass that the free memory allows: a power of two, MOST_BATCH_SIZE at most."""
    with torch.cuda.device(device):
        tiles = torch.zeros((PROBE_BATCH_SIZE, tile_px, tile_px, 3), dtype=torch.uint8)
        on_device = tiles.to(device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        try:
            encode(on_device)
            torch.cuda.synchronize()
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            return 1
        per_tile = (torch.cuda.max_memory_allocated() - before) / PROBE_BATCH_SIZE
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
    return batch_for(free, per_tile)


def batch_for(free_bytes: int, bytes_per_tile: float) -> int:
    """The largest power of two whose tiles fit in the usable share of `free_bytes`; 1 at least."""
    fits = int(USED_SHARE * free_bytes / max(bytes_per_tile, 1.0))
    return min(MOST_BATCH_SIZE, 1 << max(0, fits.bit_length() - 1))


@torch.no_grad()
def attention_by_speed(model: nn.Module, *, tokens: int, dtype: torch.dtype) -> list[SDPBackend]:
    """The attention kernels that take the model's shape on its device, the fastest first.

    All of them, for the fastest may not take a block that asks for the class token alone (cuDNN's
    took no single query for long). Empty where the model does not tell its heads.
    """
    blocks: Any = getattr(model, "blocks", None)
    attention = getattr(blocks[0], "attn", None) if blocks else None
    if attention is None or not hasattr(attention, "head_dim"):
        return []
    device = next(model.parameters()).device
    shape = (TIMED_TILES, attention.num_heads, tokens, attention.head_dim)
    q = torch.randn(shape, dtype=dtype, device=device)
    milliseconds: dict[SDPBackend, float] = {}
    for backend in _BACKENDS:
        with contextlib.suppress(RuntimeError), sdpa_kernel(backend):
            milliseconds[backend] = _timed_attention(q)
    return sorted(milliseconds, key=milliseconds.__getitem__)


def _timed_attention(q: torch.Tensor) -> float:
    begun, ended = _event(), _event()
    for _ in range(3):
        F.scaled_dot_product_attention(q, q, q)
    begun.record()
    for _ in range(TIMED_RUNS):
        F.scaled_dot_product_attention(q, q, q)
    ended.record()
    ended.synchronize()
    return float(begun.elapsed_time(ended))


def _stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
