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
from dataclasses import asdict
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


class CommitTasks:
    """Commits as tasks of Ray; see `Commits`."""

    def __init__(self, encoders: int, run: str) -> None:
        self.most, self._run = max(FEWEST_COMMITS, encoders), run

    def launch(self, job: CommitJob) -> Any:
        """A task on any node that has the memory."""
        memory = commit_memory_bytes(job.n_tiles, job.dim, cluster_nodes())
        return _commit.options(memory=memory).remote(job, self._run)

    def first_of(self, launched: Sequence[Any], timeout_s: float) -> Any | None:
        """Any task that has ended."""
        ready, _ = ray.wait(list(launched), num_returns=1, timeout=timeout_s)
        return ready[0] if ready else None

    def result(self, launched: Any) -> SlideRecord:
        """Raises the error of ours that ended it, or a ClusterError telling of Ray's."""
        try:
            record: SlideRecord = ray.get(launched)
        except RayError as error:
            raise own_error(error) from None
        return record


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
