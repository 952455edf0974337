"""Which slides there are to learn from: their classes, their patients, their bags."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from ray_pipeline.dataset.bags import Bag
from ray_pipeline.errors import LabelsError, NotFiniteError

Label = str | int | bool
"""A class as it stands in a table."""

MOST_NAMED = 5
"""Slides that a sentence names."""


Bags = Callable[[Sequence[str]], Iterable[Bag]]
"""Streams the bags of the slides asked for, each once and whole; for equal runs, in the order asked
for. A bag's own label is not looked at: a cohort has the labels."""


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Slides with a class and a patient each, sorted by slide_id."""

    slides: tuple[str, ...]
    """Their ids."""
    patients: tuple[str, ...]
    """Whose slide each is."""
    classes: tuple[str, ...]
    """Names of the classes, sorted."""
    targets: npt.NDArray[np.int64]
    """Index of each slide's class, int64 [slides]."""
    by: Literal["patient", "slide"] = "patient"
    """What is never in two folds: `slide` where nobody told whose slides they are."""

    @classmethod
    def of(cls, labels: Mapping[str, Label], patients: Mapping[str, str] | None = None) -> Cohort:
        """From slide_id -> class, and slide_id -> patient where a patient has several slides.

        Without `patients` every slide is a patient of its own. Raises LabelsError for a slide
        without a class or a patient, and for fewer than two classes.
        """
        slides = sorted(labels)
        _refuse([slide for slide in slides if _is_missing(labels[slide])], "no class")
        if patients is not None:
            _refuse([slide for slide in slides if _is_missing(patients.get(slide))], "no patient")
        classes, targets = classed([labels[slide] for slide in slides])
        return cls(
            slides=tuple(slides),
            patients=tuple(slide if patients is None else patients[slide] for slide in slides),
            classes=classes,
            targets=targets,
            by="slide" if patients is None else "patient",
        )

    @cached_property
    def places(self) -> Mapping[str, int]:
        """slide_id -> its place in the other fields."""
        return {slide: place for place, slide in enumerate(self.slides)}

    def ids(self, places: npt.NDArray[np.int64]) -> list[str]:
        """The slide_ids of some places, in their order."""
        return [self.slides[place] for place in places]


def classed(labels: Sequence[Label]) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Names of the classes, sorted, and the index of each label's, int64 [n].

    Numbers are sorted as numbers. Raises LabelsError for fewer than two classes, and for labels
    that are not all of one type.
    """
    kinds = {type(label).__name__ for label in labels}
    if len(kinds) > 1:
        raise LabelsError(f"labels of several types ({', '.join(sorted(kinds))}): use one.")
    found: list[Any] = sorted(set(labels))  # all of one type, as was just seen
    if len(found) < 2:
        raise LabelsError(f"{len(found)} classes in {len(labels)} labels: nothing to learn.")
    index = {label: place for place, label in enumerate(found)}
    return tuple(map(str, found)), np.array([index[label] for label in labels], np.int64)


def streamed(bags: Bags, slides: Sequence[str]) -> Iterator[Bag]:
    """The bags of `slides`, checked: each slide once, none left out, none without tiles.

    Raises LabelsError, which names the slides to be left out of the labels, or NotFiniteError.
    """
    waiting = Counter(slides)
    for bag in bags(slides):
        slide = bag["slide_id"]
        waiting[slide] -= 1
        if waiting[slide] < 0:
            raise LabelsError(f"{slide}: its bag came though it was not asked for, or came twice.")
        if bag["features"].ndim != 2 or not len(bag["features"]):
            _refuse([slide], "no tiles")
        if not torch.isfinite(bag["features"]).all():
            raise NotFiniteError(f"{slide}: its features hold NaN or infinity; embed it again.")
        yield bag
    _refuse([slide for slide in slides if waiting[slide] > 0], "no bag")


def _is_missing(label: object) -> bool:
    # A table's empty cell may be a NaN, which equals nothing.
    return label is None or label == "" or label != label  # noqa: PLR0124


def _refuse(slides: Sequence[str], what: str) -> None:
    if slides:
        named = ", ".join(slides[:MOST_NAMED]) + (", ..." if len(slides) > MOST_NAMED else "")
        raise LabelsError(
            f"{len(slides)} labelled slides have {what} ({named}): leave them out of the labels."
        )
