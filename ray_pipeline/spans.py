"""A listing that is cut into more and more parts while it goes on. Pure; knows no store.

Nothing is known of the keys before they come, so a part is halved in the space of names: between
the key it has come to and its end. Where that half turns out to be empty, one listing was for
nothing, and what is left to halve has come down to where there are keys.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

CHARACTERS = "-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
"""What halves end in, in order: no store or client takes one of them for anything else."""
PAGES_BEFORE = 4
"""Pages that the whole listing has to have before it is cut: most are shorter."""
HALVES_A_PAGE = 4
"""How often a part is halved for each page it has told: so few listings are for nothing."""
WAIT_S = 0.1
"""How long who asks for a part is kept, while there is nothing to halve."""


class Span:
    """The keys after `after`, up to `last`; None for no bound."""

    def __init__(self, after: str | None = None, last: str | None = None) -> None:
        self.after, self.last = after, last
        self.halves_left = 0
        self.ended = False

    def end(self) -> None:
        """Note that no key is left."""
        self.ended = True

    def told(self, paths: Sequence[str]) -> int:
        """Note the next keys, in order; returns how many belong here. One that does not ends it."""
        self.after = paths[-1]
        if self.last is None or self.after <= self.last:
            return len(paths)
        self.ended = True
        return sum(path <= self.last for path in paths)


class HalvedSpan(Span):
    """One of `Spans`, whose end may come nearer at any time."""

    def __init__(self, spans: Spans, after: str | None, last: str | None, pages: int) -> None:
        super().__init__(after, last)
        self._spans, self._pages_before = spans, pages

    def end(self) -> None:
        """See `Span.end`."""
        with self._spans.changed:
            super().end()
            self._spans.changed.notify_all()

    def told(self, paths: Sequence[str]) -> int:
        """See `Span.told`."""
        with self._spans.changed:
            belong = super().told(paths)
            self._pages_before -= 1
            if self._pages_before <= 0:
                self.halves_left = HALVES_A_PAGE
            self._spans.changed.notify()
            return belong


class Spans:
    """Yields the whole listing, and then ever more parts of what is left of it. Thread-safe.

    A part is to be told the keys it brings, and when no more come. Where there is nothing to halve
    just now, None comes.
    """

    def __init__(self, folder: str) -> None:
        """`folder` is the one that is listed, without slash at its end; empty for all there is."""
        self.changed = threading.Condition()
        # The first name after all of the folder's: they begin with it and `/`, and `0` follows.
        last = f"{folder}0" if folder else None
        self._all = [HalvedSpan(self, None, last, PAGES_BEFORE)]
        self._first = True

    def __iter__(self) -> Iterator[Span | None]:
        return self

    def __next__(self) -> Span | None:
        with self.changed:
            if self._first:
                self._first = False
                return self._all[0]
            half = self._halved()
            if half is None and not all(span.ended for span in self._all):
                self.changed.wait(WAIT_S)
                half = self._halved()
            if half is None and all(span.ended for span in self._all):
                raise StopIteration
            return half

    def _halved(self) -> HalvedSpan | None:
        self._all = [span for span in self._all if not span.ended]
        # The one that was halved least since its last page is the furthest from its end.
        for span in sorted(self._all, key=lambda span: -span.halves_left):
            if not span.halves_left:
                break
            middle = between(span.after or "", span.last)
            if middle is None:
                span.halves_left = 0
                continue
            half = HalvedSpan(self, middle, span.last, 1)
            span.last = middle
            span.halves_left -= 1
            self._all.append(half)
            return half
        return None


def between(low: str, high: str | None) -> str | None:
    """A name after `low` and before `high`, in the middle of those of one length; None for none."""
    start = 0
    while high is not None and start < len(low) and low[start] == high[start]:
        start += 1
    for length in range(start, len(low) + 1):
        least = low[length : length + 1]
        most = high[length : length + 1] if high is not None and length == start else None
        choice = [one for one in CHARACTERS if one > least and (most is None or one < most)]
        if choice and "%" not in low[:length]:
            return low[:length] + choice[len(choice) // 2]
    return None
