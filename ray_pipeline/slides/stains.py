"""One staining for all slides: Macenko's and Reinhard's normalisation, fitted once per slide.

A fit is a few numbers that travel as JSON. It is made from a sample of the slide's tissue and then
applied to every tile alike, so that neighbouring tiles keep matching at their edges.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Light = npt.NDArray[np.float32]
Triple = tuple[float, float, float]

GLASS = 240.0
"""Brightness of bare glass, 0..255, for which the optical density is 0: the value at which
Macenko's usual targets were measured. A pixel counts as its value + 1, so that black has a
logarithm."""
TISSUE_DENSITY = 0.15
"""Least optical density of tissue, natural logarithm, mean of the three channels; Macenko's beta.
By the mean, because the red of pale eosin alone is below it."""
MIN_TISSUE_PX = 1_000
"""Least pixels of tissue that a fit is made from."""
MAX_SAMPLE_PX = 1_000_000
"""Most pixels of a sample that are looked at, evenly spaced."""
FIT_DECIMALS = 6
"""A fit's numbers are rounded to these: another machine's linear algebra, which differs in the last
bits, then finds the same fit."""
MAX_STRETCH = 10.0
"""Most that a fit may be stretched to the target: beyond it noise would be taken for stain."""
BLOCK_PX = 1 << 14
"""Pixels that are worked on at once: 200 KB as float32, so that they stay in the cache."""

MACENKO_ANGLE_PERCENTILE = 1.0
"""The stains are this percentile of the pixels' directions and 100 minus it; Macenko's alpha."""
MACENKO_STRENGTH_PERCENTILE = 99.0
"""The percentile of a stain's concentration that is brought to the target's."""
MACENKO_MIN_DEGREES = 5.0
"""Least angle between two stains; those of the target stand at 22 degrees."""
MACENKO_TARGET_HAEMATOXYLIN = (0.5626, 0.7201, 0.4062)
"""Optical density of haematoxylin in red, green and blue, of length 1. These four are what
M. Veta's staining-normalization and its descendants (torchstain among them) use."""
MACENKO_TARGET_EOSIN = (0.2159, 0.8012, 0.5581)
MACENKO_TARGET_HAEMATOXYLIN_STRENGTH = 1.9705
"""The 99th percentile of its concentration."""
MACENKO_TARGET_EOSIN_STRENGTH = 1.0308

REINHARD_TARGET_MEAN = (8.74108109, -0.12440419, 0.0444982)
"""Mean of l, alpha and beta, natural logarithm, of the breast carcinoma TCGA-A2-A3XS-DX1: the
standard of Amgad et al., Bioinformatics 35 (2019) 3461-3467, and of HistomicsTK's examples."""
REINHARD_TARGET_DEVIATION = (0.6135447, 0.10989545, 0.0286032)
"""Standard deviation of the same."""

_LMS = np.array(
    [[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]], np.float64
)
"""RGB to the answers of the eye's cones, equation 4 of Reinhard et al."""
_LAB = np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]]) / np.sqrt([[3], [6], [2]])
"""Logarithms of those to l, alpha and beta, equation 6; its inverse is its transpose."""


@dataclass(frozen=True, kw_only=True)
class MacenkoFit:
    """The two stains of one slide, and what brings them to the target's.

    Macenko et al., ISBI 2009, 1107-1110, doi:10.1109/ISBI.2009.5193250.
    """

    method: ClassVar[str] = "macenko"
    haematoxylin: Triple
    """Its optical density in red, green and blue, of length 1."""
    eosin: Triple
    haematoxylin_strength: float
    """The 99th percentile of its concentration in the tissue."""
    eosin_strength: float

    def apply(self, tiles: Pixels) -> Pixels:
        """Return `tiles`, uint8 [n, h, w, 3], with the target's stains, in the same shape.

        What of a colour neither stain explains is dropped, as in the paper.
        """
        own = np.array([self.haematoxylin, self.eosin]).T
        target = np.array([MACENKO_TARGET_HAEMATOXYLIN, MACENKO_TARGET_EOSIN]).T
        strength = (
            MACENKO_TARGET_HAEMATOXYLIN_STRENGTH / self.haematoxylin_strength,
            MACENKO_TARGET_EOSIN_STRENGTH / self.eosin_strength,
        )
        restain_density = (target * strength @ np.linalg.pinv(own)).T.astype(np.float32)

        def restain(light: Light) -> Light:
            light *= np.float32(1 / GLASS)
            restained = np.log(light, out=light) @ restain_density
            # A colour far off both stains may come out brighter than any number; it becomes 255.
            with np.errstate(over="ignore"):
                np.exp(restained, out=restained)
                restained *= np.float32(GLASS)
            return restained

        return _by_blocks(tiles, restain)

    def to_json(self) -> str:
        """JSON that `fit_from_json` reads back to the same numbers."""
        return json.dumps({"method": self.method, **asdict(self)})


@dataclass(frozen=True, kw_only=True)
class ReinhardFit:
    """Mean and spread of one slide's tissue in l, alpha and beta (natural logarithm).

    Reinhard et al., IEEE Computer Graphics and Applications 21 (5) (2001) 34-41,
    doi:10.1109/38.946629.
    """

    method: ClassVar[str] = "reinhard"
    mean: Triple
    deviation: Triple
    """Standard deviation."""

    def apply(self, tiles: Pixels) -> Pixels:
        """Return `tiles`, uint8 [n, h, w, 3], with the target's statistics, in the same shape.

        The change fades out between TISSUE_DENSITY and half of it: the paper knows no background,
        and would tint the glass.
        """
        scale = np.array(REINHARD_TARGET_DEVIATION) / self.deviation
        shift = np.array(REINHARD_TARGET_MEAN) - scale * self.mean
        change = (_LAB.T @ (np.diag(scale) - np.eye(3)) @ _LAB).T.astype(np.float32)
        to_cones, from_cones = _LMS.T.astype(np.float32), np.linalg.inv(_LMS).T.astype(np.float32)
        # One column for each channel, and below one row for each pixel: numpy is slow at
        # spreading three numbers, or a column, over a block.
        brightness = np.full((3, 3), -2 / 3 / TISSUE_DENSITY, np.float32)
        bare = np.float32(2 * math.log(GLASS) / TISSUE_DENSITY - 1)
        shifts = np.tile((_LAB.T @ shift).astype(np.float32), (BLOCK_PX, 1))

        def recolour(light: Light) -> Light:
            cones = light @ to_cones
            np.log(cones, out=cones)
            share = cones @ brightness
            share += bare
            np.clip(share, 0, 1, out=share)
            moved = cones @ change
            moved += shifts[: len(moved)]
            moved *= share
            moved += cones
            return np.exp(moved, out=moved) @ from_cones

        return _by_blocks(tiles, recolour)

    def to_json(self) -> str:
        """JSON that `fit_from_json` reads back to the same numbers."""
        return json.dumps({"method": self.method, **asdict(self)})


StainFit = MacenkoFit | ReinhardFit


def fit_macenko(sample: Pixels) -> MacenkoFit:
    """Find the two stains of a slide from tiles of its tissue: uint8 [n, h, w, 3].

    The plane of the two largest singular values of the tissue's optical densities, without
    centring, since bare glass is its origin; in it the robust extremes of direction. ValueError if
    there is too little tissue, or but one stain.
    """
    density = -np.log((_spaced(sample) + 1.0) / GLASS)
    density = _tissue(density, density.mean(axis=1))
    _, directions = np.linalg.eigh(density.T @ density)
    # The largest comes last; towards positive density the angles lie around 0 and don't wrap.
    first, second = directions[:, 2], directions[:, 1]
    first = first * np.sign(first.sum())
    angles = np.arctan2(density @ second, density @ first)
    extremes = np.percentile(angles, (MACENKO_ANGLE_PERCENTILE, 100 - MACENKO_ANGLE_PERCENTILE))
    apart = float(np.degrees(extremes[1] - extremes[0]))
    if apart < MACENKO_MIN_DEGREES:
        raise ValueError(
            f"the sample shows no two stains: its colours span {apart:.1f} degrees of optical "
            f"density, less than {MACENKO_MIN_DEGREES:g}"
        )
    stains = np.outer(np.cos(extremes), first) + np.outer(np.sin(extremes), second)
    # Of the two, haematoxylin takes more of the red light.
    haematoxylin, eosin = stains[np.argsort(-stains[:, 0])]
    amounts = density @ np.linalg.pinv(np.array([haematoxylin, eosin]))
    strengths = np.percentile(amounts, MACENKO_STRENGTH_PERCENTILE, axis=0)
    target = np.array([MACENKO_TARGET_HAEMATOXYLIN_STRENGTH, MACENKO_TARGET_EOSIN_STRENGTH])
    if (strengths * MAX_STRETCH < target).any():
        raise ValueError(
            f"the sample shows no two stains: haematoxylin has strength {strengths[0]:.2f} and "
            f"eosin {strengths[1]:.2f}, and each needs a tenth of the target's"
        )
    return MacenkoFit(
        haematoxylin=_triple(haematoxylin),
        eosin=_triple(eosin),
        haematoxylin_strength=round(float(strengths[0]), FIT_DECIMALS),
        eosin_strength=round(float(strengths[1]), FIT_DECIMALS),
    )


def fit_reinhard(sample: Pixels) -> ReinhardFit:
    """Measure a slide's colours on tiles of its tissue: uint8 [n, h, w, 3].

    ValueError if there is too little tissue, or if it is of one colour or grey.
    """
    cones = np.log((_spaced(sample) + 1.0) @ _LMS.T)
    lab = _tissue(cones, math.log(GLASS) - cones.mean(axis=1)) @ _LAB.T
    deviation = lab.std(axis=0)
    if (deviation * MAX_STRETCH < REINHARD_TARGET_DEVIATION).any():
        spread = ", ".join(f"{value:.4f}" for value in deviation)
        raise ValueError(
            f"the colours of the sample hardly differ: l, alpha and beta deviate by {spread}, and "
            f"each needs a tenth of the target's deviation"
        )
    return ReinhardFit(mean=_triple(lab.mean(axis=0)), deviation=_triple(deviation))


def fit_from_json(text: str) -> StainFit:
    """Read back what `to_json` of either fit wrote; ValueError if it is no fit."""
    kinds: dict[str, Callable[..., StainFit]] = {
        kind.method: kind for kind in (MacenkoFit, ReinhardFit)
    }
    try:
        values = json.loads(text)
        return kinds[values.pop("method")](
            **{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no fit of a staining: {text[:80]!r}") from error


def _spaced(sample: Pixels) -> Pixels:
    """Of the sample's pixels at most MAX_SAMPLE_PX, evenly spaced: uint8 [m, 3]."""
    pixels = sample.reshape(-1, 3)
    return pixels[:: max(1, -(-len(pixels) // MAX_SAMPLE_PX))]


def _tissue(
    values: npt.NDArray[np.float64], density: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The rows of `values` [m, 3] whose `density` [m] is that of tissue."""
    kept = values[density >= TISSUE_DENSITY]
    if len(kept) < MIN_TISSUE_PX:
        raise ValueError(f"the sample has {len(kept)} pixels of tissue, fewer than {MIN_TISSUE_PX}")
    return kept


def _triple(values: npt.NDArray[np.float64]) -> Triple:
    a, b, c = (round(float(value), FIT_DECIMALS) for value in values)
    return a, b, c


def _by_blocks(tiles: Pixels, recolour: Callable[[Light], Light]) -> Pixels:
    """Tiles of which every pixel went through `recolour`: float32 [k, 3], value + 1, both ways.

    Each tile is cut into blocks by itself: a matrix product may round differently where its blocks
    end, and a tile must not depend on its company.
    """
    recoloured = np.empty(tiles.shape, np.uint8)
    for index, tile in enumerate(tiles):
        before, after = tile.reshape(-1, 3), recoloured[index].reshape(-1, 3)
        for start in range(0, len(before), BLOCK_PX):
            block = slice(start, start + BLOCK_PX)
            light = recolour(before[block] + np.float32(1))
            # Takes the 1 off and rounds, as what follows cuts.
            light -= np.float32(0.5)
            after[block] = np.clip(light, 0, 255, out=light)
    return recoloured
