"""Tiles that people bring: where they lie on a slide, as a small Parquet file each.

`historay import-coords` makes these files of TRIDENT's and CLAM's; a manifest's column `coords`
names them. Columns `x`, `y` int32: left top corners, level-0 px; the footer tells the tiles' side.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ray_pipeline.errors import CoordinatesError, ObjectReplacedError
from ray_pipeline.store import Store
from ray_pipeline.uris import split_uri

FOOTER_KEY = b"historay.coordinates"
"""Footer metadata key under which the side and the source stand as JSON."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Coordinates:
    """The tiles of one slide, in read order (row by row), each once."""

    xy: npt.NDArray[np.int32]
    """Left top corners, level-0 px: int32 [n, 2]."""
    size_l0: float
    """Side of a tile, level-0 px."""
    source: str = ""
    """Where they come from: the URI of another tool's file."""

    @property
    def digest(self) -> str:
        """16 hex digits that tell these tiles from others, whatever file they stand in."""
        told = f"{float(self.size_l0)!r}\n".encode() + self.xy.astype("<i4").tobytes()
        return hashlib.sha256(told).hexdigest()[:16]

    def to_bytes(self) -> bytes:
        """As Parquet."""
        footer = json.dumps({"tile_size_level0": self.size_l0, "source": self.source})
        table = pa.table({"x": self.xy[:, 0], "y": self.xy[:, 1]})
        sink = io.BytesIO()
        pq.write_table(
            table.replace_schema_metadata({FOOTER_KEY: footer.encode()}), sink, compression="zstd"
        )
        return sink.getvalue()


def in_read_order(xy: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
    """Corners row by row, left to right, each once: int32 [m, 2]."""
    unique = np.unique(xy[:, ::-1], axis=0)
    return np.ascontiguousarray(unique[:, ::-1].astype(np.int32))


def read_coordinates(uri: str, *, slide_id: str, digest: str | None = None) -> Coordinates:
    """The slide's coordinates from `uri`, those of `digest` where one is given.

    Raises CoordinatesError, ObjectReplacedError for others than `digest` tells, or a StoreError.
    """
    root, key = split_uri(uri)
    data = Store.open(root).get(key)
    try:
        table = pq.read_table(io.BytesIO(data))
        footer = json.loads((table.schema.metadata or {})[FOOTER_KEY])
        given = [table[name].cast(pa.int32()).to_numpy() for name in ("x", "y")]
        size_l0, source = float(footer["tile_size_level0"]), str(footer["source"])
    except (pa.ArrowException, KeyError, TypeError, ValueError):
        raise CoordinatesError(
            f"{slide_id}: {uri} holds no coordinates of tiles: make it by `historay import-coords`."
        ) from None
    xy = np.stack(given, axis=1)
    if len(ordered := in_read_order(xy)) != len(xy):
        raise CoordinatesError(
            f"{slide_id}: {uri} names {len(xy) - len(ordered)} tiles more than once: make it by "
            "`historay import-coords`, which names each once."
        )
    coordinates = Coordinates(xy=ordered, size_l0=size_l0, source=source)
    if digest not in (None, coordinates.digest):
        raise ObjectReplacedError(
            f"{slide_id}: {uri} was replaced after it was listed: run again to take the new one."
        )
    return coordinates
