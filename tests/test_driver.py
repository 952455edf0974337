"""The driver by itself: rows from a list, commits in this process."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from ray_pipeline.dataset.commit import CommitJob, commit_slide
from ray_pipeline.dataset.records import SlideRecord
from ray_pipeline.driver import Driver, begin
from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.encoders.spec import EncoderIdentity
from ray_pipeline.endings import FailureWriter
from ray_pipeline.progress import Reporter
from ray_pipeline.recipe import recipe_of
from ray_pipeline.settings import JobSettings
from ray_pipeline.sources import find_slides
from ray_pipeline.stages import PlanSlide
from ray_pipeline.stopping import Stop
from ray_pipeline.store import Store
from ray_pipeline.synthetic import write_slide
from ray_pipeline.worklist import SlideList


class SlowCommits:
    """Commits that end at the fourth look."""

    most = 8

    def __init__(self) -> None:
        self._looks, self._records = 0, dict[str, SlideRecord]()

    def launch(self, job: CommitJob) -> str:
        self._records[job.key] = commit_slide(job)
        return job.key

    def first_of(self, launched: Sequence[str], timeout_s: float) -> str | None:
        self._looks += timeout_s > 0
        return launched[0] if self._looks > 3 else None

    def result(self, launched: str) -> SlideRecord:
        return self._records[launched]


def test_progress_is_told_while_only_commits_are_under_way(tmp_path: Path) -> None:
    write_slide(tmp_path / "blank.svs", width_px=1024, height_px=1024, seed=1, blank=True)
    settings = JobSettings(
        slides=[str(tmp_path / "blank.svs")], output=str(tmp_path / "out"), model="toy"
    )
    identity = EncoderIdentity.of(
        get_spec("toy"), weights_digest="0" * 64, meaningful=False, precision="fp16"
    )
    recipe = recipe_of(settings, identity)
    output, sources = Store.open(settings.output), SlideList(find_slides(settings.slides))
    endings = begin(settings, recipe, output, sources, run="run-1", conditional=False)
    told = io.StringIO()
    with FailureWriter(endings, print) as failed:
        driver = Driver(
            settings=settings,
            endings=endings,
            failed=failed,
            reporter=Reporter(told, every_s=0.0),
            stop=Stop(),
            commits=SlowCommits(),
        )
        plan = PlanSlide(recipe.tiling, recipe.tissue, recipe.normalise)
        driver.follow(plan(pa.Table.from_pylist(list(driver.tasks()))), on_stop=lambda: None)
    assert endings.report.slides_done == 1
    done = [json.loads(line)["progress"]["slides_done"] for line in told.getvalue().splitlines()]
    # One line for the table, one for each look in vain, one at the end.
    assert done == [0, 0, 0, 0, 1]
