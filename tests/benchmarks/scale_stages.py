"""Stand-ins for what runs on the nodes of a cluster, for benchmarks of the driver."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from ray_pipeline.dataset.commit import CommitJob, commit_slide
from ray_pipeline.dataset.records import SlideRecord
from ray_pipeline.plan import tiles_in_shards
from ray_pipeline.recipe import SHARD_TILES
from ray_pipeline.rows import HEADER, ShardRow, to_table
from ray_pipeline.stages import StageShard

PLAN_FP = "0123456789ab"
WINDOW_SLIDES = 64
"""Slides whose shards come in turns: about as many as a large cluster has under way."""
FACTS: dict[str, Any] = {
    "vendor": "aperio",
    "width_px": 98304,
    "height_px": 81920,
    "mpp_found": 0.2528,
    "mpp_source": "aperio MPP",
    "mpp_used": 0.2528,
    "mpp_asked": 0.5,
    "mpp_achieved": 0.5056,
    "level": 0,
    "reduce": 2,
    "resampled": False,
    "icc_profile": True,
    "tile_size_l0": 448.0,
    "tissue_mm2": 125.4,
    "mask": {"threshold": 0.0713, "holes": 12.0, "pieces": 3.0, "share": 0.31},
}
"""What planning tells of a slide."""
READ = {"gets": 15, "bytes_fetched": 4_100_000, "bytes_needed": 4_000_000, "retries": 0}
"""What reading a shard costs, about."""


def header_row(task: dict[str, Any], n_tiles: int, staged: Sequence[int]) -> ShardRow:
    """What `PlanSlide` tells of a slide."""
    info = {
        "n_shards": -(-n_tiles // SHARD_TILES),
        "n_tiles": n_tiles,
        "plan_fp": PLAN_FP,
        "staged": list(staged),
        "facts": FACTS,
        "seconds": 0.4321,
        **READ,
    }
    return ShardRow(shard=HEADER, info=info, **_named(task))


def shard_row(task: dict[str, Any], shard: int, n_tiles: int, *, tile_px: int = 224) -> ShardRow:
    """What `PlanSlide` tells of one shard."""
    first = shard * SHARD_TILES
    n = min(SHARD_TILES, n_tiles - first)
    return ShardRow(
        shard=shard,
        first_tile=first,
        xy=np.zeros((n, 2), np.int32),
        tissue=np.ones(n, np.float32),
        info={
            "level": 0,
            "reduce": 2,
            "side_px": tile_px,
            "tile_px": tile_px,
            "mpp_override": None,
            "stain_fit": None,
            "plan_fp": PLAN_FP,
        },
        **_named(task),
    )


def _named(task: dict[str, Any]) -> dict[str, Any]:
    return {name: task[name] for name in ("slide_id", "uri", "etag")}


def encoded_info(row: ShardRow, dim: int) -> dict[str, Any]:
    """What a shard's row tells once it is read and encoded."""
    n = len(row.xy) if row.xy is not None else 0
    cost = {"seconds": 0.71234567, "device_s": 0.30123456, "places": float(n), "dim": dim}
    return {**row.info, **READ, **cost}


@dataclass
class Cost:
    """What the driver spent on some slides, beside what the stand-ins did meanwhile."""

    slides: int = 0
    rows: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0


@dataclass
class SimulatedStages:
    """Rows as they come out of the graph, a table each, the shards of many slides in turns.

    Of every `one_in` windows one has all its shards done now. Of the others an earlier run has
    staged them, so that a slide is one row and its commit: a million slides have 41 million rows.
    """

    n_tiles: int
    one_in: int
    full: Cost = field(default_factory=Cost)
    """Of slides with all their shards."""
    staged: Cost = field(default_factory=Cost)
    """Of slides that were staged earlier."""

    def tables(self, tasks: Iterable[dict[str, str]]) -> Iterator[pa.Table]:
        """What the graph would give for `tasks`."""
        shards = range(-(-self.n_tiles // SHARD_TILES))
        anyone = {"slide_id": "", "uri": "", "etag": ""}
        done = [replace(shard_row(anyone, shard, self.n_tiles), xy=None) for shard in shards]
        n = [tiles_in_shards(self.n_tiles, [shard]) for shard in shards]
        rows = [
            replace(row, tissue=None, info={**encoded_info(row, 1536), "n": n[row.shard]})
            for row in done
        ]
        full = to_table([header_row(anyone, self.n_tiles, []), *rows])
        staged = to_table([header_row(anyone, self.n_tiles, shards)])
        tasks, number = iter(tasks), 0
        while window := [json.loads(task["slide"]) for task in islice(tasks, WINDOW_SLIDES)]:
            kind = self.full if number % self.one_in == 0 else self.staged
            pattern = full if kind is self.full else staged
            whole = [_renamed(pattern, task) for task in window]
            # Cut before the clock starts: on a cluster each comes from a task of its own.
            cut = [table.slice(at, 1) for at in range(pattern.num_rows) for table in whole]
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            yield from cut
            kind.cpu_s += time.process_time() - cpu_s
            kind.wall_s += time.perf_counter() - wall_s
            kind.slides += len(window)
            kind.rows += len(cut)
            number += 1


def _renamed(pattern: pa.Table, task: dict[str, Any]) -> pa.Table:
    for name, value in _named(task).items():
        column = pa.array([value] * pattern.num_rows, pa.string())
        pattern = pattern.set_column(pattern.schema.get_field_index(name), name, column)
    return pattern


@dataclass
class SimulatedCommits:
    """Commits that write nothing, and end as soon as room is wanted."""

    most: int = 8

    def launch(self, job: CommitJob) -> CommitRun:
        """See `Commits`."""
        done = replace(job.record, status="done", n_tiles=job.n_tiles, output=job.key)
        return CommitRun(done)

    def first_of(self, launched: Sequence[CommitRun], timeout_s: float) -> CommitRun | None:
        """See `Commits`."""
        return launched[0] if timeout_s > 0 else None

    def result(self, launched: CommitRun) -> SlideRecord:
        """See `Commits`."""
        return launched.record


@dataclass(frozen=True, eq=False)
class CommitRun:
    """One of them."""

    record: SlideRecord


class CommitsHere(SimulatedCommits):
    """Real commits, one after the other in this process."""

    def __init__(self) -> None:
        super().__init__(most=1)
        self.seconds: list[float] = []

    def launch(self, job: CommitJob) -> CommitRun:
        """See `Commits`."""
        started = time.process_time()
        run = CommitRun(commit_slide(job))
        self.seconds.append(time.process_time() - started)
        return run


def staged_tables(
    tasks: Iterable[dict[str, str]], stage: StageShard, n_tiles: int, dim: int
) -> Iterator[pa.Table]:
    """Rows as they come out of the graph, their fragments of random vectors really staged."""
    # Alike in all shards, to be quick; too far apart for zstd to notice.
    vectors = np.random.default_rng(0).standard_normal((SHARD_TILES, dim)).astype(np.float16)
    for text in tasks:
        task = json.loads(text["slide"])
        yield to_table([header_row(task, n_tiles, [])])
        for shard in range(-(-n_tiles // SHARD_TILES)):
            row = shard_row(task, shard, n_tiles)
            assert row.xy is not None
            embedding, info = vectors[: len(row.xy)], encoded_info(row, dim)
            yield stage(to_table([replace(row, embedding=embedding, info=info)]))
