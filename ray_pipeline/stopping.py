"""How a job is stopped on request: by SIGTERM, as clusters and spot machines send it, or Ctrl-C."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stop:
    """A request to stop.

    The first signal is a KeyboardInterrupt where nothing is under way yet; inside `deferred()` it
    is noted only, and the job ends what it has in hand. The second ends the process at once.
    """

    def __init__(self, at_once: Callable[[], object] | None = None) -> None:
        self._at_once = at_once
        self._asked_at: float | None = None
        self._deferred = False

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self._asked_at is not None

    def overdue(self, grace_s: float) -> bool:
        """Whether a signal came, and `grace_s` seconds since."""
        return self._asked_at is not None and time.monotonic() - self._asked_at >= grace_s

    def ask(self) -> None:
        """What a signal does."""
        if self.asked and self._at_once is not None:
            self._at_once()
        elif not self.asked:
            self._asked_at = time.monotonic()
        if not self._deferred:
            raise KeyboardInterrupt

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, the first signal raises nothing: look at `asked`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within, SIGTERM and SIGINT ask to stop."""
        signals = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(one, lambda _signal, _frame: self.ask()) for one in signals]
        try:
            yield
        finally:
            for one, handler in zip(signals, before, strict=True):
                signal.signal(one, handler)
