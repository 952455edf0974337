"""Vectors that never change: seeded weights on the first tiles of a fixed image.

    python -m tests.encoders.test_golden [MODEL ...]

writes the golden vectors anew, of all models or of those named; read the diff.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_pipeline.encoders.agreement import agreement, sample_tiles
from ray_pipeline.encoders.encoder import Encoder
from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.encoders.weights import resolve_weights

GOLDEN = Path(__file__).parents[1] / "golden" / "encoders.json"
MODELS = ("toy", "h-optimus-0")
TILES = sample_tiles(224, 2)
LEAST_COSINE = 0.99999
"""Of float32 on different processors: the order of its sums is all that differs."""


def made(model: str) -> tuple[str, np.ndarray[Any, np.dtype[np.float16]]]:
    """The weights' digest and the float32 path's vectors [2, dim] of the fixed tiles."""
    spec = get_spec(model)
    encoder = Encoder(
        spec, resolve_weights(spec, "random"), device="cpu", precision="fp32", batch_size=2
    )
    return encoder.identity.weights_digest, encoder.encode(TILES)


def golden() -> dict[str, Any]:
    """What stands in the file."""
    values: dict[str, Any] = json.loads(GOLDEN.read_text())
    return values


def tiles_digest() -> str:
    """SHA-256 of the fixed tiles, hex."""
    return hashlib.sha256(TILES.tobytes()).hexdigest()


def test_the_fixed_tiles_are_the_golden_ones() -> None:
    assert TILES.shape == (2, 224, 224, 3)
    assert tiles_digest() == golden()["tiles_sha256"]


@pytest.mark.parametrize("model", [MODELS[0], pytest.param(MODELS[1], marks=pytest.mark.slow)])
def test_vectors_never_change(model: str) -> None:
    expected = golden()["models"][model]
    digest, vectors = made(model)
    assert digest == expected["weights_digest"]
    found = agreement(vectors, np.array(expected["vectors"], np.float32))
    assert found.least_cosine >= LEAST_COSINE
    assert found.largest_error < 0.02


def write(models: list[str]) -> None:
    """Write the file anew; models that are not named keep what they have."""
    kept = golden()["models"] if GOLDEN.exists() else {}
    for model in models:
        digest, vectors = made(model)
        # As short as they can be said: float16 has no more than five digits.
        rows = [[float(f"{number:.5g}") for number in row] for row in vectors.tolist()]
        kept[model] = {"weights_digest": digest, "vectors": rows}
    values = {"tiles_sha256": tiles_digest(), "models": {m: kept[m] for m in MODELS if m in kept}}
    # A vector a line, so that a diff shows which of them changed.
    text = re.sub(
        r"\[[-\d.e,\s]+\]", lambda m: " ".join(m[0].split()), json.dumps(values, indent=1)
    )
    GOLDEN.write_text(text + "\n")


if __name__ == "__main__":
    write(sys.argv[1:] or list(MODELS))
