"""Tiles whose side at the level that is read is not the model's: one filter for all of them."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

RESAMPLE_RULE = (
    "sub-pixel box; Keys cubic (a=-0.5) stretched over the scale (Pillow BICUBIC), uint8; "
    "JPEG levels first halved in the DCT as often as the mpp allows"
)
"""How such a tile is made; stands in the recipe."""
REACH = 2.0
"""The filter's support to each side, in px of the result."""


def rim_px(side_px: float, tile_px: int) -> int:
    """Pixels around a tile that its filter may read, px of the level."""
    return math.ceil(REACH * side_px / tile_px) + 1


def resample(
    window: npt.NDArray[np.uint8], left: float, top: float, side_px: float, tile_px: int
) -> npt.NDArray[np.uint8]:
    """The square of `side_px` whose left top corner lies at (`left`, `top`) in `window`.

    `window` is uint8 [h, w, 3] and holds the square and its rim, as far as the level goes; beyond,
    the filter's weights are spread over what is there. Returns uint8 [tile_px, tile_px, 3].
    """
    picture = Image.fromarray(np.ascontiguousarray(window))
    box = (left, top, min(left + side_px, picture.width), min(top + side_px, picture.height))
    return np.asarray(picture.resize((tile_px, tile_px), Image.Resampling.BICUBIC, box=box))
