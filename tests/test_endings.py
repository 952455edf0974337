"""What is written of a slide's end: never that it failed where it is done, by whoever."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from ray_pipeline.dataset.commit import CommitJob, commit_slide
from ray_pipeline.dataset.layout import Layout
from ray_pipeline.dataset.records import SlideRecord, get_records, put_record
from ray_pipeline.dataset.report import MOST_FAILURES
from ray_pipeline.dataset.slides_table import read_slides
from ray_pipeline.driver import begin
from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.encoders.spec import EncoderIdentity
from ray_pipeline.endings import Endings, FailureWriter
from ray_pipeline.errors import AccessError
from ray_pipeline.ledger import SlideTally
from ray_pipeline.recipe import recipe_of
from ray_pipeline.rows import Failure
from ray_pipeline.settings import JobSettings
from ray_pipeline.sources import SlideSource
from ray_pipeline.store import Store
from ray_pipeline.worklist import SlideList
from tests.dataset.conftest import staged_slide

SETTINGS = JobSettings.model_validate({"slides": ["x"], "output": "out", "model": "toy"})
IDENTITY = EncoderIdentity.of(
    get_spec("toy"), weights_digest="d", meaningful=False, precision="fp32"
)
RECIPE = recipe_of(SETTINGS, IDENTITY)
LAYOUT = Layout(RECIPE.fingerprint)
SOURCE = SlideSource(slide_id="slide-1", uri="s3://slides/slide-1.svs", etag="e1", size_bytes=7)
FAILURE = Failure(stage="read", kind="store-unreachable", reason="slide-1: no answer.")


@pytest.fixture
def output(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "out"))


def job_of(output: Store, source: SlideSource = SOURCE, n_tiles: int = 300) -> CommitJob:
    return staged_slide(
        store=output,
        input_fp=source.input_fp,
        recipe_fp=LAYOUT.recipe_fp,
        plan_fp=f"{source.etag:0<12}",
        n_tiles=n_tiles,
    )


def begun(output: Store, source: SlideSource = SOURCE) -> Endings:
    """A run that has just listed the output."""
    slides = SlideList([source])
    return begin(SETTINGS, RECIPE, output, slides, run="run-2", conditional=True)


class ReadOnlyStore(Store):
    """A store that lets nothing be written."""

    def put(self, key: str, data: bytes, **_said: Any) -> str:
        raise AccessError(f"{key}: {len(data)} bytes refused to write.")

    def put_file(self, key: str, path: Path) -> None:
        raise AccessError(f"{key}: {path.name} refused to write.")


def record_in(output: Store) -> SlideRecord:
    (record,) = get_records(output, [LAYOUT.record("slide-1")])
    return record


def test_a_failed_slide_has_its_reason_in_its_record(output: Store) -> None:
    begun(output).record_failure(SOURCE, SlideTally(), FAILURE, print)
    record = record_in(output)
    assert (record.status, record.stage, record.error_kind, record.reason) == (
        "failed",
        "read",
        "store-unreachable",
        "slide-1: no answer.",
    )


def test_nothing_is_written_where_another_driver_has_finished_the_slide(output: Store) -> None:
    run = begun(output)
    commit_slide(job_of(output))
    before = record_in(output)
    run.record_failure(SOURCE, SlideTally(), FAILURE, print)
    assert record_in(output) == before


def test_a_failure_over_an_older_output_is_a_note_in_its_record(output: Store) -> None:
    commit_slide(job_of(output))
    changed = replace(SOURCE, etag="e2")
    begun(output, changed).record_failure(changed, SlideTally(), FAILURE, print)
    record = record_in(output)
    assert (record.status, record.n_tiles, record.error_kind) == ("done", 300, "store-unreachable")
    assert record.input_fp == SOURCE.input_fp


@pytest.mark.parametrize("earlier", ["none", "failed", "of another input"])
def test_a_failure_over_a_file_without_a_record_of_it_tells_the_file(
    output: Store, earlier: str
) -> None:
    job = job_of(output)
    good = commit_slide(job)
    output.delete([LAYOUT.record("slide-1"), LAYOUT.done_key("slide-1", SOURCE.input_fp)])
    if earlier == "failed":
        put_record(output, LAYOUT, replace(good, status="failed", n_tiles=0))
    elif earlier != "none":
        put_record(output, LAYOUT, replace(good, input_fp="another", n_tiles=1))
    begun(output).record_failure(SOURCE, SlideTally(), FAILURE, print)
    record = record_in(output)
    assert (record.status, record.n_tiles, record.output) == ("done", 300, job.key)
    assert (record.mean_embedding, record.plan_fp) == (good.mean_embedding, job.footer.plan_fp)
    assert record.max_embedding == good.max_embedding is not None
    assert (record.error_kind, record.run) == ("store-unreachable", "run-2")


def test_a_failure_that_can_not_be_written_is_said_and_the_job_goes_on(output: Store) -> None:
    said: list[str] = []
    plain = {k: v for k, v in vars(output).items() if k != "_backends"}
    run = replace(begun(output), output=ReadOnlyStore(**plain))
    run.record_failure(SOURCE, SlideTally(), FAILURE, said.append)
    (sentence,) = said
    assert sentence.startswith("slide-1: its failure could not be written down: ")


@pytest.mark.parametrize(
    "damage", [b"", b"\xff", b"[1]", b"{}", b'{"slide_id": "slide-1", "facts": 3}']
)
def test_a_record_that_can_not_be_read_is_as_good_as_none(output: Store, damage: bytes) -> None:
    commit_slide(job_of(output))
    output.put(LAYOUT.record("slide-1"), damage)
    said: list[str] = []
    changed = replace(SOURCE, etag="e2")
    begun(output, changed).record_failure(changed, SlideTally(), FAILURE, said.append)
    assert (record_in(output).status, record_in(output).n_tiles, said) == ("done", 300, [])


def test_the_failure_of_a_slide_without_a_possible_name_is_in_the_report_only(
    output: Store,
) -> None:
    source = replace(SOURCE, slide_id="x" * 300)
    run = begun(output, source)
    ((_, failure),) = run.work.failures
    said: list[str] = []
    run.record_failure(source, SlideTally(), failure, said.append)
    assert (said, [info.key for info in output.list()]) == ([], [LAYOUT.recipe])


def test_a_report_and_a_table_that_can_not_be_written_are_said(output: Store) -> None:
    commit_slide(job_of(output))
    said: list[str] = []
    plain = {k: v for k, v in vars(output).items() if k != "_backends"}
    replace(begun(output), output=ReadOnlyStore(**plain)).close(said.append)
    assert [sentence.split(" could not ")[0] for sentence in said] == [
        "the run's report",
        "the slides table",
    ]
    said.clear()
    begun(output).close(said.append)
    assert said == []
    assert read_slides(output, LAYOUT).num_rows == 1
    assert list(output.list(f"{LAYOUT.state}/runs"))


@pytest.mark.parametrize("lie", ["a note", "failed"])
def test_the_record_of_a_finished_slide_tells_no_failure_for_ever(output: Store, lie: str) -> None:
    good = commit_slide(job_of(output))
    changed = replace(SOURCE, etag="e2")
    if lie == "failed":  # written by a driver that had not seen the file yet
        put_record(output, LAYOUT, replace(good, status="failed", n_tiles=0, error_kind="no-mpp"))
    else:
        begun(output, changed).record_failure(changed, SlideTally(), FAILURE, print)
    begun(output, changed).close(print)
    assert record_in(output).error_kind is not None
    begun(output).close(print)  # the source is what it was
    record = record_in(output)
    assert (record.status, record.n_tiles, record.output) == ("done", 300, good.output)
    assert (record.stage, record.error_kind, record.reason) == (None, None, None)
    assert read_slides(output, LAYOUT)["error_kind"].to_pylist() == [None]


@pytest.mark.parametrize("late", ["a failure", "of another input", "nothing"])
def test_a_run_over_a_finished_slide_sets_its_row_right(output: Store, late: str) -> None:
    good = commit_slide(job_of(output))
    begun(output).close(print)
    # What a slow driver wrote after the one that finished the slide, and nobody compacted yet.
    if late == "a failure":
        put_record(output, LAYOUT, replace(good, status="failed", error_kind="no-mpp", n_tiles=0))
    elif late == "of another input":
        put_record(output, LAYOUT, replace(good, input_fp="another", n_tiles=1))
    else:
        output.delete([LAYOUT.record("slide-1")])
    begun(output).close(print)
    (row,) = read_slides(output, LAYOUT).to_pylist()
    assert (row["status"], row["n_tiles"], row["error_kind"]) == ("done", 300, None)
    assert row["input_fp"] == SOURCE.input_fp
    assert (record_in(output).n_tiles, record_in(output).error_kind) == (300, None)


@dataclass
class SlowStore(Store):
    """A store whose puts wait until `together` of them wait."""

    together: threading.Barrier = field(default_factory=lambda: threading.Barrier(4))

    def put(self, key: str, data: bytes, **said: Any) -> str:
        self.together.wait(60)
        return super().put(key, data, **said)


def test_failures_are_written_many_at_once_and_all_of_them(output: Store) -> None:
    plain = {k: v for k, v in vars(output).items() if k != "_backends"}
    run = replace(begun(output), output=SlowStore(**plain))
    with FailureWriter(run, print) as writer:
        for number in range(600):  # more than may wait
            writer.write(replace(SOURCE, slide_id=f"s{number}"), SlideTally(), FAILURE)
    assert len(list(output.list(LAYOUT.records))) == 600


def test_a_report_tells_the_first_failures_and_counts_all(output: Store) -> None:
    report = begun(output).report
    for number in range(MOST_FAILURES + 5):
        report.add_failure(f"s{number}", "s3://b/x.svs", vars(FAILURE))
    assert (report.slides_failed, len(report.failures)) == (MOST_FAILURES + 5, MOST_FAILURES)
    assert report.failures[0] == {"slide_id": "s0", "uri": "s3://b/x.svs", **vars(FAILURE)}
