"""One driver in a process of its own, so that its memory is nobody else's; see `scale`.

    python -m tests.benchmarks.scale_driver PHASE [--slides N] [--one-in K]

Its last line is one JSON object. The environment points at a `BucketServer` with sources in it.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

# What the driver of a job imports, so that its memory is counted here too.
import ray_pipeline.pipeline  # noqa: F401
from ray_pipeline.dataset.layout import Layout
from ray_pipeline.dataset.records import SlideRecord, encode_vector, put_record
from ray_pipeline.dataset.slides_table import compact
from ray_pipeline.dataset.start import probe_conditional
from ray_pipeline.driver import Commits, Driver, begin
from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.encoders.spec import EncoderIdentity
from ray_pipeline.endings import Endings, FailureWriter
from ray_pipeline.progress import Reporter
from ray_pipeline.recipe import Recipe, recipe_of
from ray_pipeline.settings import JobSettings
from ray_pipeline.slides.slide import slide_id_of
from ray_pipeline.sources import find_slides
from ray_pipeline.stages import StageShard
from ray_pipeline.stopping import Stop
from ray_pipeline.store import Store
from ray_pipeline.worklist import SlideList
from tests.benchmarks.report import peak_gb
from tests.benchmarks.scale_filled import OUTPUT, SOURCES, source_key
from tests.benchmarks.scale_stages import (
    FACTS,
    CommitsHere,
    SimulatedCommits,
    SimulatedStages,
    staged_tables,
)

TILES = 10_000
"""Of every slide."""
DIM = 1536
"""Numbers of a vector, of `SETTINGS`' model."""
SETTINGS = JobSettings(slides=[SOURCES], output=OUTPUT, model="h-optimus-0")


def recipe() -> Recipe:
    """The job's recipe; no weights are needed to simulate."""
    spec = get_spec(SETTINGS.model)
    identity = EncoderIdentity.of(spec, weights_digest="0" * 64, meaningful=False, precision="fp16")
    return recipe_of(SETTINGS, identity)


@dataclass
class Clock:
    """CPU and wall seconds of named parts."""

    parts: dict[str, dict[str, float]]

    def time(self, name: str, action: Callable[[], Any]) -> Any:
        """Do it, and note what it took."""
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        result = action()
        self.parts[name] = {
            "wall_s": round(time.perf_counter() - wall_s, 4),
            "cpu_s": round(time.process_time() - cpu_s, 4),
        }
        return result


def _begun(clock: Clock) -> Endings:
    sources = clock.time("list_sources", lambda: SlideList(find_slides(SETTINGS.slides)))
    output = Store.open(OUTPUT)
    conditional = probe_conditional(output, "run-1")
    endings: Endings = clock.time(
        "list_output_and_choose",
        lambda: begin(SETTINGS, recipe(), output, sources, run="run-1", conditional=conditional),
    )
    return endings


def _followed(endings: Endings, commits: Commits, tables: Callable[[Driver], Any]) -> None:
    with FailureWriter(endings, print) as failed:
        driver = Driver(
            settings=SETTINGS,
            endings=endings,
            failed=failed,
            reporter=Reporter(io.StringIO()),
            stop=Stop(),
            commits=commits,
        )
        driver.refuse()
        driver.follow(tables(driver), on_stop=lambda: None)
    report = endings.report
    assert report.slides_done == report.slides > 0, report.failures[:3]


def fresh(asked: argparse.Namespace) -> dict[str, Any]:
    """A job of which nothing is done: everything the driver does but the slides table."""
    clock = Clock({})
    endings = _begun(clock)
    stages = SimulatedStages(TILES, asked.one_in)
    _followed(endings, SimulatedCommits(), lambda driver: stages.tables(driver.tasks()))
    clock.time("report", lambda: endings.close(print, in_haste=True))
    return {
        "slides": endings.report.slides,
        "parts": clock.parts,
        "full": asdict(stages.full),
        "staged_earlier": asdict(stages.staged),
    }


def finished(_asked: argparse.Namespace) -> dict[str, Any]:
    """A job of which everything is done, run again."""
    clock = Clock({})
    endings = _begun(clock)
    work = endings.work
    assert not work.todo, work.todo[:3]
    assert not work.failures, work.failures[:3]
    clock.time("slides_table_and_report", lambda: endings.close(print))
    return {"slides": len(work.finished), "parts": clock.parts}


def commit(_asked: argparse.Namespace) -> dict[str, Any]:
    """A small job whose fragments and files are real: what a slide asks of the store."""
    clock = Clock({})
    endings = _begun(clock)
    commits = CommitsHere()
    stage = StageShard(endings.output, endings.recipe.fingerprint)
    _followed(
        endings,
        commits,
        lambda driver: staged_tables(driver.tasks(), stage, TILES, DIM),
    )
    clock.time("slides_table_and_report", lambda: endings.close(print))
    return {
        "slides": endings.report.slides,
        "parts": clock.parts,
        "commit_cpu_s": round(statistics.median(commits.seconds), 3),
    }


def compacted(asked: argparse.Namespace) -> dict[str, Any]:
    """The slides table of many slides, from their records."""
    output, layout, clock = Store.open(OUTPUT), Layout(recipe().fingerprint), Clock({})
    vector = encode_vector(np.zeros(DIM, np.float32))
    for number in range(asked.slides):
        key = source_key(number)
        record = SlideRecord(
            slide_id=slide_id_of(key),
            uri=f"{SOURCES}{key}",
            status="done",
            run="run-1",
            facts=FACTS,
            mean_embedding=vector,
            max_embedding=vector,
        )
        put_record(output, layout, record)
    rows = clock.time("compact", lambda: compact(output, layout, print))
    return {"slides": rows, "parts": clock.parts}


PHASES = {"fresh": fresh, "finished": finished, "commit": commit, "compact": compacted}


def main() -> None:
    """Run one phase."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("phase", choices=PHASES)
    parser.add_argument("--slides", type=int, default=0)
    parser.add_argument("--one-in", type=int, default=1)
    asked = parser.parse_args()
    at_start = peak_gb()
    told = PHASES[asked.phase](asked)
    told["rss_gb"], told["rss_at_start_gb"] = peak_gb(), at_start
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
