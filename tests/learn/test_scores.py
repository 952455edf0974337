"""Scores are scikit-learn's where it has them; intervals are over patients."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from ray_pipeline.learn import scores
from ray_pipeline.learn.scores import Predictions

Floats = npt.NDArray[np.float64]


def predictions(
    targets: npt.NDArray[np.int64], of_second: Floats, **changes: object
) -> Predictions:
    """Of two classes, in one fold, each sample a patient of its own."""
    values: dict[str, object] = {
        "targets": targets,
        "probabilities": np.stack([1 - of_second, of_second], axis=1),
        "folds": np.zeros(len(targets), np.int64),
        "patients": [f"p{index}" for index in range(len(targets))],
        **changes,
    }
    return Predictions(**values)  # type: ignore[arg-type]


@st.composite
def binary(draw: st.DrawFn) -> tuple[npt.NDArray[np.int64], Floats, Floats]:
    """Targets of both classes, scores with many ties, and weights."""
    n = draw(st.integers(2, 30))
    targets = np.array([0, 1, *draw(st.lists(st.integers(0, 1), min_size=n - 2, max_size=n - 2))])
    told = draw(st.lists(st.integers(0, 8), min_size=n, max_size=n))
    weights = draw(st.lists(st.integers(1, 3), min_size=n, max_size=n))
    return targets, np.array(told) / 8, np.array(weights, float)


@settings(max_examples=40)
@given(made=binary())
def test_the_scores_of_one_fold_are_scikit_learns(
    made: tuple[npt.NDArray[np.int64], Floats, Floats],
) -> None:
    targets, told, weights = made
    of = predictions(targets, told)
    both = np.stack([np.ones_like(weights), weights])
    for found, sample_weight in zip(of.auc(both), both, strict=True):
        assert found == pytest.approx(roc_auc_score(targets, told, sample_weight=sample_weight))
    said = of.probabilities.argmax(axis=1)
    for found, sample_weight in zip(of.balanced_accuracy(both), both, strict=True):
        assert found == pytest.approx(
            balanced_accuracy_score(targets, said, sample_weight=sample_weight)
        )


def test_of_three_classes_the_auc_is_one_against_the_rest() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 60)
    probabilities = rng.dirichlet(np.ones(3), 60) + 0.3 * np.eye(3)[targets]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    of = predictions(targets, np.zeros(60), probabilities=probabilities)
    assert of.auc()[0] == pytest.approx(roc_auc_score(targets, probabilities, multi_class="ovr"))


def test_scores_of_different_folds_are_not_compared() -> None:
    targets, told = np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.8, 0.9])
    assert predictions(targets, told).auc()[0] == 0.75
    assert predictions(targets, told, folds=np.array([0, 0, 1, 1])).auc()[0] == 1.0


def test_each_fold_is_told_alone() -> None:
    targets, told = np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.9, 0.8])
    found = predictions(targets, told, folds=np.array([0, 0, 1, 1])).scores(seed=0)
    assert (found.fold_auc, found.fold_balanced_accuracy) == ((1.0, 0.0), (0.5, 0.5))
    assert (found.auc.value, found.balanced_accuracy.value) == (0.5, 0.5)


def test_copies_of_a_patients_slides_tell_nothing_new() -> None:
    rng = np.random.default_rng(0)
    targets, told = np.arange(30) % 2, rng.random(30)
    once = predictions(targets, told)
    patients = [*once.patients] * 5
    copied = predictions(np.tile(targets, 5), np.tile(told, 5), patients=patients)
    assert copied.scores(seed=1).auc == once.scores(seed=1).auc


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """With slides of one patient alike; a bootstrap over slides would be too sure."""
    rng = np.random.default_rng(0)
    truth = 0.7602  # of two normals one apart: Phi(1 / sqrt(2))
    held = 0
    for seed in range(100):
        targets = np.repeat(np.arange(60) % 2, 3)
        told = np.repeat(rng.standard_normal(60), 3) + targets
        of = predictions(targets, told, patients=[f"p{index // 3}" for index in range(180)])
        found = of.scores(seed=seed, draws=200).auc
        held += found.low <= truth <= found.high
    assert 88 <= held <= 99


def test_draws_are_seeded_and_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    of = predictions(np.arange(40) % 2, rng.random(40))
    whole = of.scores(seed=3)
    monkeypatch.setattr(scores, "MOST_WEIGHTS", 300)
    assert of.scores(seed=3) == whole
    assert of.scores(seed=4) != whole
    assert whole.auc.low < whole.auc.value < whole.auc.high
    assert str(whole.auc).count(" to ") == 1
