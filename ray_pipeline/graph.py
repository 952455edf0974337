"""The batch graph on Ray Data: from slides to staged shards.

slide tasks -> PlanSlide -> ReadTiles -> EncodeTiles -> StageShard -> small tables of rows
               tasks        CPU actors   GPU actors     actors
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import Any, TypeVar, cast

import ray
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError

from ray_pipeline.cluster import own_error
from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.errors import ClusterError
from ray_pipeline.placement import PLAN_CPUS, STAGE_CPUS, Placement
from ray_pipeline.recipe import Recipe
from ray_pipeline.settings import JobSettings
from ray_pipeline.stages import EncodeTiles, PlanSlide, ReadTiles, SlideTasks, StageShard
from ray_pipeline.store import Store
from ray_pipeline.watching import StageWatch

PLAN_BLOCK_BYTES = 24 << 10
"""Ray's block size. A planned shard is some 3 KB, so a block of plan rows is about eight shards:
one reader's next work. A shard with pixels is larger than this and is a block by itself."""
MOST_SLIDE_BLOCKS = 10_000
"""Blocks of the graph's input: one slide each, until there are more slides than this."""
OBJECT_STORE_SHARE = 0.5
"""Of the cluster's object store, what the graph may hold: beyond it Ray starts no task that makes
more. What tasks are making at that moment comes on top: a shard with pixels is 39 MB."""
LARGE_MODEL = 50_000_000
"""Parameters beyond which a CPU is so slow that it is said, and compiling pays."""
READ_CALLS = 2
"""Calls under way in a reading actor."""
ENCODE_CALLS = 2
"""Calls under way in an encoding actor."""
STAGE_CALLS = 8
"""Calls under way in a staging actor: nearly all of one is waiting for the store."""
ACTOR_START_DEATHS = 3
"""Actors that may die while starting before the job gives up."""
LOOK_EVERY_S = 2.0
"""Seconds between two looks of a reader at the stop sign: a thousand readers ask one actor."""
TABLES_WAITING = 4
"""Finished tables that wait for the driver."""

T = TypeVar("T")


class StopSign:
    """Tells all readers, wherever they are, to begin nothing new. Goes to them by pickling."""

    def __init__(self) -> None:
        self._actor: Any = ray.remote(num_cpus=0)(_Flag).remote()
        self._seen, self._looked_at = False, 0.0

    def set(self) -> None:
        """Begin nothing new, from now on."""
        if not self._seen:
            self._seen = True
            self._actor.set.remote()

    def __call__(self) -> bool:
        """Whether it is set, as far as this process has heard."""
        now = time.monotonic()
        if not self._seen and now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            try:
                self._seen = bool(ray.get(self._actor.is_set.remote(), timeout=LOOK_EVERY_S))
            except RayError:
                return False  # its node is gone: this job ends without grace
        return self._seen


class _Flag:
    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set


@dataclass(frozen=True, kw_only=True)
class Graph:
    """What the stages of one job need."""

    run: str
    """Name of the run, for the log."""
    settings: JobSettings
    """Limits, batch size, weights."""
    recipe: Recipe
    """What the stages have to make."""
    output: Store
    """The output's root."""
    placement: Placement
    """How many actors, and what each holds."""
    stop_sign: StopSign
    """Makes the readers stop."""

    def rows(self, tasks: SlideTasks) -> Iterator[Any]:
        """Small Arrow tables of the finished rows of `tasks`, as they come out of the graph.

        Raises what ended it: an error of ours, or a ClusterError that tells Ray's in one sentence.
        """
        tables = self._of(tasks).iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        )
        try:
            yield from tables
        except ExecutionTimeoutError as error:
            raise ClusterError(_stalled(error, self.settings.no_progress_s)) from None
        except RayError as error:
            raise own_error(error) from None

    def _of(self, tasks: SlideTasks) -> ray.data.Dataset:
        settings, recipe, placement = self.settings, self.recipe, self.placement
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        context.max_consecutive_actor_init_deaths = ACTOR_START_DEATHS
        context.execution_no_progress_timeout_s = settings.no_progress_s
        # Sizing blocks here, not by repartition(), whose tasks would hold a whole CPU each.
        context.target_max_block_size = PLAN_BLOCK_BYTES
        context.override_object_store_memory_limit_fraction = OBJECT_STORE_SHARE
        plan = PlanSlide(
            recipe.tiling,
            recipe.tissue,
            recipe.normalise,
            max_tiles=settings.max_tiles_per_slide,
            watch=self._watch("plan"),
        )
        stager = {
            "output": self.output,
            "recipe_fp": recipe.fingerprint,
            "watch": self._watch("stage"),
        }
        encoder = {
            "identity": recipe.encoder,
            "weights": settings.weights,
            "device": placement.device,
            "batch_size": settings.batch_size,
            "threads": placement.threads,
            "compile": compiles(settings),
            "watch": self._watch("encode"),
        }
        on_gpu = placement.encoder_gpus > 0
        # Ray asks for their number, and for one after the other.
        items = cast(list[Any], tasks)
        return (
            ray.data.from_items(items, override_num_blocks=min(len(items), MOST_SLIDE_BLOCKS))
            .map_batches(plan.__call__, batch_size=1, batch_format="pyarrow", num_cpus=PLAN_CPUS)
            .map_batches(
                ReadTiles,
                fn_constructor_kwargs={
                    "normalise": recipe.normalise,
                    "threads": placement.reader_threads,
                    "stopped": self.stop_sign,
                    "watch": self._watch("read"),
                },
                batch_size=None,
                batch_format="pyarrow",
                # While one call waits for a slide to open, the other one decodes.
                compute=_pool(placement.readers, calls=READ_CALLS),
                num_cpus=placement.reader_cpus,
            )
            .map_batches(
                EncodeTiles,
                fn_constructor_kwargs=encoder,
                batch_size=4 if on_gpu else 1,
                batch_format="pyarrow",
                # While one call's tiles are computed, the next one's are at hand.
                compute=_pool(placement.encoders, calls=ENCODE_CALLS),
                num_cpus=placement.encoder_cpus,
                num_gpus=placement.encoder_gpus if on_gpu else None,
                resources=placement.encoder_resources,
            )
            .map_batches(
                StageShard,
                fn_constructor_kwargs=stager,
                batch_size=1,
                batch_format="pyarrow",
                # Actors, for tasks that come in bursts: Ray ends a worker that had nothing to do
                # for a second, and the next one takes seconds of a CPU to start.
                compute=_pool(placement.stagers, calls=STAGE_CALLS),
                num_cpus=STAGE_CPUS,
            )
        )

    def _watch(self, stage: str) -> StageWatch:
        return StageWatch(stage=stage, run=self.run, recipe_fp=self.recipe.fingerprint)


def compiles(settings: JobSettings) -> bool:
    """Whether encoders compile the model: minutes that a trial of some tiles would not win back."""
    if settings.compile is not None:
        return settings.compile
    return get_spec(settings.model).parameters > LARGE_MODEL and not settings.max_tiles_per_slide


def _pool(size: int, *, calls: int = 1) -> ray.data.ActorPoolStrategy:
    """So many actors, each with so many calls under way, on a thread each."""
    return ray.data.ActorPoolStrategy(
        min_size=size,
        max_size=size,
        max_concurrent_calls_per_actor=calls,
        enable_true_multi_threading=calls > 1,
    )


def _stalled(error: ExecutionTimeoutError, no_progress_s: float) -> str:
    """Ray's list of stages that have not ended, in one sentence."""
    stages = re.findall(r"- (?:\w+\()?(\w+)[^:]*: (\d+) active", str(error))
    at_work = ", ".join(f"{stage} ({tasks} tasks)" for stage, tasks in stages if tasks != "0")
    where = f"at work were {at_work}" if at_work else "no stage had room to start a task"
    return (
        f"nothing moved for {no_progress_s:g} s: {where}; what is done stays done: look at the "
        "cluster, and whether its nodes kill workers for want of memory, then run again to go on "
        "(no_progress_s: how long to wait)."
    )


def polled(items: Iterator[T], every_s: float) -> Generator[T | None, None, None]:
    """What `items` yields, and None whenever nothing came for `every_s` seconds.

    A thread of its own takes the items, so that who iterates can do something else meanwhile, and
    leave: `items` is then closed when its next one comes.
    """
    arrived: Queue[T | BaseException] = Queue(TABLES_WAITING)
    left, end = threading.Event(), StopIteration()

    def hand_over(item: T | BaseException) -> None:
        while not left.is_set():
            try:
                arrived.put(item, timeout=every_s)
            except Full:
                continue
            return

    def bring() -> None:
        try:
            for item in items:
                hand_over(item)
                if left.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 (raised again where it is waited for)
            hand_over(error)
        else:
            hand_over(end)

    threading.Thread(target=bring, name="graph", daemon=True).start()
    try:
        while True:
            try:
                item = arrived.get(timeout=every_s)
            except Empty:
                yield None
                continue
            if item is end:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        left.set()
