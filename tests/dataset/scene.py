"""Drivers and tasks at once over one output, request by request, and what must hold of it."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count, zip_longest

import numpy as np
import pyarrow.parquet as pq

from ray_pipeline.dataset.layout import REPLACED, original_name, slide_of_output
from ray_pipeline.dataset.records import SlideRecord
from ray_pipeline.dataset.schema import Footer
from ray_pipeline.dataset.slides_table import read_slides
from ray_pipeline.dataset.start import read_state
from ray_pipeline.errors import HistorayError
from ray_pipeline.settings import JobSettings
from ray_pipeline.sources import SlideSource
from ray_pipeline.store import Store
from ray_pipeline.worklist import SlideList, choose_work
from tests.dataset.simulated import DIM, JOB, LAYOUT, RECIPE, Run, Sources, Task, Truth
from tests.servers.memory import Conditions
from tests.servers.stepped import Fate, Put, SteppedServer

OBSERVER = "observer"
"""Client that waits for nothing."""
EMBEDDINGS, DONE, RECORDS = f"{LAYOUT.embeddings}/", f"{LAYOUT.done}/", f"{LAYOUT.records}/"
CHANGED = "source-changed"


@dataclass(eq=False)
class Actor:
    """A driver, or a task run again, on a thread of its own."""

    client: str
    """The name under which the server knows it."""
    run: Run
    """What it does and has done."""
    thread: threading.Thread
    """Where it does it."""
    error: HistorayError | None = None
    """What ended it early."""
    broken: BaseException | None = None
    """What never may."""

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self.thread.is_alive()


@dataclass
class Scene:
    """One output, its slides, and all who work on it."""

    server: SteppedServer
    """The output's store."""
    conditions: Conditions
    """What the store makes of conditions."""
    sources: Sources
    """The slides."""
    page_keys: int = 1000
    """Keys on a page of a listing."""
    actors: list[Actor] = field(default_factory=list)
    """Those at work."""
    tasks: list[Task] = field(default_factory=list)
    """All tasks there ever were."""
    raced: set[str] = field(default_factory=set)
    """Slides whose file was replaced in the one way that no store without conditions can prevent:
    its input changed between a driver's look and its put."""

    def __post_init__(self) -> None:
        self.steps = self.server.empty(self.conditions, page_keys=self.page_keys)
        self.steps.free(OBSERVER)
        self._names, self._attempts = count(1), count(1)
        self._puts = self._records = 0
        self.sound = True
        """Whether nothing was found wrong yet."""
        self._seen: tuple[int, int] = (-1, -1)
        self._acknowledged: list[SlideRecord] = []
        self._inputs: set[tuple[str, str]] = set()

    # ------------------------------------------------------------ what happens

    def drive(self, *, retry: bool = False, repeats: bool = False) -> Actor:
        """Begin a run; it comes as far as its first request."""
        kinds = [CHANGED] if retry else []
        return self._begin(lambda run: run.drive(retry=kinds, repeats=repeats))

    def repeat(self, index: int) -> Actor:
        """Run a task once more."""
        task = self.tasks[index]
        return self._begin(lambda run: run.repeat(task))

    def step(self, actor: Actor, requests: int = 1) -> None:
        """Let so many of its requests go."""
        self._go(actor, ["done"] * requests)

    def disturb(self, actor: Actor, fate: Fate) -> None:
        """Its next request meets this fate."""
        self._go(actor, [fate])

    def finish(self, actor: Actor) -> None:
        """Let it go on to its end."""
        self._go(actor, then="done")

    def crash(self, actor: Actor, fate: Fate) -> None:
        """End it at its next request: what it asks for after that is as if it had not asked."""
        self._go(actor, [fate], then="refused")

    def replace_source(self, slide_id: str, version: int) -> None:
        """Another version lies there from now on."""
        self.sources.now[slide_id] = version

    def remove(self, name: str) -> None:
        """The user deletes an object."""
        self.steps.objects.pop(name, None)

    def staged(self) -> list[str]:
        """Names of all fragments."""
        return sorted(name for name in self.steps.objects if name.startswith(LAYOUT.staging))

    def cut(self, name: str, share: float) -> None:
        """Only so much of an object is left."""
        number, data = self.steps.objects[name]
        self.steps.objects[name] = number, data[: int(len(data) * share)]

    def end(self) -> None:
        """All that are at work die."""
        for actor in list(self.actors):
            self.crash(actor, "refused")

    def _begin(self, work: Callable[[Run], None]) -> Actor:
        taken = {actor.client for actor in self.actors}
        client = next(name for name in map("c{}".format, count()) if name not in taken)
        run = Run(
            name=f"run-{next(self._names)}",
            output=Store.open(f"s3://{client}"),
            sources=self.sources,
            tasks=self.tasks,
            attempts=self._attempts,
            asked=lambda asked: self.steps.notes.update({client: asked}),
        )

        def play() -> None:
            try:
                work(run)
            except HistorayError as error:
                actor.error = error
            except BaseException as error:  # noqa: BLE001 (told by `check`)
                actor.broken = error
            finally:
                self.steps.end(client)

        actor = Actor(client, run, threading.Thread(target=play, name=client, daemon=True))
        self.steps.begin(client)
        self.actors.append(actor)
        actor.thread.start()
        self._go(actor)
        return actor

    def _go(self, actor: Actor, fates: Sequence[Fate] = (), then: Fate | None = None) -> None:
        if actor in self.actors and not self.steps.step(actor.client, fates, then):
            self._gone(actor)

    def _gone(self, actor: Actor) -> None:
        actor.thread.join()
        self.actors.remove(actor)
        self._acknowledged += actor.run.committed
        if actor.broken is not None:
            raise AssertionError(f"{actor.client} ended with no error of ours") from actor.broken

    # ------------------------------------------------------------ what must hold

    def check(self) -> None:
        """What must hold whenever: of every put, every acknowledgement, and what counts as done."""
        self.sound = False
        for put in self.steps.puts[self._puts :]:
            self._puts += 1
            if put.name.startswith(EMBEDDINGS):
                self._check_file(put)
            elif put.name.startswith(DONE) and not put.name.endswith(f"/{REPLACED}"):
                slide_id, input_fp = put.name.removeprefix(DONE).split("/")
                self._check_acknowledged(original_name(slide_id), input_fp, "done key")
            elif put.name.startswith(RECORDS):
                record = SlideRecord.from_bytes(put.data)
                if record.status != "failed":
                    self._check_acknowledged(record.slide_id, record.input_fp, "record")
        for record in self._acknowledged[self._records :]:
            self._records += 1
            self._check_acknowledged(record.slide_id, record.input_fp, "commit")
        taken = [name for _, name in self.steps.deleted if name.startswith(EMBEDDINGS)]
        assert not taken, f"deleted: {taken}"
        changes = len(self.steps.puts), len(self.steps.deleted)
        if changes != self._seen:
            self._seen = changes
            self._check_finished()
        self.sound = True

    def _check_file(self, put: Put) -> None:
        truth = truth_of(put.data, self.sources)
        assert put.name == LAYOUT.output(truth.slide_id, {}), "one file per slide and recipe"
        self._inputs.add((truth.slide_id, truth.source.input_fp))
        if put.replaced is None:
            return
        old = truth_of(put.replaced, self.sources)
        if self.conditions == "honoured":
            assert put.matched, f"{put.name} was overwritten without a condition"
            assert put.note, f"{put.name} was replaced, and nobody had asked for it"
        elif old != truth:
            assert put.seen is not None, f"{put.name} was overwritten unseen"
            (seen,) = put.seen
            if seen is not None:
                assert put.note, f"{put.name} was replaced, and nobody had asked for it"
                assert truth_of(seen, self.sources) != truth
            if seen != put.replaced:
                self.raced.add(truth.slide_id)

    def _check_acknowledged(self, slide_id: str, input_fp: str, what: str) -> None:
        told = f"{what} of {slide_id}, and there was never such a file"
        assert (slide_id, input_fp) in self._inputs, told

    def _truth(self, data: bytes) -> Truth:
        return truth_of(data, self.sources)

    def _check_finished(self) -> None:
        """What a run would pass over as finished has its file, of that very input."""
        output, settings = Store.open(f"s3://{OBSERVER}"), JobSettings.model_validate(JOB)
        # A job has one version of each slide: the first ones, the second ones, ...
        for truths in zip_longest(*self.sources.truths.values()):
            sources = SlideList(truth.source for truth in truths if truth is not None)
            state = read_state(output, LAYOUT, sources.inputs())
            for source in choose_work(output, LAYOUT, sources, state, settings).finished:
                self._check_one_finished(source)

    def _check_one_finished(self, source: SlideSource) -> None:
        if source.slide_id not in self.raced:
            standing = self.steps.standing(LAYOUT.output(source.slide_id, {}))
            assert standing is not None, f"{source.slide_id} is finished without a file"
            assert self._truth(standing).source == source, f"{source.slide_id} is of another"

    def settle(self) -> None:
        """After everything has ended, runs without a fault finish every slide, and all is right."""
        self.end()
        self.check()
        self.sound = False
        kinds: set[str] = set()
        for retry in (False, True):
            kinds = self._undisturbed(retry=retry)
            if "staging-lost" in kinds:  # it has deleted what was damaged, and says: run again
                kinds = self._undisturbed(retry=retry)
            if not kinds:
                break
        assert not kinds, "a run without a fault failed"
        self._check_end()
        before = len(self.steps.puts)
        assert not self._undisturbed()
        names = [put.name for put in self.steps.puts[before:]]
        assert not [name for name in names if name.startswith((EMBEDDINGS, DONE, RECORDS))]
        self._check_end()
        self.sound = True

    def _undisturbed(self, *, retry: bool = False) -> set[str]:
        """The kinds of failure that a run without a fault meets."""
        actor = self.drive(retry=retry)
        self.finish(actor)
        self.check()
        assert actor.error is None, actor.error
        assert actor.run.finished
        assert not actor.run.said, actor.run.said
        return {failure.kind for failure in actor.run.failures.values()}

    def _check_end(self) -> None:
        files = {slide_of_output(name): name for name in self.steps.objects if EMBEDDINGS in name}
        assert files == {slide_id: LAYOUT.output(slide_id, {}) for slide_id in self.sources.truths}
        output = Store.open(f"s3://{OBSERVER}")
        rows = read_slides(output, LAYOUT).to_pylist()
        assert sorted(row["slide_id"] for row in rows) == sorted(self.sources.truths)
        for row in rows:
            truth = self.sources.current(row["slide_id"])
            standing = self.steps.standing(files[truth.slide_id])
            assert standing is not None
            if truth.slide_id not in self.raced:
                assert self._truth(standing) == truth
                assert (
                    self.steps.standing(LAYOUT.done_key(truth.slide_id, truth.source.input_fp))
                    == b""
                )
                status = "done" if truth.n_tiles else "empty"
                told = (status, truth.n_tiles, truth.plan_fp, truth.source.input_fp)
                assert (row["status"], row["n_tiles"], row["plan_fp"], row["input_fp"]) == told
            assert (row["error_kind"], row["stage"], row["reason"]) == (None, None, None)
            left = LAYOUT.fragments(truth.slide_id, truth.plan_fp)
            assert not [name for name in self.staged() if name.startswith(f"{left}/")]


def truth_of(data: bytes, sources: Sources) -> Truth:
    """The version whose file this is; raises AssertionError unless it is whole and right."""
    footer, tiles, xy, told = _columns(data)
    assert footer.recipe_fp == RECIPE.fingerprint
    truth = sources.known(footer.slide_id, footer.etag)
    assert (footer.input_fp, footer.plan_fp) == (truth.source.input_fp, truth.plan_fp)
    assert tiles == list(range(truth.n_tiles)), "every tile, once, in order"
    assert xy == truth.xy.tolist()
    assert told == truth.vectors(0, truth.n_tiles, 0)[:, :2].astype(float).tolist()
    return truth


@lru_cache(maxsize=4096)
def _columns(data: bytes) -> tuple[Footer, list[int], list[list[int]], list[list[float]]]:
    table = pq.read_table(io.BytesIO(data))
    footer = Footer.from_metadata(table.schema.metadata)
    assert footer is not None
    assert set(table["slide_id"].to_pylist()) <= {footer.slide_id}
    vectors = np.array(table["embedding"].to_pylist(), np.float64).reshape(table.num_rows, DIM)
    xy = [list(pair) for pair in zip(table["x"].to_pylist(), table["y"].to_pylist(), strict=True)]
    return footer, table["tile"].to_pylist(), xy, vectors[:, :2].tolist()
