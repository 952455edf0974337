"""Where the tissue is: a mask on the overview, without pen marks, and its share of each tile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ray_pipeline.slides.levels import Overview

HISTOGRAM_BINS = 256
"""Bins over 0..1 in which Otsu's threshold is looked for."""


@dataclass(frozen=True, kw_only=True)
class TissueRule:
    """How tissue is found; every number here is part of the recipe."""

    overview_mpp: float = 8.0
    """Microns per pixel of the overview."""
    min_tissue: float = 0.25
    """Least share of a kept tile that is tissue, 0..1."""
    saturation_floor: float = 0.05
    """Otsu's threshold is never below this: glass and its noise stay under it, so a blank slide
    has no tissue."""
    saturation_cap: float = 0.12
    """Nor above this: a slide full of tissue is not split into pale and dark tissue."""
    closed_hole_mm2: float = 0.05
    """Holes up to this area become tissue: lumina and fat vacuoles."""
    dropped_speck_mm2: float = 0.02
    """Pieces below this area are dropped: dust and debris."""
    pen_hue_degrees: tuple[float, float] = (70.0, 238.0)
    """Hues from green to blue that no H&E stain has; haematoxylin lies above them."""
    pen_saturation: float = 0.25
    """Least saturation of a coloured pen mark."""
    black_pen_value: float = 0.35
    """Greatest brightness of a black pen mark, 0..1."""
    black_pen_chroma: float = 0.12
    """Greatest distance between its colour channels, 0..1."""
    black_pen_mm2: float = 0.02
    """Least area of a black pen mark: smaller dark spots are pigment or nuclei, and stay."""
    pen_margin_um: float = 16.0
    """Pen marks are widened by this, for their blurred rims."""


@dataclass(frozen=True, kw_only=True)
class TissueMask:
    """The tissue of one slide."""

    mask: npt.NDArray[np.bool_]
    """bool [H, W], the overview's size."""
    downsample_x: float
    """Level-0 px per mask px, across."""
    downsample_y: float
    """Level-0 px per mask px, down."""
    otsu: float
    """Otsu's threshold of the saturation, 0..1, before floor and cap."""
    threshold: float
    """The threshold that was used."""
    tissue_mm2: float
    """Area of the tissue."""
    pen_fraction: float
    """Share of the overview that is pen marks."""

    def numbers(self) -> dict[str, float]:
        """What the slides table tells of the mask."""
        return {
            "otsu": self.otsu,
            "threshold": self.threshold,
            "tissue_fraction": float(self.mask.mean()) if self.mask.size else 0.0,
            "pen_fraction": self.pen_fraction,
        }


def find_tissue(overview: Overview, mpp: float, rule: TissueRule) -> TissueMask:
    """Find the tissue on an overview whose level 0 has `mpp` microns per pixel.

    Saturation (HSV), Otsu's threshold held between floor and cap, pen marks taken out, small holes
    closed, specks dropped. Otsu: IEEE Trans. Syst. Man Cybern. 9 (1979) 62-66.
    """
    rgb: npt.NDArray[np.float32] = ndimage.uniform_filter(
        overview.rgb.astype(np.float32) / np.float32(255), (3, 3, 0)
    ).astype(np.float32)
    hue, saturation, value = _hsv(rgb)
    um_x, um_y = mpp * overview.downsample_x, mpp * overview.downsample_y
    pixel_mm2 = um_x * um_y / 1e6
    pen = _pen_marks(hue, saturation, value, pixel_mm2, rule)
    if pen.any():
        radius = max(1, round(rule.pen_margin_um / um_x))
        pen = ndimage.binary_dilation(pen, iterations=radius)
    otsu = _otsu(saturation[~pen])
    threshold = min(max(otsu, rule.saturation_floor), rule.saturation_cap)
    mask = (saturation >= threshold) & ~pen
    mask = ~_without_small(~mask, rule.closed_hole_mm2 / pixel_mm2) & ~pen
    mask = _without_small(mask, rule.dropped_speck_mm2 / pixel_mm2)
    return TissueMask(
        mask=mask,
        downsample_x=overview.downsample_x,
        downsample_y=overview.downsample_y,
        otsu=otsu,
        threshold=threshold,
        tissue_mm2=float(mask.sum() * pixel_mm2),
        pen_fraction=float(pen.mean()),
    )


def tissue_fractions(
    mask: TissueMask, xy: npt.NDArray[np.int32], size_l0: float
) -> npt.NDArray[np.float32]:
    """Share of each tile that is tissue: float32 [n], exact over fractions of mask pixels.

    `xy` int32 [n, 2] and `size_l0` are in level-0 px. What of a tile lies past the mask's edge
    counts as glass.
    """
    height, width = mask.mask.shape
    sums = np.zeros((height + 1, width + 1))
    sums[1:, 1:] = mask.mask.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
    left, right = (np.clip((xy[:, 0] + d) / mask.downsample_x, 0, width) for d in (0, size_l0))
    top, bottom = (np.clip((xy[:, 1] + d) / mask.downsample_y, 0, height) for d in (0, size_l0))

    def below(y: npt.NDArray[np.float64], x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        # Linear between the sums at whole pixels: exact for a mask constant within each pixel.
        corner: npt.NDArray[np.float64] = ndimage.map_coordinates(sums, [y, x], order=1)
        return corner

    inside = below(bottom, right) - below(top, right) - below(bottom, left) + below(top, left)
    area = size_l0 * size_l0 / (mask.downsample_x * mask.downsample_y)
    return np.clip(inside / area, 0, 1).astype(np.float32)


def _hsv(
    rgb: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Hue in degrees, saturation and value 0..1, each float32 [H, W]."""
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    value, least = rgb.max(axis=-1), rgb.min(axis=-1)
    chroma = value - least
    safe = np.where(chroma > 0, chroma, 1)
    hue = np.where(
        value == r,
        ((g - b) / safe) % 6,
        np.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4),
    )
    saturation = chroma / np.maximum(value, 1e-6)
    return (hue * 60).astype(np.float32), saturation.astype(np.float32), value


def _pen_marks(
    hue: npt.NDArray[np.float32],
    saturation: npt.NDArray[np.float32],
    value: npt.NDArray[np.float32],
    pixel_mm2: float,
    rule: TissueRule,
) -> npt.NDArray[np.bool_]:
    low, high = rule.pen_hue_degrees
    coloured = (hue >= low) & (hue <= high) & (saturation >= rule.pen_saturation)
    black = (value <= rule.black_pen_value) & (saturation * value <= rule.black_pen_chroma)
    marks: npt.NDArray[np.bool_] = coloured | _without_small(black, rule.black_pen_mm2 / pixel_mm2)
    return marks


def _otsu(values: npt.NDArray[np.float32]) -> float:
    """The threshold that parts `values` (0..1) into the two classes furthest apart."""
    counts, edges = np.histogram(values, HISTOGRAM_BINS, (0, 1))
    centres = (edges[:-1] + edges[1:]) / 2
    low = np.cumsum(counts)
    high = low[-1] - low
    moment = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = moment / low - (moment[-1] - moment) / high
        between = np.nan_to_num(low * high * distance**2)
    return float(edges[1:][between.argmax()]) if between.any() else 1.0


def _without_small(mask: npt.NDArray[np.bool_], least_px: float) -> npt.NDArray[np.bool_]:
    """`mask` without its connected pieces (4-neighbours) of fewer than `least_px` pixels."""
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(labels.ravel())
    keep = sizes >= least_px
    keep[0] = False
    kept: npt.NDArray[np.bool_] = keep[labels]
    return kept
