"""Batches on a CPU, one at a time."""

from __future__ import annotations

import time
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch._inductor import config as inductor

from ray_pipeline.encoders.feeder import Tiles, Vectors
from ray_pipeline.encoders.forward import Encode

BATCH_SIZE = 8
"""Tiles per forward pass: more gains nothing once the matrices fill the caches."""


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
