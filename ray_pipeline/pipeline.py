"""The batch flow.

    slides to do -> PlanSlide -> ReadTiles -> EncodeTiles -> StageShard -> ledger -> commit_slide
                    tasks        CPU actors    GPU actors     tasks         driver    tasks

One row per shard crosses the graph; the driver sees a few bytes of each, counts, and launches the
commit of a slide when all its shards are staged.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import ray
from ray.exceptions import RayError

from ray_pipeline.cluster import cluster_nodes, connect, free_now, own_error
from ray_pipeline.dataset.commit import CommitJob, commit_slide, sweep
from ray_pipeline.dataset.identity import remembered_identity
from ray_pipeline.dataset.layout import Layout
from ray_pipeline.dataset.records import SlideRecord
from ray_pipeline.dataset.report import RunReport, versions
from ray_pipeline.dataset.start import (
    claim_recipe,
    probe_conditional,
    read_state,
)
from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.encoders.spec import EncoderIdentity
from ray_pipeline.endings import Endings, FailureWriter, incomplete
from ray_pipeline.errors import ClusterError, DoesNotFitError
from ray_pipeline.graph import LARGE_MODEL, Graph, StopSign, polled
from ray_pipeline.ledger import Ledger, SlideTally
from ray_pipeline.metrics import ReadMetrics
from ray_pipeline.placement import (
    COMMIT_CPUS,
    Placement,
    check_fit,
    choose_placement,
    commit_memory_bytes,
    short_of,
)
from ray_pipeline.progress import Counts, Reporter
from ray_pipeline.recipe import recipe_of, tiling_of
from ray_pipeline.rows import Failure, from_table
from ray_pipeline.settings import JobSettings
from ray_pipeline.sources import SlideSource
from ray_pipeline.stages import slide_task
from ray_pipeline.stopping import Stop
from ray_pipeline.store import Store
from ray_pipeline.worklist import choose_work, slides_of

COMMITS_IN_FLIGHT = 8
"""Commit tasks at once: bounds memory on the nodes and load on the store."""
LOOK_EVERY_S = 0.5
"""Seconds between two looks at what else there is to do while nothing comes."""


def embed(settings: JobSettings, reporter: Reporter, stop: Stop | None = None) -> RunReport:
    """Embed every slide of the job that its output does not hold yet.

    Slides that fail are in the report, each with its reason. Raises UsageError or StoreError when
    the job can't start at all; nothing that was already written is ever lost. `stop` ends it early:
    then shards in flight are staged, and the report says so.
    """
    stop = stop or Stop()
    started, run = time.monotonic(), _run_name()
    tiling_of(settings)
    sources = slides_of(settings)
    output = Store.open(settings.output)
    conditional = probe_conditional(output, run)
    if not conditional:
        reporter.say(
            f"{output.uri} does not know conditional writes: files are whole there, but two "
            "drivers at once may write the same slide twice; run one at a time."
        )
    connect()
    placement = _place(settings, reporter)
    identity = resolve_identity(settings, output, placement)
    if notice := get_spec(settings.model).licence_notice:
        reporter.say(notice)  # actors' logs stay on their nodes
    if not identity.meaningful:
        reporter.say(f"{identity.model} runs with made-up weights: these vectors mean nothing.")
    recipe = recipe_of(settings, identity)
    layout = Layout(recipe.fingerprint)
    claim_recipe(output, layout, recipe.to_dict(), settings.partition_by)
    state = read_state(output, layout)
    work = choose_work(output, layout, sources, state, settings)
    sweep(output, layout, state, (source.slide_id for source in work.finished))
    report = RunReport(
        run=run,
        output=output.uri,
        recipe_fp=recipe.fingerprint,
        model=identity.model,
        meaningful=identity.meaningful,
        started_at=datetime.now(UTC).isoformat("T", "seconds"),
        slides=len(sources),
        slides_finished_before=len(work.finished),
        slides_passed_over=work.passed_over,
        conditional_store=conditional,
        placement=asdict(placement),
        versions=versions(),
    )
    endings = Endings(
        output=output,
        recipe=recipe,
        state=state,
        work=work,
        report=report,
        partition_by=tuple(settings.partition_by),
    )
    with stop.deferred():
        try:
            with FailureWriter(endings, reporter.say) as failed:
                job = _Job(
                    settings=settings, endings=endings, failed=failed, reporter=reporter, stop=stop
                )
                job.run(placement)
        finally:
            report.stopped = stop.asked
            report.seconds = round(time.monotonic() - started, 3)
            endings.close(reporter.say, in_haste=stop.asked)
    return report


def _place(settings: JobSettings, reporter: Reporter) -> Placement:
    """The placement on the cluster as it is; raises DoesNotFitError, or says what to expect."""
    nodes = cluster_nodes()
    placement = choose_placement(settings, nodes)
    try:
        check_fit(placement, nodes)
    except DoesNotFitError as error:
        if not settings.autoscaling:
            raise
        reporter.say(f"waiting for the cluster to grow: {error}")
    if shortage := short_of(placement, free_now()):
        reporter.say(f"{shortage}; this job waits for what other jobs hold.")
    if placement.encoder_gpus == 0 and get_spec(settings.model).parameters > LARGE_MODEL:
        reporter.say(f"no GPU in this cluster: {settings.model} takes seconds a tile on CPUs.")
    return placement


def resolve_identity(
    settings: JobSettings, output: Store | None, placement: Placement
) -> EncoderIdentity:
    """The encoder's identity, resolved on a node of the kind that will run it.

    A driver on a CPU head must not decide for GPUs. Raises WeightsError, or ClusterError when
    the node dies over it.
    """
    probe = ray.remote(num_cpus=0.1, num_gpus=placement.encoder_gpus)(remembered_identity)
    reference = probe.remote(
        output, settings.model, settings.weights, settings.precision, placement.device
    )
    ready, _ = ray.wait([reference], timeout=settings.no_progress_s)
    if not ready:
        raise ClusterError(
            f"no node told the encoder's identity in {settings.no_progress_s:g} s: it takes "
            f"{placement.encoder_gpus:g} GPUs, which other jobs may hold; run again when they are "
            "free (no_progress_s: how long to wait)."
        )
    try:
        identity: EncoderIdentity = ray.get(reference)
    except RayError as error:
        raise own_error(error) from None
    return identity


def _run_name() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


@dataclass(kw_only=True)
class _Job:
    """One run's moving parts on the driver."""

    settings: JobSettings
    endings: Endings
    failed: FailureWriter
    reporter: Reporter
    stop: Stop
    counts: Counts = field(default_factory=Counts)
    commits: dict[Any, tuple[SlideSource, SlideTally]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.report, self.work = self.endings.report, self.endings.work
        self.metrics = ReadMetrics(self.report.recipe_fp)

    def run(self, placement: Placement) -> None:
        """Stream everything that is to do, commit what is whole, report what failed."""
        todo = {source.slide_id: source for source in self.work.todo}
        self.counts.slides = len(todo) + len(self.work.failures)
        for source, failure in self.work.failures:
            if self.stop.asked:
                return
            self._fail(source, failure, SlideTally())
        if todo:
            self._stream(todo, placement)

    def _stream(self, todo: dict[str, SlideSource], placement: Placement) -> None:
        self.report.encoders_loaded = placement.encoders
        staged = self.endings.state.staged
        # Not a list: nobody is to hold the tasks once Ray has them.
        tasks = (slide_task(source, staged.get(source.slide_id, {})) for source in self.work.todo)
        ledger, stop_sign = Ledger(todo), StopSign()
        graph = Graph(
            settings=self.settings,
            recipe=self.endings.recipe,
            output=self.endings.output,
            placement=placement,
            stop_sign=stop_sign,
        )
        started = time.monotonic()
        with self.reporter:
            try:
                for table in polled(graph.rows(tasks), LOOK_EVERY_S):
                    if table is not None:
                        self._take(table, ledger, todo)
                    self._collect(COMMITS_IN_FLIGHT - 1)
                    self.reporter.show(self.counts)
                    if self.stop.asked:
                        stop_sign.set()
                        if self._out_of_time:
                            break
                if not self.stop.asked:
                    for slide_id, tally in ledger.unfinished():
                        self._end(todo[slide_id], tally)
            except ClusterError:
                if not self.stop.asked:  # else the cluster was told to stop, too
                    raise
            finally:
                self._collect(0)
                self.report.tiles = ledger.tiles
                streamed = time.monotonic() - started
                self.report.tiles_per_s = round(ledger.tiles / streamed, 2)
                busy = ledger.device_s / (streamed * placement.encoders)
                self.report.device_busy_share = round(busy, 4)
                if ledger.places:
                    self.report.batch_fill = round(ledger.tiles / ledger.places, 4)
                self.reporter.show(self.counts, final=True)

    def _take(self, table: Any, ledger: Ledger, todo: dict[str, SlideSource]) -> None:
        for row in from_table(table):
            tally = ledger.add(row)
            self.counts.slides_planned += row.is_header
            if tally is not None:
                self._end(todo[row.slide_id], tally)
        self.counts.tiles = ledger.tiles
        self.counts.tiles_planned = ledger.tiles_planned

    @property
    def _out_of_time(self) -> bool:
        return self.stop.overdue(self.settings.stop_grace_s)

    def _end(self, source: SlideSource, tally: SlideTally) -> None:
        if tally.failure is not None:
            self._fail(source, tally.failure, tally)
        elif not tally.whole:
            self._fail(source, incomplete(source, tally), tally)
        else:
            self._collect(COMMITS_IN_FLIGHT - 1)
            job = self.endings.commit_job(source, tally)
            memory = commit_memory_bytes(job.n_tiles, job.dim, cluster_nodes())
            reference = _commit.options(memory=memory).remote(job)
            self.commits[reference] = (source, tally)

    def _collect(self, leave: int) -> None:
        """Take in finished commits; wait until at most `leave` are in flight.

        Those that a stop leaves no time for stay undone, and so do those that no node takes.
        """
        since = time.monotonic()
        while self.commits:
            must = len(self.commits) > leave
            ready, _ = ray.wait(
                list(self.commits), num_returns=1, timeout=LOOK_EVERY_S if must else 0
            )
            if ready:
                self._committed(ready[0])
                since = time.monotonic()
            elif not must or self._out_of_time:
                return
            elif time.monotonic() - since > self.settings.no_progress_s:
                self._give_up_commits()

    def _committed(self, reference: Any) -> None:
        source, tally = self.commits.pop(reference)
        try:
            record: SlideRecord = ray.get(reference)
        except RayError as error:
            self._fail(source, Failure.of("commit", own_error(error)), tally)
            return
        self.report.slides_done += 1
        self.report.slides_empty += record.status == "empty"
        self.report.tiles_resumed += tally.tiles_resumed
        self._count_reads(tally)
        self.counts.slides_done += 1

    def _give_up_commits(self) -> None:
        for source, tally in self.commits.values():
            error = ClusterError(
                f"{source.slide_id}: no commit ended in {self.settings.no_progress_s:g} s; all its "
                "shards are staged: look at the cluster, then run again to go on."
            )
            self._fail(source, Failure.of("commit", error), tally)
        self.commits.clear()

    def _fail(self, source: SlideSource, failure: Failure, tally: SlideTally) -> None:
        self.report.add_failure(source.slide_id, source.uri, asdict(failure))
        self._count_reads(tally)
        self.counts.slides_failed += 1
        self.reporter.say(f"{source.slide_id} failed at {failure.stage}: {failure.reason}")
        self.failed.write(source, tally, failure)

    def _count_reads(self, tally: SlideTally) -> None:
        counts = tally.counts
        self.report.gets += counts.gets
        self.report.bytes_fetched += counts.bytes_fetched
        self.report.bytes_needed += counts.bytes_needed
        self.report.retries += counts.retries
        self.metrics.count(counts)


@ray.remote(num_cpus=COMMIT_CPUS, max_retries=3)
def _commit(job: CommitJob) -> SlideRecord:
    return commit_slide(job)
