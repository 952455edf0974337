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
LEAST_TAIL_BYTES = 64 << 10
"""What Arrow looks at to find a file's directory."""
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
        tail_bytes: int,
    ) -> None:
        """Read the file's directory; so much of the file's end is fetched, at least, and kept.

        Raises NotFoundError, ObjectReplacedError when `etag` is no more, and pa.ArrowException for
        what is no Parquet.
        """
        if etag is None or size_bytes is None:
            info = output.head(key)
            etag, size_bytes = info.etag, info.size_bytes
        self.etag: str = etag
        """The version."""
        self._output, self._key, self._size_bytes = output, key, size_bytes
        self._tail = _Part(size_bytes, memoryview(b""))
        self._tail = self._got(max(0, size_bytes - max(tail_bytes, LEAST_TAIL_BYTES)), size_bytes)
        # Parquet ends in its directory, the directory's length, and 4 bytes (Parquet's "File
        # format").
        directory = size_bytes - 8 - int.from_bytes(self._tail.data[-8:-4], "little")
        if 0 <= directory < self._tail.start:
            self._tail = self._got(directory, size_bytes)
        source = _Parts([self._tail], size_bytes)
        self.metadata: pq.FileMetaData = pq.read_metadata(source)
        self.schema: pa.Schema = self.metadata.schema.to_arrow_schema()
        """Of all columns."""

    def fetched(self, group: int, columns: Collection[str]) -> pq.ParquetFile:
        """The file, of which just these columns of one row group are there, still encoded.

        Raises ObjectReplacedError when the file is another now.
        """
        parts = [self._got(start, stop) for start, stop in self._stretches(group, columns)]
        return pq.ParquetFile(_Parts(parts, self._size_bytes), metadata=self.metadata)

    def table(self, group: int, columns: Collection[str]) -> pa.Table:
        """These columns of one row group. Raises ObjectReplacedError."""
        return self.fetched(group, columns).read_row_group(
            group, columns=list(columns), use_threads=False
        )

    def tables(self, columns: Collection[str]) -> Iterator[pa.Table]:
        """These columns of every row group with rows, in order, the next ones under way meanwhile.

        Raises ObjectReplacedError when the file is another now.
        """
        coming: deque[Future[pa.Table]] = deque()
        with ThreadPoolExecutor(GROUPS_AT_ONCE, thread_name_prefix="row-groups") as pool:
            for group in self.groups:
                coming.append(pool.submit(self.table, group, columns))
                if len(coming) == GROUPS_AT_ONCE:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()

    @property
    def groups(self) -> list[int]:
        """The row groups that have rows."""
        every = range(self.metadata.num_row_groups)
        return [group for group in every if self.metadata.row_group(group).num_rows]

    def _stretches(self, group: int, columns: Collection[str]) -> list[tuple[int, int]]:
        """First byte, and the one after the last, of what to fetch."""
        rows = self.metadata.row_group(group)
        chunks = []
        for chunk in (rows.column(index) for index in range(rows.num_columns)):
            path = chunk.path_in_schema
            if path in columns or path.partition(".")[0] in columns:
                start = chunk.dictionary_page_offset or chunk.data_page_offset
                chunks.append((start, start + chunk.total_compressed_size))
        found: list[tuple[int, int]] = []
        for start, stop in sorted(chunks):
            if found and start - found[-1][1] < NEAR_BYTES:
                found[-1] = found[-1][0], max(stop, found[-1][1])
            else:
                found.append((start, stop))
        return found

    def _got(self, start: int, stop: int) -> _Part:
        if start >= self._tail.start:
            within = start - self._tail.start
            return _Part(start, self._tail.data[within : within + stop - start])
        data = self._output.get_range(self._key, start, stop - start, etag=self.etag)
        return _Part(start, data)


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
            if first >= 0 and first + size <= len(part.data):
                self._position += size
                return part.data[first : first + size]
        raise OSError(f"bytes {self._position} to {self._position + size} were not fetched")

    def close(self) -> None:
        self.closed = True
