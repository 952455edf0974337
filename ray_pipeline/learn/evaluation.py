"""Cross-validation of ABMIL: every slide is told by a model that saw no slide of its patient."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from ray_pipeline.errors import LabelsError
from ray_pipeline.learn.attention import write_attention
from ray_pipeline.learn.cohort import Bags, Cohort, streamed
from ray_pipeline.learn.folds import grouped_folds
from ray_pipeline.learn.scores import DRAWS, Predictions, Scores
from ray_pipeline.learn.training import Training, fit
from ray_pipeline.store import Store


@dataclass(frozen=True, kw_only=True)
class SlideReport:
    """What was told of one slide."""

    slide_id: str
    """The slide."""
    patient: str
    """Whose it is."""
    fold: int
    """The fold in which it was tested."""
    label: str
    """Its class."""
    probabilities: dict[str, float]
    """Class -> its probability by the model."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """How well a slide's class is told from its tiles."""

    classes: tuple[str, ...]
    """The classes; of two, the AUC is that of the second, which is the same."""
    by: Literal["patient", "slide"]
    """What is never in two folds, and what intervals are over."""
    n_patients: int
    """Patients; slides where nobody told whose they are."""
    n_slides: int
    """Slides."""
    folds: int
    """Folds."""
    seed: int
    """What folds, models and intervals were drawn from."""
    training: dict[str, Any]
    """The `Training` in full."""
    best_epochs: tuple[int, ...]
    """Of each fold, the epoch whose model was tested."""
    scores: Scores
    """Over all slides, each tested once, with intervals over patients."""
    slides: tuple[SlideReport, ...]
    """One by one, sorted by slide_id."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def cross_validated(
    cohort: Cohort,
    bags: Bags,
    *,
    folds: int = 5,
    training: Training | None = None,
    seed: int = 0,
    device: str = "cpu",
    attention_to: Store | None = None,
    draws: int = DRAWS,
) -> Report:
    """Train and test one model per fold, each patient in one fold only.

    A model is tested on its fold, stops early by the next one, and learns from the others; so there
    must be 3 `folds` at least. Where `attention_to` is given, the attention that each slide's tiles
    got when it was tested is written there (see `write_attention`). `draws` are those of the
    intervals' bootstrap; `device` is one of torch's ("cpu", "cuda").

    Raises LabelsError for labels that can't be folded, and for slides of which no usable bag
    comes; UsageError where scikit-learn is not installed.
    """
    if folds < 3:
        raise LabelsError(f"folds: {folds} is too few; one tests, one stops, and one must be left.")
    how = training or Training()
    fold_of = grouped_folds(cohort.targets, cohort.patients, cohort.classes, folds=folds, seed=seed)
    probabilities = np.empty((len(cohort.slides), len(cohort.classes)))
    best_epochs = []
    for fold in range(folds):
        stops = (fold + 1) % folds
        fitted = fit(
            cohort,
            bags,
            train=np.flatnonzero((fold_of != fold) & (fold_of != stops)),
            validation=np.flatnonzero(fold_of == stops),
            training=how,
            seed=seed + fold,
            device=device,
        )
        best_epochs.append(fitted.best_epoch)
        for bag in streamed(bags, cohort.ids(np.flatnonzero(fold_of == fold))):
            told, attention = fitted.predict(bag)
            probabilities[cohort.places[bag["slide_id"]]] = told
            if attention_to is not None:
                write_attention(attention_to, bag, attention)
    predictions = Predictions(
        targets=cohort.targets, probabilities=probabilities, folds=fold_of, patients=cohort.patients
    )
    return Report(
        classes=cohort.classes,
        by=cohort.by,
        n_patients=len(set(cohort.patients)),
        n_slides=len(cohort.slides),
        folds=folds,
        seed=seed,
        training=how.model_dump(),
        best_epochs=tuple(best_epochs),
        scores=predictions.scores(seed=seed, draws=draws),
        slides=_slide_reports(cohort, predictions),
    )


def _slide_reports(cohort: Cohort, predictions: Predictions) -> tuple[SlideReport, ...]:
    return tuple(
        SlideReport(
            slide_id=slide,
            patient=cohort.patients[place],
            fold=int(predictions.folds[place]),
            label=cohort.classes[cohort.targets[place]],
            probabilities=dict(
                zip(cohort.classes, predictions.probabilities[place].tolist(), strict=True)
            ),
        )
        for place, slide in enumerate(cohort.slides)
    )
