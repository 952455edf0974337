"""URI -> object store: list, head, ranged get, conditional put. Nothing else opens the network.

Stores are configured by the standard environment variables of their clouds
(`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, `AWS_REGION`, ..., `GOOGLE_APPLICATION_CREDENTIALS`,
`STORAGE_EMULATOR_HOST`, `AZURE_STORAGE_ACCOUNT_NAME`, ...); what differs between buckets is said in
`store_options`. Errors are translated once, in `refusals`, into the `StoreError` family; their
sentences name the URI and never carry a header, a signature or a response body.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import PermissionDeniedError
from obstore.store import ObjectStore

from ray_pipeline.clients import Scheme, absent, connect, etag_of, read_local
from ray_pipeline.errors import (
    NotFoundError,
    ObjectReplacedError,
    PreconditionError,
    SettingsError,
    StoreError,
    UnreachableError,
)
from ray_pipeline.ranged_file import RangedFile, ReadCounts
from ray_pipeline.refusals import CLIENT_ERRORS, translated
from ray_pipeline.side_by_side import side_by_side
from ray_pipeline.spans import Span, Spans
from ray_pipeline.uris import quoted, refuse_secrets, shown_uri

T = TypeVar("T")

READ_ATTEMPTS, LONGEST_PAUSE_S = 9, 8.0
"""Tries of one ranged read or page of a listing, and seconds of the longest pause between two:
outages of some 20 s are lived through. All are ours: reads are counted, and the clients try no
listing again whose body breaks off."""
WHOLE_READS = 4
"""Tries of reading an object whole, beyond the client's own: of replies that break off."""
LIST_KEYS = 1000
"""Objects that are handed over at a time: S3 tells no more in one reply."""
LISTS_AT_ONCE = 8
"""Parts of a long listing that are asked for at the same time."""
SINGLE_PUT_LIMIT_BYTES = 5 << 30
"""S3 takes at most 5 GiB in one PUT (Amazon S3 user guide, "Uploading objects")."""
PART_BYTES, PARTS_AT_ONCE = 64 << 20, 2
"""Of a file written in parts, and how many of them are in memory; S3 takes 10,000 parts (Amazon S3
user guide, "Multipart upload")."""
READ_ONLY = "are only read: give a bucket or a folder."


class ObjectInfo(NamedTuple):
    """What a store says of one object."""

    key: str
    """Path below the store's root, with `/` between segments."""
    size_bytes: int
    """Length of the object, bytes."""
    etag: str
    """Version tag without quotes; `~size-mtime` where the store gives none, or a weak one."""


@dataclass
class Store:
    """One bucket prefix or folder. Cheap to make, safe to pickle; connects on first use."""

    uri: str
    """Root URI without trailing slash and without secrets."""
    scheme: Scheme
    bucket: str
    """Bucket, container or `scheme://host`; empty for local folders."""
    prefix: str
    """Path of the root inside the bucket, without slashes at its ends."""
    _backends: dict[bool, ObjectStore] = field(default_factory=dict, repr=False, compare=False)
    """The clients that try again by themselves, and that do not."""

    @classmethod
    def open(cls, uri: str) -> Store:
        """A store for `s3://`, `gs://`, `az://`, `http(s)://` (read-only), `file://` or a path.

        Raises SettingsError for an unknown scheme, or a URI that carries credentials or a query.
        """
        if "://" not in uri or uri.startswith("file://"):
            folder = unquote(urlsplit(uri).path) if uri.startswith("file://") else uri
            path = str(Path(folder).expanduser().absolute())
            return cls(uri=path, scheme="file", bucket="", prefix=os.path.normpath(path).strip("/"))
        parts = urlsplit(uri)
        if parts.scheme not in ("s3", "gs", "az", "http", "https"):
            raise SettingsError(
                f"{shown_uri(uri)}: unknown scheme '{parts.scheme}'; "
                "use s3://, gs://, az://, https:// or a local path."
            )
        refuse_secrets(uri)
        web = parts.scheme in ("http", "https")
        if not parts.netloc:
            raise SettingsError(f"{shown_uri(uri)} names no bucket.")
        # urlsplit treats '#' and '?' as its own; in bucket URIs they are part of the key.
        path = unquote(parts.path) if web else uri.partition("://")[2].partition("/")[2]
        path = path.strip("/")
        bucket = f"{parts.scheme}://{parts.netloc}" if web else parts.netloc
        root = f"{parts.scheme}://{parts.netloc}"
        root += f"/{quoted(path) if web else path}" if path else ""
        return cls(uri=root, scheme=cast(Scheme, parts.scheme), bucket=bucket, prefix=path)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_backends": {}}

    def uri_of(self, key: str) -> str:
        """Full URI of the object at `key`."""
        shown = quoted(key) if self.scheme in ("http", "https") else key
        return f"{self.uri}/{shown}" if key else self.uri

    def head(self, key: str) -> ObjectInfo:
        """Size and version of one object. Raises NotFoundError, AccessError, UnreachableError."""
        meta = self._call(key, "read", obstore.head)
        return self._info(cast(dict[str, Any], meta))

    def list(self, prefix: str = "", *, cuts: Sequence[str] = ()) -> Iterator[ObjectInfo]:
        """Every object below the folder `prefix`, in key order on cloud stores.

        `cuts` are keys below which a long listing falls into parts of about one size, where it is
        known what keys there are. The parts are then listed at the same time, and their objects
        come in any order; each once, whatever the cuts are. Stores that can't begin a listing
        within take no notice of them.

        An empty or absent folder yields nothing; an absent bucket raises NotFoundError. A listing
        that breaks off goes on after the last object that came.
        """
        return chain.from_iterable(self.pages(prefix, cuts=cuts))

    def pages(
        self, prefix: str = "", *, cuts: Sequence[str] = (), in_order: bool = True
    ) -> Iterator[Sequence[ObjectInfo]]:
        """The same, as many at a time as the store tells: for listings of millions.

        Unless they are to come `in_order`, a long listing is cut as it goes on: see `Spans`.
        """
        self._not_on_the_web(prefix, "can't be listed: name each slide.")
        if self.scheme not in ("s3", "gs") or (in_order and not cuts):
            yield from self._between(prefix, Span())
            return
        bounds = [None, *sorted({self._path(cut) for cut in cuts}), None]
        known = [Span(after, last) for after, last in pairwise(bounds)]
        spans = known if cuts else Spans(self._path(prefix))
        parts = (None if span is None else self._between(prefix, span) for span in spans)
        yield from side_by_side(parts, LISTS_AT_ONCE)

    def _between(self, prefix: str, span: Span) -> Iterator[Sequence[ObjectInfo]]:
        """Pages of the objects of a span."""
        attempt, cut = 0, len(self._path("")) + 1 if self.prefix else 0
        while True:
            try:
                for page in self._listed(prefix, after=span.after):
                    attempt, belong = 0, span.told([meta["path"] for meta in page])
                    told = page[:belong]
                    yield [ObjectInfo(m["path"][cut:], m["size"], etag_of(m)) for m in told]
                    if belong < len(page):
                        return
            except UnreachableError:
                attempt += 1
                if self.scheme == "file" or attempt == READ_ATTEMPTS:
                    raise
                _pause(attempt)
            else:
                span.end()
                return

    def _listed(self, prefix: str, *, after: str | None) -> Iterator[Sequence[dict[str, Any]]]:
        stream = self._call(
            prefix,
            "list",
            lambda b, path: obstore.list(
                b, prefix=path or None, offset=after, chunk_size=LIST_KEYS
            ),
            retries=False,
        )
        while chunk := self._call(prefix, "list", lambda _b, _p: next(stream, None), retries=False):
            yield cast(Sequence[dict[str, Any]], chunk)

    def folders(self, prefix: str = "") -> Sequence[str]:
        """Names of the folders right below `prefix`, sorted. Raises SettingsError on the web."""
        self._not_on_the_web(prefix, "can't be listed: an output must lie in a folder or a bucket.")
        found = self._call(
            prefix, "list", lambda b, p: obstore.list_with_delimiter(b, prefix=p or None)
        )
        return sorted(str(path).rpartition("/")[2] for path in found["common_prefixes"])

    def get(self, key: str) -> bytes:
        """The whole object, bytes, by one GET."""

        def ask(backend: ObjectStore, path: str) -> bytes:
            if self.scheme == "file":
                # The client has threads of its own, which a forked process lacks: it would wait
                # for ever, and data loaders fork.
                return Path(f"/{path}").read_bytes()
            return bytes(obstore.get(backend, path).bytes())

        for attempt in range(1, WHOLE_READS):
            try:
                return self._call(key, "read", ask)
            except UnreachableError:  # the client tries no reply again that breaks off
                if self.scheme == "file":
                    raise
                _pause(attempt)
        return self._call(key, "read", ask)

    def get_range(
        self,
        key: str,
        start: int,
        length: int,
        *,
        etag: str | None = None,
        counts: ReadCounts | None = None,
    ) -> memoryview:
        """`length` bytes from offset `start`, of the version `etag` where one is given.

        Raises ObjectReplacedError when the object is now another version, and
        UnreachableError when the body does not come whole after all tries.
        """
        counts = counts if counts is not None else ReadCounts()
        options: dict[str, Any] = {"range": (start, start + length)}
        if etag is not None and not etag.startswith("~"):
            options["if_match"] = f'"{etag}"'

        def ask(backend: ObjectStore, path: str) -> tuple[str, memoryview]:
            if self.scheme == "file":
                return read_local(f"/{path}", start, length)
            result = obstore.get(backend, path, options=cast(Any, options))
            return etag_of(cast(dict[str, Any], result.meta)), memoryview(result.bytes())

        for attempt in range(READ_ATTEMPTS):
            counts.gets += 1
            counts.retries += attempt > 0
            try:
                found, data = self._call(key, "read", ask, retries=False)
            except PreconditionError:
                found = self.head(key).etag
                raise ObjectReplacedError(self._replaced(key, etag or "", found)) from None
            except (UnreachableError, *CLIENT_ERRORS):
                # No answer, or a body that broke off or stood still.
                found, data = etag or "", memoryview(b"")
            if etag is not None and found != etag:
                raise ObjectReplacedError(self._replaced(key, etag, found))
            counts.bytes_fetched += len(data)
            if len(data) == length:
                return data
            if attempt + 1 < READ_ATTEMPTS:
                _pause(attempt + 1)
        raise UnreachableError(
            f"{self.uri_of(key)}: bytes {start}-{start + length - 1} did not come whole in "
            f"{READ_ATTEMPTS} tries; check the endpoint and the network, then run again."
        )

    def put(
        self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        """Write one object in a single PUT and return its etag ("" where the store tells none).

        `if_absent` sends `If-None-Match: *`, `if_match` sends `If-Match`; PreconditionError
        when the condition does not hold. Where a version can't be sent (local folders, versions
        of the form `~size-mtime`), it is compared just before the write.
        """
        if len(data) > SINGLE_PUT_LIMIT_BYTES:
            raise StoreError(
                f"{self.uri_of(key)} would be {len(data)} bytes, past the 5 GiB of one PUT: "
                "use a larger stride or tissue threshold for this slide."
            )
        self._not_on_the_web(key, READ_ONLY)
        mode: Any = "create" if if_absent else "overwrite"
        if if_match is not None:
            mode = self._mode_over(key, if_match)
        result = self._call(
            key,
            "write",
            lambda b, path: obstore.put(b, path, data, mode=mode, use_multipart=False),
        )
        return (result.get("e_tag") or "").strip('"')

    def put_file(self, key: str, path: Path) -> None:
        """Write one object from a local file, in parts where it is long; readers see it whole.

        Replaces what stands there: parts know no conditions.
        """
        self._not_on_the_web(key, READ_ONLY)
        self._call(
            key,
            "write",
            lambda b, target: obstore.put(
                b, target, path, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE
            ),
        )

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; absent ones are no error."""
        named = list(keys)
        paths = [self._path(key) for key in named]
        if not paths:
            return
        self._not_on_the_web(named[0], READ_ONLY)
        where = named[0] if len(named) == 1 else ""
        try:
            self._call(where, "delete", lambda b, _: obstore.delete(b, paths))
        except NotFoundError:
            if len(paths) > 1:  # a local folder stops at the first absent file
                for path in paths:
                    self.delete([path.removeprefix(self.prefix).lstrip("/")])

    def open_file(
        self,
        key: str,
        *,
        etag: str | None = None,
        size_bytes: int | None = None,
        first_get_bytes: int = 4 << 20,
    ) -> RangedFile:
        """A seekable read-only file over ranged GETs; `etag` pins the version that is read.

        `first_get_bytes` is what a read somewhere new fetches at least: little for a file's
        directory, much where one goes on reading.
        """
        if size_bytes is None or etag is None:
            info = self.head(key)
            size_bytes = info.size_bytes if size_bytes is None else size_bytes
            etag = info.etag if etag is None else etag

        counts = ReadCounts()

        def fetch(start: int, length: int) -> memoryview:
            return self.get_range(key, start, length, etag=etag, counts=counts)

        name = key.rpartition("/")[2]
        return RangedFile(
            fetch,
            name=name,
            etag=etag,
            size_bytes=size_bytes,
            counts=counts,
            first_get_bytes=first_get_bytes,
        )

    def _mode_over(self, key: str, etag: str) -> Any:
        """The mode of a put that replaces version `etag` of `key` and no other."""
        if self.scheme not in ("file", "gs") and not etag.startswith("~"):
            # Unquoted: Ceph's gateway takes no other form on PUT, and AWS takes both.
            return {"e_tag": f'"{etag}"' if self.scheme == "az" else etag}
        meta = cast(dict[str, Any], self._call(key, "read", obstore.head))
        if etag_of(meta) != etag:
            raise PreconditionError(f"{self.uri_of(key)} is no longer version {etag}.")
        # Google's conditions know generations only.
        return {"version": meta["version"]} if self.scheme == "gs" else "overwrite"

    def _path(self, key: str) -> str:
        return "/".join(part for part in (self.prefix, key.strip("/")) if part)

    def _info(self, meta: dict[str, Any]) -> ObjectInfo:
        path = str(meta["path"])
        key = path[len(self.prefix) :].lstrip("/") if self.prefix else path
        return ObjectInfo(key=key, size_bytes=int(meta["size"]), etag=etag_of(meta))

    def _replaced(self, key: str, expected: str, found: str) -> str:
        return (
            f"{self.uri_of(key)} was replaced while it was read (was {expected}, is {found}): "
            "run again to take the new version."
        )

    def _call(
        self, key: str, verb: str, action: Callable[[ObjectStore, str], T], *, retries: bool = True
    ) -> T:
        try:
            if retries not in self._backends:
                self._backends[retries] = connect(self.scheme, self.bucket, retries=retries)
            return action(self._backends[retries], self._path(key))
        except StoreError:
            raise
        except CLIENT_ERRORS as error:
            where = self.uri_of(key)
            ours = translated(error, where, verb, scheme=self.scheme, bucket=self.bucket)
            refused = verb == "read" and isinstance(error, PermissionDeniedError)
            if self.scheme == "s3" and refused and absent(self._backends[retries], self._path(key)):
                ours = NotFoundError(f"{where} does not exist; check the URI.")
            # Not `from error`: a client's words may hold a signed URL, and a worker logs causes.
            raise ours from None

    def _not_on_the_web(self, key: str, why: str) -> None:
        if self.scheme in ("http", "https"):
            raise SettingsError(f"{self.uri_of(key)}: web servers {why}")


def _pause(attempt: int) -> None:
    """Wait after the attempt of that number, counted from 1."""
    time.sleep(min(0.05 * 2**attempt, LONGEST_PAUSE_S))
