"""What pixels should be, by arithmetic that shares no code with the reader."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def cubic_resampled(
    window: npt.NDArray[np.uint8], left: float, top: float, side_px: float, tile_px: int
) -> npt.NDArray[np.float64]:
    """The square of `side_px` at (`left`, `top`) of `window` as float64 [tile_px, tile_px, 3]."""
    scale = side_px / tile_px
    down, across = (
        _weights(start, scale, tile_px, length)
        for start, length in zip((top, left), window.shape[:2], strict=True)
    )
    exact = np.einsum("yi,ijc,xj->yxc", down, window.astype(np.float64), across, optimize=True)
    return np.asarray(np.clip(exact, 0, 255))


def _weights(start: float, scale: float, count: int, length: int) -> npt.NDArray[np.float64]:
    """Weights [count, length] of Keys' cubic (IEEE TASSP 29, 1981), stretched by `scale`."""
    centres = start + (np.arange(count) + 0.5) * scale
    d = np.abs(np.arange(length) + 0.5 - centres[:, None]) / scale
    near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    weights = np.where(d < 1, near, np.where(d < 2, far, 0))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float64)
