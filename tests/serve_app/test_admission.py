"""A budget holds what fits and says at once what does not."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.admission import LONGEST_RETRY_S, Budget, Guesses
from serve_app.errors import OverloadedError


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 100))
def test_never_more_than_the_total_is_held(amounts: list[int], total: int) -> None:
    budget = Budget(total, "tiles")
    with ExitStack() as held:
        inside = 0
        for amount in amounts:
            if inside + amount <= total:
                held.enter_context(budget.hold(amount))
                inside += amount
            else:
                with pytest.raises(OverloadedError), budget.hold(amount):
                    pass
            assert budget.held == inside
    assert budget.held == 0


def test_a_full_budget_refuses_before_anything_is_done() -> None:
    budget = Budget(2, "tiles")
    full = pytest.raises(OverloadedError, match="2 of 2 tiles are taken")
    with budget.hold(2), full, budget.hold(1):
        pass


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30)), max_size=40))
def test_places_change_as_long_as_the_total_lasts(changes: list[tuple[int, int]]) -> None:
    budget, places = Budget(50, "tiles"), [1] * 5
    with ExitStack() as held:
        all_of_them = [held.enter_context(budget.hold(1)) for _ in places]
        for which, amount in changes:
            if sum(places) - places[which] + amount <= 50 or amount <= places[which]:
                all_of_them[which].settle(amount)
                places[which] = amount
            else:
                with pytest.raises(OverloadedError):
                    all_of_them[which].settle(amount)
            assert budget.held == sum(places)
    assert budget.held == 0


def test_a_body_is_judged_by_the_largest_tiles_of_those_before() -> None:
    guesses = Guesses()
    assert guesses.of(10**9) == 1
    guesses.seen(64_000, 64)
    assert (guesses.of(64_000), guesses.of(3_500), guesses.of(10)) == (64, 3, 1)
    guesses.seen(80_000, 8)
    assert guesses.of(64_000) == 6
    for _ in range(100):
        guesses.seen(64_000, 64)
    assert guesses.of(64_000) == 64
    guesses.seen(0, 0)
    assert guesses.of(0) == 1


def test_it_tells_to_come_back_after_as_long_as_others_stay() -> None:
    now = 0.0
    budget = Budget(10, "tiles", clock=lambda: now)
    for stay in [20.0] * 60:
        with budget.hold(1):
            now += stay
    assert budget.retry_after_s == 20
    for stay in [10_000.0] * 60:
        with budget.hold(1):
            now += stay
    assert budget.retry_after_s == LONGEST_RETRY_S
