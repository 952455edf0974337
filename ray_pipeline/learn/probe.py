"""Probes: what a tile's vector tells of the tile, by the protocol of the pathology benchmarks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ray_pipeline.errors import LabelsError
from ray_pipeline.learn.cohort import Label, classed
from ray_pipeline.learn.extra import learn_package
from ray_pipeline.learn.folds import grouped_folds
from ray_pipeline.learn.scores import DRAWS, Predictions, Scores

ProbeKind = Literal["linear", "knn"]
Vectors = npt.NDArray[np.floating[Any]]

NEIGHBOURS = 20
"""Of a kNN probe, as in UNI's evaluation."""
MOST_ITERATIONS = 1000
"""Of L-BFGS, as in UNI's evaluation."""


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """How well a class is told from a vector."""

    kind: ProbeKind
    """The probe."""
    classes: tuple[str, ...]
    """The classes."""
    n_groups: int
    """Patients or slides."""
    n_tiles: int
    """Tiles."""
    folds: int
    """Folds."""
    seed: int
    """What folds and intervals were drawn from."""
    unconverged_folds: tuple[int, ...]
    """Folds in which the linear probe was stopped after MOST_ITERATIONS."""
    scores: Scores
    """Over all tiles, each tested once, with intervals over groups."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def probe(
    features: Vectors,
    labels: Sequence[Label],
    groups: Sequence[str],
    *,
    kind: ProbeKind = "linear",
    folds: int = 5,
    seed: int = 0,
    draws: int = DRAWS,
) -> ProbeReport:
    """Cross-validate a probe on `features` float [N,D], no group being in two folds.

    `labels` and `groups` have one value per tile; a group is a patient, or a slide where patients
    are not known. The probes are those of UNI (Chen et al. 2024, github.com/mahmoodlab/UNI,
    `eval_patch_features`), nothing being tuned:

    - linear: multinomial logistic regression on the vectors as they are, with scikit-learn's
      C = D * classes / 100, an L2 penalty of weight 1 / C;
    - knn: the 20 nearest by Euclidean distance, after the training vectors' mean is taken off and
      all are brought to length 1.

    Raises LabelsError for labels that can't be folded, and UsageError where scikit-learn is not
    installed.
    """
    if not len(features) == len(labels) == len(groups):
        raise LabelsError(
            f"{len(features)} vectors, {len(labels)} labels and {len(groups)} groups: "
            "there must be one of each per tile."
        )
    features = np.asarray(features, np.float32)  # float16 overflows in sums
    classes, targets = classed(labels)
    fold_of = grouped_folds(targets, groups, classes, folds=folds, seed=seed)
    probabilities = np.empty((len(targets), len(classes)))
    unconverged = []
    for fold in range(folds):
        test = fold_of == fold
        told, converged = (_linear if kind == "linear" else _knn)(
            features[~test], targets[~test], features[test], len(classes)
        )
        probabilities[test] = told
        if not converged:
            unconverged.append(fold)
    predictions = Predictions(
        targets=targets, probabilities=probabilities, folds=fold_of, patients=groups
    )
    return ProbeReport(
        kind=kind,
        classes=classes,
        n_groups=len(set(groups)),
        n_tiles=len(targets),
        folds=folds,
        seed=seed,
        unconverged_folds=tuple(unconverged),
        scores=predictions.scores(seed=seed, draws=draws),
    )


def _linear(
    train: Vectors, targets: npt.NDArray[np.int64], test: Vectors, n_classes: int
) -> tuple[Vectors, bool]:
    """Probabilities of the test vectors, and whether the fit converged."""
    regression = learn_package("sklearn.linear_model").LogisticRegression(
        C=train.shape[1] * n_classes / 100, max_iter=MOST_ITERATIONS
    )
    with warnings.catch_warnings():
        # Told in the report instead.
        warnings.simplefilter("ignore", learn_package("sklearn.exceptions").ConvergenceWarning)
        regression.fit(train, targets)
    return regression.predict_proba(test), bool(regression.n_iter_.max() < MOST_ITERATIONS)


def _knn(
    train: Vectors, targets: npt.NDArray[np.int64], test: Vectors, _n_classes: int
) -> tuple[Vectors, bool]:
    if len(train) < NEIGHBOURS:
        raise LabelsError(f"{len(train)} tiles to learn from, fewer than the {NEIGHBOURS} nearest.")
    mean = train.mean(axis=0)
    nearest = learn_package("sklearn.neighbors").KNeighborsClassifier(n_neighbors=NEIGHBOURS)
    nearest.fit(_unit(train - mean), targets)
    return nearest.predict_proba(_unit(test - mean)), True


def _unit(vectors: Vectors) -> Vectors:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)
