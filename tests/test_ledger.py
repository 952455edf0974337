"""The ledger ends each slide once, whatever the order and however often rows repeat."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from ray_pipeline.ledger import Ledger
from ray_pipeline.rows import HEADER, Failure, ShardRow

FAILURE = Failure(stage="read", kind="damaged-slide", reason="cut short.")


def header(slide_id: str, n_shards: int, staged: list[int]) -> ShardRow:
    info = {"n_shards": n_shards, "n_tiles": n_shards * 256, "staged": staged}
    return ShardRow(slide_id=slide_id, shard=HEADER, info=info)


def shard(slide_id: str, index: int) -> ShardRow:
    return ShardRow(slide_id=slide_id, shard=index, info={"n": 10, "gets": 1, "seconds": 0.5})


@given(
    n_shards=st.integers(0, 6),
    staged=st.sets(st.integers(0, 5)),
    repeats=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_a_slide_ends_once_when_header_and_all_shards_came(
    n_shards: int, staged: set[int], repeats: int, seed: int
) -> None:
    known = sorted(s for s in staged if s < n_shards)
    rows = [header("a", n_shards, known)]
    rows += [shard("a", s) for s in range(n_shards) if s not in known]
    rows *= repeats
    random.Random(seed).shuffle(rows)
    ledger = Ledger(["a", "b"])
    ends = [tally for row in rows if (tally := ledger.add(row)) is not None]
    assert len(ends) == 1
    assert ends[0].whole
    assert ends[0].shards == set(range(n_shards))
    assert ledger.tiles == 10 * (n_shards - len(known))
    assert [slide_id for slide_id, _ in ledger.unfinished()] == ["b"]


def test_a_missing_shard_leaves_the_slide_unfinished() -> None:
    ledger = Ledger(["a"])
    assert ledger.add(header("a", 2, [])) is None
    assert ledger.add(shard("a", 1)) is None
    ((slide_id, tally),) = ledger.unfinished()
    assert slide_id == "a"
    assert not tally.whole


def test_silence_never_counts_as_done() -> None:
    ((_, tally),) = Ledger(["a"]).unfinished()
    assert not tally.whole


def test_the_first_failure_ends_the_slide_and_later_rows_are_ignored() -> None:
    ledger = Ledger(["a"])
    ledger.add(header("a", 3, []))
    tally = ledger.add(shard("a", 0).failed(FAILURE))
    assert tally is not None
    assert tally.failure == FAILURE
    assert ledger.add(shard("a", 1)) is None
    assert list(ledger.unfinished()) == []


def test_costs_add_up() -> None:
    ledger = Ledger(["a"])
    ledger.add(shard("a", 0))
    ledger.add(shard("a", 1))
    tally = ledger.add(header("a", 2, []))
    assert tally is not None
    assert (tally.counts.gets, tally.seconds) == (2, 1.0)


def test_a_restarted_task_counts_once_and_takes_nothing_back() -> None:
    ledger = Ledger(["a"])
    for _ in range(2):
        ledger.add(header("a", 2, []))
        ledger.add(shard("a", 0))
    assert ledger.add(shard("a", 0).failed(FAILURE)) is None, "its fragment is staged"
    tally = ledger.add(shard("a", 1))
    assert tally is not None
    assert (tally.failure, tally.counts.gets, tally.seconds) == (None, 2, 1.0)
    assert (ledger.tiles, ledger.tiles_planned) == (20, 512)
