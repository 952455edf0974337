"""Which slides of a job are still to do, and what becomes of those that are not."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any

from ray_pipeline.dataset.layout import Layout, check_name
from ray_pipeline.dataset.records import get_records
from ray_pipeline.dataset.standing import read_version
from ray_pipeline.dataset.start import OutputState, check_partitions
from ray_pipeline.errors import CommitConflictError, LongNameError, SourceChangedError
from ray_pipeline.rows import Failure
from ray_pipeline.settings import JobSettings
from ray_pipeline.sources import NO_ATTRIBUTES, SlideSource, find_slides
from ray_pipeline.store import Store

PACKED_SLIDES = 1000
"""Slides that are packed, and made again, at a time."""
NAMES = tuple(field.name for field in fields(SlideSource) if field.name != "error")
"""What is packed of each, its slide_id first."""
PLAIN = frozenset({str, int, float, bool, type(None)})
"""Types that come out of JSON as they went in."""
_told_of = attrgetter(*NAMES)


class SlideList(Collection[SlideSource]):
    """Slides in order, packed to some 100 bytes each, and made anew whenever they are asked for.

    A million of them would be 0.4 GB. Those that can't be had, or of which a manifest tells more
    than texts and numbers, stay as they are.
    """

    def __init__(self, sources: Iterable[SlideSource] = ()) -> None:
        self._packed: list[str] = []
        self._kept: dict[int, SlideSource] = {}
        self._last: list[SlideSource] = []
        for source in sources:
            self.append(source)

    def append(self, source: SlideSource) -> None:
        """Add one more."""
        self._last.append(source)
        if len(self._last) == PACKED_SLIDES:
            first = PACKED_SLIDES * len(self._packed)
            odd = {place: one for place, one in enumerate(self._last, first) if not _is_plain(one)}
            rows = [
                None if at in odd else _told_of(one) for at, one in enumerate(self._last, first)
            ]
            self._kept.update(odd)
            self._packed.append(json.dumps(rows, separators=(",", ":")))
            self._last.clear()

    def slide_ids(self) -> list[str]:
        """Ids of all of them, in order."""
        return [source.slide_id for source in self]

    def __len__(self) -> int:
        return PACKED_SLIDES * len(self._packed) + len(self._last)

    def __iter__(self) -> Iterator[SlideSource]:
        for number, packed in enumerate(self._packed):
            for place, told in enumerate(json.loads(packed), PACKED_SLIDES * number):
                yield self._kept[place] if told is None else _source_of(told)
        yield from self._last

    def __contains__(self, source: object) -> bool:
        return any(one == source for one in self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Collection) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def _is_plain(source: SlideSource) -> bool:
    return source.error is None and all(type(v) in PLAIN for v in source.attributes.values())


def _source_of(told: Sequence[Any]) -> SlideSource:
    values = dict(zip(NAMES, told, strict=True))
    # One empty mapping for all that no manifest tells of.
    values["attributes"] = values["attributes"] or NO_ATTRIBUTES
    return SlideSource(**values)


@dataclass(kw_only=True)
class Work:
    """A job's slides, sorted by what is to be done with them."""

    todo: list[SlideSource] = field(default_factory=list)
    """Slides to embed."""
    failures: list[tuple[SlideSource, Failure]] = field(default_factory=list)
    """Slides that can't even be started, and why."""
    replacing: dict[str, str] = field(default_factory=dict)
    """Slides to embed whose older output is to be replaced: slide_id -> its version."""
    finished: Collection[SlideSource] = field(default_factory=SlideList)
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
    sources: Iterable[SlideSource],
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
    finished = SlideList()
    work = Work(finished=finished)
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
            finished.append(source)
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
