"""What a process has in hand, bounded: who comes past the bound is told so at once."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serve_app.errors import OverloadedError

LONGEST_RETRY_S = 60
"""Most that `Retry-After` ever says."""
_WEIGHT = 0.1
"""Of the newest stay in the running mean."""
_BODIES_SEEN = 32
"""The last bodies, by which the next ones are judged."""


class Place:
    """What one request holds of a budget: first what it will need at least, then what it needs."""

    def __init__(self, budget: Budget) -> None:
        self._budget, self._amount = budget, 0

    def settle(self, amount: int) -> None:
        """Hold `amount` from now on. Raises OverloadedError where more don't fit."""
        self._budget.change(self._amount, amount)
        self._amount = amount


class Guesses:
    """How many tiles a body will turn out to hold, judged by the bodies before it.

    By the largest tiles among them, for a request must not be refused because others' were small.
    """

    def __init__(self) -> None:
        self._tile_bytes: deque[float] = deque(maxlen=_BODIES_SEEN)

    def of(self, body_bytes: int) -> int:
        """Tiles of so many bytes, at least; 1 as long as none was seen."""
        # A little more, for what was divided may not come out whole again.
        return max(1, int(body_bytes / max(self._tile_bytes, default=math.inf) + 0.01))

    def seen(self, body_bytes: int, tiles: int) -> None:
        """A body of so many bytes held so many tiles."""
        self._tile_bytes.append(max(1, body_bytes) / max(1, tiles))


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

    @contextmanager
    def hold(self, amount: int, *, least: int | None = None) -> Iterator[Place]:
        """Hold `amount` for the length of a `with`, or raise OverloadedError.

        With `least`, hold what is left where that is less, but no less than `least`.
        """
        place = Place(self)
        if least is not None:
            amount = max(least, min(amount, self.total - self.held))
        place.settle(amount)
        started = self._clock()
        try:
            yield place
        finally:
            place.settle(0)
            self._mean_stay_s += _WEIGHT * (self._clock() - started - self._mean_stay_s)

    def change(self, before: int, after: int) -> None:
        """Hold `after` in place of `before`, or raise OverloadedError and leave things as they are.

        What is already held may always become less.
        """
        if after > before:
            self._check(after - before)
        self.held += after - before

    def _check(self, amount: int) -> None:
        if self.held + amount > self.total:
            raise OverloadedError(
                f"{self.held} of {self.total} {self.unit} are taken, and {amount} more don't fit: "
                f"try again in {self.retry_after_s} s."
            )
