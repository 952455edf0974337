"""The attention that a model paid to each tile, as Parquet beside the embeddings."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ray_pipeline.dataset.bags import Bag
from ray_pipeline.dataset.layout import folder_name
from ray_pipeline.store import Store

ATTENTION_COLUMNS = pa.schema(
    [
        pa.field("slide_id", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("tile", pa.int32(), nullable=False),
        pa.field("x", pa.int32(), nullable=False),
        pa.field("y", pa.int32(), nullable=False),
        pa.field("attention", pa.float32(), nullable=False),
    ]
)
"""One row per tile. `slide_id`, `tile`, `x` and `y` (level-0 px) are those of the slide's
embeddings, so the two join on `slide_id` and `tile`; `attention` sums to 1 over the slide."""


def attention_key(slide_id: str) -> str:
    """Where a slide's attention lies below the root it is written to."""
    return f"attention/slide={folder_name(slide_id)}/attention.parquet"


def write_attention(target: Store, bag: Bag, attention: npt.NDArray[np.float32]) -> str:
    """Write a slide's ATTENTION_COLUMNS, replacing earlier ones; returns their key.

    `bag` holds all tiles of the slide in the order of `tile`, `attention` float32 [n] one number
    for each.
    """
    n = len(attention)
    x, y = bag["coords"].numpy().astype(np.int32).T
    ids = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(n, np.int32)), pa.array([bag["slide_id"]])
    )
    numbers = (np.arange(n, dtype=np.int32), x, y, attention.astype(np.float32))
    table = pa.Table.from_arrays([ids, *map(pa.array, numbers)], schema=ATTENTION_COLUMNS)
    sink, key = io.BytesIO(), attention_key(bag["slide_id"])
    pq.write_table(table, sink, compression="zstd")
    target.put(key, sink.getvalue())
    return key
