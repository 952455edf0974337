"""What others use of `half_jpeg`: one JPEG's head and scan to pixels, or nothing."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ray_pipeline.slides.half_jpeg.tables import half_tables

COMPILED_AFTER = 200_000
"""Tiles that a process leaves to simplejpeg first. Compiling takes 4.3 s of a core, and each tile
wins 22 us of it (tests.benchmarks.reader), so that no process loses more by the one than it would
have won by the other. Nothing of it is kept for other processes: numba would keep it as pickles,
and under a stamp of one of its sources only."""

_logger = logging.getLogger(__name__)
Pixels = npt.NDArray[np.uint8]
Kernel = Callable[..., bool]
_tables_of = lru_cache(maxsize=16)(half_tables)


class HalfJpeg:
    """Decodes what is simple; all else, and all that is damaged, it leaves to others.

    It decodes nothing before `compile_after` is called. Used by many threads at once.
    """

    def __init__(self) -> None:
        self._left = math.inf
        self._begun = threading.Lock()
        self._kernel: Kernel | None = None

    def compile_after(self, tiles: int = COMPILED_AFTER) -> None:
        """Compile what it takes when so many more tiles have been left to others.

        For who reads slides all day: one of its threads stands still for seconds.
        """
        self._left = min(self._left, tiles)

    def decode(self, head: bytes, scan: memoryview, room: Pixels) -> Pixels | None:
        """Pixels uint8 [h / 2, w / 2, 3], in `room`, of a JPEG of h x w px.

        `head` goes from SOI through SOS, `scan` from there through EOI. None where a whole decoder
        must see it: for heads that `half_tables` leaves alone, scans that aren't whole, and all
        before `compile_after`.
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
            try:
                from ray_pipeline.slides.half_jpeg.scan import compiled  # noqa: PLC0415 (numba)

                self._kernel = compiled()
            except Exception as error:  # noqa: BLE001 (no slide is worse for a compiler's trouble)
                _logger.warning("JPEGs are halved by libjpeg-turbo, and slower: %s", error)
        return self._kernel
