"""`historay query`: SQL over one output, on a connection that reaches nothing else."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import duckdb
import pyarrow as pa

from ray_pipeline.answers import Answer, Form, table_of, write_answer
from ray_pipeline.dataset.filesystem import StoreFileSystem
from ray_pipeline.dataset.reading import EmbeddingDataset, open_dataset
from ray_pipeline.dataset.views import SLIDES, TILES, create_tiles, folder_of, set_threads
from ray_pipeline.errors import QueryError, SettingsError
from ray_pipeline.store import Store
from ray_pipeline.uris import split_uri

BATCH_ROWS = 8192
"""Rows of the answer held at a time: 50 MB with vectors of 1,536 numbers."""
LOCKS = (
    "enable_external_access = false",
    "autoinstall_known_extensions = false",
    "autoload_known_extensions = false",
    "python_enable_replacements = false",
    "lock_configuration = true",
)
"""What closes the connection, in this order."""


def run_query(
    output: str, sql: str, *, recipe: str | None, form: Form, out: str | None, stdout: IO[bytes]
) -> list[tuple[str, ...]]:
    """Ask the output at `output`, a URI, and write the answer to `out`, a path or URI, or `stdout`.

    For `table` nothing is written, and the rows to show come back. Raises SettingsError, QueryError
    and what reading and writing a store raise.
    """
    if form == "table" and out is not None:
        raise SettingsError("--out wants --format csv, json or parquet: a table is cut short.")
    if form == "parquet" and out is None:
        raise SettingsError("--format parquet wants --out: it is no text.")
    with asked(open_dataset(output, recipe), sql) as answer:
        if form == "table":
            return table_of(answer)
        if out is None:
            write_answer(answer, form, stdout)
            return []
        with tempfile.NamedTemporaryFile() as file:
            write_answer(answer, form, file)
            file.flush()
            root, key = split_uri(out)
            Store.open(root).put_file(key, Path(file.name))
    return []


@contextmanager
def asked(dataset: EmbeddingDataset, sql: str) -> Iterator[Answer]:
    """The answer to one SELECT over the tables `tiles` and `slides`.

    The connection knows no files but those of the output, and no way to write one: DuckDB takes
    a COPY inside a SELECT, so that looking at the statement is not enough. Raises QueryError for
    SQL that is wrong or no SELECT, and what reading the store raises.
    """
    _check(sql)
    with tempfile.TemporaryDirectory() as spill, duckdb.connect() as con:
        # DuckDB would spill into the working directory.
        con.execute("set temp_directory = $spill", {"spill": spill})
        system = _prepare(con, dataset, sql)
        with _explained(system):
            relation = con.sql(sql)
            reader = relation.to_arrow_reader(BATCH_ROWS)
        yield Answer(schema=reader.schema, batches=_batches(reader, system))
        del relation, reader


def _check(sql: str) -> None:
    try:
        kinds = [statement.type for statement in duckdb.extract_statements(sql)]
    except duckdb.Error as error:
        raise QueryError(_sentence(error)) from None
    if kinds != [duckdb.StatementType.SELECT]:
        told = ", ".join(kind.name for kind in kinds) or "none"
        raise QueryError(f"a query is one SELECT, and this is: {told}.")


def _prepare(
    con: duckdb.DuckDBPyConnection, dataset: EmbeddingDataset, sql: str
) -> StoreFileSystem | None:
    words, system = sql.lower(), None
    neither = TILES not in words and SLIDES not in words
    if SLIDES in words or neither:
        con.register(SLIDES, dataset.slides())
    if TILES in words or neither:
        set_threads(con, dataset.output, dataset.listed)
        system = create_tiles(con, dataset.files, dataset.listed, dim=dataset.dim)
        con.execute(
            "set allowed_directories = [$folder]", {"folder": folder_of(system, dataset.files)}
        )
    for lock in LOCKS:
        con.execute(f"set {lock}")
    return system


def _batches(
    reader: pa.RecordBatchReader, system: StoreFileSystem | None
) -> Iterator[pa.RecordBatch]:
    while True:
        with _explained(system):
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                return
        yield batch


@contextmanager
def _explained(system: StoreFileSystem | None) -> Iterator[None]:
    """DuckDB's errors as ours; while rows stream, they come as OSError."""
    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        if system is not None and system.failure is not None:
            raise system.failure from None
        raise QueryError(_sentence(error)) from None


def _sentence(error: Exception) -> str:
    """What DuckDB says, without the picture of where."""
    told = str(error).partition("\n\nLINE ")[0]
    return " ".join(told.split())
