"""Outputs whose vectors a test chooses itself."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_pipeline.dataset.commit import embeddings_writer
from ray_pipeline.dataset.layout import Layout
from ray_pipeline.dataset.schema import ROW_GROUP_TILES, embeddings_schema
from ray_pipeline.store import Store
from tests.dataset.outputs import RECIPE_FP, footer_of

LAYOUT = Layout(RECIPE_FP)
STRIDE_PX = 224


def put_slide(
    output: Store,
    slide_id: str,
    vectors: npt.NDArray[np.floating[Any]],
    *,
    layout: Layout = LAYOUT,
    partitions: dict[str, Any] | None = None,
    row_group: int = ROW_GROUP_TILES,
) -> str:
    """Write a slide's file as a commit would, with `vectors` [n, D]; returns its key.

    Tile t lies at x = 224 t, y = 448 t.
    """
    n, dim = vectors.shape
    footer = footer_of(slide_id, dim, layout.recipe_fp)
    schema = embeddings_schema(dim).with_metadata(footer.to_metadata())
    tile = np.arange(n, dtype=np.int32)
    flat = vectors.astype(np.float16).astype(np.float32).reshape(-1)
    table = pa.Table.from_arrays(
        [
            pa.DictionaryArray.from_arrays(np.zeros(n, np.int32), pa.array([slide_id])),
            *map(pa.array, (tile, tile * STRIDE_PX, tile * 2 * STRIDE_PX)),
            pa.array(np.ones(n, np.float32)),
            pa.FixedSizeListArray.from_arrays(pa.array(flat), type=schema.field("embedding").type),
        ],
        schema=schema,
    )
    sink = io.BytesIO()
    with embeddings_writer(sink, schema) as writer:
        writer.write_table(table, row_group_size=row_group)
    key = layout.output(slide_id, partitions or {})
    output.put(key, sink.getvalue())
    return key
