"""A seekable, read-only file over ranged GETs."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from typing import Any

BLOCK_BYTES = 4 << 20
"""Bytes of one ranged GET: large enough for few requests, small enough to open a slide cheaply."""
MAX_BLOCKS = 16
"""Blocks a file keeps, least recently used first out: with BLOCK_BYTES this bounds it to 64 MiB."""


class RangedFile(io.RawIOBase):
    """A file whose bytes come block by block from `fetch(start, length)`. For one thread."""

    def __init__(
        self, fetch: Callable[[int, int], bytes], *, name: str, etag: str, size_bytes: int
    ) -> None:
        super().__init__()
        self.name = name
        """The object's name, without its folder."""
        self.etag = etag
        """The version that is read."""
        self.size_bytes = size_bytes
        """Length, bytes."""
        self.gets = 0
        """Ranged GETs sent so far."""
        self.bytes_fetched = 0
        """Bytes received so far."""
        self._fetch = fetch
        self._position = 0
        self._block = lru_cache(MAX_BLOCKS)(self._fetch_block)

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

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
        parts = []
        while self._position < stop:
            index, inside = divmod(self._position, BLOCK_BYTES)
            part = self._block(index)[inside : inside + stop - self._position]
            parts.append(part)
            self._position += len(part)
        return b"".join(parts)

    def readall(self) -> bytes:
        """All bytes from the position on."""
        return self.read()

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`; returns how many bytes were read."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Let go of the blocks."""
        self._block.cache_clear()
        super().close()

    def _fetch_block(self, index: int) -> bytes:
        start = index * BLOCK_BYTES
        data = self._fetch(start, min(BLOCK_BYTES, self.size_bytes - start))
        self.gets += 1
        self.bytes_fetched += len(data)
        return data
