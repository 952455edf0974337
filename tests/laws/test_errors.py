"""Every error crosses processes, has its own kind, and stands in the tree."""

from __future__ import annotations

import pickle

import pytest

from ray_pipeline import errors

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, errors.HistorayError)
]


@pytest.mark.parametrize("error", CLASSES)
def test_an_error_survives_pickling(error: type[errors.HistorayError]) -> None:
    back = pickle.loads(pickle.dumps(error("slide-7: one sentence.")))
    assert type(back) is error
    assert str(back) == "slide-7: one sentence."


def test_kinds_are_unique() -> None:
    kinds = [error.kind for error in CLASSES]
    assert len(set(kinds)) == len(kinds)


def test_the_tree_shows_every_class_and_the_kind_of_every_leaf() -> None:
    lines = (errors.__doc__ or "").splitlines()
    parents = {base for error in CLASSES for base in error.__bases__}
    for error in CLASSES:
        (line,) = [line for line in lines if error.__name__ in line.split()]
        if error not in parents:
            assert error.kind in line.split()
