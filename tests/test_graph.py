"""What comes out of the graph can be waited for, and left."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from ray_pipeline.errors import ClusterError
from ray_pipeline.graph import polled


def test_all_items_come_in_their_order_and_none_while_nothing_comes() -> None:
    go_on = threading.Event()

    def items() -> Iterator[int]:
        yield from range(20)
        go_on.wait(60)
        yield 20

    got: list[int | None] = []
    for item in polled(items(), 0.01):
        got.append(item)
        if item is None:
            go_on.set()
    assert None in got
    assert [item for item in got if item is not None] == list(range(21))


def test_an_error_is_raised_where_the_items_are_waited_for() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ClusterError("Ray gave up.")

    came = polled(items(), 60)
    assert next(came) == 1
    with pytest.raises(ClusterError, match=r"Ray gave up\."):
        next(came)


def test_who_leaves_waits_for_nothing_and_the_rest_is_closed() -> None:
    go_on, closed = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        try:
            yield 1
            go_on.wait(60)
            yield from range(100)
        finally:
            closed.set()

    came = polled(items(), 0.01)
    assert next(came) == 1
    came.close()
    assert not closed.is_set()
    go_on.set()
    assert closed.wait(60)
