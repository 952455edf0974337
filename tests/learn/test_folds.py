"""Folds never share a patient, and each has every class."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_pipeline.errors import LabelsError, UsageError
from ray_pipeline.learn.folds import check_folds, grouped_folds

CLASSES = ("no", "yes")


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[list[int], list[str]]:
    """Classes and patients of slides; a patient's slides may have several classes."""
    patients = draw(st.integers(2, 20))
    slides = draw(st.lists(st.tuples(st.integers(0, patients - 1), st.integers(0, 1)), min_size=2))
    return [target for _, target in slides], [f"p{patient}" for patient, _ in slides]


@given(made=cohorts(), folds=st.integers(2, 5), seed=st.integers(0, 3))
def test_folds_part_patients_and_have_all_classes(
    made: tuple[list[int], list[str]], folds: int, seed: int
) -> None:
    targets, patients = np.array(made[0]), np.array(made[1])
    of_class = [set(patients[targets == index]) for index in (0, 1)]
    try:
        fold_of = grouped_folds(targets, made[1], CLASSES, folds=folds, seed=seed)
    except LabelsError:
        # Only for a reason: too few patients, or patients of both classes.
        assert min(map(len, of_class)) < folds or of_class[0] & of_class[1]
        return
    for patient in set(made[1]):
        assert len(set(fold_of[patients == patient])) == 1
    for index in (0, 1):
        assert set(fold_of[targets == index]) == set(range(folds))


def test_equal_seeds_give_equal_folds_and_others_do_not() -> None:
    targets, patients = np.arange(40) % 2, list(map(str, range(40)))
    first, again, other = (
        grouped_folds(targets, patients, CLASSES, folds=5, seed=seed) for seed in (1, 1, 2)
    )
    assert first.tolist() == again.tolist() != other.tolist()


def test_a_class_with_too_few_patients_is_named_with_the_mend() -> None:
    targets = np.array([0, 0, 0, 1, 1, 1, 1])
    patients = ["a", "b", "c", "d", "d", "e", "e"]
    said = "class 'yes' has 2 patients or slides apart, fewer than the 3 folds: use fewer folds"
    with pytest.raises(LabelsError, match=said):
        grouped_folds(targets, patients, CLASSES, folds=3, seed=0)


def test_one_fold_is_none() -> None:
    with pytest.raises(LabelsError, match="folds: 1 is too few"):
        grouped_folds(np.array([0, 1]), ["a", "b"], CLASSES, folds=1, seed=0)


def test_a_patient_in_two_folds_is_refused() -> None:
    check_folds(np.array([0, 1, 0]), ["a", "b", "a"])
    with pytest.raises(LabelsError, match="patient a is in the folds 0 and 1"):
        check_folds(np.array([0, 1, 1]), ["a", "b", "a"])


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    with pytest.raises(UsageError, match=r"sklearn is not installed: .*'historay\[learn\]'"):
        grouped_folds(np.array([0, 1] * 2), list("abcd"), CLASSES, folds=2, seed=0)
