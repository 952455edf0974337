"""A budget holds what fits and says at once what does not."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.admission import LONGEST_RETRY_S, Budget
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
    budget.check()
    with budget.hold(2), pytest.raises(OverloadedError, match="2 of 2 tiles are taken"):
        budget.check()


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
