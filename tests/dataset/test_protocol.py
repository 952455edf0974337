"""Exactly once, as a model: drivers and tasks at once, cut short and disturbed at every request."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any, ClassVar, get_args

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ray_pipeline import clients, store
from ray_pipeline.dataset import commit, records
from tests.dataset.scene import EMBEDDINGS, Actor, Scene
from tests.dataset.simulated import Sources, Truth
from tests.servers.memory import Conditions
from tests.servers.stepped import Fate, SteppedServer, stepped_server

TILES = {"a": (300, 257, 5), "b": (1, 0, 256)}
"""slide_id -> tiles of its versions."""
FATES = st.sampled_from(get_args(Fate))
KINDS = ("honoured", "refused", "ignored")


def sources() -> Sources:
    return Sources(
        {
            slide_id: [
                Truth(slide_id=slide_id, version=version, n_tiles=n_tiles)
                for version, n_tiles in enumerate(tiles)
            ]
            for slide_id, tiles in TILES.items()
        }
    )


@pytest.fixture(scope="module")
def server() -> Iterator[SteppedServer]:
    """The store; its clients neither try again by themselves nor ask several things at once."""
    with stepped_server() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nobody-checks-this")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setitem(clients._RETRY, "max_retries", 0)
        patch.setattr(store, "LONGEST_PAUSE_S", 0.0)
        patch.setattr(commit, "SWEPT_AT_ONCE", 1)
        patch.setattr(records, "GETS_AT_ONCE", 1)
        patch.setattr("ray_pipeline.endings.RECORDS_AT_ONCE", 1)
        yield server


class Protocol(RuleBasedStateMachine):
    """Up to three at work on two slides."""

    server: ClassVar[SteppedServer]
    conditions: ClassVar[Conditions]

    actors = Bundle("actors")

    @initialize(page_keys=st.sampled_from([1000, 2]))
    def begin(self, page_keys: int) -> None:
        self.patch = pytest.MonkeyPatch()
        slides = sources()
        slides.stand_in(self.patch)
        self.scene = Scene(self.server, self.conditions, slides, page_keys=page_keys)

    @precondition(lambda self: len(self.scene.actors) < 3)
    @rule(target=actors, retry=st.booleans(), repeats=st.booleans(), steps=st.integers(0, 60))
    def drive(self, retry: bool, repeats: bool, steps: int) -> Actor:
        actor = self.scene.drive(retry=retry, repeats=repeats)
        self.scene.step(actor, steps)
        return actor

    @precondition(lambda self: len(self.scene.actors) < 3 and self.scene.tasks)
    @rule(target=actors, data=st.data())
    def repeat(self, data: st.DataObject) -> Actor:
        return self.scene.repeat(data.draw(st.integers(0, len(self.scene.tasks) - 1)))

    @rule(actor=actors, steps=st.integers(0, 15), fate=FATES)
    def step(self, actor: Actor, steps: int, fate: Fate) -> None:
        self.scene.step(actor, steps)
        self.scene.disturb(actor, fate)

    @precondition(lambda self: len(self.scene.actors) > 1)
    @rule(turns=st.lists(st.integers(0, 2), min_size=3, max_size=60))
    def interleave(self, turns: list[int]) -> None:
        at_work = list(self.scene.actors)
        for turn in turns:
            self.scene.step(at_work[turn % len(at_work)])

    @rule(actor=consumes(actors))
    def finish(self, actor: Actor) -> None:
        self.scene.finish(actor)

    @rule(actor=consumes(actors), steps=st.integers(0, 15), fate=FATES)
    def crash(self, actor: Actor, steps: int, fate: Fate) -> None:
        self.scene.step(actor, steps)
        self.scene.crash(actor, fate)

    @precondition(lambda self: self.scene.steps.late)
    @rule(data=st.data())
    def land(self, data: st.DataObject) -> None:
        self.scene.steps.land(data.draw(st.integers(0, len(self.scene.steps.late) - 1)))

    @rule(slide_id=st.sampled_from(sorted(TILES)), version=st.integers(0, 2))
    def replace_source(self, slide_id: str, version: int) -> None:
        self.scene.replace_source(slide_id, version)

    @precondition(lambda self: self.scene.staged())
    @rule(data=st.data(), share=st.sampled_from([0.5, 0.99]))
    def damage(self, data: st.DataObject, share: float) -> None:
        self.scene.cut(data.draw(st.sampled_from(self.scene.staged())), share)

    @precondition(lambda self: any(n.startswith(EMBEDDINGS) for n in self.scene.steps.objects))
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        files = sorted(n for n in self.scene.steps.objects if n.startswith(EMBEDDINGS))
        self.scene.remove(data.draw(st.sampled_from(files)))

    @rule()
    def settle(self) -> None:
        self.scene.settle()

    @invariant()
    def holds(self) -> None:
        self.scene.check()

    def teardown(self) -> None:
        if not hasattr(self, "scene"):
            return
        try:
            if self.scene.sound:
                self.scene.settle()
            else:
                self.scene.end()
        finally:
            self.patch.undo()


def explore(server: SteppedServer, conditions: Conditions, examples: int, **said: Any) -> None:
    machine = type("Machine", (Protocol,), {"server": server, "conditions": conditions})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            **said,
        ),
    )


@pytest.mark.parametrize("conditions", KINDS)
def test_whatever_happens_each_slide_is_there_once_whole_and_right(
    server: SteppedServer, conditions: Conditions
) -> None:
    explore(server, conditions, 8, derandomize=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "conditions", ["honoured", pytest.param("ignored", marks=pytest.mark.long)]
)
def test_whatever_happens_at_length(server: SteppedServer, conditions: Conditions) -> None:
    explore(server, conditions, 100)


@pytest.mark.parametrize("replacing", [False, True], ids=["first", "replacing"])
def test_a_driver_may_die_at_any_request(
    server: SteppedServer, monkeypatch: pytest.MonkeyPatch, replacing: bool
) -> None:
    for requests in count():
        slides = sources()
        slides.stand_in(monkeypatch)
        scene = Scene(server, "honoured", slides)
        if replacing:
            scene.finish(scene.drive())
            slides.now = dict.fromkeys(TILES, 1)
        actor = scene.drive(retry=replacing)
        scene.step(actor, requests)
        if not actor.alive:
            break
        scene.crash(actor, "unanswered")
        scene.settle()
