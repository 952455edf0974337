"""What others use of `half_jpeg`: one JPEG's head and scan to pixels, or nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ray_pipeline.slides.half_jpeg.tables import half_tables

COMPILED_AFTER = 16_384
"""Tiles that a process leaves to simplejpeg first: compiling costs what is won on about as many."""

Pixels = npt.NDArray[np.uint8]
Kernel = Callable[..., bool]
_tables_of = lru_cache(maxsize=64)(half_tables)


class HalfJpeg:
    """Decodes what is simple; all else, and all that is damaged, it leaves to others.

    Used by many threads at once.
    """

    def __init__(self, *, compiled_after: int = COMPILED_AFTER) -> None:
        self._left = compiled_after
        self._begun = threading.Lock()
        self._kernel: Kernel | None = None

    def decode(self, head: bytes, scan: memoryview, room: Pixels) -> Pixels | None:
        """Pixels uint8 [h / 2, w / 2, 3], in `room`, of a JPEG of h x w px.

        `head` goes from SOI through SOS, `scan` from there through EOI. None where a whole decoder
        must see it: for heads that `half_tables` leaves alone, scans that aren't whole, and the
        first `compiled_after` tiles.
        """
        if self._left > 0:
            self._left -= 1
            return None
        tables = _tables_of(head)
        kernel = None if tables is None else self._kernel or self._compiled()
        if tables is None or kernel is None:
            return None
        height, width = tables.height // 2, tables.width // 2
        pixels = room[: height * width * 3]
        if len(pixels) < height * width * 3:
            return None
        whole = kernel(
            tables.layout,
            tables.fast_dc,
            tables.fast_ac,
            tables.codes,
            tables.steps,
            np.frombuffer(scan.toreadonly(), np.uint8),
            pixels,
        )
        return pixels.reshape(height, width, 3) if whole else None

    def _compiled(self) -> Kernel | None:
        # The lock is taken once and for all: while one thread compiles, the others go on as before.
        if self._begun.acquire(blocking=False):
            from ray_pipeline.slides.half_jpeg.scan import compiled  # noqa: PLC0415 (numba)

            self._kernel = compiled()
        return self._kernel
