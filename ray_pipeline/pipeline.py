"""The batch flow.

    slides to do -> PlanSlide -> ReadTiles -> EncodeTiles -> StageShard -> ledger -> commit_slide
                    tasks        CPU actors    GPU actors     actors        driver    tasks

One row per shard crosses the graph; the driver sees a few bytes of each, counts, and launches the
commit of a slide when all its shards are staged.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import ray
from ray.exceptions import RayError

from ray_pipeline.cluster import cluster_nodes, connect, free_now, own_error
from ray_pipeline.dataset.commit import CommitJob, commit_slide
from ray_pipeline.dataset.identity import remembered_identity
from ray_pipeline.dataset.records import SlideRecord
from ray_pipeline.dataset.report import RunReport
from ray_pipeline.dataset.start import probe_conditional
from ray_pipeline.driver import LOOK_EVERY_S, Driver, begin
from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.encoders.spec import EncoderIdentity
from ray_pipeline.endings import FailureWriter
from ray_pipeline.errors import ClusterError, DoesNotFitError, HistorayError
from ray_pipeline.graph import LARGE_MODEL, Graph, StopSign, polled
from ray_pipeline.placement import (
    COMMIT_CPUS,
    Node,
    Placement,
    check_fit,
    choose_placement,
    commit_memory_bytes,
    short_of,
)
from ray_pipeline.progress import Reporter
from ray_pipeline.recipe import recipe_of, tiling_of
from ray_pipeline.rows import Failure
from ray_pipeline.settings import JobSettings
from ray_pipeline.stopping import Stop
from ray_pipeline.store import Store
from ray_pipeline.watching import StageWatch
from ray_pipeline.worklist import SlideList, slides_of

PROBE_CPUS = 0.1
"""CPUs of the task that tells the encoder's identity."""
FEWEST_COMMITS = 8
"""Commit tasks at once, or as many as encoders: one takes a few seconds, most of them waiting for
the store, and a GPU makes a slide in some ten."""
LOOK_AT_NODES_EVERY_S = 5.0
"""Seconds between two looks at which nodes are alive, while commits are under way."""
LOST_NODE_GRACE_S = 30.0
"""Seconds that a commit under way is given to end after a node was lost: it takes a few."""
TASKS_PER_COMMIT = 3
"""Most tasks of one commit: where nodes come and go, each waits for the same free CPU."""


def embed(settings: JobSettings, reporter: Reporter, stop: Stop | None = None) -> RunReport:
    """Embed every slide of the job that its output does not hold yet.

    Slides that fail are in the report, each with its reason. Raises UsageError or StoreError when
    the job can't start at all; nothing that was already written is ever lost. `stop` ends it early:
    then shards in flight are staged, and the report says so.
    """
    stop = stop or Stop()
    started, run = time.monotonic(), _run_name()
    reporter.run = run
    tiling_of(settings)
    sources = SlideList(slides_of(settings))
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
    endings = begin(
        settings,
        recipe_of(settings, identity),
        output,
        sources,
        run=run,
        conditional=conditional,
    )
    del sources  # a million are 0.1 GB
    report = endings.report
    report.placement = asdict(placement)
    with stop.deferred():
        try:
            with FailureWriter(endings, reporter.say) as failed:
                driver = Driver(
                    settings=settings,
                    endings=endings,
                    failed=failed,
                    reporter=reporter,
                    stop=stop,
                    commits=CommitTasks(placement.encoders, run),
                )
                driver.refuse()
                if endings.work.todo and not stop.asked:
                    _stream(driver, placement)
        finally:
            report.stopped = stop.asked
            report.seconds = round(time.monotonic() - started, 3)
            endings.close(reporter.say, in_haste=stop.asked)
    return report


def _stream(driver: Driver, placement: Placement) -> None:
    driver.report.encoders_loaded = placement.encoders
    stop_sign = StopSign()
    graph = Graph(
        settings=driver.settings,
        run=driver.report.run,
        recipe=driver.endings.recipe,
        output=driver.endings.output,
        placement=placement,
        stop_sign=stop_sign,
    )
    driver.follow(polled(graph.rows(driver.tasks()), LOOK_EVERY_S), on_stop=stop_sign.set)


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
    probe = ray.remote(
        num_cpus=PROBE_CPUS,
        num_gpus=placement.encoder_gpus,
        resources=placement.encoder_resources,
    )(remembered_identity)
    reference = probe.remote(
        output, settings.model, settings.weights, settings.precision, placement.device
    )
    ready, _ = ray.wait([reference], timeout=settings.no_progress_s)
    if not ready:
        raise ClusterError(
            f"no node told the encoder's identity in {settings.no_progress_s:g} s: it takes "
            f"{placement.encoder_gpus:g} GPUs and {PROBE_CPUS:g} CPUs, which other jobs may hold; "
            "run again when they are free (no_progress_s: how long to wait)."
        )
    try:
        identity: EncoderIdentity = ray.get(reference)
    except RayError as error:
        raise own_error(error) from None
    return identity


def _run_name() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


@dataclass(eq=False)
class LaunchedCommit:
    """The tasks of one commit: one, or more where a node was lost."""

    job: CommitJob
    """What to commit."""
    references: list[Any] = field(default_factory=list)
    """Of Ray, one for each task that has not failed."""
    losses: int = 0
    """Losses of nodes before its last task was launched."""
    missed_since: float | None = None
    """When a later loss was seen, by the monotonic clock."""


class CommitTasks:
    """Commits as tasks of Ray; see `Commits`.

    Ray waits for a node that it has asked for a worker for as long as gRPC does (ray-project/ray
    issue 63405): a machine that is taken away without a word holds such a task up for minutes. So a
    commit that has not ended `LOST_NODE_GRACE_S` after the loss of a node is launched once more.
    The first task that succeeds counts; a later one finds the slide committed.
    """

    def __init__(self, encoders: int, run: str) -> None:
        self.most, self._run = max(FEWEST_COMMITS, encoders), run
        self._alive: set[str] = set()
        self._losses, self._looked_at = 0, 0.0

    def launch(self, job: CommitJob) -> LaunchedCommit:
        """A task on any node that has the memory."""
        launched = LaunchedCommit(job)
        self._add_task(launched)
        return launched

    def first_of(
        self, launched: Sequence[LaunchedCommit], timeout_s: float
    ) -> LaunchedCommit | None:
        """Any commit of which a task has succeeded, or the last one has failed."""
        commit_of = {reference: one for one in launched for reference in one.references}
        ready, _ = ray.wait(list(commit_of), num_returns=1, timeout=timeout_s)
        if not ready:
            self._launch_again(launched)
            return None
        ended = commit_of[ready[0]]
        if len(ended.references) > 1 and _has_failed(ready[0]):
            ended.references.remove(ready[0])
            return None
        ended.references = ready
        return ended

    def result(self, launched: LaunchedCommit) -> SlideRecord:
        """Raises the error of ours that ended it, or a ClusterError telling of Ray's."""
        (ended,) = launched.references
        try:
            record: SlideRecord = ray.get(ended)
        except RayError as error:
            raise own_error(error) from None
        return record

    def _add_task(self, launched: LaunchedCommit) -> None:
        job, nodes = launched.job, self._nodes()
        memory = commit_memory_bytes(job.n_tiles, job.dim, nodes)
        # A byte less after each loss: Ray asks for no worker for a task as long as one is asked for
        # by an earlier task that wanted the same, be it of a node that is lost.
        task = _commit.options(memory=memory - self._losses)
        launched.references.append(task.remote(job, self._run))
        launched.losses, launched.missed_since = self._losses, None

    def _launch_again(self, launched: Sequence[LaunchedCommit]) -> None:
        """Those that were under way when a node was lost, and still are after the grace."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_AT_NODES_EVERY_S:
            return
        self._looked_at = now
        self._nodes()
        for one in launched:
            if one.losses == self._losses or len(one.references) == TASKS_PER_COMMIT:
                continue
            if one.missed_since is None:
                one.missed_since = now
            elif now - one.missed_since >= LOST_NODE_GRACE_S:
                self._add_task(one)

    def _nodes(self) -> list[Node]:
        """The living nodes; counts it when there are some no more."""
        nodes = cluster_nodes()
        alive = {node.id for node in nodes}
        self._losses += not self._alive <= alive
        self._alive = alive
        return nodes


def _has_failed(reference: Any) -> bool:
    try:
        ray.get(reference)
    except RayError:
        return True
    return False


@ray.remote(num_cpus=COMMIT_CPUS, max_retries=3)
def _commit(job: CommitJob, run: str) -> SlideRecord:
    watch = StageWatch(stage="commit", run=run, recipe_fp=job.footer.recipe_fp)
    started, slide_id = time.monotonic(), job.footer.slide_id
    try:
        record = commit_slide(job)
    except HistorayError as error:
        watch.failed(slide_id, None, Failure.of("commit", error))
        raise
    watch.done(slide_id, None, tiles=record.n_tiles, seconds=time.monotonic() - started)
    return record
