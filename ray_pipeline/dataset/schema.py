"""Arrow schemas of the output, and what stands in a file's footer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

ROW_GROUP_TILES = 4096
"""Rows of one row group: 16 whole shards, about 11 MB for 1,536 numbers a tile."""
BATCH_TILES = 1024
"""Rows read at once: 6 MB of vectors for 1,536 numbers a tile, little enough for a cache."""
FOOTER_KEY = b"historay"
"""Footer metadata key under which `Footer` stands as JSON."""


def embeddings_schema(dim: int) -> pa.Schema:
    """Schema of a slide's file for vectors of `dim` numbers.

    float32 whose values are all float16 values: BYTE_STREAM_SPLIT and zstd bring it to the size
    of a float16 column, and every reader knows it (DuckDB and Spark lack half floats there).
    """
    return pa.schema(
        [
            pa.field("slide_id", pa.dictionary(pa.int32(), pa.string()), nullable=False),
            pa.field("tile", pa.int32(), nullable=False),
            pa.field("x", pa.int32(), nullable=False),
            pa.field("y", pa.int32(), nullable=False),
            pa.field("tissue", pa.float32(), nullable=False),
            pa.field("embedding", _vector(pa.float32(), dim), nullable=False),
        ]
    )


def fragment_schema(dim: int) -> pa.Schema:
    """Schema of a staged fragment."""
    return pa.schema(
        [
            ("tile", pa.int32()),
            ("x", pa.int32()),
            ("y", pa.int32()),
            ("tissue", pa.float32()),
            ("embedding", _vector(pa.float16(), dim)),
        ]
    )


def _vector(number: pa.DataType, dim: int) -> pa.DataType:
    return pa.list_(pa.field("element", number, nullable=False), dim)


SLIDE_COLUMNS = pa.schema(
    [
        ("slide_id", pa.string()),
        ("status", pa.string()),
        ("uri", pa.string()),
        ("etag", pa.string()),
        ("size_bytes", pa.int64()),
        ("vendor", pa.string()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("mpp_found", pa.float64()),
        ("mpp_source", pa.string()),
        ("mpp_used", pa.float64()),
        ("mpp_asked", pa.float64()),
        ("mpp_achieved", pa.float64()),
        ("level", pa.int32()),
        ("reduce", pa.int32()),
        ("resampled", pa.bool_()),
        ("icc_profile", pa.bool_()),
        ("tile_size_l0", pa.float64()),
        ("n_tiles", pa.int64()),
        ("tissue_mm2", pa.float64()),
        ("mask", pa.map_(pa.string(), pa.float64())),
        ("error_kind", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("seconds", pa.float64()),
        ("gets", pa.int64()),
        ("bytes_fetched", pa.int64()),
        ("bytes_needed", pa.int64()),
        ("retries", pa.int64()),
        ("output", pa.string()),
        ("output_etag", pa.string()),
        ("input_fp", pa.string()),
        ("plan_fp", pa.string()),
        ("run", pa.string()),
        ("finished_at", pa.string()),
        ("record_etag", pa.string()),
        ("mean_embedding", pa.list_(pa.float32())),
        ("max_embedding", pa.list_(pa.float32())),
    ]
)
"""Columns of the slides table; the manifest's own columns follow them."""
SLIDE_VECTORS = ("mean_embedding", "max_embedding")
"""Those that hold [D] numbers: over the slide's tiles, the mean and the largest of each."""
LATER_COLUMNS = ("max_embedding", "output_etag")
"""Those that tables and records written before lack: null for their slides."""


@dataclass(frozen=True, kw_only=True)
class Footer:
    """What a slide's file says of itself."""

    recipe: dict[str, Any]
    """The recipe in full."""
    recipe_fp: str
    """Its fingerprint."""
    slide_id: str
    """The exact slide_id."""
    uri: str
    """Where the slide was read."""
    etag: str
    """The version that was read."""
    input_fp: str
    """Fingerprint of uri, etag and overrides."""
    plan_fp: str
    """Fingerprint of the tile plan."""
    mpp_used: float | None
    """Microns per pixel of level 0."""
    mpp_achieved: float | None
    """Microns per pixel of the tiles."""
    level: int | None
    """Level that was read."""
    version: str
    """historay's version."""
    width_px: int | None = None
    """Width of level 0, px."""
    height_px: int | None = None
    """Height of level 0, px."""
    warning: str = ""
    """Set when the vectors mean nothing (made-up weights)."""

    def to_metadata(self) -> dict[bytes, bytes]:
        """As Parquet key-value metadata."""
        return {FOOTER_KEY: json.dumps(vars(self), sort_keys=True).encode()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes] | None) -> Footer | None:
        """Back from a file's metadata; None when the file is not one of ours."""
        text = (metadata or {}).get(FOOTER_KEY)
        if text is None:
            return None
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError):
            return None
