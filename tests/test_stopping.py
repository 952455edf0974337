"""The first signal is heard at a good moment, the second at once."""

from __future__ import annotations

import signal

import pytest

from ray_pipeline.stopping import Stop


def test_before_anything_is_under_way_the_first_signal_interrupts() -> None:
    stop = Stop()
    with pytest.raises(KeyboardInterrupt), stop.listening():
        signal.raise_signal(signal.SIGTERM)
    assert stop.asked


def test_before_anything_is_under_way_the_first_signal_may_end_it_at_once() -> None:
    ended: list[bool] = []
    with Stop(lambda: ended.append(True)).listening():
        signal.raise_signal(signal.SIGTERM)
    assert ended == [True]


@pytest.mark.parametrize("one", [signal.SIGTERM, signal.SIGINT])
def test_while_work_is_under_way_it_is_noted(one: signal.Signals) -> None:
    stop = Stop()
    with stop.listening(), stop.deferred():
        assert not stop.overdue(0)
        signal.raise_signal(one)
        assert stop.asked
        assert stop.overdue(0)
        assert not stop.overdue(3600)


def test_the_second_ends_it_at_once_wherever_it_comes() -> None:
    ended: list[bool] = []
    stop = Stop(lambda: ended.append(True))
    with stop.listening(), stop.deferred():
        signal.raise_signal(signal.SIGTERM)
        assert ended == []
        signal.raise_signal(signal.SIGINT)
    assert ended == [True]


def test_afterwards_signals_do_what_they_did_before() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Stop().listening():
        pass
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
