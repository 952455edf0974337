"""A seekable, read-only file over ranged GETs."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from typing import Any

BLOCK_BYTES = 64 << 10
"""Unit in which a file is fetched and kept."""
MOST_AHEAD_BYTES = 4 << 20
"""Longest GET that reading on makes of itself."""
MOST_KEPT_BYTES = 64 << 20
"""Bytes a file keeps, least recently used first out."""


@dataclass
class ReadCounts:
    """What reading has cost so far. Written by one thread at a time."""

    gets: int = 0
    """Ranged GETs sent, without the retries that the client makes by itself."""
    bytes_fetched: int = 0
    """Bytes received."""
    bytes_needed: int = 0
    """Bytes of compressed tiles among them that were decoded."""
    retries: int = 0
    """GETs sent again after a short, broken or stalled body."""

    def since(self, before: ReadCounts) -> ReadCounts:
        """What was added after `before` was copied from this."""
        return ReadCounts(
            *(now - then for now, then in zip(astuple(self), astuple(before), strict=True))
        )

    def add(self, other: Mapping[str, Any]) -> None:
        """Add counts by their names; names that are not there count nothing."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + other.get(one.name, 0))


class SeekableFile(io.RawIOBase):
    """What a read-only file is beside `tell`, `seek` and `read`, which its kinds bring."""

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def readall(self) -> bytes:
        """All bytes from the position on."""
        return self.read() or b""

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`; returns how many bytes were read."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view)) or b""
        view[: len(data)] = data
        return len(data)


class RangedFile(SeekableFile):
    """A file whose bytes come by `fetch(start, length)`. For one thread.

    Missing blocks of one read come in one GET. Reading on where the last GET ended doubles the next
    one, as operating systems read ahead: a few bytes here and there stay cheap, and a long table is
    there in few requests.
    """

    def __init__(
        self,
        fetch: Callable[[int, int], memoryview],
        *,
        name: str,
        etag: str,
        size_bytes: int,
        counts: ReadCounts,
        first_get_bytes: int = 4 << 20,
    ) -> None:
        super().__init__()
        self.name = name
        """The object's name, without its folder."""
        self.etag = etag
        """The version that is read."""
        self.size_bytes = size_bytes
        """Length, bytes."""
        self.counts = counts
        """GETs and bytes so far."""
        self._fetch = fetch
        self._position = 0
        self._blocks: OrderedDict[int, memoryview] = OrderedDict()
        self._first = self._ahead = max(1, first_get_bytes // BLOCK_BYTES)
        self._after_last = -1

    def tell(self) -> int:
        """The position, bytes from the start."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; nothing is fetched. Raises ValueError before the start."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size_bytes}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}, before the start of the file")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Up to `size` bytes from the position on; fewer only at the end of the file."""
        stop = self.size_bytes if size is None or size < 0 else self._position + size
        stop = min(stop, self.size_bytes)
        if stop <= self._position:
            return b""
        first, last = self._position // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES
        start = self._position - first * BLOCK_BYTES
        data = b"".join(self._wanted(first, last))[start : start + stop - self._position]
        self._position += len(data)
        return data

    def close(self) -> None:
        """Let go of the blocks."""
        self._blocks.clear()
        super().close()

    def _wanted(self, first: int, last: int) -> Iterator[memoryview]:
        block = first
        while block <= last:
            if block not in self._blocks:
                missing = block + 1
                while missing <= last and missing not in self._blocks:
                    missing += 1
                self._load(block, missing)
            self._blocks.move_to_end(block)
            yield self._blocks[block]
            block += 1

    def _load(self, first: int, stop: int) -> None:
        """Fetch the blocks from `first` up to `stop`, and some beyond."""
        most = MOST_AHEAD_BYTES // BLOCK_BYTES
        self._ahead = min(2 * self._ahead, most) if first == self._after_last else self._first
        # Reads longer than what may be kept come in pieces.
        stop = min(max(stop, first + self._ahead), first + MOST_KEPT_BYTES // BLOCK_BYTES // 2)
        start = first * BLOCK_BYTES
        length = min(stop * BLOCK_BYTES, self.size_bytes) - start
        data = self._fetch(start, length)
        for offset in range(0, length, BLOCK_BYTES):
            self._blocks[first + offset // BLOCK_BYTES] = data[offset : offset + BLOCK_BYTES]
        while len(self._blocks) * BLOCK_BYTES > MOST_KEPT_BYTES:
            self._blocks.popitem(last=False)
        self._after_last = stop
