"""Stages that do nothing, in the places of the real ones: what is left is Ray and the driver."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from ray_pipeline.encoders.spec import EncoderIdentity
from ray_pipeline.recipe import SHARD_TILES
from ray_pipeline.rows import from_table, to_table
from tests.benchmarks.scale_stages import READ, header_row, shard_row


def null_key(number: int, n_tiles: int) -> str:
    """Key of a source that `NullPlan` gives so many tiles."""
    return f"slide-{number:07d}-{n_tiles}.svs"


class NullPlan:
    """A `PlanSlide` that opens nothing; its slides have the tiles that `null_key` says."""

    def __init__(self, *_made: Any, **_more: Any) -> None:
        pass

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """See `PlanSlide`."""
        for text in table.column("slide").to_pylist():
            task = json.loads(text)
            n_tiles = int(task["uri"].rpartition("-")[2].removesuffix(".svs"))
            yield to_table([header_row(task, n_tiles, [])])
            for shard in range(-(-n_tiles // SHARD_TILES)):
                yield to_table([shard_row(task, shard, n_tiles)])


class NullRead:
    """A `ReadTiles` that reads nothing. Its tiles have no pixels."""

    side_px = 0

    def __init__(self, **_made: Any) -> None:
        pass

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """See `ReadTiles`."""
        side = self.side_px
        for row in from_table(table):
            if row.to_do and row.xy is not None:
                pixels = np.zeros((len(row.xy), side, side, 3), np.uint8)
                info = {**row.info, **READ, "tile_px": side, "seconds": 0.1}
                yield to_table([replace(row, pixels=pixels, info=info)])
            else:
                yield to_table([row])


class BlackRead(NullRead):
    """A `ReadTiles` that reads nothing, and whose tiles have all their pixels, black ones."""

    side_px = 224


class NullEncode:
    """An `EncodeTiles` that computes nothing: every vector is zero."""

    def __init__(self, identity: EncoderIdentity, weights: str | None, **_made: Any) -> None:
        self._dim = identity.dim

    def __call__(self, table: pa.Table) -> pa.Table:
        """See `EncodeTiles`."""
        return to_table(
            replace(
                row,
                pixels=None,
                # Not of the pixels, of which a tile may have none.
                embedding=np.zeros((len(row.xy), self._dim), np.float16),
                info={**row.info, "dim": self._dim},
            )
            if row.to_do and row.pixels is not None and row.xy is not None
            else row
            for row in from_table(table)
        )
