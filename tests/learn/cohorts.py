"""Made-up cohorts in memory, of which it is known what tells their classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ray_pipeline.dataset.bags import Bag
from ray_pipeline.learn.cohort import Cohort

DIM = 64
"""Numbers of a vector."""


@dataclass(frozen=True, kw_only=True)
class Planted:
    """Slides of noise; those of class "tumour" have a few tiles shifted along one direction."""

    cohort: Cohort
    features: dict[str, npt.NDArray[np.float32]]
    planted: dict[str, npt.NDArray[np.int64]]
    """The shifted tiles of each slide of class "tumour"."""

    def bags(self, slide_ids: Sequence[str]) -> Iterator[Bag]:
        for slide_id in slide_ids:
            features = torch.from_numpy(self.features[slide_id])
            tiles = torch.arange(len(features), dtype=torch.int32)
            yield {
                "slide_id": slide_id,
                "features": features,
                "coords": torch.stack([tiles % 20 * 448, tiles // 20 * 448], dim=1),
                "label": None,
            }


def planted_cohort(
    seed: int, *, patients: int = 32, shift: float = 5.0, planted: int = 8, shuffled: bool = False
) -> Planted:
    """One to three slides of 50..400 tiles for each patient; half of the patients have a tumour.

    With `shuffled`, the classes of the patients are drawn anew after the tiles were planted.
    """
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal(DIM)
    direction /= np.linalg.norm(direction)
    sick = rng.permutation(np.arange(patients) % 2).astype(bool)
    told = rng.permutation(sick) if shuffled else sick
    features, where, labels, owners = {}, {}, {}, {}
    for patient in range(patients):
        for number in range(patient % 3 + 1):
            slide = f"p{patient:03d}-{number}"
            vectors = rng.standard_normal((int(rng.integers(50, 401)), DIM))
            if sick[patient]:
                where[slide] = rng.choice(len(vectors), planted, replace=False)
                vectors[where[slide]] += shift * direction
            features[slide] = vectors.astype(np.float32)
            labels[slide] = "tumour" if told[patient] else "normal"
            owners[slide] = f"p{patient:03d}"
    return Planted(cohort=Cohort.of(labels, owners), features=features, planted=where)


def tiny_cohort(*, patients: int = 6, tiles: int = 5, dim: int = 4) -> Planted:
    """One slide for each patient, every other one with a tumour that shows in all its tiles."""
    rng = np.random.default_rng(7)
    slides = [f"s{index}" for index in range(patients)]
    features = {
        slide: (rng.standard_normal((tiles, dim)) + 3 * (index % 2)).astype(np.float32)
        for index, slide in enumerate(slides)
    }
    labels = {slide: ("normal", "tumour")[index % 2] for index, slide in enumerate(slides)}
    return Planted(cohort=Cohort.of(labels), features=features, planted={})
