"""Vectors on the wire: JSON, float16 or float32 bytes, Arrow IPC; `Accept` chooses."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serve_app.errors import NotAcceptableError
from serve_app.schemas import EmbeddingItem, EmbeddingReply, Source, TilesReply, Usage

JSON = "application/json"
BYTES = "application/octet-stream"
ARROW = "application/vnd.apache.arrow.stream"
DTYPES = {"float16": "<f2", "float32": "<f4"}


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """What a request's reply is made of."""

    model: str
    """As the client knows it."""
    encoder: str
    """Fingerprint of the encoder."""
    values: npt.NDArray[np.float16]
    """float16 [n, dim]."""
    tokens: int
    """Tokens of one tile."""
    xy: npt.NDArray[np.int32] | None = None
    """Left top corners int32 [n, 2], level-0 px, where tiles come from a slide."""
    source: Source | None = None
    """That slide."""

    @property
    def usage(self) -> Usage:
        """What the request cost."""
        tokens = self.tokens * len(self.values)
        return Usage(prompt_tokens=tokens, total_tokens=tokens, tiles=len(self.values))


@dataclass(frozen=True)
class Format:
    """A form of reply."""

    media_type: str
    """JSON, BYTES or ARROW."""
    dtype: str = "float16"
    """Of BYTES."""


def chosen_format(accept: str | None) -> Format:
    """The format of an `Accept` header that is made here, by preference; JSON where all are equal.

    `application/octet-stream; dtype=float32` asks for float32. Raises NotAcceptableError.
    """
    ranked: list[tuple[float, int, Format]] = []
    for place, item in enumerate((accept or JSON).split(",")[:32]):
        media_type, *rest = (part.strip().lower() for part in item.split(";"))
        parameters = dict(part.partition("=")[::2] for part in rest)
        found = _format_of(media_type, parameters.get("dtype", "float16"))
        weight = _weight(parameters.get("q", "1"))
        if found is not None and weight > 0:
            ranked.append((-weight, place, found))
    if not ranked:
        raise NotAcceptableError(
            f"none of the formats of Accept is made here: ask for {JSON}, {BYTES} "
            f"(dtype=float16 or float32) or {ARROW}."
        )
    return min(ranked, key=lambda entry: entry[:2])[2]


def tiles_json(vectors: Vectors) -> bytes:
    """A TilesReply."""
    reply = TilesReply(
        model=vectors.model,
        encoder=vectors.encoder,
        dim=vectors.values.shape[1],
        embeddings=vectors.values.tolist(),
        usage=vectors.usage,
        source=vectors.source,
    )
    return reply.model_dump_json(exclude_none=True).encode()


def openai_json(vectors: Vectors, encoding_format: str) -> bytes:
    """An EmbeddingReply."""
    embeddings: Sequence[list[float] | str]
    if encoding_format == "base64":
        full = vectors.values.astype("<f4")
        embeddings = [base64.b64encode(row.tobytes()).decode() for row in full]
    else:
        embeddings = vectors.values.tolist()
    reply = EmbeddingReply(
        data=[EmbeddingItem(index=i, embedding=e) for i, e in enumerate(embeddings)],
        model=vectors.model,
        encoder=vectors.encoder,
        usage=vectors.usage,
    )
    return reply.model_dump_json().encode()


def tiles_bytes(vectors: Vectors, dtype: str) -> bytes:
    """[n, dim] little-endian, row by row."""
    return vectors.values.astype(DTYPES[dtype]).tobytes()


def tiles_arrow(vectors: Vectors) -> bytes:
    """An Arrow IPC stream of `tile`, with `x` and `y` for a slide's tiles, and `embedding`.

    The columns and types are those of a batch job's file.
    """
    n, dim = vectors.values.shape
    number = pa.field("element", pa.float32(), nullable=False)
    columns: dict[str, pa.Array] = {"tile": pa.array(np.arange(n, dtype=np.int32))}
    if vectors.xy is not None:
        columns |= {"x": pa.array(vectors.xy[:, 0]), "y": pa.array(vectors.xy[:, 1])}
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(
        pa.array(vectors.values.astype(np.float32).ravel()), type=pa.list_(number, dim)
    )
    schema = pa.schema(
        [pa.field(name, column.type, nullable=False) for name, column in columns.items()],
        {"model": vectors.model, "encoder": vectors.encoder},
    )
    table = pa.table(list(columns.values()), schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def _format_of(media_type: str, dtype: str) -> Format | None:
    if media_type in (JSON, "application/*", "*/*"):
        return Format(JSON)
    if media_type == BYTES and dtype in DTYPES:
        return Format(BYTES, dtype)
    return Format(ARROW) if media_type == ARROW else None


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
