"""Puts into a `BucketServer` what jobs of many slides find there, without having done them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from ray_pipeline.dataset.layout import Layout
from ray_pipeline.dataset.schema import SLIDE_COLUMNS
from ray_pipeline.dataset.slides_table import CHUNK_RECORDS
from ray_pipeline.recipe import input_fingerprint
from ray_pipeline.slides.slide import slide_id_of
from ray_pipeline.store import Store
from tests.servers.buckets import BucketServer, etag_of_filled

SOURCES, OUTPUT = "s3://slides/", "s3://results"
FILL_KEYS = 20_000
"""Keys put at a time."""
SLIDE_BYTES, FILE_BYTES, RECORD_BYTES = 1_200_000_000, 27_000_000, 20_000
"""What a listing tells of a source, of a file of embeddings and of a record."""


def source_key(number: int) -> str:
    """Key of a source in its bucket."""
    return f"slide-{number:07d}.svs"


def fill_sources(server: BucketServer, slides: int) -> None:
    """So many sources, which nobody can read."""
    for keys in _chunks(slides):
        server.fill(_bucket(SOURCES), keys, SLIDE_BYTES)


def fill_finished(
    server: BucketServer, layout: Layout, slides: int, beside: pa.Table | None = None
) -> None:
    """What a finished job of the filled sources leaves in the output.

    `beside` are rows of the slides table for other slides. The environment points at `server`.
    """
    tables, bucket = [SLIDE_COLUMNS.empty_table() if beside is None else beside], _bucket(OUTPUT)
    for sources in _chunks(slides):
        ids = [slide_id_of(key) for key in sources]
        inputs = [
            input_fingerprint(uri=f"{SOURCES}{key}", etag=etag_of_filled(key), mpp_override=None)
            for key in sources
        ]
        records = [layout.record(slide_id) for slide_id in ids]
        done = [layout.done_key(slide_id, fp) for slide_id, fp in zip(ids, inputs, strict=True)]
        server.fill(bucket, records, RECORD_BYTES)
        server.fill(bucket, done, 0)
        files = [layout.output(slide_id, {}) for slide_id in ids]
        server.fill(bucket, files, FILE_BYTES)
        told = {"slide_id": ids, "input_fp": inputs}
        for name, keys in (("record_etag", records), ("output_etag", files)):
            told[name] = [etag_of_filled(key) for key in keys]
        tables.append(_rows(told))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slides.parquet"
        pq.write_table(pa.concat_tables(tables), path, row_group_size=CHUNK_RECORDS)
        Store.open(OUTPUT).put(layout.slides_table, path.read_bytes())


def _rows(told: dict[str, list[str]]) -> pa.Table:
    nothing = [None] * len(told["slide_id"])
    columns = [pa.array(told.get(one.name, nothing), one.type) for one in SLIDE_COLUMNS]
    return pa.Table.from_arrays(columns, schema=SLIDE_COLUMNS)


def _chunks(slides: int) -> Iterator[list[str]]:
    for start in range(0, slides, FILL_KEYS):
        yield [source_key(number) for number in range(start, min(slides, start + FILL_KEYS))]


def _bucket(uri: str) -> str:
    return urlsplit(uri).netloc
