"""How a job is stopped on request: by SIGTERM, as clusters and spot machines send it, or Ctrl-C."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


def _interrupt() -> NoReturn:
    raise KeyboardInterrupt


class Stop:
    """A request to stop.

    Inside `deferred()` the first signal is noted only, and the job ends what it has in hand; the
    second is answered by `at_once`, and so is the first where nothing is under way. To raise there
    would do harm: an exception that comes from nowhere may leave a lock of a library held.
    """

    def __init__(self, at_once: Callable[[], object] = _interrupt) -> None:
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
        first, self._asked_at = not self.asked, self._asked_at or time.monotonic()
        if not (first and self._deferred):
            self._at_once()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, the first signal does nothing: look at `asked`."""
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
