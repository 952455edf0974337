"""A cohort is sorted, says what is wrong with its labels, and checks the bags that come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from ray_pipeline.dataset.bags import Bag
from ray_pipeline.errors import LabelsError, NotFiniteError
from ray_pipeline.learn.cohort import Cohort, streamed


def bag(slide_id: str, features: torch.Tensor | None = None) -> Bag:
    tiles = torch.ones(3, 2) if features is None else features
    return {
        "slide_id": slide_id,
        "features": tiles,
        "coords": torch.zeros(len(tiles), 2, dtype=torch.int32),
        "label": None,
    }


def test_slides_are_sorted_whatever_the_order_of_the_table() -> None:
    cohort = Cohort.of({"b": "yes", "c": "no", "a": "no"}, {"a": "p1", "b": "p1", "c": "p2"})
    assert cohort.slides == ("a", "b", "c")
    assert cohort.patients == ("p1", "p1", "p2")
    assert cohort.classes == ("no", "yes")
    assert cohort.targets.tolist() == [0, 1, 0]
    assert cohort.ids(np.array([2, 0])) == ["c", "a"]


def test_numbers_are_classes_in_their_own_order() -> None:
    cohort = Cohort.of({"a": 10, "b": 9, "c": 9})
    assert cohort.classes == ("9", "10")
    assert cohort.targets.tolist() == [1, 0, 0]
    assert cohort.patients == ("a", "b", "c"), "without patients each slide is one"


@pytest.mark.parametrize(
    ("labels", "patients", "said"),
    [
        ({"a": "x", "b": None}, None, r"1 labelled slides have no class \(b\): leave them out"),
        ({"a": "x", "b": float("nan")}, None, "no class"),
        ({"a": "x", "b": "y"}, {"a": "p"}, r"no patient \(b\)"),
        ({"a": "x", "b": "x"}, None, "1 classes in 2 labels"),
        ({}, None, "0 classes"),
        ({"a": "x", "b": 1}, None, "labels of several types"),
    ],
)
def test_labels_that_teach_nothing_are_refused(
    labels: dict[str, str], patients: dict[str, str] | None, said: str
) -> None:
    with pytest.raises(LabelsError, match=said):
        Cohort.of(labels, patients)


@pytest.mark.parametrize(
    ("came", "said"),
    [
        ([bag("a")], r"1 labelled slides have no bag \(b\)"),
        ([bag("a"), bag("b"), bag("c")], "c: its bag came though it was not asked for"),
        ([bag("a"), bag("a")], "a: its bag came .* or came twice"),
        ([bag("a"), bag("b", torch.ones(0, 2))], r"no tiles \(b\)"),
    ],
)
def test_bags_are_those_that_were_asked_for(came: list[Bag], said: str) -> None:
    def bags(_: Sequence[str]) -> Iterator[Bag]:
        yield from came

    with pytest.raises(LabelsError, match=said):
        list(streamed(bags, ["a", "b"]))


def test_a_bag_with_a_nan_is_refused() -> None:
    spoilt = bag("a", torch.tensor([[0.0, float("nan")]]))
    with pytest.raises(NotFiniteError, match="a: its features"):
        list(streamed(lambda _: [spoilt], ["a"]))


def test_one_bag_is_asked_for_at_a_time() -> None:
    handed: list[str] = []

    def bags(slides: Sequence[str]) -> Iterator[Bag]:
        for slide in slides:
            handed.append(slide)
            yield bag(slide)

    assert next(streamed(bags, ["a", "b"]))["slide_id"] == "a"
    assert handed == ["a"]
