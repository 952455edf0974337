"""The batch flow as the driver runs it, without Ray and without pixels: made-up plans and vectors.

All else is the real thing: the work list, the plan's rows, staging, ledger, commit and endings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np
import pytest

from ray_pipeline import stages
from ray_pipeline.dataset.commit import CommitJob, commit_slide
from ray_pipeline.dataset.layout import Layout
from ray_pipeline.dataset.records import SlideRecord
from ray_pipeline.dataset.start import probe_conditional
from ray_pipeline.driver import begin
from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.encoders.spec import EncoderIdentity
from ray_pipeline.endings import Endings, incomplete
from ray_pipeline.errors import HistorayError, ObjectReplacedError
from ray_pipeline.ledger import Ledger, SlideTally
from ray_pipeline.plan import TilePlan
from ray_pipeline.ranged_file import ReadCounts
from ray_pipeline.recipe import Recipe, fingerprint_of, recipe_of
from ray_pipeline.rows import Failure, ShardRow, from_table, to_table
from ray_pipeline.settings import JobSettings
from ray_pipeline.slides.grid import ReadGeometry
from ray_pipeline.sources import SlideSource
from ray_pipeline.stages import PlanSlide, StageShard, slide_task
from ray_pipeline.store import Store
from ray_pipeline.worklist import SlideList, Work

DIM = 4
IDENTITY = EncoderIdentity.of(
    get_spec("toy"), weights_digest="d", meaningful=False, precision="fp32"
)
JOB = {"slides": ["x"], "output": "out", "model": "toy"}
RECIPE: Recipe = recipe_of(JobSettings.model_validate(JOB), replace(IDENTITY, dim=DIM))
LAYOUT = Layout(RECIPE.fingerprint)
GEOMETRY = ReadGeometry(
    level=0,
    level_mpp=0.5,
    reduce=1,
    downsample=1.0,
    side_px=224.0,
    stride_level_px=224.0,
    resampled=False,
    mpp_achieved=0.5,
)
FACTS = {
    "vendor": "none",
    "width_px": 40_000,
    "height_px": 30_000,
    "mpp_used": 0.5,
    "mpp_achieved": 0.5,
    "level": 0,
}


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What a slide's file must hold, for one version of its source."""

    slide_id: str
    """The slide's id."""
    version: int
    """Of its source."""
    n_tiles: int
    """Tiles of the plan."""

    @property
    def source(self) -> SlideSource:
        """As a listing tells it."""
        uri = f"s3://slides/{self.slide_id}.svs"
        return SlideSource(slide_id=self.slide_id, uri=uri, etag=f"e{self.version}", size_bytes=7)

    @property
    def xy(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """int32 [n, 2], level-0 px."""
        tiles = np.arange(self.n_tiles, dtype=np.int32)
        return np.stack([tiles * 224, tiles + self.version], axis=1)

    @property
    def plan_fp(self) -> str:
        """Fingerprint of the plan."""
        return fingerprint_of([self.slide_id, self.version])

    def plan(self) -> TilePlan:
        """The plan as `plan_slide` would give it."""
        return TilePlan(
            slide_id=self.slide_id,
            geometry=GEOMETRY,
            tile_px=224,
            xy=self.xy,
            tissue=np.full(self.n_tiles, 0.5, np.float32),
            plan_fp=self.plan_fp,
            stain_fit=None,
            facts=FACTS,
        )

    def vectors(self, first_tile: int, n: int, attempt: int) -> np.ndarray[Any, Any]:
        """float16 [n, DIM]: version, tile, and what differs between two attempts."""
        vectors = np.empty((n, DIM), np.float16)
        vectors[:, 0] = self.version
        vectors[:, 1] = np.arange(first_tile, first_tile + n)
        vectors[:, 2:] = attempt % 100
        return vectors


@dataclass
class Sources:
    """The slides as they lie at their source: the version of each now, of those it can have."""

    truths: dict[str, Sequence[Truth]]
    """slide_id -> its versions."""
    now: dict[str, int] = field(default_factory=dict)
    """slide_id -> index of the version that lies there."""

    def current(self, slide_id: str) -> Truth:
        """What lies there now."""
        return self.truths[slide_id][self.now.get(slide_id, 0)]

    def listed(self) -> list[SlideSource]:
        """What a job finds now."""
        return [self.current(slide_id).source for slide_id in self.truths]

    def known(self, slide_id: str, etag: str) -> Truth:
        """The version of that etag."""
        return next(truth for truth in self.truths[slide_id] if truth.source.etag == etag)

    def stand_in(self, patch: pytest.MonkeyPatch) -> None:
        """Plan these slides wherever PlanSlide opens and plans one."""

        def opened(_uri: str, *, slide_id: str, etag: str, **_: object) -> _Opened:
            if self.current(slide_id).source.etag != etag:
                raise ObjectReplacedError(f"{slide_id} was replaced while it was read.")
            return _Opened(self.known(slide_id, etag))

        patch.setattr(stages, "open_slide", opened)
        patch.setattr(stages, "plan_slide", lambda slide, *_, **__: slide.truth.plan())


@dataclass(frozen=True)
class _Opened:
    truth: Truth
    counts: ReadCounts = field(default_factory=ReadCounts)

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Something that Ray may run, at any time, again."""

    row: ShardRow | None = None
    """To be staged."""
    job: CommitJob | None = None
    """To be committed."""


@dataclass(kw_only=True)
class Run:
    """One driver, or one task that Ray runs again, over its own connection to the output."""

    name: str
    """Of the run."""
    output: Store
    """The output's root."""
    sources: Sources
    """The slides."""
    tasks: list[Task]
    """All tasks there ever were."""
    attempts: Iterator[int] = field(default_factory=count)
    """Tells the vectors of attempts apart."""
    asked: Callable[[bool], None] = lambda _: None
    """Is told before each commit whether a file is to be replaced."""
    committed: list[SlideRecord] = field(default_factory=list)
    """Records of commits that succeeded."""
    failures: dict[str, Failure] = field(default_factory=dict)
    """slide_id -> why it failed."""
    said: list[str] = field(default_factory=list)
    """What the user was told."""
    finished: bool = False
    """Whether the driver came to its end."""

    def drive(self, *, retry: Sequence[str] = (), repeats: bool = False) -> None:
        """The flow of `pipeline.embed`; with `repeats` each slide's task runs twice."""
        settings = JobSettings.model_validate({**JOB, "retry": list(retry)})
        sources = {source.slide_id: source for source in self.sources.listed()}
        conditional = probe_conditional(self.output, self.name)
        slides = SlideList(sources[slide_id] for slide_id in sorted(sources))
        endings = begin(
            settings, RECIPE, self.output, slides, run=self.name, conditional=conditional
        )
        work = endings.work
        for source, failure in work.failures:
            self._fail(endings, source, SlideTally(), failure)
        ledger = Ledger(source.slide_id for source in work.todo)
        for row in self._rows(work, endings.state.staged, repeats=repeats):
            tally = ledger.add(row)
            if tally is not None:
                self._end(endings, sources[row.slide_id], tally)
        for slide_id, tally in ledger.unfinished():
            self._end(endings, sources[slide_id], tally)
        endings.close(self.said.append)
        self.finished = True

    def repeat(self, task: Task) -> None:
        """Run a task once more."""
        if task.row is not None:
            self._staged(task.row)
        if task.job is not None:
            self._commit(replace(task.job, output=self.output))

    def _rows(
        self, work: Work, staged: Mapping[str, Mapping[str, Sequence[int]]], *, repeats: bool
    ) -> Iterator[ShardRow]:
        plan = PlanSlide(RECIPE.tiling, RECIPE.tissue, RECIPE.normalise)
        for source in work.todo:
            task = slide_task(source, staged.get(source.slide_id, {}))
            for _ in range(1 + repeats):
                for row in plan.rows(json.loads(task["slide"])):
                    if row.to_do:
                        self.tasks.append(Task(row=row))
                    yield self._staged(row)

    def _staged(self, row: ShardRow) -> ShardRow:
        if row.xy is not None:
            truth = self.sources.known(row.slide_id, row.etag)
            vectors = truth.vectors(row.first_tile, len(row.xy), next(self.attempts))
            row = replace(row, embedding=vectors, info={**row.info, "dim": DIM})
        (left,) = from_table(StageShard(self.output, LAYOUT.recipe_fp)(to_table([row])))
        return left

    def _end(self, endings: Endings, source: SlideSource, tally: SlideTally) -> None:
        if tally.failure is not None:
            self._fail(endings, source, tally, tally.failure)
        elif not tally.whole:
            self._fail(endings, source, tally, incomplete(source, tally))
        else:
            job = endings.commit_job(source, tally)
            self.tasks.append(Task(job=job))
            try:
                self._commit(job)
            except HistorayError as error:
                self._fail(endings, source, tally, Failure.of("commit", error))

    def _commit(self, job: CommitJob) -> None:
        self.asked(job.replace_etag is not None)
        self.committed.append(commit_slide(job))

    def _fail(
        self, endings: Endings, source: SlideSource, tally: SlideTally, failure: Failure
    ) -> None:
        self.failures[source.slide_id] = failure
        endings.record_failure(source, tally, failure, self.said.append)
