"""Whole outputs without a job: what its commits and its end leave behind, of seeded numbers."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_pipeline.dataset.commit import embeddings_writer
from ray_pipeline.dataset.layout import Layout
from ray_pipeline.dataset.records import SlideRecord, put_record
from ray_pipeline.dataset.schema import ROW_GROUP_TILES, Footer, embeddings_schema
from ray_pipeline.dataset.slides_table import compact
from ray_pipeline.dataset.start import claim_recipe
from ray_pipeline.store import Store

RECIPE_FP = "f00df00df00d"
"""The recipe unless told otherwise."""
DIM = 8
"""Numbers per embedding unless told otherwise."""
PUTS_AT_ONCE = 4

Attributes = Mapping[str, Mapping[str, Any]]
"""slide_id -> the manifest's further columns."""
Vectors = npt.NDArray[np.float32]


def make_output(
    uri: str,
    slides: Mapping[str, int],
    *,
    dim: int = DIM,
    recipe_fp: str = RECIPE_FP,
    partition_by: Sequence[str] = (),
    attributes: Attributes | None = None,
    vectors: Mapping[str, Vectors] | None = None,
) -> Store:
    """Commit slides (slide_id -> number of tiles) and bring the slides table up to date.

    `vectors` are those of each slide, float32 [n, dim], where the seeded ones of `truth` won't do.
    """
    output, layout = Store.open(uri), Layout(recipe_fp)
    claim_recipe(output, layout, recipe_of(dim), partition_by)

    def commit(slide_id: str) -> None:
        said = (attributes or {}).get(slide_id, {})
        add_slide(
            output,
            slide_id,
            slides[slide_id],
            dim=dim,
            recipe_fp=recipe_fp,
            partitions={name: said.get(name) for name in partition_by},
            attributes=said,
            vectors=(vectors or {}).get(slide_id),
        )

    with ThreadPoolExecutor(PUTS_AT_ONCE) as pool:
        list(pool.map(commit, slides))
    compact(output, layout, print)
    return output


def recipe_of(dim: int) -> dict[str, Any]:
    """What readers look for in a recipe."""
    return {
        "format": 1,
        "encoder": {"model": "toy", "dim": dim, "meaningful": False},
        "tiling": {"tile_px": 224, "stride_px": 224, "mpp": 0.5},
    }


def add_slide(
    output: Store,
    slide_id: str,
    n_tiles: int,
    *,
    dim: int = DIM,
    recipe_fp: str = RECIPE_FP,
    partitions: Mapping[str, Any] | None = None,
    attributes: Mapping[str, Any] | None = None,
    vectors: Vectors | None = None,
) -> None:
    """Put a slide's file and record, as its commit does."""
    layout = Layout(recipe_fp)
    key = layout.output(slide_id, partitions or {})
    data = slide_bytes(slide_id, n_tiles, dim=dim, recipe_fp=recipe_fp, vectors=vectors)
    output.put(key, data)
    record = SlideRecord(
        slide_id=slide_id,
        uri=f"s3://slides/{slide_id}.svs",
        status="done" if n_tiles else "empty",
        run="run-1",
        n_tiles=n_tiles,
        output=key,
        attributes=dict(attributes or {}),
    )
    put_record(output, layout, record)


def footer_of(slide_id: str, dim: int, recipe_fp: str = RECIPE_FP) -> Footer:
    """What a slide's file says of itself."""
    return Footer(
        recipe=recipe_of(dim),
        recipe_fp=recipe_fp,
        slide_id=slide_id,
        uri=f"s3://slides/{slide_id}.svs",
        etag="e1",
        input_fp="aaaaaaaaaaaa",
        plan_fp="bbbbbbbbbbbb",
        mpp_used=0.5,
        mpp_achieved=0.5,
        level=0,
        version="0",
    )


def slide_bytes(
    slide_id: str,
    n_tiles: int,
    *,
    dim: int = DIM,
    recipe_fp: str = RECIPE_FP,
    vectors: Vectors | None = None,
) -> bytes:
    """A slide's file."""
    footer = footer_of(slide_id, dim, recipe_fp)
    schema = embeddings_schema(dim).with_metadata(footer.to_metadata())
    sink = io.BytesIO()
    with embeddings_writer(sink, schema) as writer:
        table = slide_table(slide_id, n_tiles, dim=dim, vectors=vectors).cast(schema)
        for start in range(0, n_tiles, ROW_GROUP_TILES):
            writer.write_table(table.slice(start, ROW_GROUP_TILES).combine_chunks())
    return sink.getvalue()


def slide_table(
    slide_id: str, n_tiles: int, *, dim: int = DIM, vectors: Vectors | None = None
) -> pa.Table:
    """The rows of a slide's file."""
    coordinates, seeded = truth(slide_id, n_tiles, dim=dim)
    vectors = seeded if vectors is None else vectors
    ids = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(n_tiles, np.int32)), pa.array([slide_id])
    )
    schema = embeddings_schema(dim)
    columns = [
        ids,
        pa.array(np.arange(n_tiles, dtype=np.int32)),
        *(pa.array(np.ascontiguousarray(coordinates[:, axis])) for axis in (0, 1)),
        pa.array(np.linspace(0.5, 1, n_tiles, dtype=np.float32)),
        pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.reshape(-1)), type=schema.field("embedding").type
        ),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def truth(
    slide_id: str, n_tiles: int, *, dim: int = DIM
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """(coordinates int32 [n, 2], vectors float32 [n, D]) of a made slide."""
    rng = np.random.default_rng(zlib.crc32(slide_id.encode()))
    vectors = rng.standard_normal((n_tiles, dim), np.float32).astype(np.float16).astype(np.float32)
    tiles = np.arange(n_tiles)
    return np.stack([tiles % 50 * 224, tiles // 50 * 224], axis=1).astype(np.int32), vectors
