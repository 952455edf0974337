"""Before a job: what the store can do, though replies get lost; and whose the output is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from ray_pipeline.dataset.layout import Layout
from ray_pipeline.dataset.start import claim_recipe, probe_conditional, read_state
from ray_pipeline.errors import (
    AccessError,
    RecipeMismatchError,
    UnreachableError,
    UnsupportedError,
)
from ray_pipeline.store import Store

LAYOUT = Layout("f00df00df00d")


@dataclass
class OddStore(Store):
    """A store that loses replies, and ignores conditions or refuses them, as it is told."""

    lost: list[str] = field(default_factory=list)
    """What becomes of the next puts: `reply`, `request`, or nothing."""
    conditions: str = "honoured"
    """Or `ignored`, or `refused`."""
    deletes: bool = True
    """Whether it lets anything be deleted."""

    def put(
        self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        lost = self.lost.pop(0) if self.lost else ""
        if lost == "request":
            raise UnreachableError(f"{key}: the request was lost.")
        if if_absent and self.conditions == "refused":
            raise UnsupportedError(f"{key}: no conditions here.")
        etag = super().put(
            key, data, if_absent=if_absent and self.conditions == "honoured", if_match=if_match
        )
        if lost == "reply":
            raise UnreachableError(f"{key}: the reply was lost.")
        return etag

    def delete(self, keys: Any) -> None:
        if not self.deletes:
            raise AccessError(f"{keys}: refused to delete.")
        super().delete(keys)


def odd(output: Store, **said: Any) -> OddStore:
    return OddStore(**{k: v for k, v in vars(output).items() if k != "_backends"}, **said)


@pytest.mark.parametrize(
    "lost",
    [
        [],
        ["reply"],
        ["request"],
        ["", "reply"],
        ["", "request"],
        ["request", "reply"],
        ["request", "request", "request"],
    ],
    ids=str,
)
@pytest.mark.parametrize("conditions", ["honoured", "ignored"])
def test_what_the_store_can_do_is_found_out_though_replies_are_lost(
    output: Store, conditions: str, lost: list[str]
) -> None:
    store = odd(output, conditions=conditions, lost=list(lost))
    assert probe_conditional(store, "run-1") is (conditions == "honoured")
    assert list(output.list()) == []


def test_a_retry_by_the_client_after_a_lost_reply_is_taken_for_what_it_is(output: Store) -> None:
    output.put("_state/probe/run-1", b"")  # the first try of the client took place
    assert probe_conditional(output, "run-1")


def test_a_store_that_refuses_conditions_is_an_overwrite_store(output: Store) -> None:
    assert not probe_conditional(odd(output, conditions="refused"), "run-1")


def test_a_store_that_is_never_reached_is_said(output: Store) -> None:
    with pytest.raises(UnreachableError):
        probe_conditional(odd(output, lost=["request"] * 9), "run-1")


def test_a_probe_that_can_not_be_deleted_stays(output: Store) -> None:
    assert probe_conditional(odd(output, deletes=False), "run-1")
    assert [info.key for info in output.list()] == ["_state/probe/run-1"]


@pytest.mark.parametrize("lost", ["reply", "request"])
def test_a_recipe_whose_reply_was_lost_is_read_back(output: Store, lost: str) -> None:
    store = odd(output, lost=[lost])
    if lost == "request":
        with pytest.raises(UnreachableError):
            claim_recipe(store, LAYOUT, {"model": "toy"}, ["site"])
    claim_recipe(store, LAYOUT, {"model": "toy"}, ["site"])
    with pytest.raises(RecipeMismatchError, match="partition_by"):
        claim_recipe(output, LAYOUT, {"model": "toy"}, [])
    with pytest.raises(RecipeMismatchError, match="another recipe"):
        claim_recipe(output, LAYOUT, {"model": "other"}, ["site"])


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_recipe_is_one_sentence(output: Store, damage: bytes) -> None:
    output.put(LAYOUT.recipe, damage)
    with pytest.raises(RecipeMismatchError, match=r"recipe\.json is damaged: delete it"):
        claim_recipe(output, LAYOUT, {"model": "toy"}, [])


def test_of_other_slides_than_the_jobs_nothing_is_kept(output: Store) -> None:
    for slide_id in ("a b", "c", "d"):
        output.put(LAYOUT.output(slide_id, {"site": "x"}), b"")
        output.put(LAYOUT.done_key(slide_id, "1"), b"")
    output.put(LAYOUT.done_key("a b", "2"), b"")
    state = read_state(output, LAYOUT, [("a b", "1"), ("c", "1"), ("e", "1")])
    assert {slide_id: set(fps) for slide_id, fps in state.done.items()} == {
        "a b": {"1", "2"},
        "c": {"1"},
    }
    assert state.key_of("a b") == LAYOUT.output("a b", {"site": "x"})
    assert state.key_of("d") is None
    assert read_state(output, LAYOUT).done.keys() == {"a b", "c", "d"}
