"""Fragments: one shard's embeddings as one small Arrow object, until its slide is whole."""

from __future__ import annotations

import io
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline.dataset.layout import Layout, original_name
from ray_pipeline.dataset.schema import fragment_schema
from ray_pipeline.errors import NotFiniteError, NotFoundError, StagingLostError
from ray_pipeline.store import Store


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """One shard's embeddings."""

    slide_id: str
    """The slide's id."""
    plan_fp: str
    """The plan the shard belongs to."""
    shard: int
    """Index of the shard in the plan."""
    first_tile: int
    """`tile` of the first row."""
    xy: npt.NDArray[np.int32]
    """int32 [n, 2], level-0 px."""
    tissue: npt.NDArray[np.float32]
    """float32 [n], 0..1."""
    embedding: npt.NDArray[np.float16]
    """float16 [n, D], all finite."""


def put_fragment(output: Store, layout: Layout, fragment: Fragment) -> None:
    """Write the fragment; a second write of the same shard replaces it by an equivalent one.

    Raises NotFiniteError before anything is written when a number is NaN or infinite.
    """
    if not np.isfinite(fragment.embedding).all():
        bad = int((~np.isfinite(fragment.embedding).all(axis=1)).sum())
        raise NotFiniteError(
            f"{fragment.slide_id}: {bad} embeddings of shard {fragment.shard} hold NaN or "
            "infinity; try precision: fp32, and check the weights."
        )
    n, dim = fragment.embedding.shape
    values = pa.array(fragment.embedding.reshape(-1), pa.float16())
    schema = fragment_schema(dim).with_metadata(
        {"plan_fp": fragment.plan_fp, "shard": str(fragment.shard), "slide_id": fragment.slide_id}
    )
    batch = pa.RecordBatch.from_arrays(
        [
            pa.array(np.arange(fragment.first_tile, fragment.first_tile + n, dtype=np.int32)),
            pa.array(np.ascontiguousarray(fragment.xy[:, 0])),
            pa.array(np.ascontiguousarray(fragment.xy[:, 1])),
            pa.array(fragment.tissue),
            pa.FixedSizeListArray.from_arrays(values, type=schema.field("embedding").type),
        ],
        schema=schema,
    )
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(batch)
    key = layout.fragment(fragment.slide_id, fragment.plan_fp, fragment.shard)
    output.put(key, sink.getvalue())


def get_fragment(
    output: Store, layout: Layout, slide_id: str, plan_fp: str, shard: int, *, tiles: range
) -> pa.Table:
    """Read back the fragment that holds `tiles`, as a table of `fragment_schema`.

    Raises StagingLostError when it is absent, damaged, or another shard's; a bad one is deleted.
    """
    key = layout.fragment(slide_id, plan_fp, shard)
    try:
        with pa.ipc.open_stream(output.get(key)) as reader:
            table = reader.read_all()
    except NotFoundError:
        raise StagingLostError(
            f"{slide_id}: the staged fragment of shard {shard} is gone; run again to redo it."
        ) from None
    except (pa.ArrowException, OSError):
        table = None
    if table is None or not _is_whole(table, plan_fp, shard, tiles):
        output.delete([key])  # else every rerun would trust it again
        raise StagingLostError(
            f"{slide_id}: the staged fragment of shard {shard} was damaged and has been deleted; "
            "run again to redo it."
        )
    return table


def _is_whole(table: pa.Table, plan_fp: str, shard: int, tiles: range) -> bool:
    """Whether it is this shard's, with every tile of it once, and nothing but finite numbers."""
    told, vector = table.schema.metadata or {}, table.schema.field("embedding").type
    if told.get(b"plan_fp") != plan_fp.encode() or told.get(b"shard") != str(shard).encode():
        return False
    if table.schema != fragment_schema(vector.list_size) or table.num_rows != len(tiles):
        return False
    flat = pc.list_flatten(table["embedding"]).to_numpy()
    return np.array_equal(table["tile"].to_numpy(), tiles) and bool(np.isfinite(flat).all())


def list_staged(output: Store, layout: Layout) -> dict[str, dict[str, list[int]]]:
    """All staged shards by one LIST: slide_id -> plan_fp -> sorted shard indexes."""
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for info in output.list(layout.staging):
        segments = info.key.removeprefix(layout.staging).strip("/").split("/")
        if len(segments) != 3 or not segments[2].endswith(".arrow"):
            continue
        stem = segments[2].removesuffix(".arrow")
        if stem.isdigit() and info.size_bytes > 0:
            found[original_name(segments[0])][segments[1]].append(int(stem))
    return {slide: {fp: sorted(s) for fp, s in plans.items()} for slide, plans in found.items()}


def delete_fragments(
    output: Store, layout: Layout, slide_id: str, plan_fp: str, n_shards: int
) -> None:
    """Delete the fragments of one plan; fragments of other plans stay."""
    output.delete(layout.fragment(slide_id, plan_fp, shard) for shard in range(n_shards))
