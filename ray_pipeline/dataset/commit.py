"""Commit: all fragments of a slide become its one Parquet file, exactly once.

    fragments -> Parquet -> one conditional PUT -> done key -> record -> fragments deleted

Where a file of another input stands, or its done key, a mark that outlives all of them comes first.

A crash between any two steps is harmless: the next run finds the file (its footer tells what it
is), or the fragments, and goes on from there. A lost reply to a conditional PUT looks like a
failure, so after any doubt the file is read back, and what stands there decides.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_pipeline.dataset.layout import Layout
from ray_pipeline.dataset.records import SlideRecord, put_record
from ray_pipeline.dataset.schema import ROW_GROUP_TILES, Footer, embeddings_schema
from ray_pipeline.dataset.staging import delete_fragments, get_fragment
from ray_pipeline.dataset.standing import Pool, Standing, read_footer, read_standing
from ray_pipeline.dataset.start import OutputState
from ray_pipeline.errors import (
    CommitConflictError,
    PreconditionError,
    StagingLostError,
    StoreError,
    UnreachableError,
    UnsupportedError,
)
from ray_pipeline.recipe import SHARD_TILES
from ray_pipeline.store import Store

PUT_ATTEMPTS = 3
"""Tries of the PUT, each followed by reading back when it did not plainly succeed."""

SWEPT_AT_ONCE = 16
"""Slides whose leftovers are deleted concurrently."""


@dataclass(frozen=True, kw_only=True)
class CommitJob:
    """All that committing one slide needs, small enough to send to any node."""

    output: Store
    """The output's root."""
    footer: Footer
    """What the file will say of itself; also names recipe and slide."""
    record: SlideRecord
    """The slide's record as it will be written (counts and vectors are filled in here)."""
    n_shards: int
    """Shards that must be staged."""
    n_tiles: int
    """Rows the file must have."""
    dim: int
    """Numbers per embedding."""
    conditional: bool = True
    """Whether the store honours `If-None-Match` (see `open_output`)."""
    replace_etag: str | None = None
    """Version of an output made from an older source, to be replaced on request."""
    stale_done: tuple[str, ...] = ()
    """Done keys of the slide for other inputs."""
    doubted: bool = False
    """Whether a commit that was to replace its file has been cut short."""
    partitions: dict[str, Any] = field(default_factory=dict)
    """Values of the partition columns."""

    @property
    def casts_doubt(self) -> bool:
        """Whether a file of another input stands there, or its done key."""
        return bool(self.stale_done) or self.replace_etag is not None

    @property
    def layout(self) -> Layout:
        """Keys for this recipe."""
        return Layout(self.footer.recipe_fp)

    @property
    def key(self) -> str:
        """Key of the slide's file."""
        return self.layout.output(self.footer.slide_id, self.partitions)


def commit_slide(job: CommitJob) -> SlideRecord:
    """Write the slide's file once, verify it, and return the record that was written.

    Raises StagingLostError, CommitConflictError, or a StoreError; in every case
    what already stood in the output still stands.
    """
    try:
        data, built = build_parquet(job)
    except StagingLostError:
        standing = read_standing(job.output, job.key)
        if standing is None or not standing.of_plan(job.footer, job.n_tiles):
            raise
        _cast_doubt(job)
    else:
        _cast_doubt(job)
        standing = _put_once(job, data, built)
    record = standing.told_in(job.record)
    finish(job, record)
    return record


def _cast_doubt(job: CommitJob) -> None:
    """Mark the slide as one whose done keys prove nothing alone, and delete those of other inputs.

    Before the file is put: after a crash, or when a slow driver writes its own done key at last,
    one may stand beside a file it was not written for. Nor does the slides table settle it until
    this commit, or a later one, is through.
    """
    if job.casts_doubt:
        job.output.put(job.layout.doubt(job.footer.slide_id), b"")
        job.output.put(job.layout.replaced_key(job.footer.slide_id), b"")
        job.output.delete(job.stale_done)


def finish(job: CommitJob, record: SlideRecord) -> None:
    """The steps after the file stands: done key, record, then what is of no use any more goes.

    The record comes second: what it tells in the slides table is then never without its done key.
    """
    layout, slide_id = job.layout, job.footer.slide_id
    job.output.put(layout.done_key(slide_id, job.footer.input_fp), b"")
    put_record(job.output, layout, record)
    if job.casts_doubt or job.doubted:
        with suppress(StoreError):  # then only the done keys tell that it is finished
            job.output.delete([layout.doubt(slide_id)])
    # The slide is done: fragments that can't be deleted are the next run's to collect.
    with suppress(StoreError):
        delete_fragments(job.output, layout, slide_id, job.footer.plan_fp, job.n_shards)


def sweep(output: Store, layout: Layout, state: OutputState, finished: Iterable[str]) -> None:
    """Delete what a crash left staged of slides that are `finished`: the fragments of their files.

    Fragments of other plans stay: another driver may be staging them for another input.
    """

    def swept(slide_id: str) -> None:
        with suppress(StoreError):  # the next run tries again
            key = state.key_of(slide_id)
            footer = None if key is None else read_footer(output, key)
            shards = state.staged[slide_id].get(footer.plan_fp, []) if footer is not None else []
            if footer is not None and shards:
                delete_fragments(output, layout, slide_id, footer.plan_fp, max(shards) + 1)

    left = [one for one in finished if one in state.staged] if state.staged else []
    with ThreadPoolExecutor(SWEPT_AT_ONCE) as pool:
        list(pool.map(swept, left))


def build_parquet(job: CommitJob) -> tuple[bytes, Standing]:
    """The file's bytes, and what it will be once it stands.

    Raises StagingLostError unless tiles 0..n-1 are staged, each once, with finite numbers.
    """
    schema = embeddings_schema(job.dim).with_metadata(job.footer.to_metadata())
    sink, pool = io.BytesIO(), Pool()
    seen: list[pa.Table] = []
    with embeddings_writer(sink, schema) as writer:
        for group in _row_groups(job):
            vectors = pc.list_flatten(group["embedding"]).to_numpy().reshape(-1, job.dim)
            pool.add(vectors)
            seen.append(group.select(["tile", "x", "y"]))
            writer.write_table(_output_rows(group, vectors, job, schema))
    empty = schema.empty_table().select(["tile", "x", "y"]).replace_schema_metadata(None)
    coordinates = pa.concat_tables(seen).replace_schema_metadata(None) if seen else empty
    built = Standing(
        key=job.key,
        footer=job.footer,
        coordinates=coordinates,
        mean=pool.mean,
        largest=pool.largest,
    )
    return sink.getvalue(), built


def embeddings_writer(sink: BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer of a slide's file, whose `schema` has the columns of `embeddings_schema`."""
    return pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        use_dictionary=["slide_id"],
        column_encoding={"embedding.list.element": "BYTE_STREAM_SPLIT"},
        write_page_index=True,
    )


def _row_groups(job: CommitJob) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    rows, lost = 0, None
    for shard in range(job.n_shards):
        footer, start = job.footer, shard * SHARD_TILES
        tiles = range(start, min(start + SHARD_TILES, job.n_tiles))
        try:
            fragment = get_fragment(
                job.output, job.layout, footer.slide_id, footer.plan_fp, shard, tiles=tiles
            )
        except StagingLostError as error:
            lost = lost or error  # go on: one rerun is to be enough, however many are damaged
            continue
        waiting.append(fragment.replace_schema_metadata(None))
        rows += fragment.num_rows
        if rows >= ROW_GROUP_TILES:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting, rows = [], 0
    if lost is not None:
        raise lost
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def _output_rows(
    group: pa.Table, vectors: npt.NDArray[np.float16], job: CommitJob, schema: pa.Schema
) -> pa.Table:
    n = group.num_rows
    ids = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(n, np.int32)), pa.array([job.footer.slide_id])
    )
    flat = pa.array(vectors.astype(np.float32).reshape(-1))
    return pa.Table.from_arrays(
        [
            ids,
            *(group[name] for name in ("tile", "x", "y", "tissue")),
            pa.FixedSizeListArray.from_arrays(flat, type=schema.field("embedding").type),
        ],
        schema=schema,
    )


def _replace(job: CommitJob, data: bytes, etag: str) -> str:
    """Put the file over version `etag` of the one that stands, and over no other; its version."""
    if job.conditional:
        # A store may know one condition and not the other.
        with suppress(UnsupportedError):
            return job.output.put(job.key, data, if_match=etag)
    if job.output.head(job.key).etag != etag:
        raise PreconditionError(f"{job.output.uri_of(job.key)} is no longer version {etag}.")
    return job.output.put(job.key, data)


def _put_once(job: CommitJob, data: bytes, built: Standing) -> Standing:
    """Put the file; returns it, or the equivalent one of the attempt that won."""
    coordinates = built.coordinates
    assert coordinates is not None
    for attempt in range(PUT_ATTEMPTS):
        try:
            if job.replace_etag is not None:
                return replace(built, etag=_replace(job, data, job.replace_etag))
            if job.conditional:
                return replace(built, etag=job.output.put(job.key, data, if_absent=True))
            standing = read_standing(job.output, job.key)
            if standing is None:
                return replace(built, etag=job.output.put(job.key, data))
        except (PreconditionError, UnreachableError) as error:
            standing = read_standing(job.output, job.key)
            if standing is None:
                if attempt == PUT_ATTEMPTS - 1:
                    raise
                continue
            if isinstance(error, UnreachableError) and not standing.made_from(job.footer):
                raise
        if standing.equivalent(job.footer, coordinates):
            return standing
        break
    refuge = job.layout.quarantine(job.footer.slide_id, job.footer.plan_fp)
    job.output.put(refuge, data)
    raise CommitConflictError(
        f"{job.footer.slide_id}: a different file already stands at {job.output.uri_of(job.key)}; "
        f"ours is kept at {job.output.uri_of(refuge)}: compare them and delete the wrong one."
    )
