"""Which slides of a job are still to do, and what becomes of those that are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ray_pipeline.dataset.layout import Layout, check_name
from ray_pipeline.dataset.records import get_records
from ray_pipeline.dataset.standing import read_version
from ray_pipeline.dataset.start import OutputState, check_partitions
from ray_pipeline.errors import CommitConflictError, LongNameError, SourceChangedError
from ray_pipeline.rows import Failure
from ray_pipeline.settings import JobSettings
from ray_pipeline.sources import SlideSource, find_slides
from ray_pipeline.store import Store


@dataclass(kw_only=True)
class Work:
    """A job's slides, sorted by what is to be done with them."""

    todo: list[SlideSource] = field(default_factory=list)
    """Slides to embed."""
    failures: list[tuple[SlideSource, Failure]] = field(default_factory=list)
    """Slides that can't even be started, and why."""
    replacing: dict[str, str] = field(default_factory=dict)
    """Slides to embed whose older output is to be replaced: slide_id -> its version."""
    finished: list[SlideSource] = field(default_factory=list)
    """Slides that are finished for this input and recipe."""
    passed_over: int = 0
    """Unfinished slides that `retry` does not name."""


def slides_of(settings: JobSettings) -> list[SlideSource]:
    """The slides of a job, in slide_id order.

    Raises what `find_slides` does, and SettingsError for manifest columns that can't be carried,
    or be folders.
    """
    sources = find_slides(settings.slides, mpp_override=settings.mpp_override)
    attributes = sorted({name for source in sources for name in source.attributes})
    check_partitions(settings.partition_by, attributes)
    return sources


def choose_work(
    output: Store,
    layout: Layout,
    sources: Sequence[SlideSource],
    state: OutputState,
    settings: JobSettings,
) -> Work:
    """Sort the job's slides.

    A slide is finished when its file and its done key for this input stand, and no other done key
    casts doubt on the file: then its footer decides. A file made from another input is
    `source-changed`: reported, and replaced only when `retry` names that kind. A file of this
    input without a done key is a commit that was cut short: it goes through the graph again, where
    its staged shards make that cheap.
    """
    work = Work()
    for source in sources:
        refused = source.error or _unnameable(source, settings.partition_by)
        if refused is not None:
            work.failures.append((source, Failure.of("list", refused)))
            continue
        key = state.key_of(source.slide_id)
        if key is None:
            work.todo.append(source)
            continue
        input_fp, done, etag = source.input_fp, state.done.get(source.slide_id, ()), ""
        made_from = input_fp
        if done != (input_fp,):  # else it is the one key there is: nothing to be in doubt about
            footer, etag = read_version(output, key)
            # Without a footer the file is not one of ours: committing will tell.
            made_from = footer.input_fp if footer is not None else input_fp
        if made_from == input_fp and input_fp in done:
            work.finished.append(source)
            continue
        moved = _moved(layout, source, key, settings.partition_by)
        if moved is not None:
            work.failures.append((source, Failure.of("list", moved)))
        elif made_from == input_fp:
            work.todo.append(source)
        elif SourceChangedError.kind in settings.retry:
            work.replacing[source.slide_id] = etag
            work.todo.append(source)
        else:
            error = SourceChangedError(
                f"{source.slide_id}: {source.uri} (or its mpp override or coordinates) changed "
                "since it was embedded; `embed --retry source-changed` replaces the old output."
            )
            work.failures.append((source, Failure.of("list", error)))
    if settings.retry:
        _pass_over(output, layout, work, settings.retry)
    return work


def _unnameable(source: SlideSource, partition_by: Sequence[str]) -> LongNameError | None:
    """The error of a slide that no folder can be named after."""
    try:
        check_name(source.slide_id, "slide_id", source.slide_id)
        for name in partition_by:
            check_name(source.slide_id, name, str(source.attributes.get(name)))
    except LongNameError as error:
        return error
    return None


def _moved(
    layout: Layout, source: SlideSource, standing: str, partition_by: Sequence[str]
) -> CommitConflictError | None:
    """The error of a slide whose file stands in another folder than its manifest now says."""
    key = layout.output(source.slide_id, {n: source.attributes.get(n) for n in partition_by})
    if standing == key:
        return None
    return CommitConflictError(
        f"{source.slide_id}: its file stands at {standing}, but its manifest now says {key}: "
        "delete the one that is wrong, or put the manifest's value back."
    )


def _pass_over(output: Store, layout: Layout, work: Work, retry: Sequence[str]) -> None:
    """Take out of the slides to do those that last ended with another kind than `retry` names."""
    asked = [source for source in work.todo if source.slide_id not in work.replacing]
    records = get_records(output, [layout.record(source.slide_id) for source in asked])
    wanted = {record.slide_id for record in records if record.error_kind in retry}
    before = len(work.todo)
    work.todo = [s for s in work.todo if s.slide_id in wanted | work.replacing.keys()]
    work.passed_over = before - len(work.todo)
