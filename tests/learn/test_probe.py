"""Probes tell what is in the vectors, and no patient is told by its own tiles."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import LogisticRegression

from ray_pipeline.errors import LabelsError
from ray_pipeline.learn import probe as probes
from ray_pipeline.learn.folds import grouped_folds
from ray_pipeline.learn.probe import ProbeKind, probe

KINDS: tuple[ProbeKind, ...] = ("linear", "knn")
CLASSES = ("fat", "stroma", "tumour")
Tiles = tuple[npt.NDArray[np.float32], list[str], list[str]]


def tissue(seed: int, *, shift: float, patients: int = 15, tiles: int = 20) -> Tiles:
    """Vectors of tiles of three classes, their classes and patients; each patient has its own look.

    `shift` is how far the classes lie apart.
    """
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(patients), tiles)
    targets = rng.integers(0, 3, len(of))
    centres = shift * rng.standard_normal((3, 16))
    look = rng.standard_normal((patients, 16))
    vectors = centres[targets] + look[of] + rng.standard_normal((len(of), 16))
    return (
        vectors.astype(np.float32),
        [CLASSES[target] for target in targets],
        [f"p{patient}" for patient in of],
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_classes_that_lie_apart_are_told_apart(kind: ProbeKind, seed: int) -> None:
    report = probe(*tissue(seed, shift=2.0), kind=kind, seed=seed)
    assert report.classes == CLASSES
    assert report.scores.balanced_accuracy.value >= 0.9
    assert report.scores.auc.value >= 0.95


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_a_patient_is_never_told_by_its_own_tiles(kind: ProbeKind, seed: int) -> None:
    """Each patient has one class and one look, and the looks mean nothing.

    Tiles mixed over the folds would be told all but perfectly, by knowing the patient.
    """
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(40), 40)
    vectors = 5 * rng.standard_normal((40, 64))[of] + rng.standard_normal((1600, 64))
    labels = ["ab"[patient % 2] for patient in of]
    honest = probe(vectors, labels, [f"p{patient}" for patient in of], kind=kind, seed=seed)
    mixed = probe(vectors, labels, [f"t{tile}" for tile in range(1600)], kind=kind, seed=seed)
    # Of 40 patients of two classes, an AUC of nothing has a standard deviation of 0.1.
    assert abs(honest.scores.auc.value - 0.5) <= 0.26
    assert mixed.scores.auc.value >= 0.99


def test_the_linear_probe_is_the_published_one() -> None:
    vectors, labels, patients = tissue(0, shift=0.5)
    targets = np.array([CLASSES.index(label) for label in labels])
    fold_of = grouped_folds(targets, patients, CLASSES, folds=5, seed=0)
    right = np.zeros((3, 2))
    for fold in range(5):
        test = fold_of == fold
        plain = LogisticRegression(C=16 * 3 / 100, max_iter=1000)
        said = plain.fit(vectors[~test], targets[~test]).predict(vectors[test])
        for index in range(3):
            of = targets[test] == index
            right[index] += (said[of] == index).sum(), of.sum()
    report = probe(vectors, labels, patients, draws=50)
    expected = (right[:, 0] / right[:, 1]).mean()
    assert report.scores.balanced_accuracy.value == pytest.approx(expected)
    assert report.unconverged_folds == ()


def test_a_fit_that_is_cut_short_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "MOST_ITERATIONS", 1)
    report = probe(*tissue(0, shift=0.5), draws=50)
    assert json.loads(json.dumps(report.to_dict()))["unconverged_folds"] == [0, 1, 2, 3, 4]


def test_float16_vectors_do_not_overflow() -> None:
    vectors, labels, patients = tissue(0, shift=2.0)
    far = (vectors + 1000).astype(np.float16)
    report = probe(far, labels, patients, kind="knn", draws=50)
    assert report.scores.balanced_accuracy.value >= 0.9


def test_what_can_not_be_probed_is_refused() -> None:
    vectors, labels, patients = tissue(0, shift=1.0)
    with pytest.raises(LabelsError, match="300 vectors, 299 labels and 300 groups"):
        probe(vectors, labels[:-1], patients)
    with pytest.raises(LabelsError, match=r"class 'fat' has 15 patients .* fewer than the 16"):
        probe(vectors, labels, patients, folds=16)
    with pytest.raises(LabelsError, match="8 tiles to learn from, fewer than the 20"):
        probe(np.eye(10), ["a", "b"] * 5, list("abcdefghij"), kind="knn")
