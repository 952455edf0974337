"""Puts into a `BucketServer` what jobs of many slides find there, without having done them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_pipeline.dataset.layout import Layout
from ray_pipeline.dataset.schema import SLIDE_COLUMNS, SLIDE_VECTORS
from ray_pipeline.dataset.slides_table import CHUNK_RECORDS
from ray_pipeline.recipe import input_fingerprint
from ray_pipeline.slides.slide import slide_id_of
from tests.benchmarks.scale_stages import FACTS, READ
from tests.servers.buckets import BucketServer, etag_of_filled

SOURCES, OUTPUT = "s3://slides/", "s3://results"
FILL_KEYS = 20_000
"""Keys put at a time."""
SLIDE_BYTES, FILE_BYTES, RECORD_BYTES = 1_200_000_000, 27_000_000, 20_000
"""What a listing tells of a source, of a file of embeddings and of a record."""
DIM = 1536
"""Numbers of a slide's vectors in the slides table."""
DONE = {
    **FACTS,
    **READ,
    "status": "done",
    "size_bytes": SLIDE_BYTES,
    "mask": list(FACTS["mask"].items()),
    "run": "20261121T093011-5d4140",
    "finished_at": "2026-11-21T09:41:27.164+00:00",
}
"""What the slides table tells of each slide."""


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
    bucket = _bucket(OUTPUT)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slides.parquet"
        with SlidesFile(path) as table:
            if beside is not None:
                table.write(beside.select(SLIDE_COLUMNS.names))
            for sources in _chunks(slides):
                ids = [slide_id_of(key) for key in sources]
                uris = [f"{SOURCES}{key}" for key in sources]
                etags = [etag_of_filled(key) for key in sources]
                inputs = [
                    input_fingerprint(uri=uri, etag=etag, mpp_override=None)
                    for uri, etag in zip(uris, etags, strict=True)
                ]
                records = [layout.record(slide_id) for slide_id in ids]
                done = [layout.done_key(one, fp) for one, fp in zip(ids, inputs, strict=True)]
                files = [layout.output(slide_id, {}) for slide_id in ids]
                server.fill(bucket, records, RECORD_BYTES)
                server.fill(bucket, done, 0)
                server.fill(bucket, files, FILE_BYTES)
                table.write_told(
                    slide_id=ids,
                    uri=uris,
                    etag=etags,
                    input_fp=inputs,
                    plan_fp=[etag[:16] for etag in etags],
                    output=files,
                    output_etag=list(map(etag_of_filled, files)),
                    record_etag=list(map(etag_of_filled, records)),
                )
        server.put_file(bucket, layout.slides_table, path)


class SlidesFile:
    """A slides table as historay writes it, vectors of 1,536 numbers and all: 12 MB a row group.

    Every row group has the same vectors, and has them as they are: numbers like these hardly
    become less, and compressing them would take five times as long.
    """

    def __init__(self, path: Path) -> None:
        short = [name for name in SLIDE_COLUMNS.names if name not in SLIDE_VECTORS]
        short += ["mask.key_value.key", "mask.key_value.value"]
        self._file = pq.ParquetWriter(
            path, SLIDE_COLUMNS, compression=dict.fromkeys(short, "zstd"), use_dictionary=short
        )
        self._rng = np.random.default_rng(1)
        numbers = self._rng.standard_normal(CHUNK_RECORDS * DIM, dtype=np.float32)
        ends = np.arange(0, CHUNK_RECORDS * DIM + 1, DIM, dtype=np.int32)
        self._vectors = pa.ListArray.from_arrays(ends, numbers)
        self._waiting = SLIDE_COLUMNS.empty_table()

    def __enter__(self) -> SlidesFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.write(self._waiting)
        self._file.close()

    def write(self, rows: pa.Table) -> None:
        """One row group."""
        self._file.write_table(rows)

    def write_told(self, **told: Sequence[str]) -> None:
        """Rows of slides that were done, row group after row group as soon as one is full."""
        n = len(told["slide_id"])
        columns = []
        for field in SLIDE_COLUMNS:
            if field.name in SLIDE_VECTORS:
                column = pa.concat_arrays([self._vectors] * -(-n // CHUNK_RECORDS))[:n]
            elif field.name in ("n_tiles", "seconds", "tissue_mm2", "bytes_fetched"):
                column = pa.array(self._rng.integers(1, 1 << 20, n)).cast(field.type)
            elif field.name in told:
                column = pa.array(told[field.name], field.type)
            else:
                column = pa.array([DONE.get(field.name)] * n, field.type)
            columns.append(column)
        rows = pa.Table.from_arrays(columns, schema=SLIDE_COLUMNS)
        self._waiting = pa.concat_tables([self._waiting, rows])
        while self._waiting.num_rows >= CHUNK_RECORDS:
            self.write(self._waiting[:CHUNK_RECORDS])
            self._waiting = self._waiting[CHUNK_RECORDS:]


def _chunks(slides: int) -> Iterator[list[str]]:
    for start in range(0, slides, FILL_KEYS):
        yield [source_key(number) for number in range(start, min(slides, start + FILL_KEYS))]


def _bucket(uri: str) -> str:
    return urlsplit(uri).netloc
