"""How good predictions are, and how sure that is: scores with intervals over patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DRAWS = 1000
"""Bootstrap draws of patients."""
CONFIDENCE = 0.95
"""Share of the draws that lie within an interval."""
MOST_WEIGHTS = 4_000_000
"""Draws times samples that are computed at a time: 32 MB of weights."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A score, and the bounds between which the bootstrap finds it."""

    value: float
    """The score of all samples."""
    low: float
    """Lower bound."""
    high: float
    """Upper bound."""

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What predictions are worth."""

    auc: Interval
    """See `Predictions.auc`."""
    balanced_accuracy: Interval
    """See `Predictions.balanced_accuracy`."""
    fold_auc: tuple[float, ...]
    """The same of each fold alone."""
    fold_balanced_accuracy: tuple[float, ...]
    """The same of each fold alone."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What models said of samples none of them had seen."""

    targets: Ints
    """Index of the true class, int64 [n]."""
    probabilities: Floats
    """Of each class, float64 [n,C]."""
    folds: Ints
    """The fold in which each was tested, int64 [n]: one model's predictions each."""
    patients: Sequence[str]
    """Whose sample each is."""

    def auc(self, weights: Floats | None = None) -> Floats:
        """Area under the ROC curve, one against the rest, mean over the classes: float64 [B].

        Of all pairs of a sample of the class and one of the rest *in the same fold*, the share in
        the right order, ties counting half. Scores of different folds are of different models and
        are not compared (Forman and Scholz 2010, doi 10.1145/1882471.1882479).

        `weights` float64 [B,n] count the samples, B times anew; without them, B is 1 and each
        counts once. NaN where a class has no such pair.
        """
        weights = np.ones((1, len(self.targets))) if weights is None else weights
        n_classes = self.probabilities.shape[1]
        # Of two classes one is the other's mirror image.
        asked = [1] if n_classes == 2 else range(n_classes)
        areas = []
        for index in asked:
            right, pairs = np.zeros(len(weights)), np.zeros(len(weights))
            for fold in np.unique(self.folds):
                of = self.folds == fold
                found = _ordered(
                    self.targets[of] == index, self.probabilities[of, index], weights[:, of]
                )
                right, pairs = right + found[0], pairs + found[1]
            areas.append(np.divide(right, pairs, out=np.full(len(right), np.nan), where=pairs > 0))
        return np.asarray(np.mean(areas, axis=0), np.float64)

    def balanced_accuracy(self, weights: Floats | None = None) -> Floats:
        """Mean over the classes of the share of their samples that is found: float64 [B].

        The class said is the likeliest. `weights` and NaN as for `auc`.
        """
        weights = np.ones((1, len(self.targets))) if weights is None else weights
        found = self.probabilities.argmax(axis=1) == self.targets
        recalls = []
        for index in range(self.probabilities.shape[1]):
            of = weights * (self.targets == index)
            total = of.sum(axis=1)
            right = (of * found).sum(axis=1)
            recalls.append(np.divide(right, total, out=np.full(len(of), np.nan), where=total > 0))
        return np.asarray(np.mean(recalls, axis=0), np.float64)

    def scores(self, *, seed: int, draws: int = DRAWS) -> Scores:
        """All scores; the bootstrap's `draws` come from `seed`."""
        in_fold = np.stack([self.folds == fold for fold in np.unique(self.folds)]).astype(float)
        return Scores(
            auc=self._with_interval(self.auc, seed, draws),
            balanced_accuracy=self._with_interval(self.balanced_accuracy, seed, draws),
            fold_auc=tuple(self.auc(in_fold).tolist()),
            fold_balanced_accuracy=tuple(self.balanced_accuracy(in_fold).tolist()),
        )

    def _with_interval(
        self, score: Callable[[Floats | None], Floats], seed: int, draws: int
    ) -> Interval:
        """`score`, a method of this object, with its percentile bootstrap interval.

        Each draw takes as many patients as there are, with all their samples, with replacement:
        a patient's samples are no independent witnesses. Draws that lack a class are left out.
        """
        names, patient_of = np.unique(np.asarray(self.patients), return_inverse=True)
        rng = np.random.default_rng(seed)
        counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
        parts = -(-draws * len(patient_of) // MOST_WEIGHTS)
        drawn = np.concatenate(
            [
                score(some[:, patient_of].astype(np.float64))
                for some in np.array_split(counts, min(parts, draws))
            ]
        )
        tail = (1 - CONFIDENCE) / 2
        low, high = np.nanquantile(drawn, [tail, 1 - tail])
        return Interval(value=float(score(None)[0]), low=float(low), high=float(high))


def _ordered(
    positive: npt.NDArray[np.bool_], scores: Floats, weights: Floats
) -> tuple[Floats, Floats]:
    """Weight of the pairs in the right order, and of all pairs: float64 [B] each."""
    _, rank = np.unique(scores, return_inverse=True)
    order = np.argsort(rank, kind="stable")
    first = np.flatnonzero(np.diff(rank[order], prepend=-1))  # where each score's samples begin
    above, below = (
        np.add.reduceat((weights * of)[:, order], first, axis=1) for of in (positive, ~positive)
    )
    right = (above * (below.cumsum(axis=1) - below / 2)).sum(axis=1)
    return right, above.sum(axis=1) * below.sum(axis=1)
