"""What travels between the stages: one Arrow row per shard, and one header row per slide.

Arrays cross as plain binary cells, so that a block is one flat buffer whatever its shards' sizes,
and reading one back copies nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_pipeline.errors import HistorayError

Scalar = TypeVar("Scalar", bound=np.generic)

HEADER = -1
"""`shard` of a slide's header row."""

SCHEMA = pa.schema(
    [
        ("slide_id", pa.string()),
        ("shard", pa.int32()),
        ("uri", pa.string()),
        ("etag", pa.string()),
        ("first_tile", pa.int32()),
        ("info", pa.string()),
        ("error", pa.string()),
        ("xy", pa.large_binary()),
        ("tissue", pa.large_binary()),
        ("pixels", pa.large_binary()),
        ("embedding", pa.large_binary()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a slide did not come through, as it is told to the user."""

    stage: str
    """Where: `list`, `plan`, `read`, `encode`, `stage` or `commit`."""
    kind: str
    """Stable name of the error class; see `ray_pipeline.errors`."""
    reason: str
    """One sentence: what, on which slide, and the mend."""

    @classmethod
    def of(cls, stage: str, error: HistorayError) -> Failure:
        """The failure that `error` means when it was raised in `stage`."""
        return cls(stage=stage, kind=error.kind, reason=str(error))


@dataclass(frozen=True, kw_only=True)
class ShardRow:
    """One shard on its way, or (shard = HEADER) what the driver must know of the slide."""

    slide_id: str
    """The slide's id."""
    shard: int
    """Index in the slide's plan, or HEADER."""
    uri: str = ""
    """The slide's URI."""
    etag: str = ""
    """The version that is read."""
    first_tile: int = 0
    """`tile` of the shard's first tile."""
    info: dict[str, Any] = field(default_factory=dict)
    """Header: n_shards, n_tiles, plan_fp, staged, facts. Shard: how to read it, and its costs."""
    failure: Failure | None = None
    """Set once any stage failed; later stages pass the row on untouched."""
    xy: npt.NDArray[np.int32] | None = None
    """int32 [n, 2], level-0 px."""
    tissue: npt.NDArray[np.float32] | None = None
    """float32 [n]."""
    pixels: npt.NDArray[np.uint8] | None = None
    """uint8 [n, tile_px, tile_px, 3] between reading and encoding."""
    embedding: npt.NDArray[np.float16] | None = None
    """float16 [n, D] between encoding and staging."""

    @property
    def is_header(self) -> bool:
        """Whether this row tells of the slide, not of a shard."""
        return self.shard == HEADER

    @property
    def to_do(self) -> bool:
        """Whether the row is a shard that has not failed."""
        return not self.is_header and self.failure is None

    def failed(self, failure: Failure) -> ShardRow:
        """The same row without its arrays, carrying `failure`."""
        return replace(self, failure=failure, xy=None, tissue=None, pixels=None, embedding=None)


def to_table(rows: Iterable[ShardRow]) -> pa.Table:
    """Rows as an Arrow table of `SCHEMA`; the arrays of a single row are shared, not copied."""
    rows = list(rows)
    columns: list[pa.Array] = [
        pa.array([row.slide_id for row in rows], pa.string()),
        pa.array([row.shard for row in rows], pa.int32()),
        pa.array([row.uri for row in rows], pa.string()),
        pa.array([row.etag for row in rows], pa.string()),
        pa.array([row.first_tile for row in rows], pa.int32()),
        pa.array([json.dumps(row.info) for row in rows], pa.string()),
        pa.array([json.dumps(vars(row.failure)) if row.failure else "" for row in rows]),
        _cells([row.xy for row in rows]),
        _cells([row.tissue for row in rows]),
        _cells([row.pixels for row in rows]),
        _cells([row.embedding for row in rows]),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def from_table(table: pa.Table) -> Iterator[ShardRow]:
    """The rows of a table made by `to_table`; arrays are read-only views of its buffers."""
    # Whole columns at a time: the driver takes in tens of millions of rows.
    texts = [table.column(name).to_pylist() for name in SCHEMA.names[:7]]
    xy, tissue, pixels, embedding = (_Cells(table.column(name)) for name in SCHEMA.names[7:])
    rows = zip(*texts, strict=True)
    for index, (slide_id, shard, uri, etag, first_tile, info_text, error) in enumerate(rows):
        info = json.loads(info_text)
        side = info.get("tile_px", 0)
        yield ShardRow(
            slide_id=slide_id,
            shard=shard,
            uri=uri,
            etag=etag,
            first_tile=first_tile,
            info=info,
            failure=Failure(**json.loads(error)) if error else None,
            xy=xy.view(index, np.int32, (-1, 2)),
            tissue=tissue.view(index, np.float32, (-1,)),
            pixels=pixels.view(index, np.uint8, (-1, side, side, 3)),
            embedding=embedding.view(index, np.float16, (-1, info.get("dim", 0))),
        )


def _cells(arrays: list[npt.NDArray[Any] | None]) -> pa.Array:
    present = [array for array in arrays if array is not None]
    if len(arrays) == 1 and present:
        data = np.ascontiguousarray(present[0])
        offsets = pa.py_buffer(np.array([0, data.nbytes], np.int64))
        return pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), 1, [None, offsets, pa.py_buffer(data.reshape(-1).view(np.uint8))]
        )
    return pa.array(
        [None if array is None else array.tobytes() for array in arrays], pa.large_binary()
    )


class _Cells:
    """A column of arrays. No scalars here: a scalar of such a column is a copy of its pixels."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._empty = column.null_count == len(column)
        if self._empty:
            return
        chunk = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        self._offsets = np.frombuffer(chunk.buffers()[1], np.int64)[chunk.offset :]
        self._data = chunk.buffers()[2]
        self._valid = chunk.is_valid() if chunk.null_count else None

    def view(
        self, index: int, kind: type[Scalar], shape: tuple[int, ...]
    ) -> npt.NDArray[Scalar] | None:
        """The array of one row, of the given shape; None where it has none."""
        if self._empty or (self._valid is not None and not self._valid[index].as_py()):
            return None
        dtype = np.dtype(kind)
        start, stop = self._offsets[index : index + 2]
        count = int(stop - start) // dtype.itemsize
        if count == 0 or self._data is None:
            return np.empty((0, *shape[1:]), dtype)
        flat = np.frombuffer(self._data, dtype, count=count, offset=int(start))
        return flat.reshape(shape)
