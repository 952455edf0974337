"""One small JSON record per slide and recipe: how the slide ended, and what it cost."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_pipeline.dataset.layout import Layout, folder_name
from ray_pipeline.errors import NotFoundError
from ray_pipeline.store import Store

GETS_AT_ONCE = 32
"""Records fetched concurrently."""


@dataclass(frozen=True, kw_only=True)
class SlideRecord:
    """How one slide ended. `status` is done, empty (no tissue), failed or skipped."""

    slide_id: str
    """The slide's id."""
    uri: str
    """Where its bytes lie."""
    status: str
    """done | empty | failed | skipped."""
    run: str
    """The run that wrote this record."""
    etag: str = ""
    """Version of the source."""
    size_bytes: int = 0
    """Size of the source, bytes."""
    input_fp: str = ""
    """Fingerprint of the source as read."""
    plan_fp: str = ""
    """Fingerprint of the tile plan."""
    n_tiles: int = 0
    """Rows of the slide's file."""
    stage: str | None = None
    """Stage in which it failed."""
    error_kind: str | None = None
    """Stable name of the error."""
    reason: str | None = None
    """One sentence."""
    seconds: float = 0.0
    """Time spent reading and encoding, summed over shards, seconds."""
    gets: int = 0
    """Ranged GETs for this slide in the run."""
    bytes_fetched: int = 0
    """Bytes fetched for this slide in the run."""
    bytes_needed: int = 0
    """Bytes of compressed tiles among them that were decoded."""
    retries: int = 0
    """GETs sent again after a short, broken or stalled body."""
    output: str | None = None
    """Key of the slide's file below the output's root."""
    output_etag: str | None = None
    """Version of that file as its store told it; None where it told none."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Vendor, sizes, mpp, level, mask numbers."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """The manifest's further columns."""
    mean_embedding: str | None = None
    """Mean of the slide's vectors: base64 of little-endian float32 [D]; None without tiles."""
    max_embedding: str | None = None
    """Largest of each of their numbers, likewise; None also in records written before it."""
    finished_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat("T", "seconds"))
    """UTC time of the record."""

    def to_bytes(self) -> bytes:
        """As stored."""
        return json.dumps(asdict(self), sort_keys=True, default=str).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> SlideRecord:
        """Back from `to_bytes`; fields of later versions are dropped.

        Raises ValueError or TypeError for anything that is no record.
        """
        values, kinds = json.loads(data), {one.name: _KINDS[str(one.type)] for one in fields(cls)}
        if not isinstance(values, dict):
            raise TypeError("no JSON object")
        known = {name: value for name, value in values.items() if name in kinds}
        for name, value in known.items():
            if not isinstance(value, kinds[name]):
                raise TypeError(f"{name}: {value!r}")
        return cls(**known)


_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "int": (int,),
    "float": (int, float),
    "dict[str, Any]": (dict,),
}
"""Types that a field's annotation stands for in JSON."""


def encode_vector(vector: npt.NDArray[np.floating[Any]]) -> str:
    """A vector as base64 of little-endian float32."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def decode_vector(text: str) -> npt.NDArray[np.float32]:
    """float32 [D] back from `encode_vector`."""
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)


def put_record(output: Store, layout: Layout, record: SlideRecord) -> None:
    """Write the slide's record, replacing an earlier one."""
    output.put(layout.record(record.slide_id), record.to_bytes())


def get_records(
    output: Store, keys: Sequence[str], *, say: Callable[[str], None] | None = None
) -> list[SlideRecord]:
    """Read records by key, many at once.

    Left out are keys that vanished meanwhile, and damaged records, of each of which `say` is told.
    """

    def read(key: str) -> SlideRecord | str | None:
        try:
            record = SlideRecord.from_bytes(output.get(key))
        except NotFoundError:
            return None
        except (TypeError, ValueError) as error:
            wrong = str(error)
        else:
            if folder_name(record.slide_id) == key.rpartition("/")[2].removesuffix(".json"):
                return record
            wrong = f"it tells of {record.slide_id}"
        where = output.uri_of(key)
        return f"{where} is no record ({wrong}) and was passed over; delete it and run again."

    with ThreadPoolExecutor(GETS_AT_ONCE) as pool:
        found = list(pool.map(read, keys))
    for sentence in found:
        if isinstance(sentence, str) and say is not None:
            say(sentence)
    return [record for record in found if isinstance(record, SlideRecord)]
