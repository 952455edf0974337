"""Whether a faster path is still the same encoder: its vectors against the reference's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_pipeline.encoders.spec import ModelSpec
from ray_pipeline.errors import InexactError

Vectors = npt.NDArray[np.floating]

_MEND = "on this machine: run with compile: false, or another precision."


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How close two ways to the same vectors come."""

    least_cosine: float
    """The smallest cosine of a tile's two vectors."""
    largest_error: float
    """The largest difference of two numbers, over the root mean square of the vector it is in."""


def agreement(vectors: Vectors, wanted: Vectors) -> Agreement:
    """Compare vectors [n, dim] with what they should be; NaN agrees with nothing."""
    ours, theirs = vectors.astype(np.float64), wanted.astype(np.float64)
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return Agreement(least_cosine=-1.0, largest_error=float("inf"))
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosines = (ours * theirs).sum(axis=1) / np.maximum(lengths, 1e-300)
    size = np.sqrt(np.mean(theirs**2, axis=1, keepdims=True))
    errors = np.abs(ours - theirs) / np.maximum(size, 1e-300)
    return Agreement(least_cosine=float(cosines.min()), largest_error=float(errors.max()))


def check_agreement(
    spec: ModelSpec, path: str, fast: Vectors, reference: Vectors, exact: Vectors
) -> tuple[Agreement, Agreement]:
    """Agreement of a faster path with the reference and with float32.

    Raises InexactError where it misses the spec's thresholds.
    """
    beside, below = agreement(fast, reference), agreement(fast, exact)
    for found, against in ((beside, "the reference"), (below, "float32")):
        if found.least_cosine < spec.least_cosine:
            raise InexactError(
                f"{spec.name}: the {path} path comes out at a cosine of {found.least_cosine:.6f} "
                f"to {against}, below {spec.least_cosine}, {_MEND}"
            )
        if found.largest_error > spec.most_error:
            raise InexactError(
                f"{spec.name}: the {path} path comes out {found.largest_error:.3f} times a "
                f"vector's root mean square off {against} in one number, above "
                f"{spec.most_error}, {_MEND}"
            )
    return beside, below


def sample_tiles(tile_px: int, count: int) -> npt.NDArray[np.uint8]:
    """Tiles uint8 [count, tile_px, tile_px, 3] to compare paths on: the same everywhere, for ever.

    Blots of pink and violet on near-white glass, with grain: colours and scales as tissue has.
    """
    key = int.from_bytes(hashlib.sha256(b"historay sample tiles").digest()[:16], "little")
    words = np.random.Philox(key=key).random_raw(count * (64 * 3 + tile_px * tile_px))
    numbers = (words >> np.uint64(40)).astype(np.float64) / 2**24
    coarse = numbers[: count * 192].reshape(count, 8, 8, 3)
    grain = numbers[count * 192 :].reshape(count, tile_px, tile_px, 1)
    places = np.minimum(np.arange(tile_px) * 8 // tile_px, 7)
    stain = coarse[:, places[:, None], places[None, :]]
    glass, dark = np.array([240.0, 238.0, 242.0]), np.array([120.0, 170.0, 90.0])
    pixels = glass - dark * stain * (0.6 + 0.4 * grain)
    return np.asarray(np.clip(np.rint(pixels), 0, 255), np.uint8)
