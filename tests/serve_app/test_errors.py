"""The service's errors: kinds, pickling, and a status for every one."""

from __future__ import annotations

import pickle

import pytest

from ray_pipeline import errors as base
from serve_app import errors
from serve_app.http_errors import STATUS_OF, error_body, status_of

OWN = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, errors.ServiceError)
]
ALL = [
    *OWN,
    *(
        value
        for value in vars(base).values()
        if isinstance(value, type) and issubclass(value, base.HistorayError)
    ),
]


@pytest.mark.parametrize("error", OWN)
def test_an_error_survives_pickling(error: type[errors.ServiceError]) -> None:
    back = pickle.loads(pickle.dumps(error("one sentence.")))
    assert (type(back), str(back)) == (error, "one sentence.")


def test_kinds_are_unique_among_all_errors() -> None:
    kinds = [error.kind for error in ALL]
    assert len(set(kinds)) == len(kinds)


def test_the_tree_shows_every_class_and_the_kind_of_every_leaf() -> None:
    lines = (errors.__doc__ or "").splitlines()
    parents = {parent for error in OWN for parent in error.__bases__}
    for error in OWN:
        (line,) = [line for line in lines if error.__name__ in line.split()]
        if error not in parents:
            assert error.kind in line.split()
            assert error in STATUS_OF


@pytest.mark.parametrize("error", ALL)
def test_every_error_has_a_status_and_the_one_shape(error: type[base.HistorayError]) -> None:
    assert 400 <= status_of(error) <= 503
    assert error_body(error("why."), "uri") == {
        "error": {"type": error.kind, "message": "why.", "param": "uri"}
    }
