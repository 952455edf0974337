"""Lance: all slides in one dataset, each as fragments of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from ray_pipeline.errors import HistorayError, StoreError
from ray_pipeline.exports.extra import needing
from ray_pipeline.exports.source import Committed, SlideFile
from ray_pipeline.store import Store

DATASET = "embeddings.lance"
"""The dataset's folder below the export's root."""


class LanceTable:
    """The dataset `<out>/embeddings.lance`: the Parquet files' columns, `slide_id` as text."""

    slides_at_once = 64
    """Slides of one version of the dataset: thousands of versions are slow to open."""

    def __init__(self, output: Store, root: Store) -> None:
        with needing("--to lance"):
            import lance  # noqa: PLC0415 (an extra)
        self._lance, self._output, self._root = lance, output, root
        self._uri = root.uri_of(DATASET)
        self._options = _storage_options(root)

    def holds(self, slides: Sequence[Committed]) -> set[str]:
        """Of these slides, the ids that may have rows here: all, once there is a dataset."""
        return {slide.slide_id for slide in slides} if self._standing() is not None else set()

    def put(
        self, slides: Sequence[Committed], earlier: set[str]
    ) -> Iterator[tuple[Committed, int | HistorayError]]:
        """Add the slides in one new version; (slide, rows or why not) of each.

        Rows that the `earlier` ones of them have here are deleted in a version before it.
        """
        fragments, ends = [], dict[str, int | HistorayError]()
        schema, mode = None, "create" if self._standing() is None else "append"
        for slide in slides:
            try:
                with SlideFile(self._output, slide) as file:
                    schema = _schema(file.dim)
                    if file.n_tiles:
                        fragments += self._fragments(file, schema, mode)
                    ends[slide.slide_id] = file.n_tiles
            except HistorayError as error:
                ends[slide.slide_id] = error
        if schema is not None:
            written = [s.slide_id for s in slides if not isinstance(ends[s.slide_id], Exception)]
            self._commit(fragments, schema, [one for one in written if one in earlier])
        for slide in slides:
            yield slide, ends[slide.slide_id]

    def _fragments(self, file: SlideFile, schema: pa.Schema, mode: str) -> list[Any]:
        """The slide's rows as files that no version names yet."""
        broken: list[HistorayError] = []

        def rows() -> Iterator[pa.RecordBatch]:
            try:
                for batch in file.batches():
                    yield _plain(batch, schema)
            except HistorayError as error:  # Arrow's stream would tell it as an error of its own
                broken.append(error)
                raise

        reader = pa.RecordBatchReader.from_batches(schema, rows())
        try:
            return list(
                self._lance.fragment.write_fragments(
                    reader, self._uri, schema=schema, mode=mode, storage_options=self._options
                )
            )
        except (OSError, RuntimeError, ValueError, pa.ArrowException) as error:
            raise broken[0] if broken else self._refused(error) from None

    def _commit(self, fragments: list[Any], schema: pa.Schema, earlier: list[str]) -> None:
        change, version = self._lance.LanceOperation, None
        operation: Any = change.Overwrite(schema, fragments)
        standing = self._standing()
        try:
            if standing is not None and earlier:
                ids = ", ".join("'" + one.replace("'", "''") + "'" for one in earlier)
                standing.delete(f"slide_id in ({ids})")
            if standing is not None:
                operation, version = change.Append(fragments), standing.version
            self._lance.LanceDataset.commit(
                self._uri, operation, read_version=version, storage_options=self._options
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise self._refused(error) from None

    def _standing(self) -> Any:
        # Asked of the store: a dataset that can't be opened is not one that is not there.
        if next(self._root.list(f"{DATASET}/_versions"), None) is None:
            return None
        try:
            return self._lance.dataset(self._uri, storage_options=self._options)
        except (OSError, RuntimeError, ValueError) as error:
            raise self._refused(error) from None

    def _refused(self, error: Exception) -> StoreError:
        reason = str(error).splitlines()[0]
        return StoreError(f"{self._uri}: Lance could not open or write it: {reason}.")


def _schema(dim: int) -> pa.Schema:
    return pa.schema(
        [
            pa.field("slide_id", pa.string(), nullable=False),
            pa.field("tile", pa.int32(), nullable=False),
            pa.field("x", pa.int32(), nullable=False),
            pa.field("y", pa.int32(), nullable=False),
            pa.field("tissue", pa.float32(), nullable=False),
            pa.field("embedding", pa.list_(pa.float32(), dim), nullable=False),
        ]
    )


def _plain(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [batch.column(field.name).cast(field.type) for field in schema], schema=schema
    )


def _storage_options(root: Store) -> dict[str, str] | None:
    """What Lance's client does not take from the environment by itself."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if root.scheme != "s3" or not endpoint:
        return None
    return {"aws_endpoint": endpoint, "allow_http": str(endpoint.startswith("http://")).lower()}
