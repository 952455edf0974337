"""The file that stands where a slide's output belongs: what it is, what it says of the slide."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ray_pipeline.dataset.layout import Layout
from ray_pipeline.dataset.records import SlideRecord, encode_vector, get_records
from ray_pipeline.dataset.schema import Footer
from ray_pipeline.errors import NotFoundError, ObjectReplacedError
from ray_pipeline.store import Store

READ_ATTEMPTS = 4
"""Tries of reading a file that is replaced meanwhile."""
TOLD_FACTS = ("width_px", "height_px", "mpp_used", "mpp_achieved", "level")
"""What a file's footer tells of its slide, of a record's facts."""


class Pool:
    """Mean and maximum of vectors that come in batches."""

    def __init__(self) -> None:
        self._n, self._total = 0, np.zeros(1, np.float64)
        self.largest: npt.NDArray[np.float32] | None = None
        """Largest of each number so far, float32 [D]; None before the first vector."""

    def add(self, vectors: npt.NDArray[np.floating[Any]]) -> None:
        """Take float16 or float32 [n,D] in."""
        if not len(vectors):
            return
        self._n += len(vectors)
        self._total = self._total + vectors.sum(axis=0, dtype=np.float64)
        largest = vectors.max(axis=0).astype(np.float32)
        self.largest = largest if self.largest is None else np.maximum(self.largest, largest)

    @property
    def mean(self) -> npt.NDArray[np.float32] | None:
        """Mean so far, float32 [D]; None before the first vector."""
        return (self._total / self._n).astype(np.float32) if self._n else None


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What stands under a slide's key, read back."""

    key: str
    """Key of the file."""
    etag: str = ""
    """Its version; empty where it is not known."""
    footer: Footer | None = None
    """Its footer; None when the file is not one of ours."""
    coordinates: pa.Table | None = None
    """Its tile/x/y columns; None when the file is not one of ours."""
    mean: npt.NDArray[np.float32] | None = None
    """Mean of its vectors, float32 [D]; None without tiles."""
    largest: npt.NDArray[np.float32] | None = None
    """Largest of each of their numbers, float32 [D]; None without tiles."""

    @property
    def n_tiles(self) -> int:
        """Its rows."""
        return 0 if self.coordinates is None else int(self.coordinates.num_rows)

    def made_from(self, footer: Footer) -> bool:
        """Made by the same recipe from the same input as `footer` tells."""
        mine = self.footer
        return mine is not None and (mine.recipe_fp, mine.input_fp) == (
            footer.recipe_fp,
            footer.input_fp,
        )

    def equivalent(self, footer: Footer, coordinates: pa.Table) -> bool:
        """The same tiles of the same input; vectors of two attempts may differ in bits."""
        mine = self.coordinates
        return (
            mine is not None
            and self.made_from(footer)
            and all(coordinates[name].equals(mine[name]) for name in ("tile", "x", "y"))
        )

    def of_plan(self, footer: Footer, n_tiles: int) -> bool:
        """All `n_tiles` tiles of the very plan that `footer` names."""
        mine = self.footer
        return (
            mine is not None
            and self.made_from(footer)
            and (mine.plan_fp, self.n_tiles) == (footer.plan_fp, n_tiles)
        )

    def told_in(self, record: SlideRecord) -> SlideRecord:
        """`record` as one of our files tells the slide's end: done or empty, nothing failed."""
        footer = self.footer
        assert footer is not None, "only a file of ours tells anything"
        facts = {name: getattr(footer, name) for name in TOLD_FACTS}
        return replace(
            record,
            status="done" if self.n_tiles else "empty",
            uri=footer.uri,
            etag=footer.etag,
            input_fp=footer.input_fp,
            plan_fp=footer.plan_fp,
            n_tiles=self.n_tiles,
            stage=None,
            error_kind=None,
            reason=None,
            output=self.key,
            output_etag=self.etag or None,
            facts=(record.facts if record.input_fp == footer.input_fp else None) or facts,
            mean_embedding=None if self.mean is None else encode_vector(self.mean),
            max_embedding=None if self.largest is None else encode_vector(self.largest),
        )


def read_standing(output: Store, key: str) -> Standing | None:
    """What stands under `key`; None when nothing does."""
    for attempt in range(READ_ATTEMPTS):
        try:
            return _read(output, key)
        except NotFoundError:
            return None
        except ObjectReplacedError:
            # Where puts know no conditions, another driver may replace it by an equivalent one.
            if attempt == READ_ATTEMPTS - 1:
                raise
        except (pa.ArrowException, KeyError, OSError, TypeError, ValueError):
            break
    return Standing(key=key)


def standing_record(output: Store, layout: Layout, key: str, record: SlideRecord) -> SlideRecord:
    """The record of a slide whose file stands under `key`: the one it has, or one by the file.

    The one it has is kept only if it tells of this file. `record`, the run's own, comes back as it
    is where the file is none of ours.
    """
    footer = read_footer(output, key)
    if footer is None:
        return record
    for earlier in get_records(output, [layout.record(record.slide_id)]):
        if earlier.status in ("done", "empty") and earlier.input_fp == footer.input_fp:
            return replace(earlier, run=record.run)
    standing = read_standing(output, key)
    return record if standing is None or standing.footer is None else standing.told_in(record)


def exists(output: Store, key: str) -> bool:
    """Whether an object stands under `key`."""
    try:
        output.head(key)
    except NotFoundError:
        return False
    return True


def read_footer(output: Store, key: str) -> Footer | None:
    """The footer of a file in the output; None when it is not one of ours."""
    return read_version(output, key)[0]


def read_version(output: Store, key: str) -> tuple[Footer | None, str]:
    """The footer of a file in the output, and the version that has it.

    Without footer when it is not one of ours, without version when there is none.
    """
    etag = ""
    try:
        file = output.open_file(key)
        etag = file.etag
        return Footer.from_metadata(pq.read_schema(file).metadata), etag
    except (pa.ArrowException, NotFoundError, OSError):
        return None, etag


def _read(output: Store, key: str) -> Standing:
    info = output.head(key)
    file = pq.ParquetFile(output.open_file(key, etag=info.etag, size_bytes=info.size_bytes))
    pool = Pool()
    for batch in file.iter_batches(columns=["embedding"]):
        pool.add(batch.column(0).flatten().to_numpy().reshape(batch.num_rows, -1))
    return Standing(
        key=key,
        etag=info.etag,
        footer=Footer.from_metadata(file.schema_arrow.metadata),
        coordinates=file.read(columns=["tile", "x", "y"]).replace_schema_metadata(None),
        mean=pool.mean,
        largest=pool.largest,
    )
