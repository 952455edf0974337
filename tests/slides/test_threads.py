"""A slide's threads: who does what, and that nothing is lost or done twice."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_pipeline.slides.threads import MOST_GIVEN, Task, Threads


@contextmanager
def crew(n: int) -> Iterator[Threads]:
    threads = Threads(n)
    try:
        yield threads
    finally:
        threads.close()


class Log:
    """Which jobs were done, and by which thread."""

    def __init__(self) -> None:
        self.done: list[tuple[str, int]] = []

    def job(self, name: str, until: threading.Event | None = None) -> Callable[[], None]:
        def run() -> None:
            if until is not None:
                assert until.wait(20)
            self.done.append((name, threading.get_ident()))

        return run

    @property
    def here(self) -> list[str]:
        """Those that this thread did."""
        return [name for name, thread in self.done if thread == threading.get_ident()]

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.done]


def fails(message: str) -> Callable[[], None]:
    def run() -> None:
        raise ValueError(message)

    return run


def test_one_thread_does_all_at_once() -> None:
    log = Log()
    with crew(1) as threads:
        tasks = [threads.start(log.job(name)) for name in "abc"]
        assert log.here == ["a", "b", "c"]
        assert all(task.done for task in tasks)


@pytest.mark.parametrize("n", [2, 3])
def test_helpers_get_what_they_can_take_and_the_caller_does_the_rest(n: int) -> None:
    log, gate = Log(), threading.Event()
    given = MOST_GIVEN * (n - 1)
    with crew(n) as threads:
        tasks = [threads.start(log.job(f"{i}", gate)) for i in range(given)]
        assert log.done == []
        tasks += [threads.start(log.job(f"{i}")) for i in range(given, given + 3)]
        assert log.here == [f"{i}" for i in range(given, given + 3)]
        gate.set()
        for task in tasks:
            threads.finish(task)
        assert sorted(log.names) == sorted(f"{i}" for i in range(given + 3))


def test_whoever_waits_does_what_nobody_has_begun() -> None:
    log, gate, begun = Log(), threading.Event(), threading.Event()

    def first() -> None:
        begun.set()
        log.job("first", gate)()

    with crew(2) as threads:
        tasks = [threads.start(first), threads.start(log.job("second"))]
        assert begun.wait(20)
        opened = threading.Timer(0.2, gate.set)
        opened.start()
        threads.finish(tasks[0])
        assert log.here == ["second"]
        assert log.names == ["second", "first"]
        threads.finish(tasks[1])
        assert log.names == ["second", "first"]


def test_an_error_is_raised_by_its_own_task_and_no_other() -> None:
    log, gate, begun = Log(), threading.Event(), threading.Event()

    def first() -> None:
        begun.set()
        assert gate.wait(20)
        raise ValueError("the first")

    with crew(2) as threads:
        tasks = [threads.start(first)]
        assert begun.wait(20)
        tasks += [threads.start(job) for job in (log.job("good"), fails("done here"))]
        gate.set()
        with pytest.raises(ValueError, match="the first"):
            threads.finish(tasks[0])
        threads.finish(tasks[1])
        with pytest.raises(ValueError, match="done here"):
            threads.finish(tasks[2])


def test_an_error_of_what_was_taken_back_waits_for_its_turn() -> None:
    gate, begun = threading.Event(), threading.Event()

    def first() -> None:
        begun.set()
        assert gate.wait(20)

    with crew(2) as threads:
        tasks = [threads.start(first)]
        assert begun.wait(20)
        tasks.append(threads.start(fails("the second")))
        threading.Timer(0.2, gate.set).start()
        threads.finish(tasks[0])
        assert tasks[1].done
        with pytest.raises(ValueError, match="the second"):
            threads.finish(tasks[1])


def test_nothing_is_under_way_once_it_is_dropped() -> None:
    log, begun, over = Log(), threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        time.sleep(0.2)
        over.set()
        raise ValueError("nobody asks any more")

    with crew(2) as threads:
        tasks = [threads.start(slow), threads.start(log.job("never"))]
        assert begun.wait(20)
        for task in reversed(tasks):
            task.drop()
        assert over.is_set()
        threads.finish(threads.start(log.job("later")))
        assert log.names == ["later"]


def test_what_was_dropped_is_not_done_by_whoever_waits_for_another() -> None:
    log, gate, begun = Log(), threading.Event(), threading.Event()

    def first() -> None:
        begun.set()
        assert gate.wait(20)

    with crew(2) as threads:
        tasks = [threads.start(first), threads.start(log.job("dropped"))]
        assert begun.wait(20)
        tasks[1].drop()
        threading.Timer(0.2, gate.set).start()
        threads.finish(tasks[0])
        assert log.done == []


def test_what_helpers_had_not_begun_is_left_to_the_caller_when_they_go() -> None:
    log, gate, begun = Log(), threading.Event(), threading.Event()

    def first() -> None:
        begun.set()
        assert gate.wait(20)

    threads = Threads(2)
    tasks = [threads.start(first), threads.start(log.job("left"))]
    assert begun.wait(20)
    threads.close()
    gate.set()
    tasks.append(threads.start(log.job("after")))
    for task in tasks:
        threads.finish(task)
    assert log.here == ["after", "left"]


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("told", [True, False])
def test_nothing_is_held_of_what_is_over(n: int, *, told: bool) -> None:
    class Pixels:
        pass

    def failing(held: Pixels) -> None:
        assert held is not None
        raise ValueError("damaged")

    gc.disable()
    try:
        with crew(n) as threads:
            held = Pixels()
            alive = weakref.ref(held)
            task = threads.start(partial(failing, held))
            del held
            if told:
                with pytest.raises(ValueError, match="damaged"):
                    threads.finish(task)
            else:
                task.drop()
            other = threads.start(lambda: None)
            threads.finish(other)
            assert alive() is None
    finally:
        gc.enable()


@given(n=st.integers(1, 4), bad=st.sets(st.integers(0, 39)), most=st.integers(1, 12))
def test_each_is_done_once_and_the_first_error_is_the_one_that_is_told(
    n: int, bad: set[int], most: int
) -> None:
    done: list[int] = []

    def job(number: int) -> Callable[[], None]:
        def run() -> None:
            done.append(number)
            if number in bad:
                raise ValueError(number)

        return run

    tasks: list[Task] = []
    told: list[int] = []
    with crew(n) as threads:
        for number in range(40):
            tasks.append(threads.start(job(number)))
            while len(tasks) > (0 if number == 39 else most):
                try:
                    threads.finish(tasks.pop(0))
                except ValueError as error:
                    told.append(error.args[0])
    assert sorted(done) == list(range(40))
    assert told == sorted(bad)
