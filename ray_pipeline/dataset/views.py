"""An output's tiles and slides as tables of DuckDB."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import duckdb

from ray_pipeline.dataset.filesystem import StoreFileSystem
from ray_pipeline.dataset.layout import EMBEDDINGS_FILE, HIVE_NULL
from ray_pipeline.dataset.schema import embeddings_schema
from ray_pipeline.dataset.slide_files import SlideFile, SlideFiles
from ray_pipeline.store import Store

TILES, SLIDES = "tiles", "slides"
"""Names of the tables."""
NOT_TOLD_BY_FOLDERS = frozenset({"NULL", HIVE_NULL.upper()})
"""Ids, in capitals, that DuckDB takes for an absent value where they are a folder's."""
REMOTE_THREADS = 32
"""Threads of a query over a store: they mostly wait for it."""
SMALL_FILE_BYTES = 128 << 10
"""Mean length of files that are opened for longer than read: some 0.3 ms beside 5 ms a MB."""


def set_threads(con: duckdb.DuckDBPyConnection, output: Store, listed: Sequence[SlideFile]) -> None:
    """Give a connection of ours the threads that suit reading these files of `output`."""
    if output.scheme != "file":
        con.execute(f"set threads = {REMOTE_THREADS}")
        return
    # Each request goes through Python, whose lock threads hand to one another at great cost.
    con.execute("set async_threads = 0")
    if sum(file.info.size_bytes for file in listed) < SMALL_FILE_BYTES * len(listed):
        con.execute("set threads = 1")


def create_tiles(
    con: duckdb.DuckDBPyConnection, files: SlideFiles, listed: Sequence[SlideFile], *, dim: int
) -> StoreFileSystem:
    """Create the view `tiles` over the files that are `listed`; returns what they are read through.

    A condition on `slide_id` or on a partition column skips files unopened: the values come from
    the folders' names. `embedding` is FLOAT[dim], which DuckDB's vector functions ask for. Raises
    what reading the first of the files raises.
    """
    marked = f"{files.output.uri}\n{files.layout.recipe_fp}".encode()
    protocol = f"historay-{hashlib.sha256(marked).hexdigest()[:12]}"
    infos = [file.info for file in listed]
    system = StoreFileSystem(files.output, infos, protocol=protocol)
    if protocol in con.list_filesystems():
        con.unregister_filesystem(protocol)
    con.register_filesystem(system)
    if not listed:
        con.register(TILES, embeddings_schema(dim).empty_table())
        return system
    by_folder = not any(file.slide_id.upper() in NOT_TOLD_BY_FOLDERS for file in listed)
    columns = [
        "slide as slide_id" if by_folder else "slide_id",
        *("tile", "x", "y", "tissue"),
        f"embedding::FLOAT[{dim}] as embedding",
        *map(_quoted, files.partition_by),
    ]
    try:
        con.execute(
            f"create or replace temp view {TILES} as select {', '.join(columns)} "  # noqa: S608 (our names)
            f"from read_parquet('{folder_of(system, files)}**/{EMBEDDINGS_FILE}', "
            "hive_partitioning = true, hive_types_autocast = false)"
        )
    except duckdb.Error:
        if system.failure is None:
            raise
        raise system.failure from None
    return system


def folder_of(system: StoreFileSystem, files: SlideFiles) -> str:
    """The folder of the files, as DuckDB knows it; ends with a slash."""
    return f"{system.protocol}://{files.layout.embeddings}/"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
