"""Halving a listing whose keys nobody knows: each key once, however its threads run."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ray_pipeline.side_by_side import side_by_side
from ray_pipeline.spans import CHARACTERS, HALVES_A_PAGE, Span, Spans, between

NAMES = st.text(st.sampled_from("aZ09-_.%/ é~"), max_size=6)


@given(NAMES, st.none() | NAMES)
@example("a", "ab")
@example("ab", "b")
@example("a", "a0")
@example("zz", None)
def test_what_lies_between_lies_between(one: str, other: str | None) -> None:
    low, high = (one, None) if other is None else (min(one, other), max(one, other))
    middle = between(low, high)
    if middle is not None:
        assert low < middle
        assert high is None or middle < high
        assert middle[-1] in CHARACTERS
        assert "%" not in middle


@pytest.mark.parametrize(
    ("low", "high", "middle"),
    [
        ("", None, "V"),
        ("slide-0003999", None, "w"),
        ("slide-0003999", "t", "st"),
        ("slide-0003999", "slide-00A", "slide-005"),
        ("slide-0", "slide-1", "slide-0V"),
        ("zz", "zzz", "zzU"),
        ("zz", "zz-", None),
    ],
)
def test_the_middle_is_that_of_names_of_one_length(
    low: str, high: str | None, middle: str | None
) -> None:
    assert between(low, high) == middle


class Listing:
    """Pages of keys as a store tells them, counted."""

    def __init__(self, keys: list[str], page: int) -> None:
        self.keys, self.page, self.pages = sorted(keys), page, 0
        self._lock = threading.Lock()

    def of(self, span: Span) -> Iterator[list[str]]:
        """As `Store` lists a span."""
        while True:
            at = bisect_right(self.keys, span.after or "")
            with self._lock:
                self.pages += 1
            page = self.keys[at : at + self.page]
            if not page:
                break
            belong = span.told(page)
            yield page[:belong]
            if belong < len(page):
                break
        span.end()


def listed(listing: Listing, folder: str, threads: int) -> list[str]:
    spans = Spans(folder)
    parts = (None if span is None else listing.of(span) for span in spans)
    return [key for page in side_by_side(parts, threads) for key in page]


@settings(max_examples=50, deadline=None)
@given(st.sets(NAMES.map("f/".__add__), max_size=300), st.integers(1, 5), st.integers(1, 6))
def test_every_key_comes_once(keys: set[str], page: int, threads: int) -> None:
    assert sorted(listed(Listing(list(keys), page), "f", threads)) == sorted(keys)


@pytest.mark.parametrize(
    "named", ["slide-{:07d}.svs", "{:032x}.svs", "a/b c/{:d}/x.svs", "TCGA-{:04d}-01Z.svs"]
)
def test_few_listings_are_for_nothing(named: str) -> None:
    keys = [f"f/{named.format(7919 * number)}" for number in range(20_000)]
    listing = Listing(keys, 100)
    assert sorted(listed(listing, "f", 8)) == sorted(keys)
    assert listing.pages <= 201 * (1 + HALVES_A_PAGE)


def test_a_short_listing_is_one_part() -> None:
    listing = Listing([f"f/{number}" for number in range(250)], 100)
    assert len(listed(listing, "f", 8)) == 250
    assert listing.pages == 4
