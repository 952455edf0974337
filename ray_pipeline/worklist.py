"""Which slides of a job are still to do, and what becomes of those that are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ray_pipeline.dataset.layout import Layout
from ray_pipeline.dataset.records import SlideRecord, get_records, put_record
from ray_pipeline.dataset.start import OutputState, read_footer
from ray_pipeline.errors import CommitConflictError, SourceChangedError
from ray_pipeline.rows import Failure
from ray_pipeline.settings import JobSettings
from ray_pipeline.sources import SlideSource
from ray_pipeline.store import Store


@dataclass(kw_only=True)
class Work:
    """A job's slides, sorted by what is to be done with them."""

    todo: list[SlideSource] = field(default_factory=list)
    """Slides to embed."""
    failures: list[tuple[SlideSource, Failure]] = field(default_factory=list)
    """Slides that can't even be started, and why."""
    replacing: dict[str, list[str]] = field(default_factory=dict)
    """slide_id -> done keys left by the older output that is to be replaced."""
    finished: int = 0
    """Slides that are finished for this input and recipe."""
    passed_over: int = 0
    """Unfinished slides that `retry` does not name."""
    standing: set[str] = field(default_factory=set)
    """Slides that have an output, whatever it was made from."""


def choose_work(
    output: Store,
    layout: Layout,
    sources: Sequence[SlideSource],
    state: OutputState,
    settings: JobSettings,
) -> Work:
    """Sort the job's slides.

    A slide is finished when its done key for this input is there. A file made from another input
    is `source-changed`: reported, and replaced only when `retry` names that kind. A file of this
    input without a done key is a commit that was cut short: it goes through the graph again, where
    its staged shards make that cheap.
    """
    work = Work(standing=set(state.outputs))
    retry = settings.retry
    kinds = _last_kinds(output, layout, sources, state) if retry else {}
    for source in sources:
        if source.error is not None:
            work.failures.append((source, Failure.of("list", source.error)))
            continue
        done = state.done.get(source.slide_id, set())
        if source.input_fp in done:
            work.finished += 1
            continue
        moved = _moved(layout, source, state, settings.partition_by)
        if moved is not None:
            work.failures.append((source, Failure.of("list", moved)))
            continue
        changed = _made_from_another(output, source, state)
        if changed and SourceChangedError.kind in retry:
            work.replacing[source.slide_id] = [
                layout.done_key(source.slide_id, input_fp) for input_fp in sorted(done)
            ]
            work.todo.append(source)
        elif changed:
            error = SourceChangedError(
                f"{source.slide_id}: {source.uri} (or its mpp override) changed since it was "
                "embedded; `embed --retry source-changed` replaces the old output."
            )
            work.failures.append((source, Failure.of("list", error)))
        elif retry and kinds.get(source.slide_id) not in retry:
            work.passed_over += 1
        else:
            work.todo.append(source)
    return work


def record_failure(
    output: Store, layout: Layout, work: Work, record: SlideRecord, failure: Failure
) -> None:
    """Write a failed slide's record; where an output stands, only note the failure in it."""
    if record.slide_id in work.standing:
        earlier = get_records(output, [layout.record(record.slide_id)])
        record = replace(earlier[0], run=record.run) if earlier else replace(record, status="done")
    noted = replace(record, stage=failure.stage, error_kind=failure.kind, reason=failure.reason)
    put_record(output, layout, noted)


def _moved(
    layout: Layout, source: SlideSource, state: OutputState, partition_by: Sequence[str]
) -> CommitConflictError | None:
    """The error of a slide whose file stands in another folder than its manifest now says."""
    standing = state.outputs.get(source.slide_id)
    key = layout.output(source.slide_id, {n: source.attributes.get(n) for n in partition_by})
    if standing is None or standing == key:
        return None
    return CommitConflictError(
        f"{source.slide_id}: its file stands at {standing}, but its manifest now says {key}: "
        "delete the one that is wrong, or put the manifest's value back."
    )


def _made_from_another(output: Store, source: SlideSource, state: OutputState) -> bool:
    if source.slide_id not in state.outputs:
        return False
    if state.done.get(source.slide_id):
        return True
    footer = read_footer(output, state.outputs[source.slide_id])
    return footer is not None and footer.input_fp != source.input_fp


def _last_kinds(
    output: Store, layout: Layout, sources: Sequence[SlideSource], state: OutputState
) -> dict[str, str | None]:
    """The error kind each unfinished slide last ended with."""
    keys = [
        layout.record(source.slide_id)
        for source in sources
        if source.input_fp not in state.done.get(source.slide_id, set())
    ]
    return {record.slide_id: record.error_kind for record in get_records(output, keys)}
