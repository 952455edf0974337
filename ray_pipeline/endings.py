"""What is written at the end: of a slide its record and its commit job, of a run its report."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import pyarrow as pa

from ray_pipeline.dataset.commit import CommitJob
from ray_pipeline.dataset.layout import REPLACED, Layout
from ray_pipeline.dataset.records import SlideRecord, put_record
from ray_pipeline.dataset.report import RunReport
from ray_pipeline.dataset.schema import Footer
from ray_pipeline.dataset.slides_table import compact, is_table, told_otherwise
from ray_pipeline.dataset.standing import exists, standing_record
from ray_pipeline.dataset.start import OutputState
from ray_pipeline.errors import HistorayError, IncompleteError, LongNameError, StoreError
from ray_pipeline.ledger import SlideTally
from ray_pipeline.recipe import Recipe
from ray_pipeline.rows import Failure
from ray_pipeline.sources import SlideSource
from ray_pipeline.store import Store
from ray_pipeline.worklist import Work

MEANINGLESS = "made-up weights: these vectors mean nothing"
"""What log and footer say of random weights."""

RECORDS_AT_ONCE = 16
"""Records written concurrently."""
RECORDS_BEHIND = 256
"""Most records that wait to be written."""


@dataclass(frozen=True, kw_only=True)
class Endings:
    """The facts of a run that stand in every slide's record and file."""

    output: Store
    """The output's root."""
    recipe: Recipe
    """The run's recipe."""
    state: OutputState
    """What the output held at the start."""
    work: Work
    """What is to do, and what is to be replaced."""
    report: RunReport
    """The run's name, versions, and kind of store."""
    partition_by: tuple[str, ...]
    """Manifest columns that are folders."""

    def record(self, source: SlideSource, tally: SlideTally, *, status: str) -> SlideRecord:
        """The slide's record as far as the run itself knows it."""
        header = tally.header or {}
        return SlideRecord(
            slide_id=source.slide_id,
            uri=source.uri,
            status=status,
            run=self.report.run,
            etag=source.etag,
            size_bytes=source.size_bytes,
            input_fp=source.input_fp,
            plan_fp=header.get("plan_fp", ""),
            seconds=round(tally.seconds, 3),
            **vars(tally.counts),
            facts=header.get("facts", {}),
            attributes=dict(source.attributes),
        )

    def commit_job(self, source: SlideSource, tally: SlideTally) -> CommitJob:
        """How to commit a slide that is whole."""
        header, record = tally.header, self.record(source, tally, status="done")
        assert header is not None, "a whole slide has its header"
        facts = header["facts"]
        stale = sorted({*self.state.done.get(source.slide_id, ())} - {record.input_fp, REPLACED})
        return CommitJob(
            output=self.output,
            record=record,
            n_shards=header["n_shards"],
            n_tiles=header["n_tiles"],
            dim=self.recipe.encoder.dim,
            conditional=self.report.conditional_store,
            replace_etag=self.work.replacing.get(source.slide_id),
            stale_done=tuple(self.layout.done_key(source.slide_id, fp) for fp in stale),
            doubted=source.slide_id in self.state.doubted,
            partitions=self.partitions(source),
            footer=Footer(
                recipe=self._recipe,
                recipe_fp=self.layout.recipe_fp,
                slide_id=source.slide_id,
                uri=source.uri,
                etag=source.etag,
                input_fp=record.input_fp,
                plan_fp=header["plan_fp"],
                mpp_used=facts["mpp_used"],
                mpp_achieved=facts["mpp_achieved"],
                level=facts["level"],
                width_px=facts["width_px"],
                height_px=facts["height_px"],
                version=self.report.versions["historay"],
                warning="" if self.recipe.encoder.meaningful else MEANINGLESS,
            ),
        )

    @cached_property
    def layout(self) -> Layout:
        """Keys for the run's recipe."""
        return Layout(self.recipe.fingerprint)

    @cached_property
    def _recipe(self) -> dict[str, Any]:
        return self.recipe.to_dict()

    def record_failure(
        self,
        source: SlideSource,
        tally: SlideTally,
        failure: Failure,
        say: Callable[[str], None],
    ) -> None:
        """Write a failed slide's record; over a standing file it is only a note in the record.

        The output is asked anew: another driver may have finished the slide since the start, and
        then nothing is written. What prevents it is said, and the job goes on.
        """
        if failure.kind == LongNameError.kind:
            return  # nothing can be named after this slide: its place is in the report
        try:
            self._record_failure(source, tally, failure)
        except (HistorayError, TypeError, ValueError) as error:
            say(f"{source.slide_id}: its failure could not be written down: {error}")

    def _record_failure(self, source: SlideSource, tally: SlideTally, failure: Failure) -> None:
        layout = self.layout
        key = layout.output(source.slide_id, self.partitions(source))
        stands = exists(self.output, key)
        if stands and exists(self.output, layout.done_key(source.slide_id, source.input_fp)):
            return
        earlier_key = self.state.key_of(source.slide_id)
        if not stands and earlier_key is not None and exists(self.output, earlier_key):
            key, stands = earlier_key, True
        record = self.record(source, tally, status="failed")
        if stands:
            record = standing_record(self.output, layout, key, record)
        noted = replace(record, stage=failure.stage, error_kind=failure.kind, reason=failure.reason)
        put_record(self.output, layout, noted)

    def _mend_records(self) -> bool:
        """Rewrite the records of finished slides of which the slides table tells otherwise.

        Such a record was right once: its source has since been put back, or another driver finished
        the slide, or replaced its file, while this one was written down. Whether there were any.
        """
        table = self.state.table
        if not self.work.finished or (table and is_table(self.output, self.layout, table)):
            return False  # by that very table they are finished
        told = told_otherwise(self.output, self.layout, self.work.finished.inputs())
        lying = [one for one in self.work.finished if one.slide_id in told] if told else []
        with ThreadPoolExecutor(RECORDS_AT_ONCE) as pool:
            list(pool.map(self._mend, lying))
        return bool(lying)

    def _mend(self, source: SlideSource) -> None:
        key = self.state.key_of(source.slide_id)
        assert key is not None, "a finished slide has its file"
        record = self.record(source, SlideTally(), status="failed")
        record = standing_record(self.output, self.layout, key, record)
        if record.status != "failed":
            mended = replace(record, stage=None, error_kind=None, reason=None)
            put_record(self.output, self.layout, mended)

    def close(self, say: Callable[[str], None], *, in_haste: bool = False) -> None:
        """End the run: its report is written and, unless `in_haste`, the slides table compacted.

        Neither decides what became of the slides: what prevents one is said, and raises nothing.
        """
        try:
            self.report.write(self.output, self.layout)
        except StoreError as error:
            say(f"the run's report could not be written: {error}")
        if in_haste:
            return
        try:
            compact(self.output, self.layout, say)
            if self._mend_records():
                compact(self.output, self.layout, say)
        except (HistorayError, pa.ArrowException, OSError) as error:
            say(f"the slides table could not be brought up to date, the next run will: {error}")

    def partitions(self, source: SlideSource) -> dict[str, Any]:
        """The slide's values of the partition columns."""
        return {name: source.attributes.get(name) for name in self.partition_by}


class FailureWriter:
    """Writes the records of failed slides on threads, and is never more than a few behind."""

    def __init__(self, endings: Endings, say: Callable[[str], None]) -> None:
        self._endings, self._say = endings, say
        self._pool = ThreadPoolExecutor(RECORDS_AT_ONCE)
        self._waiting: deque[Future[None]] = deque()

    def write(self, source: SlideSource, tally: SlideTally, failure: Failure) -> None:
        """Begin to write one record; waits while too many are not written yet."""
        if len(self._waiting) >= RECORDS_BEHIND:
            self._waiting.popleft().result()
        self._waiting.append(
            self._pool.submit(self._endings.record_failure, source, tally, failure, self._say)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._pool:
            for written in self._waiting:
                written.result()


def incomplete(source: SlideSource, tally: SlideTally) -> Failure:
    """The failure of a slide of which not everything came."""
    return Failure.of(
        "stage",
        IncompleteError(
            f"{source.slide_id}: {len(tally.shards)} shards arrived before the stream ended; "
            "run again to do the rest."
        ),
    )
