"""The slides table: one row per slide, compacted from the records, so it can always be rebuilt.

Compaction is incremental: one LIST of the records tells their versions, and only records whose
version differs from the `record_etag` in the standing table are fetched.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_pipeline.dataset.layout import Layout, original_name
from ray_pipeline.dataset.records import SlideRecord, decode_vector, get_records
from ray_pipeline.dataset.schema import SLIDE_COLUMNS
from ray_pipeline.errors import NotFoundError
from ray_pipeline.store import Store

CHUNK_RECORDS = 2048
"""Records turned into rows at a time: bounds memory at some 20 MB for 1,536 numbers a mean."""


def compact(output: Store, layout: Layout) -> int:
    """Bring the slides table up to date with the records; returns its number of rows."""
    versions = {
        original_name(info.key.rpartition("/")[2].removesuffix(".json")): info
        for info in output.list(layout.records)
    }
    known = _standing_versions(output, layout)
    stale = sorted(slide for slide, info in versions.items() if known.get(slide) != info.etag)
    gone = [slide for slide in known if slide not in versions]
    if not stale and not gone and known:
        return len(known)
    with tempfile.TemporaryDirectory() as folder:
        fresh = []
        for number, keys in enumerate(_chunked([versions[slide].key for slide in stale])):
            records = get_records(output, keys)
            path = Path(folder) / f"fresh-{number}.parquet"
            pq.write_table(_rows([(r, versions[r.slide_id].etag) for r in records]), path)
            fresh.append(path)
        merged = Path(folder) / "merged.parquet"
        count = _merge(output, layout, fresh, pa.array([*stale, *gone], pa.string()), merged)
        output.put(layout.slides_table, merged.read_bytes())
    return count


def read_slides(output: Store, layout: Layout) -> pa.Table:
    """One row per slide, without the mean vectors: the table, with newer records laid over it.

    Right also after a run that died before it could compact; writes nothing.
    """
    versions = {info.key: info.etag for info in output.list(layout.records)}
    try:
        file = pq.ParquetFile(output.open_file(layout.slides_table))
        names = [name for name in file.schema_arrow.names if name != "mean_embedding"]
        table = file.read(columns=names)
    except NotFoundError:
        table = SLIDE_COLUMNS.empty_table().drop_columns(["mean_embedding"])
    keys = [layout.record(slide_id) for slide_id in table["slide_id"].to_pylist()]
    etags = table["record_etag"].to_pylist()
    known = dict(zip(keys, etags, strict=True))
    stale = sorted(key for key, etag in versions.items() if known.get(key) != etag)
    current = pa.array([versions.get(key) == etag for key, etag in known.items()], pa.bool_())
    kept = table.filter(current)
    if not stale:
        return kept
    records = get_records(output, stale)
    fresh = _rows([(record, "") for record in records]).drop_columns(["mean_embedding"])
    schema = _unified([kept.schema, fresh.schema])
    schema = schema.remove(schema.get_field_index("mean_embedding"))
    return pa.concat_tables([_conformed(kept, schema), _conformed(fresh, schema)])


def _standing_versions(output: Store, layout: Layout) -> dict[str, str]:
    try:
        file = pq.ParquetFile(output.open_file(layout.slides_table))
        table = file.read(columns=["slide_id", "record_etag"])
    except (NotFoundError, pa.ArrowException, KeyError):
        return {}
    return dict(zip(table["slide_id"].to_pylist(), table["record_etag"].to_pylist(), strict=True))


def _chunked(keys: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(keys), CHUNK_RECORDS):
        yield keys[start : start + CHUNK_RECORDS]


def _rows(records: list[tuple[SlideRecord, str]]) -> pa.Table:
    rows = []
    for record, etag in records:
        mask = record.facts.get("mask") or {}
        mean = record.mean_embedding
        row: dict[str, Any] = {**vars(record), **record.facts, "record_etag": etag}
        row["mask"] = list(mask.items())
        row["mean_embedding"] = None if mean is None else decode_vector(mean)
        rows.append({**record.attributes, **{n: row.get(n) for n in SLIDE_COLUMNS.names}})
    base = pa.Table.from_pylist(rows, schema=SLIDE_COLUMNS)
    extra = sorted({name for record, _ in records for name in record.attributes})
    for name in extra:
        base = base.append_column(name, _column([row.get(name) for row in rows]))
    return base


def _column(values: list[Any]) -> pa.Array:
    try:
        column = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        column = pa.array([None if value is None else str(value) for value in values])
    return column.cast(pa.string()) if pa.types.is_null(column.type) else column


def _merge(output: Store, layout: Layout, fresh: list[Path], drop: pa.Array, target: Path) -> int:
    try:
        standing = [pq.ParquetFile(output.open_file(layout.slides_table))]
    except (NotFoundError, pa.ArrowException):
        standing = []
    sources = standing + [pq.ParquetFile(path) for path in fresh]
    schema = _unified([file.schema_arrow for file in sources])
    count = 0
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for file in sources:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                if file in standing:
                    table = table.filter(pc.invert(pc.is_in(table["slide_id"], drop)))
                writer.write_table(_conformed(table, schema))
                count += table.num_rows
    return count


def _unified(schemas: list[pa.Schema]) -> pa.Schema:
    names = {name for schema in schemas for name in schema.names}
    fields = list(SLIDE_COLUMNS)
    for name in sorted(names - set(SLIDE_COLUMNS.names)):
        types = {schema.field(name).type for schema in schemas if name in schema.names}
        fields.append(pa.field(name, types.pop() if len(types) == 1 else pa.string()))
    return pa.schema(fields)


def _conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)
