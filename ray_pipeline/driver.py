"""The driver of one run: it counts what comes out of the graph, and has whole slides committed.

It knows no Ray: rows come from any iterator, and commits run wherever `Commits` has them run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

import pyarrow as pa

from ray_pipeline.dataset.commit import CommitJob, sweep
from ray_pipeline.dataset.layout import Layout
from ray_pipeline.dataset.records import SlideRecord
from ray_pipeline.dataset.report import RunReport, versions
from ray_pipeline.dataset.start import claim_recipe, read_state
from ray_pipeline.endings import Endings, FailureWriter, incomplete
from ray_pipeline.errors import ClusterError, HistorayError
from ray_pipeline.ledger import Ledger, SlideTally
from ray_pipeline.metrics import COMMITS, FAILURES, SLIDES, SLIDES_LEFT, job_metrics
from ray_pipeline.progress import Counts, Reporter
from ray_pipeline.recipe import Recipe
from ray_pipeline.rows import Failure, from_table
from ray_pipeline.settings import JobSettings
from ray_pipeline.sources import SlideSource
from ray_pipeline.stages import SlideTasks
from ray_pipeline.stopping import Stop
from ray_pipeline.store import Store
from ray_pipeline.worklist import SlideList, choose_work

LOOK_EVERY_S = 0.5
"""Seconds between two looks at what else there is to do while nothing comes."""


class Commits(Protocol):
    """Commits under way somewhere."""

    most: int
    """Commits at once: bounds memory on the nodes and load on the store."""

    def launch(self, job: CommitJob) -> Any:
        """Begin one; returns what it goes by below, which is hashable."""

    def first_of(self, launched: Sequence[Any], timeout_s: float) -> Any | None:
        """One that has ended, waited for no longer than `timeout_s`; None where none has."""

    def result(self, launched: Any) -> SlideRecord:
        """The record that an ended one has written. Raises the error that ended it."""


def begin(
    settings: JobSettings,
    recipe: Recipe,
    output: Store,
    sources: SlideList,
    *,
    run: str,
    conditional: bool,
) -> Endings:
    """Claim the output for the recipe, see what it holds, and sort the slides by what is to do.

    `conditional`: what `probe_conditional` found. Raises RecipeMismatchError, StoreError.
    """
    layout = Layout(recipe.fingerprint)
    claim_recipe(output, layout, recipe.to_dict(), settings.partition_by)
    state = read_state(output, layout, sources.inputs())
    work = choose_work(output, layout, sources, state, settings)
    sweep(output, layout, state, work.finished.slide_ids())
    asked = [source.slide_id for source in work.todo if source.slide_id in state.done]
    # Of finished slides nobody asks again: 170 bytes each.
    done = {slide_id: state.done[slide_id] for slide_id in asked}
    table = state.table if len(state.settled) == len(work.finished) else ""
    state = replace(state, done=done, settled=frozenset(), table=table)
    report = RunReport(
        run=run,
        output=output.uri,
        recipe_fp=recipe.fingerprint,
        model=recipe.encoder.model,
        meaningful=recipe.encoder.meaningful,
        started_at=datetime.now(UTC).isoformat("T", "seconds"),
        slides=len(sources),
        slides_finished_before=len(work.finished),
        slides_passed_over=work.passed_over,
        conditional_store=conditional,
        versions=versions(),
    )
    return Endings(
        output=output,
        recipe=recipe,
        state=state,
        work=work,
        report=report,
        partition_by=tuple(settings.partition_by),
    )


@dataclass(kw_only=True)
class Driver:
    """One run's moving parts on the driver."""

    settings: JobSettings
    """How long to wait."""
    endings: Endings
    """What is to do, and what is written at the end of each slide."""
    failed: FailureWriter
    """Writes down what failed."""
    reporter: Reporter
    """Tells the user."""
    stop: Stop
    """Asked to end early, or not."""
    commits: Commits
    """Where commits run."""
    counts: Counts = field(default_factory=Counts)
    """Where the run stands."""

    def __post_init__(self) -> None:
        self.report, self.work = self.endings.report, self.endings.work
        self.metrics = job_metrics(self.report.recipe_fp)
        self._todo = {source.slide_id: source for source in self.work.todo}
        self._ledger = Ledger(self._todo)
        self._committing: dict[Any, tuple[SlideSource, SlideTally]] = {}

    def refuse(self) -> None:
        """Report the slides that can't even be started."""
        self.counts.slides = len(self._todo) + len(self.work.failures)
        for source, failure in self.work.failures:
            if self.stop.asked:
                return
            self._fail(source, failure, SlideTally())

    def tasks(self) -> SlideTasks:
        """The graph's input."""
        return SlideTasks(self.work.todo, self.endings.state.staged)

    def follow(self, tables: Iterable[pa.Table | None], on_stop: Callable[[], None]) -> None:
        """Take in all that comes out of the graph, commit what is whole, report what failed.

        `tables` yields None now and then while nothing comes. `on_stop` is called, again and
        again, once the run is asked to stop.
        """
        started = time.monotonic()
        with self.reporter:
            try:
                for table in tables:
                    if table is not None:
                        self._take(table)
                    self._collect(self.commits.most - 1)
                    self._show()
                    if self.stop.asked:
                        on_stop()
                        if self._out_of_time:
                            break
                if not self.stop.asked:
                    for slide_id, tally in self._ledger.unfinished():
                        self._end(self._todo[slide_id], tally)
            except ClusterError:
                if not self.stop.asked:  # else the cluster was told to stop, too
                    raise
            finally:
                self._collect(0)
                self._sum_up(time.monotonic() - started)
                self._show(final=True)

    def _show(self, *, final: bool = False) -> None:
        self.reporter.show(self.counts, final=final)
        ended = self.counts.slides_done + self.counts.slides_failed
        self.metrics.show(SLIDES_LEFT, self.counts.slides - ended)
        self.metrics.show(COMMITS, len(self._committing))

    def _sum_up(self, streamed_s: float) -> None:
        ledger, report = self._ledger, self.report
        report.tiles = ledger.tiles
        report.tiles_per_s = round(ledger.tiles / streamed_s, 2)
        busy = ledger.device_s / (streamed_s * max(1, report.encoders_loaded))
        report.device_busy_share = round(busy, 4)
        if ledger.places:
            report.batch_fill = round(ledger.tiles / ledger.places, 4)

    def _take(self, table: pa.Table) -> None:
        for row in from_table(table):
            tally = self._ledger.add(row)
            self.counts.slides_planned += row.is_header
            self.counts.tiles = self._ledger.tiles
            self.counts.tiles_planned = self._ledger.tiles_planned
            if tally is not None:
                self._end(self._todo[row.slide_id], tally)

    @property
    def _out_of_time(self) -> bool:
        return self.stop.overdue(self.settings.stop_grace_s)

    def _end(self, source: SlideSource, tally: SlideTally) -> None:
        if tally.failure is not None:
            self._fail(source, tally.failure, tally)
        elif not tally.whole:
            self._fail(source, incomplete(source, tally), tally)
        else:
            self._collect(self.commits.most - 1)
            launched = self.commits.launch(self.endings.commit_job(source, tally))
            self._committing[launched] = (source, tally)

    def _collect(self, leave: int) -> None:
        """Take in finished commits; wait until at most `leave` are in flight.

        Those that a stop leaves no time for stay undone, and so do those that no node takes.
        """
        since = time.monotonic()
        while self._committing:
            must = len(self._committing) > leave
            ended = self.commits.first_of(list(self._committing), LOOK_EVERY_S if must else 0)
            if ended is not None:
                self._committed(ended)
                since = time.monotonic()
            elif not must or self._out_of_time:
                return
            elif time.monotonic() - since > self.settings.no_progress_s:
                self._give_up_commits()
            else:
                self._show()

    def _committed(self, launched: Any) -> None:
        source, tally = self._committing.pop(launched)
        try:
            record = self.commits.result(launched)
        except HistorayError as error:
            self._fail(source, Failure.of("commit", error), tally)
            return
        self.report.slides_done += 1
        self.report.slides_empty += record.status == "empty"
        self.report.tiles_resumed += tally.tiles_resumed
        self._count_reads(tally)
        self.counts.slides_done += 1
        self.metrics.count(SLIDES, status=record.status)

    def _give_up_commits(self) -> None:
        for source, tally in self._committing.values():
            error = ClusterError(
                f"{source.slide_id}: no commit ended in {self.settings.no_progress_s:g} s; all its "
                "shards are staged: look at the cluster, then run again to go on."
            )
            self._fail(source, Failure.of("commit", error), tally)
        self._committing.clear()

    def _fail(self, source: SlideSource, failure: Failure, tally: SlideTally) -> None:
        self.report.add_failure(source.slide_id, source.uri, asdict(failure))
        self._count_reads(tally)
        self.counts.slides_failed += 1
        self.metrics.count(SLIDES, status="failed")
        self.metrics.count(FAILURES, stage=failure.stage, kind=failure.kind)
        self.reporter.say(
            f"{source.slide_id} failed at {failure.stage}: {failure.reason}",
            level="WARNING",
            slide_id=source.slide_id,
            stage=failure.stage,
            kind=failure.kind,
        )
        self.failed.write(source, tally, failure)

    def _count_reads(self, tally: SlideTally) -> None:
        counts = tally.counts
        self.report.gets += counts.gets
        self.report.bytes_fetched += counts.bytes_fetched
        self.report.bytes_needed += counts.bytes_needed
        self.report.retries += counts.retries
