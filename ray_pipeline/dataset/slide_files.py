"""The committed files of one recipe, to read: one by its slide's id, or the list of all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ray_pipeline.dataset.layout import Layout, partitions_of_output, slide_of_output
from ray_pipeline.dataset.records import SlideRecord
from ray_pipeline.dataset.schema import BATCH_TILES
from ray_pipeline.errors import DatasetError, NotFoundError
from ray_pipeline.store import ObjectInfo, Store


@dataclass(frozen=True, kw_only=True)
class SlideFile:
    """One committed file as a listing tells it."""

    slide_id: str
    """The slide's id."""
    info: ObjectInfo
    """Key, length and version."""
    partitions: Mapping[str, str | None]
    """Its values of the partition columns, as text."""


@dataclass(frozen=True, kw_only=True)
class SlideFiles:
    """Cheap to make, safe to pickle; asks the store only when called."""

    output: Store
    """The output's root."""
    layout: Layout
    """Keys of the recipe."""
    partition_by: tuple[str, ...] = ()
    """Its partition columns."""

    def listed(self) -> list[SlideFile]:
        """Every file that stands, by slide_id; one LIST."""
        found = []
        for slide_id, info in standing_files(self.output, self.layout):
            partitions = partitions_of_output(info.key, self.partition_by)
            found.append(SlideFile(slide_id=slide_id, info=info, partitions=partitions))
        return sorted(found, key=lambda file: file.slide_id)

    def read(self, slide_id: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """(coordinates int32 [n, 2], level-0 px; vectors float32 [n, D]), in order of `tile`.

        One GET and no LIST; two GETs where the output has partition columns, for the record then
        tells the key. Raises NotFoundError for a slide without file, with the reason.
        """
        if self.partition_by:
            record = self.record(slide_id)
            key = None if record is None else record.output
            if key is None:
                raise self._absent(slide_id, record)
        else:
            key = self.layout.output(slide_id, {})
        try:
            data = self.output.get(key)
        except NotFoundError:
            raise self._absent(slide_id, self.record(slide_id)) from None
        try:
            return _columns(data)
        except (pa.ArrowException, AttributeError, KeyError, OSError):
            raise DatasetError(
                f"{slide_id}: {self.output.uri_of(key)} is damaged, or no file of historay's: "
                "delete it, and run again to have it written anew."
            ) from None

    def record(self, slide_id: str) -> SlideRecord | None:
        """The slide's record; None where there is none, or none that can be read."""
        try:
            return SlideRecord.from_bytes(self.output.get(self.layout.record(slide_id)))
        except (NotFoundError, TypeError, ValueError):
            return None

    def _absent(self, slide_id: str, record: SlideRecord | None) -> NotFoundError:
        where = f"{self.output.uri} (recipe {self.layout.recipe_fp})"
        if record is None:
            return NotFoundError(
                f"{slide_id}: no such slide in {where}: check the slide_id; if a job is under way, "
                "it may still come."
            )
        why = f"{record.error_kind}: {record.reason}" if record.error_kind else "its file is gone."
        return NotFoundError(f"{slide_id}: {record.status}, and no file in {where}: {why}")


def standing_files(output: Store, layout: Layout) -> Iterator[tuple[str, ObjectInfo]]:
    """Every slide of the recipe and its file, as one LIST tells them."""
    for info in output.list(layout.embeddings):
        slide_id = slide_of_output(info.key)
        if slide_id is not None:
            yield slide_id, info


def _columns(data: bytes) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    file = pq.ParquetFile(pa.BufferReader(data))
    n, dim = file.metadata.num_rows, file.schema_arrow.field("embedding").type.list_size
    coordinates, vectors = np.empty((n, 2), np.int32), np.empty((n, dim), np.float32)
    start = 0
    # A little at a time, into arrays made beforehand, and by this thread alone: joining at the end
    # would hold all twice, and each thread that decodes keeps memory of its own.
    for batch in file.iter_batches(BATCH_TILES, columns=["x", "y", "embedding"], use_threads=False):
        rows = slice(start, start + batch.num_rows)
        coordinates[rows, 0], coordinates[rows, 1] = batch["x"], batch["y"]
        vectors[rows] = batch["embedding"].flatten().to_numpy().reshape(-1, dim)
        start = rows.stop
    # Arrow would keep what it has decoded with until the next slide.
    pa.default_memory_pool().release_unused()
    return coordinates, vectors
