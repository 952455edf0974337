"""Committing a slide: once, whole, verified, and harmless wherever it is cut short."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_pipeline.dataset.commit import CommitJob, commit_slide, sweep
from ray_pipeline.dataset.layout import Layout
from ray_pipeline.dataset.records import SlideRecord, decode_vector, get_records
from ray_pipeline.dataset.schema import Footer
from ray_pipeline.dataset.staging import list_staged
from ray_pipeline.dataset.start import probe_conditional, read_state
from ray_pipeline.errors import (
    AccessError,
    CommitConflictError,
    StagingLostError,
    UnreachableError,
    UnsupportedError,
)
from ray_pipeline.ranged_file import RangedFile
from ray_pipeline.store import Store
from tests.dataset.conftest import MakeJob, staged_slide
from tests.servers.gcs import gcs_bucket
from tests.servers.memory import Conditions

LAYOUT = Layout("f00df00df00d")


class Crash(BaseException):
    """The process dies here."""


@dataclass
class FlakyStore(Store):
    """A store whose n-th change is lost, or done but never answered."""

    changes_left: int = 10**9
    lose_reply: bool = False

    def put(
        self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        self.changes_left -= 1
        if self.changes_left == 0 and not self.lose_reply:
            raise Crash
        etag = super().put(key, data, if_absent=if_absent, if_match=if_match)
        if self.changes_left == 0:
            raise UnreachableError("the reply was lost.")
        return etag

    def delete(self, keys: Iterable[str]) -> None:
        self.changes_left -= 1
        if self.changes_left == 0:
            raise Crash
        super().delete(keys)


@dataclass
class RestlessStore(Store):
    """A store where another driver replaces files between a HEAD and the read that follows."""

    replacing: list[tuple[str, bytes]] = field(default_factory=list)

    def open_file(self, key: str, **said: Any) -> RangedFile:
        if self.replacing:
            self.put(*self.replacing.pop())
            # Versions of local files are whole seconds and sizes: nothing else tells them apart.
            said["etag"] = "another"
        return super().open_file(key, **said)


class HalfConditionalStore(Store):
    """A store that knows `If-None-Match` and not `If-Match`."""

    def put(self, key: str, data: bytes, **said: Any) -> str:
        if said.get("if_match") is not None:
            raise UnsupportedError(f"{key}: not implemented.")
        return super().put(key, data, **said)


class UndeletingStore(Store):
    """A store that refuses to delete."""

    def delete(self, keys: Iterable[str]) -> None:
        raise AccessError(f"{list(keys)}: refused to delete.")


def flaky(job: CommitJob, changes_left: int, *, lose_reply: bool = False) -> CommitJob:
    plain = {k: v for k, v in vars(job.output).items() if k != "_backend"}
    return replace(
        job, output=FlakyStore(**plain, changes_left=changes_left, lose_reply=lose_reply)
    )


def committed(job: CommitJob) -> pq.ParquetFile:
    return pq.ParquetFile(job.output.open_file(job.key))


def assert_finished(job: CommitJob) -> None:
    file = committed(job)
    assert file.read(columns=["tile"])["tile"].to_pylist() == list(range(job.n_tiles))
    assert list(job.output.list(f"{LAYOUT.state}/quarantine")) == []
    assert job.output.head(LAYOUT.done_key("slide-1", job.footer.input_fp)).size_bytes == 0
    assert list_staged(job.output, LAYOUT) == {}
    (record,) = get_records(job.output, [LAYOUT.record("slide-1")])
    assert (record.status, record.n_tiles, record.output) == ("done", job.n_tiles, job.key)


def assert_pooled(record: SlideRecord, file: pq.ParquetFile) -> None:
    """The record has the mean and the maximum of the file's vectors."""
    vectors = np.stack(file.read()["embedding"].to_pylist()).astype(np.float32)
    assert record.mean_embedding is not None
    assert record.max_embedding is not None
    assert np.allclose(decode_vector(record.mean_embedding), vectors.mean(axis=0), atol=1e-5)
    assert np.array_equal(decode_vector(record.max_embedding), vectors.max(axis=0))


def test_the_file_holds_every_tile_and_says_what_it_is(staged: MakeJob) -> None:
    job = staged(n_tiles=9000)
    record = commit_slide(job)
    assert_finished(job)
    file = committed(job)
    assert Footer.from_metadata(file.schema_arrow.metadata) == job.footer
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [
        4096,
        4096,
        808,
    ]
    assert_pooled(record, file)


def test_a_slide_without_tissue_becomes_a_file_with_zero_rows(staged: MakeJob) -> None:
    job = staged(n_tiles=0)
    record = commit_slide(job)
    assert (record.status, record.mean_embedding, record.max_embedding) == ("empty", None, None)
    assert committed(job).metadata.num_rows == 0


@pytest.mark.parametrize("conditional", [True, False], ids=["conditional", "overwrite"])
@pytest.mark.parametrize("step", range(1, 5))
def test_a_crash_before_any_step_is_harmless(staged: MakeJob, step: int, conditional: bool) -> None:
    job = replace(staged(), conditional=conditional)
    with pytest.raises(Crash):
        commit_slide(flaky(job, step))
    etag = job.output.head(job.key).etag if step > 1 else None
    commit_slide(job)
    assert_finished(job)
    assert etag in (None, job.output.head(job.key).etag), "the file that stood was not touched"


def test_a_lost_reply_to_the_put_is_read_back(staged: MakeJob) -> None:
    job = staged()
    commit_slide(flaky(job, 1, lose_reply=True))
    assert_finished(job)


def test_another_attempt_with_other_bits_wins_and_stays(staged: MakeJob) -> None:
    first = staged(seed=1)
    commit_slide(first)
    etag = first.output.head(first.key).etag
    second = staged(seed=2)
    record = commit_slide(second)
    assert first.output.head(first.key).etag == etag
    assert_finished(second)
    assert_pooled(record, committed(first))


@pytest.mark.parametrize("conditional", [True, False], ids=["conditional", "overwrite"])
def test_a_different_file_is_never_overwritten(staged: MakeJob, conditional: bool) -> None:
    commit_slide(staged(input_fp="aaaaaaaaaaaa"))
    other = replace(staged(input_fp="cccccccccccc", n_tiles=300), conditional=conditional)
    before = other.output.head(other.key).etag
    for run in ("run-1", "run-2"):
        again = replace(other, record=replace(other.record, run=run))
        with pytest.raises(CommitConflictError, match="a different file already stands"):
            commit_slide(again)
    assert other.output.head(other.key).etag == before
    (kept,) = other.output.list(f"{LAYOUT.state}/quarantine")
    assert kept.key == LAYOUT.quarantine("slide-1", other.footer.plan_fp)
    assert kept.size_bytes > 0


def test_a_foreign_file_in_our_place_is_never_overwritten(staged: MakeJob) -> None:
    job = staged()
    job.output.put(job.key, b"somebody's notes")
    with pytest.raises(CommitConflictError):
        commit_slide(job)
    assert job.output.get(job.key) == b"somebody's notes"


def test_an_older_output_is_replaced_only_in_the_version_that_was_seen(staged: MakeJob) -> None:
    old = staged(input_fp="aaaaaaaaaaaa")
    commit_slide(old)
    seen = old.output.head(old.key).etag
    stale = (LAYOUT.done_key("slide-1", "aaaaaaaaaaaa"),)
    new = staged(input_fp="cccccccccccc", n_tiles=300)
    commit_slide(replace(new, replace_etag=seen, stale_done=stale))
    assert_finished(new)
    assert {i.key for i in new.output.list(LAYOUT.done)} == {
        LAYOUT.done_key("slide-1", "cccccccccccc"),
        LAYOUT.replaced_key("slide-1"),
    }
    late = staged(input_fp="dddddddddddd", n_tiles=200)
    with pytest.raises(CommitConflictError):
        commit_slide(replace(late, replace_etag=seen))


@pytest.mark.parametrize("conditions", ["honoured", "refused", "ignored"])
def test_an_older_output_on_gcs_is_replaced_in_its_version_only(
    monkeypatch: pytest.MonkeyPatch, conditions: Conditions
) -> None:
    with gcs_bucket(conditions) as endpoint:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
        output = Store.open("gs://bucket/out")
        conditional = probe_conditional(output, "run-1")
        assert conditional is (conditions == "honoured")

        def job(**said: Any) -> CommitJob:
            return replace(staged_slide(store=output, **said), conditional=conditional)

        old = job(input_fp="aaaaaaaaaaaa")
        commit_slide(old)
        seen = output.head(old.key).etag
        new = replace(job(input_fp="cccccccccccc", n_tiles=300), replace_etag=seen)
        stale = (LAYOUT.done_key("slide-1", "aaaaaaaaaaaa"),)
        commit_slide(replace(new, stale_done=stale))
        assert_finished(new)
        late = replace(job(input_fp="dddddddddddd", n_tiles=200), replace_etag=seen)
        with pytest.raises(CommitConflictError):
            commit_slide(late)
        assert committed(new).metadata.num_rows == 300


def test_an_older_output_is_replaced_where_only_if_match_is_unknown(staged: MakeJob) -> None:
    old = staged(input_fp="aaaaaaaaaaaa")
    commit_slide(old)
    new = staged(input_fp="cccccccccccc", n_tiles=300)
    plain = {k: v for k, v in vars(new.output).items() if k != "_backends"}
    seen = new.output.head(new.key).etag
    commit_slide(replace(new, output=HalfConditionalStore(**plain), replace_etag=seen))
    assert_finished(new)


@pytest.mark.parametrize("step", range(1, 7))
def test_a_crash_while_replacing_leaves_no_done_key_beside_a_file_it_was_not_written_for(
    staged: MakeJob, step: int
) -> None:
    old = staged(input_fp="aaaaaaaaaaaa")
    commit_slide(old)
    stale = (LAYOUT.done_key("slide-1", "aaaaaaaaaaaa"),)
    new = staged(input_fp="cccccccccccc", n_tiles=300)
    new = replace(new, replace_etag=old.output.head(old.key).etag, stale_done=stale)
    with pytest.raises(Crash):
        commit_slide(flaky(new, step))
    footer = Footer.from_metadata(committed(new).schema_arrow.metadata)
    assert footer is not None
    done = {info.key for info in new.output.list(LAYOUT.done)} - {LAYOUT.replaced_key("slide-1")}
    assert done <= {LAYOUT.done_key("slide-1", footer.input_fp)}
    commit_slide(new)
    assert_finished(new)


def test_a_missing_fragment_is_said_and_nothing_is_written(staged: MakeJob) -> None:
    job = staged(skip=(1,))
    with pytest.raises(StagingLostError, match="the staged fragment of shard 1 is gone"):
        commit_slide(job)
    assert list(job.output.list("embeddings")) == []


def test_a_missing_fragment_is_no_matter_where_the_output_stands(staged: MakeJob) -> None:
    job = staged()
    commit_slide(job)
    commit_slide(job)
    assert_finished(job)


def test_a_missing_fragment_matters_where_the_output_is_of_another_plan(staged: MakeJob) -> None:
    commit_slide(staged(n_tiles=300))
    job = staged(plan_fp="999999999999", skip=(1,))
    with pytest.raises(StagingLostError):
        commit_slide(job)
    (record,) = get_records(job.output, [LAYOUT.record("slide-1")])
    assert record.n_tiles == 300


def test_a_file_replaced_while_it_is_read_back_is_read_again(staged: MakeJob) -> None:
    job = staged(seed=1)
    commit_slide(job)
    data = job.output.get(job.key)
    plain = {k: v for k, v in vars(job.output).items() if k != "_backends"}
    restless = RestlessStore(**plain, replacing=[(job.key, data)] * 2)
    record = commit_slide(replace(staged(seed=2), output=restless, conditional=False))
    assert record.status == "done"
    assert restless.replacing == []
    assert_finished(job)


def spoilt(data: bytes, damage: str) -> bytes:
    """A fragment's bytes after `damage`."""
    with pa.ipc.open_stream(data) as reader:
        table = reader.read_all()
    if damage == "a NaN":
        values = table["embedding"].combine_chunks().flatten().to_numpy().copy()
        values[5] = np.nan
        column = pa.FixedSizeListArray.from_arrays(
            pa.array(values), type=table.schema.field("embedding").type
        )
        table = table.set_column(4, table.schema.field("embedding"), column)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        if damage != "no rows":
            writer.write_table(table.slice(0, 100) if damage == "few rows" else table)
    whole: bytes = sink.getvalue().to_pybytes()
    return {"nothing": b"", "junk": b"junk" * 100, "cut short": whole[: len(whole) // 2]}.get(
        damage, whole
    )


@pytest.mark.parametrize(
    "damage", ["nothing", "junk", "cut short", "no rows", "few rows", "a NaN", "another shard's"]
)
def test_a_damaged_fragment_is_deleted_so_that_a_rerun_redoes_it(
    staged: MakeJob, damage: str
) -> None:
    job = staged()
    key = LAYOUT.fragment("slide-1", job.footer.plan_fp, 1)
    other = LAYOUT.fragment("slide-1", job.footer.plan_fp, 0)
    data = job.output.get(other if damage.startswith("another") else key)
    job.output.put(key, spoilt(data, damage))
    with pytest.raises(StagingLostError, match="shard 1 was damaged"):
        commit_slide(job)
    assert list_staged(job.output, LAYOUT) == {"slide-1": {job.footer.plan_fp: [0, 2]}}


def test_all_damaged_fragments_are_deleted_at_once_so_that_one_rerun_is_enough(
    staged: MakeJob,
) -> None:
    job = staged()
    for shard in (0, 2):
        job.output.put(LAYOUT.fragment("slide-1", job.footer.plan_fp, shard), b"junk")
    with pytest.raises(StagingLostError, match="shard 0 was damaged"):
        commit_slide(job)
    assert list_staged(job.output, LAYOUT) == {"slide-1": {job.footer.plan_fp: [1]}}


def test_a_done_slide_stays_done_when_its_fragments_can_not_be_deleted(staged: MakeJob) -> None:
    job = staged()
    plain = {k: v for k, v in vars(job.output).items() if k != "_backends"}
    record = commit_slide(replace(job, output=UndeletingStore(**plain)))
    assert record.status == "done"
    assert job.output.head(LAYOUT.done_key("slide-1", job.footer.input_fp)).size_bytes == 0


def test_fragments_of_another_plan_stay(staged: MakeJob) -> None:
    staged(plan_fp="999999999999")
    job = staged()
    commit_slide(job)
    assert list(list_staged(job.output, LAYOUT)["slide-1"]) == ["999999999999"]


def test_what_a_crash_left_staged_of_a_finished_slide_is_swept(staged: MakeJob) -> None:
    commit_slide(staged())
    job = staged()  # as after a crash between the done key and the deletion
    staged(plan_fp="999999999999")
    staged("slide-2")
    sweep(job.output, LAYOUT, read_state(job.output, LAYOUT), ["slide-1"])
    assert list_staged(job.output, LAYOUT) == {
        "slide-1": {"999999999999": [0, 1, 2]},
        "slide-2": {job.footer.plan_fp: [0, 1, 2]},
    }
    plain = {k: v for k, v in vars(job.output).items() if k != "_backends"}
    stuck = UndeletingStore(**plain)
    staged()
    sweep(stuck, LAYOUT, read_state(stuck, LAYOUT), ["slide-1"])
