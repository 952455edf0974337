"""What is still to do: done keys and files must agree, and where they don't the file decides."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_pipeline.dataset.commit import CommitJob, commit_slide
from ray_pipeline.dataset.layout import Layout
from ray_pipeline.dataset.records import get_records, put_record
from ray_pipeline.dataset.slides_table import compact
from ray_pipeline.dataset.start import OutputState, read_state
from ray_pipeline.errors import NotFoundError, UnreachableError
from ray_pipeline.settings import JobSettings
from ray_pipeline.sources import SlideSource
from ray_pipeline.store import Store
from ray_pipeline.worklist import PACKED_SLIDES, SlideList, Work, choose_work
from tests.dataset.conftest import staged_slide

LAYOUT = Layout("f00df00df00d")
V1 = SlideSource(slide_id="slide-1", uri="s3://slides/slide-1.svs", etag="e1")
V2 = replace(V1, etag="e2")


@pytest.fixture
def output(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "out"))


def job_of(output: Store, source: SlideSource, **said: Any) -> CommitJob:
    plan_fp = {"e1": "bbbbbbbbbbbb", "e2": "cccccccccccc"}[source.etag]
    return staged_slide(
        source.slide_id, store=output, input_fp=source.input_fp, plan_fp=plan_fp, **said
    )


def chosen(output: Store, source: SlideSource, **said: Any) -> Work:
    settings = JobSettings.model_validate({"slides": ["x"], "output": "out", **said})
    slides = SlideList([source])
    return choose_work(output, LAYOUT, slides, stated(output, source), settings)


def stated(output: Store, *sources: SlideSource) -> OutputState:
    return read_state(output, LAYOUT, SlideList(sources).inputs())


def done_keys(output: Store) -> list[str]:
    return [info.key.rpartition("/")[2] for info in output.list(LAYOUT.done)]


def test_a_slide_is_finished_when_its_file_and_its_done_key_stand(output: Store) -> None:
    commit_slide(job_of(output, V1))
    work = chosen(output, V1)
    assert (list(work.finished), work.todo, work.failures) == ([V1], [], [])


def test_a_slide_whose_file_was_deleted_is_done_again(output: Store) -> None:
    job = job_of(output, V1)
    commit_slide(job)
    output.delete([job.key])
    work = chosen(output, V1)
    assert (list(work.finished), work.todo) == ([], [V1])


def test_a_file_replaced_just_before_a_crash_is_known_by_its_footer(output: Store) -> None:
    commit_slide(job_of(output, V1))
    output.delete([LAYOUT.done_key("slide-1", V1.input_fp)])
    old = output.head(job_of(output, V1).key).etag
    commit_slide(replace(job_of(output, V2, n_tiles=300), replace_etag=old))
    # As a crash between the put and the done key leaves it.
    output.delete([LAYOUT.done_key("slide-1", V2.input_fp)])
    output.put(LAYOUT.done_key("slide-1", "000000000000"), b"")

    assert chosen(output, V2).todo == [V2], "the file is of this input: only its keys are missing"
    back = chosen(output, V1)
    assert back.finished == []
    assert [failure.kind for _, failure in back.failures] == ["source-changed"]


def test_a_done_key_that_comes_late_is_not_believed_beside_a_file_that_was_replaced(
    output: Store,
) -> None:
    commit_slide(job_of(output, V1))
    output.delete([LAYOUT.done_key("slide-1", V1.input_fp)])
    old = output.head(job_of(output, V1).key).etag
    commit_slide(replace(job_of(output, V2, n_tiles=300), replace_etag=old))
    # The first driver was slow between its file and its done key, the second died between them.
    output.delete([LAYOUT.done_key("slide-1", V2.input_fp)])
    output.put(LAYOUT.done_key("slide-1", V1.input_fp), b"")

    work = chosen(output, V1)
    assert work.finished == []
    assert [failure.kind for _, failure in work.failures] == ["source-changed"]


def test_where_several_done_keys_stand_the_footer_decides(output: Store) -> None:
    commit_slide(job_of(output, V2))
    output.put(LAYOUT.done_key("slide-1", V1.input_fp), b"")
    assert chosen(output, V2).finished == [V2]
    work = chosen(output, V1)
    assert work.finished == []
    assert [failure.kind for _, failure in work.failures] == ["source-changed"]
    assert chosen(output, V1, retry=["source-changed"]).replacing.keys() == {"slide-1"}


def test_a_file_that_the_slides_table_tells_of_is_finished_and_its_done_keys_are_not_looked_at(
    output: Store,
) -> None:
    other = replace(V2, slide_id="slide-2")
    commit_slide(job_of(output, V1))
    compact(output, LAYOUT, print)
    assert (stated(output, V1).settled, stated(output, V1).done) == ({"slide-1"}, {})
    commit_slide(job_of(output, other))
    state = stated(output, V1, other)
    assert (state.settled, state.done) == ({"slide-1"}, {"slide-2": (other.input_fp,)})
    compact(output, LAYOUT, print)
    output.delete(info.key for info in list(output.list(LAYOUT.done)))
    assert stated(output, V1, other).settled == {"slide-1", "slide-2"}
    assert (list(chosen(output, V1).finished), chosen(output, other).todo) == ([V1], [])


def test_a_slide_that_the_slides_table_tells_otherwise_is_not_settled(output: Store) -> None:
    commit_slide(job_of(output, V1))
    assert stated(output, V1).settled == set(), "there is no table"
    compact(output, LAYOUT, print)
    assert stated(output, V2).settled == set(), "its file is of another input"

    standing = output.get(job_of(output, V1).key)
    output.delete([job_of(output, V1).key])
    assert stated(output, V1).settled == set(), "its file is gone"
    output.put(job_of(output, V1).key, standing + b"!")
    assert stated(output, V1).settled == set(), "its file is another one"

    (record,) = get_records(output, [LAYOUT.record("slide-1")])
    version = output.head(job_of(output, V1).key).etag
    put_record(output, LAYOUT, replace(record, output_etag=version))
    compact(output, LAYOUT, print)
    assert stated(output, V1).settled == {"slide-1"}
    noted = replace(record, output_etag=version, error_kind="no-mpp", reason="none.")
    put_record(output, LAYOUT, noted)
    compact(output, LAYOUT, print)
    assert stated(output, V1).settled == set(), "its record tells of a failure since"
    put_record(output, LAYOUT, replace(record, output_etag="~3-1760000000"))
    compact(output, LAYOUT, print)
    assert stated(output, V1).settled == set(), "a version that others may have"


def test_a_slides_table_of_before_files_versions_settles_nothing(output: Store) -> None:
    commit_slide(job_of(output, V1))
    compact(output, LAYOUT, print)
    older = pq.read_table(output.open_file(LAYOUT.slides_table)).drop_columns(["output_etag"])
    sink = pa.BufferOutputStream()
    pq.write_table(older, sink)
    output.put(LAYOUT.slides_table, sink.getvalue().to_pybytes())
    assert stated(output, V1).settled == set()
    assert list(chosen(output, V1).finished) == [V1]


def test_a_replacement_that_was_cut_short_leaves_a_doubt_until_a_commit_is_through(
    output: Store,
) -> None:
    first = job_of(output, V1)
    commit_slide(first)
    compact(output, LAYOUT, print)
    assert stated(output, V1).settled == {"slide-1"}
    version = output.head(first.key).etag
    second = replace(
        job_of(output, V2, n_tiles=300),
        replace_etag=version,
        stale_done=(LAYOUT.done_key("slide-1", V1.input_fp),),
    )
    plain = {k: v for k, v in vars(output).items() if k != "_backends"}
    with pytest.raises(UnreachableError):
        commit_slide(replace(second, output=NoFiles(**plain)))

    state = stated(output, V1)
    assert (state.settled, state.doubted) == (set(), {"slide-1"})
    assert chosen(output, V1).todo == [V1], "its done key is gone, and is put again"
    commit_slide(replace(job_of(output, V1), doubted=True))
    assert LAYOUT.done_key("slide-1", V1.input_fp) in [i.key for i in output.list(LAYOUT.done)]
    compact(output, LAYOUT, print)
    assert (stated(output, V1).settled, stated(output, V1).doubted) == ({"slide-1"}, set())

    commit_slide(replace(second, replace_etag=output.head(first.key).etag))
    compact(output, LAYOUT, print)
    assert (stated(output, V2).settled, stated(output, V2).doubted) == ({"slide-1"}, set())


class NoFiles(Store):
    """A store that takes no files of embeddings."""

    def put(self, key: str, data: bytes, **said: Any) -> str:
        if key.startswith(LAYOUT.embeddings):
            raise UnreachableError(f"{key}: out of reach.")
        return super().put(key, data, **said)


def test_a_damaged_slides_table_settles_nothing(output: Store) -> None:
    commit_slide(job_of(output, V1))
    compact(output, LAYOUT, print)
    whole = output.get(LAYOUT.slides_table)
    for place in range(4, len(whole) - 4, len(whole) // 50):
        output.put(LAYOUT.slides_table, whole[:place] + b"\xff" * 40 + whole[place + 40 :])
        assert list(chosen(output, V1).finished) == [V1]
        assert chosen(output, V2).failures
    for damaged in (b"", b"PAR1", whole[:-100]):
        output.put(LAYOUT.slides_table, damaged)
        assert list(chosen(output, V1).finished) == [V1]


@pytest.mark.parametrize("slide_id", ["x" * 201, "ä" * 34])
def test_a_slide_that_no_folder_can_be_named_after_is_refused_alone(
    output: Store, slide_id: str
) -> None:
    work = chosen(output, replace(V1, slide_id=slide_id))
    ((_, failure),) = work.failures
    assert failure.kind == "long-name"
    assert "past the 200 of a folder's name" in failure.reason
    assert work.todo == []


def test_the_longest_slide_id_is_committed(output: Store) -> None:
    source = replace(V1, slide_id="x" * 200)
    assert chosen(output, source).todo == [source]
    commit_slide(job_of(output, source))
    assert chosen(output, source).finished == [source]


def many_sources(count: int) -> list[SlideSource]:
    return [
        SlideSource(
            slide_id=f"slide-{number:07}",
            uri=f"s3://slides/slide-{number:07}.svs",
            etag=f"{number:032x}",
            size_bytes=3 << 30,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("count", [0, 1, PACKED_SLIDES, 2 * PACKED_SLIDES + 1])
def test_slides_come_out_of_their_list_as_they_went_in(count: int) -> None:
    sources = many_sources(count)
    slides = SlideList(sources)
    assert (list(slides), len(slides)) == (sources, count)
    assert list(slides) == sources, "a second time, too"
    assert slides.slide_ids() == [source.slide_id for source in sources]
    assert slides == sources
    assert slides != [*sources, V1]
    assert V1 not in slides


TOLD = replace(
    V1,
    mpp_override=0.25,
    attributes={
        "site": "liver",
        "grade": 2,
        "share": 0.1,
        "kept": True,
        "note": None,
        "µ": "\ud800",
    },
    coords="s3://b/c.csv",
    coords_digest="d",
)


@pytest.mark.parametrize(
    "told",
    [
        TOLD,
        replace(TOLD, attributes={"scanned": date(2026, 11, 26), "price": Decimal("1.10")}),
        replace(TOLD, attributes={"blocks": [1, 2]}),
        replace(TOLD, error=NotFoundError("gone: it is not there.")),
    ],
    ids=["plain", "dates", "lists", "error"],
)
def test_all_that_is_told_of_a_slide_comes_out_of_the_list(told: SlideSource) -> None:
    *others, came = SlideList([*many_sources(PACKED_SLIDES - 1), told])
    assert others == many_sources(PACKED_SLIDES - 1)
    assert came == told
    types = [type(value) for value in told.attributes.values()]
    assert [type(value) for value in came.attributes.values()] == types


def test_a_list_of_some_of_the_slides_of_another_has_just_those(output: Store) -> None:
    sources = [*many_sources(PACKED_SLIDES + 5), replace(TOLD, attributes={"blocks": [1]})]
    (first, second) = SlideList(sources).pages
    chosen = [number % 3 == 0 for number in range(PACKED_SLIDES)]
    some = SlideList(pages=[first.only(chosen), second.only([True, False] * 3)])
    left = [*sources[:PACKED_SLIDES:3], *sources[PACKED_SLIDES::2]]
    assert (list(some), len(some)) == (left, len(left))
    assert some.slide_ids() == [source.slide_id for source in left]
    assert list(some.inputs()) == [(source.slide_id, source.input_fp) for source in left]
    again = SlideList(pages=[some.pages[0].only([False, True] * (len(left[:-3]) // 2))])
    assert list(again) == left[1:-3:2]


def test_a_slide_that_cannot_be_had_has_no_input() -> None:
    gone = replace(V2, slide_id="gone", error=NotFoundError("gone: it is not there."))
    slides = SlideList([V1, gone])
    assert list(slides.inputs()) == [("slide-1", V1.input_fp), ("gone", "")]
    assert slides.slide_ids() == ["slide-1", "gone"]


def test_a_finished_slide_takes_little_memory(output: Store) -> None:
    count = 4 * PACKED_SLIDES
    sources = SlideList(many_sources(count))
    state = OutputState(
        done={source.slide_id: (source.input_fp,) for source in sources},
        outputs=dict.fromkeys(sources.slide_ids(), LAYOUT.embeddings),
        staged={},
    )
    settings = JobSettings.model_validate({"slides": ["x"], "output": "out"})
    tracemalloc.start()
    try:
        work = choose_work(output, LAYOUT, sources, state, settings)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(work.finished) == count
    assert held / count < 200, "bytes; as objects they take twice as much"
