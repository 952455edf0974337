"""Batches on a CPU, one at a time."""

from __future__ import annotations

import ctypes
import time
from functools import cache
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch._inductor import config as inductor

from ray_pipeline.encoders.feeder import Tiles, Vectors
from ray_pipeline.encoders.forward import Encode

BATCH_SIZE = 8
"""Tiles per forward pass: more gains nothing once the matrices fill the caches."""

# Options of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


@cache  # once per process
def keep_freed_memory() -> None:
    """Let this process use the memory it frees again, instead of giving it back to the system.

    Left alone, glibc maps every large array anew, so each product's result costs a page fault for
    every 4 KiB: 7 to 17 % of a forward pass. One arena, for those of other threads can't grow to
    arrays of this size. Does nothing where the C library has no such options.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
        mallopt(_ARENA_MAX, 1)


class CpuRunner:
    """A `Runner` that computes when it is asked for the result."""

    slots = 1

    def __init__(self, encode: Encode, *, tile_px: int, batch_size: int) -> None:
        self.batch_size = batch_size
        self._encode = encode
        self._room = np.zeros((batch_size, tile_px, tile_px, 3), np.uint8)

    def room(self, slot: int) -> Tiles:
        """See `Runner.room`."""
        return self._room

    def start(self, slot: int) -> None:
        """See `Runner.start`."""

    @torch.no_grad()
    def finish(self, slot: int) -> tuple[Vectors, float]:
        """See `Runner.finish`."""
        started = time.perf_counter()
        vectors = self._encode(torch.from_numpy(self._room))
        return cast(npt.NDArray[np.float16], vectors.numpy()), time.perf_counter() - started

    def shrink(self) -> bool:
        """See `Runner.shrink`: a machine out of memory ends the process, it raises nothing."""
        return False


def compiled(encode: Encode) -> Encode:
    """The same, fused and with its matrices packed for the processor's kernels.

    The first call compiles, for a minute or two where the model is large. Takes batches of the
    first call's size, under `torch.no_grad`.
    """
    fast = torch.compile(encode, dynamic=False)

    def run(tiles: torch.Tensor) -> torch.Tensor:
        # Frozen weights are constants of the program: that is what lets it pack them.
        with inductor.patch(freezing=True):
            return fast(tiles)

    return run
