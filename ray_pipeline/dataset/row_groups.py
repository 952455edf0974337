"""Row groups of a Parquet file in a store, each by as few GETs as the wanted columns lie apart."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from ray_pipeline.store import Store

NEAR_BYTES = 256 << 10
"""Columns less far apart come in one GET: a store takes longer to begin another."""
GROUPS_AT_ONCE = 16
"""Row groups that are on their way together."""


class RowGroups:
    """A Parquet file pinned to the version that was opened. May be shared by threads."""

    def __init__(
        self,
        output: Store,
        key: str,
        *,
        etag: str | None = None,
        size_bytes: int | None = None,
        footer_get_bytes: int,
    ) -> None:
        """Read the file's directory, the first GET so long, at its end.

        Raises NotFoundError, ObjectReplacedError when `etag` is no more, and pa.ArrowException for
        what is no Parquet.
        """
        source = output.open_file(
            key, etag=etag, size_bytes=size_bytes, first_get_bytes=footer_get_bytes
        )
        self.etag: str = source.etag
        """The version."""
        with source:
            self.metadata: pq.FileMetaData = pq.read_metadata(source)
        self.schema: pa.Schema = self.metadata.schema.to_arrow_schema()
        """Of all columns."""
        self._output, self._key, self._size_bytes = output, key, source.size_bytes

    def fetched(self, group: int, columns: Collection[str]) -> pq.ParquetFile:
        """The file, of which just these columns of one row group are there, still encoded.

        Raises ObjectReplacedError when the file is another now.
        """
        parts = [
            _Part(start, self._output.get_range(self._key, start, stop - start, etag=self.etag))
            for start, stop in self._stretches(group, columns)
        ]
        source = _Parts(parts, self._size_bytes)
        return pq.ParquetFile(source, metadata=self.metadata)

    def table(self, group: int, columns: Collection[str]) -> pa.Table:
        """These columns of one row group. Raises ObjectReplacedError."""
        return self.fetched(group, columns).read_row_group(
            group, columns=list(columns), use_threads=False
        )

    def tables(self, columns: Collection[str]) -> Iterator[pa.Table]:
        """These columns of every row group, in order, the next ones on their way meanwhile.

        Raises ObjectReplacedError when the file is another now.
        """
        coming: deque[Future[pa.Table]] = deque()
        with ThreadPoolExecutor(GROUPS_AT_ONCE, thread_name_prefix="row-groups") as pool:
            for group in range(self.metadata.num_row_groups):
                coming.append(pool.submit(self.table, group, columns))
                if len(coming) == GROUPS_AT_ONCE:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()

    def _stretches(self, group: int, columns: Collection[str]) -> list[tuple[int, int]]:
        """First byte, and the one after the last, of what to fetch."""
        rows = self.metadata.row_group(group)
        chunks = (rows.column(index) for index in range(rows.num_columns))
        found: list[tuple[int, int]] = []
        for chunk in chunks:
            path = chunk.path_in_schema
            if path not in columns and path.partition(".")[0] not in columns:
                continue
            start = chunk.data_page_offset
            if chunk.dictionary_page_offset is not None:
                start = min(start, chunk.dictionary_page_offset)
            stop = start + chunk.total_compressed_size
            if found and 0 <= start - found[-1][1] < NEAR_BYTES:
                found[-1] = found[-1][0], stop
            else:
                found.append((start, stop))
        return found


@dataclass(frozen=True, slots=True)
class _Part:
    start: int
    data: memoryview


class _Parts:
    """A file of which some stretches are there, handed out without a copy."""

    closed = False

    def __init__(self, parts: list[_Part], size_bytes: int) -> None:
        self._parts, self._size_bytes, self._position = parts, size_bytes, 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> None:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        self._position = base + offset

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> memoryview:
        for part in self._parts:
            first = self._position - part.start
            if 0 <= first < len(part.data):
                self._position += size
                return part.data[first : first + size]
        raise ValueError(f"nothing was fetched at byte {self._position}")

    def close(self) -> None:
        self.closed = True
