"""Folds that never share a patient, with the classes in like shares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ray_pipeline.errors import LabelsError
from ray_pipeline.learn.extra import learn_package


def grouped_folds(
    targets: npt.NDArray[np.int64],
    groups: Sequence[str],
    classes: Sequence[str],
    *,
    folds: int,
    seed: int,
) -> npt.NDArray[np.int64]:
    """The fold of each sample, int64 [n] of 0..folds-1, by scikit-learn's StratifiedGroupKFold.

    `targets` are indices of `classes`; `groups` are patients (or slides), of which all samples come
    into one fold. Raises LabelsError when a class has fewer groups than there are folds, or a fold
    comes out without one of the classes, and UsageError where scikit-learn is not installed.
    """
    if folds < 2:
        raise LabelsError(f"folds: {folds} is too few; at least 2 are needed.")
    names = np.asarray(groups)
    for index, name in enumerate(classes):
        found = len(set(names[targets == index]))
        if found < folds:
            raise LabelsError(
                f"class '{name}' has {found} patients or slides apart, fewer than the {folds} "
                "folds: use fewer folds, or join it with another class."
            )
    splitter = learn_package("sklearn.model_selection").StratifiedGroupKFold(
        n_splits=folds, shuffle=True, random_state=seed
    )
    fold_of = np.empty(len(targets), np.int64)
    for fold, (_, test) in enumerate(splitter.split(np.empty(len(targets)), targets, names)):
        fold_of[test] = fold
    check_folds(fold_of, groups)
    for index, name in enumerate(classes):
        without = set(range(folds)) - set(fold_of[targets == index].tolist())
        if without:
            raise LabelsError(
                f"class '{name}' is in {folds - len(without)} of the {folds} folds only, for its "
                "patients have other classes too: use fewer folds, or another seed."
            )
    return fold_of


def check_folds(fold_of: npt.NDArray[np.int64], groups: Sequence[str]) -> None:
    """Raise LabelsError when the samples of one group are in several folds."""
    first: dict[str, int] = {}
    for group, fold in zip(groups, fold_of.tolist(), strict=True):
        if first.setdefault(group, fold) != fold:
            raise LabelsError(
                f"patient {group} is in the folds {first[group]} and {fold}: what was learnt of a "
                "patient would be tested on the same one."
            )
