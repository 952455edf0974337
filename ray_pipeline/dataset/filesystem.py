"""A `Store` as a read-only fsspec file system: every reader finds credentials in one way."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from fsspec import AbstractFileSystem

from ray_pipeline.errors import HistorayError, NotFoundError
from ray_pipeline.ranged_file import RangedFile, ReadCounts, SeekableFile
from ray_pipeline.store import ObjectInfo, Store

TAIL_BYTES = 64 << 10
"""Of a file's end that come when it is opened: a Parquet file's directory stands there."""
FIRST_GET_BYTES = 128 << 10
"""What a read elsewhere fetches at least."""
LONG_AGO = datetime.fromtimestamp(0, UTC)
TAILS_KEPT = 256
"""Files' ends that are kept: DuckDB opens a file for its schema, then its directory, then rows."""


class _SharedFile(SeekableFile):
    """A file that threads share, each from a place of its own.

    DuckDB seeks and then reads, on any of its threads, and lets go of files without closing them.
    """

    def __init__(self, file: io.FileIO | RangedFile) -> None:
        self._file = file
        self._reading = threading.Lock()
        self._here = threading.local()

    def tell(self) -> int:
        at: int = getattr(self._here, "at", 0)
        return at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_CUR:
            offset += self.tell()
        elif whence == io.SEEK_END:
            with self._reading:
                offset += self._file.seek(0, io.SEEK_END)
        if offset < 0:
            raise ValueError(f"seek to {offset}, before the start of the file")
        self._here.at = offset
        return offset

    def read(self, size: int | None = -1) -> bytes:
        if self.closed:
            raise ValueError("read of a closed file")
        at = self.tell()
        with self._reading:
            self._file.seek(at)
            data = self._file.read(-1 if size is None else size) or b""
        self._here.at = at + len(data)
        return data

    def close(self) -> None:
        self._file.close()
        super().close()


class StoreFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """Opens objects of one store by their keys; of those in `infos`, without asking for a HEAD.

    Each version that was listed is read, or ObjectReplacedError is raised.
    """

    cachable = False

    def __init__(
        self, store: Store, infos: Iterable[ObjectInfo] = (), *, protocol: str = "historay"
    ) -> None:
        """`protocol` is what stands before `://` in front of a key."""
        super().__init__()
        self.protocol = protocol
        self.failure: HistorayError | None = None
        """What went wrong last: readers written in other languages keep the words only."""
        self._store = store
        self._infos = {info.key: info for info in infos}
        self._tails: OrderedDict[str, tuple[int, memoryview]] = OrderedDict()

    def __reduce__(self) -> Any:
        # Without the listing: it goes to many workers, and each reads few files.
        return StoreFileSystem, (self._store,)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.rpartition("://")[2].strip("/")

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name, size in bytes and type. Raises FileNotFoundError."""
        key = self._strip_protocol(path)
        return {"name": key, "size": self._info(key).size_bytes, "type": "file"}

    def size(self, path: str) -> int:
        """Length of the object, bytes. Raises FileNotFoundError."""
        return self._info(self._strip_protocol(path)).size_bytes

    def open(self, path: str, mode: str = "rb", **_: Any) -> io.RawIOBase:
        """The object as a file. Raises PermissionError for any mode but `rb`."""
        # In place of fsspec's own, whose options cost more than a local file takes to open.
        return self._open(path, mode)

    def modified(self, path: str) -> datetime:
        """The same for all: a version that was listed does not change."""
        del path
        return LONG_AGO

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, **options: Any
    ) -> Any:
        """Keys of the listing below the folder `path`; no folders are told."""
        del maxdepth, withdirs
        folder = self._strip_protocol(path)
        below = [key for key in self._infos if key.startswith(f"{folder}/" if folder else "")]
        return {key: self.info(key) for key in below} if options.get("detail") else below

    def _open(self, path: str, mode: str = "rb", **_: Any) -> io.RawIOBase:
        if mode != "rb":
            raise PermissionError(f"{path}: an output is only read here")
        key = self._strip_protocol(path)
        if self._store.scheme == "file":
            return _SharedFile(io.FileIO(f"{self._store.uri}/{key}"))
        file = self._ranged(key, self._info(key))
        file.seek(max(0, file.size_bytes - TAIL_BYTES))
        file.read(1)
        return _SharedFile(file)

    def _ranged(self, key: str, info: ObjectInfo) -> RangedFile:
        counts = ReadCounts()

        def fetch(start: int, length: int) -> memoryview:
            first, tail = self._tails.get(key, (info.size_bytes, memoryview(b"")))
            if first <= start:
                return tail[start - first : start - first + length]
            try:
                data = self._store.get_range(key, start, length, etag=info.etag, counts=counts)
            except HistorayError as error:
                self.failure = error
                raise
            if start + length == info.size_bytes and length <= FIRST_GET_BYTES:
                self._tails[key] = start, data
                if len(self._tails) > TAILS_KEPT:
                    self._tails.popitem(last=False)
            return data

        return RangedFile(
            fetch,
            name=key.rpartition("/")[2],
            etag=info.etag,
            size_bytes=info.size_bytes,
            counts=counts,
            first_get_bytes=FIRST_GET_BYTES,
        )

    def _info(self, key: str) -> ObjectInfo:
        if key not in self._infos:
            try:
                return self._store.head(key)
            except NotFoundError as error:
                raise FileNotFoundError(str(error)) from None
        return self._infos[key]
