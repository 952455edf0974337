"""What a process has in hand, bounded: who comes past the bound is told so at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serve_app.errors import OverloadedError

LONGEST_RETRY_S = 60
"""Most that `Retry-After` ever says."""
_WEIGHT = 0.1
"""Of the newest stay in the running mean."""


class Budget:
    """So many units (bytes, tiles) may be held at a time. Used by one event loop."""

    def __init__(
        self, total: int, unit: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`unit` is what is counted, in the plural."""
        self.total, self.unit, self._clock = total, unit, clock
        self.held = 0
        self._mean_stay_s = 1.0

    @property
    def retry_after_s(self) -> int:
        """Whole seconds after which room is likely: as long as those inside have been staying."""
        return min(LONGEST_RETRY_S, max(1, math.ceil(self._mean_stay_s)))

    def check(self) -> None:
        """Raise OverloadedError where nothing more fits: to be asked before anything is done."""
        self._check(1)

    @contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Hold `amount` for the length of a `with`, or raise OverloadedError."""
        self._check(amount)
        self.held += amount
        started = self._clock()
        try:
            yield
        finally:
            self.held -= amount
            self._mean_stay_s += _WEIGHT * (self._clock() - started - self._mean_stay_s)

    def _check(self, amount: int) -> None:
        if self.held + amount > self.total:
            raise OverloadedError(
                f"{self.held} of {self.total} {self.unit} are taken, and {amount} more don't fit: "
                f"try again in {self.retry_after_s} s."
            )
