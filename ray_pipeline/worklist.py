"""Which slides of a job are still to do, and what becomes of those that are not."""

from __future__ import annotations

import json
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain, compress, islice
from operator import attrgetter
from typing import Any

import pyarrow as pa

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


@dataclass(frozen=True, slots=True)
class SlidePage:
    """Some slides in order, packed to some 150 bytes each, and made anew when they are asked for.

    Those that can't be had, or of which a manifest tells more than texts and numbers, stay as they
    are.
    """

    slide_ids: pa.StringArray
    """Ids of its slides."""
    input_fps: pa.StringArray
    """Their fingerprints; "" for one that can't be had."""
    _packed: str
    _kept: Mapping[int, SlideSource]
    _places: Sequence[int]
    """Which of the slides that were packed are this page's."""

    @classmethod
    def of(cls, sources: Sequence[SlideSource]) -> SlidePage:
        """Pack these."""
        kept = {place: one for place, one in enumerate(sources) if not _is_plain(one)}
        rows = [None if at in kept else _told_of(one) for at, one in enumerate(sources)]
        return cls(
            pa.array([one.slide_id for one in sources], pa.string()),
            pa.array(["" if one.error else one.input_fp for one in sources], pa.string()),
            json.dumps(rows, separators=(",", ":")),
            kept,
            range(len(sources)),
        )

    def sources(self) -> Iterator[SlideSource]:
        """Its slides."""
        rows = json.loads(self._packed)
        for place in self._places:
            told = rows[place]
            yield self._kept[place] if told is None else _source_of(told)

    def only(self, chosen: Sequence[bool]) -> SlidePage:
        """Those of its slides that are `chosen`, a flag for each."""
        if all(chosen):
            return self
        return SlidePage(
            self.slide_ids.filter(pa.array(chosen, pa.bool_())),
            self.input_fps.filter(pa.array(chosen, pa.bool_())),
            self._packed,
            self._kept,
            array("H", compress(self._places, chosen)),
        )


class SlideList(Collection[SlideSource]):
    """Slides in order, packed. A million of them would be 0.4 GB as objects."""

    def __init__(
        self, sources: Iterable[SlideSource] = (), *, pages: Iterable[SlidePage] = ()
    ) -> None:
        self.pages = list(pages)
        """Its slides, many at a time."""
        sources = iter(sources)
        while some := list(islice(sources, PACKED_SLIDES)):
            self.pages.append(SlidePage.of(some))

    def slide_ids(self) -> list[str]:
        """Ids of all of them, in order."""
        return [slide_id for page in self.pages for slide_id in page.slide_ids.to_pylist()]

    def inputs(self) -> Iterator[tuple[str, str]]:
        """(slide_id, input_fp) of all of them, in order; "" for one that can't be had."""
        for page in self.pages:
            yield from zip(page.slide_ids.to_pylist(), page.input_fps.to_pylist(), strict=True)

    def __len__(self) -> int:
        return sum(len(page.slide_ids) for page in self.pages)

    def __iter__(self) -> Iterator[SlideSource]:
        return chain.from_iterable(page.sources() for page in self.pages)

    def __contains__(self, source: object) -> bool:
        return any(one == source for one in self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Collection) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def _is_plain(source: SlideSource) -> bool:
    if source.error is not None:
        return False
    return not source.attributes or all(type(v) in PLAIN for v in source.attributes.values())


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
    finished: SlideList = field(default_factory=SlideList)
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
    sources: SlideList,
    state: OutputState,
    settings: JobSettings,
) -> Work:
    """Sort the job's slides.

    A slide is finished when it is settled, or when its file and its done key for this input stand,
    and no other done key casts doubt on the file: then its footer decides. A file made from another
    input is `source-changed`: reported, and replaced only when `retry` names that kind. A file of
    this input without a done key is a commit that was cut short: it goes through the graph again,
    where its staged shards make that cheap.
    """
    sorter, finished = _Sorter(output, layout, state, settings), list[SlidePage]()
    for page in sources.pages:
        ids, inputs = page.slide_ids.to_pylist(), page.input_fps.to_pylist()
        # Nothing to be in doubt about: the slides table has it, or there are a file and one done
        # key, which is of this input.
        ended = [
            slide_id in state.settled
            or (state.done.get(slide_id) == (input_fp,) and slide_id in state.outputs)
            for slide_id, input_fp in zip(ids, inputs, strict=True)
        ]
        if not all(ended):
            for place, source in enumerate(page.sources()):
                ended[place] = ended[place] or sorter.is_finished(source)
        if any(ended):
            finished.append(page.only(ended))
    work = sorter.work
    work.finished = SlideList(pages=finished)
    if settings.retry:
        _pass_over(output, layout, work, settings.retry)
    return work


@dataclass(frozen=True, slots=True)
class _Sorter:
    """Sorts slides one by one, with all that their places depend on."""

    output: Store
    layout: Layout
    state: OutputState
    settings: JobSettings
    work: Work = field(default_factory=Work)

    def is_finished(self, source: SlideSource) -> bool:
        """Whether this slide is; if not, it is put among those to do, or those that failed."""
        work, partition_by = self.work, self.settings.partition_by
        refused = source.error or _unnameable(source, partition_by)
        if refused is not None:
            work.failures.append((source, Failure.of("list", refused)))
            return False
        key = self.state.key_of(source.slide_id)
        if key is None:
            work.todo.append(source)
            return False
        input_fp, etag = source.input_fp, ""
        made_from, done = input_fp, self.state.done.get(source.slide_id, ())
        if done != (input_fp,):
            footer, etag = read_version(self.output, key)
            # Without a footer the file is not one of ours: committing will tell.
            made_from = footer.input_fp if footer is not None else input_fp
        if made_from == input_fp and input_fp in done:
            return True
        moved = _moved(self.layout, source, key, partition_by)
        if moved is not None:
            work.failures.append((source, Failure.of("list", moved)))
        elif made_from == input_fp:
            work.todo.append(source)
        elif SourceChangedError.kind in self.settings.retry:
            work.replacing[source.slide_id] = etag
            work.todo.append(source)
        else:
            error = SourceChangedError(
                f"{source.slide_id}: {source.uri} (or its mpp override or coordinates) changed "
                "since it was embedded; `embed --retry source-changed` replaces the old output."
            )
            work.failures.append((source, Failure.of("list", error)))
        return False


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
    wanted.update(work.replacing)
    before = len(work.todo)
    work.todo = [source for source in work.todo if source.slide_id in wanted]
    work.passed_over = before - len(work.todo)
