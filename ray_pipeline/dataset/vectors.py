"""The vectors of an output, read a piece at a time in a stated amount of memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline.dataset.layout import EMBEDDINGS_FILE, Layout
from ray_pipeline.dataset.row_groups import RowGroups
from ray_pipeline.dataset.schema import BATCH_TILES, ROW_GROUP_TILES
from ray_pipeline.dataset.slide_files import standing_files
from ray_pipeline.errors import NotFoundError, SettingsError
from ray_pipeline.recipe import SHARD_TILES
from ray_pipeline.store import ObjectInfo, Store

COLUMNS = ("tile", "x", "y", "embedding")
LARGEST_GROUP_TILES = ROW_GROUP_TILES + SHARD_TILES
"""Rows of a row group stay below: it is closed by the shard that fills it."""
BATCH_COPIES, NUMBER_BYTES = 6, 4
"""Of a batch while it is decoded, with what allocators keep (measured: 4); bytes of a number."""
SHARED_BYTES = 24 << 20
"""Kept by allocators as soon as two slides are read at the same time (measured: 21 MiB)."""
TAIL_BYTES = 64 << 10
"""First request of a file, at its end. Each row group is then one more."""


@dataclass(frozen=True, kw_only=True)
class VectorBatch:
    """Tiles of one slide that follow one another, with their vectors."""

    slide_id: str
    """The slide's id."""
    tile: npt.NDArray[np.int32]
    """int32 [n], rising by one."""
    x: npt.NDArray[np.int32]
    """int32 [n], level-0 px."""
    y: npt.NDArray[np.int32]
    """int32 [n], level-0 px."""
    vectors: npt.NDArray[np.float32]
    """float32 [n, D], not normalised; read-only."""


def reading_bytes(dim: int) -> int:
    """Most bytes that reading a slide of any length holds, for vectors of `dim` numbers."""
    return NUMBER_BYTES * dim * (LARGEST_GROUP_TILES + BATCH_COPIES * BATCH_TILES)


def slides_at_once(memory_bytes: int, dim: int) -> int:
    """Slides that can be read at the same time within so much memory; one always can."""
    return max(1, (memory_bytes - SHARED_BYTES) // reading_bytes(dim))


def slide_file(output: Store, layout: Layout, slide_id: str) -> ObjectInfo:
    """The slide's file. Raises SettingsError when the recipe has none of it."""
    try:
        return output.head(layout.output(slide_id, {}))
    except NotFoundError:
        # Partition columns make folders between the recipe's and the slide's.
        for found, info in standing_files(output, layout):
            if found == slide_id:
                return info
    raise SettingsError(
        f"--slide: recipe {layout.recipe_fp} of {output.uri} has no slide '{slide_id}'; "
        "its slides table lists them."
    )


def read_vectors(
    output: Store,
    slide_id: str,
    info: ObjectInfo,
    *,
    tiles: Collection[int] | None = None,
) -> Iterator[VectorBatch]:
    """The slide's tiles in order, BATCH_TILES at most at a time, in no more than `reading_bytes`.

    With `tiles`, only row groups that hold one of them are read. Raises ObjectReplacedError when
    the file is replaced meanwhile, and SettingsError when it is none of historay's.
    """
    try:
        file, groups = _row_groups(output, info)
        for group, rows in enumerate(groups):
            if tiles is None or any(tile in rows for tile in tiles):
                yield from _batches(slide_id, file, group)
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:
        raise SettingsError(
            f"{slide_id}: {output.uri_of(info.key)} is no file of historay's ({error}); "
            "move it away."
        ) from error


def read_tiles(
    output: Store, slide_id: str, info: ObjectInfo, tiles: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Vectors of the named tiles of a slide, float32 [len(tiles), D].

    Raises SettingsError for a tile that the slide does not have.
    """
    found: dict[int, npt.NDArray[np.float32]] = {}
    for batch in read_vectors(output, slide_id, info, tiles=tiles):
        for row in np.flatnonzero(np.isin(batch.tile, tiles)):
            found[int(batch.tile[row])] = batch.vectors[row].copy()
    for tile in tiles:
        if tile not in found:
            raise SettingsError(
                f"--tile: slide '{slide_id}' has no tile {tile}; they count from 0 in its "
                f"{EMBEDDINGS_FILE}."
            )
    # Arrow would keep what this thread has decoded with, beside what others then need.
    pa.default_memory_pool().release_unused()
    return np.stack([found[tile] for tile in tiles])


def _row_groups(output: Store, info: ObjectInfo) -> tuple[RowGroups, list[range]]:
    """The file, and the tiles of each row group. Raises ValueError for a long one."""
    file = RowGroups(
        output,
        info.key,
        etag=info.etag,
        size_bytes=info.size_bytes,
        tail_bytes=TAIL_BYTES,
    )
    groups, first = [], 0
    for group in range(file.metadata.num_row_groups):
        groups.append(range(first, first + file.metadata.row_group(group).num_rows))
        first = groups[-1].stop
        if len(groups[-1]) > LARGEST_GROUP_TILES:
            raise ValueError("row groups longer than historay's")
    return file, groups


def _batches(slide_id: str, file: RowGroups, group: int) -> Iterator[VectorBatch]:
    fetched = file.fetched(group, COLUMNS)
    for batch in fetched.iter_batches(
        BATCH_TILES, row_groups=[group], columns=list(COLUMNS), use_threads=False
    ):
        flat = pc.list_flatten(batch["embedding"]).to_numpy(zero_copy_only=False)
        yield VectorBatch(
            slide_id=slide_id,
            tile=batch["tile"].to_numpy(),
            x=batch["x"].to_numpy(),
            y=batch["y"].to_numpy(),
            vectors=flat.reshape(batch.num_rows, -1),
        )
