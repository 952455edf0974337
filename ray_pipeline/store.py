"""URI -> object store: list, head, ranged get, conditional put. Nothing else opens the network.

Stores are configured by the standard environment variables of their clouds
(`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, `AWS_REGION`, ..., `GOOGLE_APPLICATION_CREDENTIALS`,
`STORAGE_EMULATOR_HOST`, `AZURE_STORAGE_ACCOUNT_NAME`, ...). Errors are translated here, once,
into the `StoreError` family; their sentences name the URI and never carry a header, a signature
or a response body.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar, cast
from urllib.parse import unquote, urlsplit

import obstore
from obstore import exceptions as obstore_errors
from obstore.store import AzureStore, GCSStore, HTTPStore, LocalStore, ObjectStore, S3Store

from ray_pipeline.errors import (
    AccessError,
    NotFoundError,
    ObjectReplacedError,
    PreconditionError,
    SettingsError,
    StoreError,
    UnreachableError,
    UnsupportedError,
)
from ray_pipeline.ranged_file import RangedFile

Scheme = Literal["file", "s3", "gs", "az", "http", "https"]
T = TypeVar("T")

BODY_ATTEMPTS = 4
"""Tries of one read, each with the client's own retries inside (those don't cover short bodies)."""
SINGLE_PUT_LIMIT_BYTES = 5 << 30
"""S3 takes at most 5 GiB in one PUT (Amazon S3 user guide, "Uploading objects")."""

_CLIENT_OPTIONS = {"timeout": "120s", "connect_timeout": "5s"}
_RETRY = {
    "max_retries": 7,
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=8),
        "base": 2,
    },
    "retry_timeout": timedelta(seconds=120),
}


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """What a store says of one object."""

    key: str
    """Path below the store's root, with `/` between segments."""
    size_bytes: int
    """Length of the object, bytes."""
    etag: str
    """Version tag without quotes; `~size-mtime` where the store gives none, or a weak one."""


def split_uri(uri: str) -> tuple[str, str]:
    """Split an object's URI into (root, key): `s3://b/a/x.svs` -> (`s3://b/a`, `x.svs`)."""
    trimmed = uri.rstrip("/")
    root, slash, key = trimmed.rpartition("/")
    if "://" not in trimmed:
        return (root or ("/" if slash else "."), key)
    if root.endswith(":/") or not key:
        raise SettingsError(f"{shown_uri(uri)} names no object: give scheme://bucket/path/name.")
    return root, key


def shown_uri(uri: str) -> str:
    """The URI without user name, password, query or fragment: fit for logs and files."""
    if "://" not in uri:
        return uri
    scheme, _, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    path = path.partition("?")[0] if scheme in ("http", "https") else path
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


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
    _backend: ObjectStore | None = field(default=None, repr=False, compare=False)

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
        web = parts.scheme in ("http", "https")
        if "@" in parts.netloc or (web and parts.query):
            raise SettingsError(
                f"{shown_uri(uri)} carries credentials or a signature: "
                "give them through the environment, never in a URI."
            )
        if not parts.netloc:
            raise SettingsError(f"{shown_uri(uri)} names no bucket.")
        # urlsplit treats '#' and '?' as its own; in bucket URIs they are part of the key.
        path = unquote(parts.path) if web else uri.partition("://")[2].partition("/")[2]
        path = path.strip("/")
        bucket = f"{parts.scheme}://{parts.netloc}" if web else parts.netloc
        root = f"{parts.scheme}://{parts.netloc}" + (f"/{path}" if path else "")
        return cls(uri=root, scheme=cast(Scheme, parts.scheme), bucket=bucket, prefix=path)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_backend": None}

    def uri_of(self, key: str) -> str:
        """Full URI of the object at `key`."""
        return f"{self.uri}/{key}" if key else self.uri

    def head(self, key: str) -> ObjectInfo:
        """Size and version of one object. Raises NotFoundError, AccessError, UnreachableError."""
        meta = self._call(key, "read", obstore.head)
        return self._info(cast(dict[str, Any], meta))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object below the folder `prefix`, in key order on cloud stores.

        An empty or absent folder yields nothing; an absent bucket raises NotFoundError.
        """
        if self.scheme in ("http", "https"):
            raise SettingsError(
                f"{self.uri_of(prefix)}: web servers can't be listed; name each slide."
            )
        stream = self._call(prefix, "list", lambda b, path: obstore.list(b, prefix=path or None))
        while True:
            chunk = self._call(prefix, "list", lambda _b, _p: next(stream, None))
            if chunk is None:
                return
            for meta in chunk:
                yield self._info(cast(dict[str, Any], meta))

    def folders(self, prefix: str = "") -> Sequence[str]:
        """Names of the folders right below `prefix`, sorted."""
        found = self._call(
            prefix, "list", lambda b, p: obstore.list_with_delimiter(b, prefix=p or None)
        )
        return sorted(str(path).rpartition("/")[2] for path in found["common_prefixes"])

    def get(self, key: str) -> bytes:
        """The whole object, bytes."""
        return self._call(key, "read", lambda b, path: bytes(obstore.get(b, path).bytes()))

    def get_range(self, key: str, start: int, length: int, *, etag: str | None = None) -> bytes:
        """`length` bytes from offset `start`, of the version `etag` where one is given.

        Raises ObjectReplacedError when the object is now another version, and
        UnreachableError when the body stays short after all tries.
        """
        options: dict[str, Any] = {"range": (start, start + length)}
        if etag is not None and not etag.startswith("~"):
            options["if_match"] = f'"{etag}"'

        def read(backend: ObjectStore, path: str) -> bytes:
            result = obstore.get(backend, path, options=cast(Any, options))
            if etag is not None and (found := _etag(cast(dict[str, Any], result.meta))) != etag:
                raise ObjectReplacedError(self._replaced(key, etag, found))
            return bytes(result.bytes())

        for attempt in range(BODY_ATTEMPTS):
            try:
                data = self._call(key, "read", read)
            except PreconditionError:
                found = self.head(key).etag
                raise ObjectReplacedError(self._replaced(key, etag or "", found)) from None
            except UnreachableError:
                if attempt == BODY_ATTEMPTS - 1:
                    raise
                data = b""
            if len(data) == length:
                return data
            time.sleep(0.1 * 2**attempt)
        raise UnreachableError(
            f"{self.uri_of(key)}: bytes {start}-{start + length - 1} came back short "
            f"{BODY_ATTEMPTS} times; check the store and run again."
        )

    def put(
        self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        """Write one object in a single PUT and return its etag ("" where the store tells none).

        `if_absent` sends `If-None-Match: *`, `if_match` sends `If-Match`; PreconditionError
        when the condition does not hold. Local folders have no `If-Match`: there the version
        is compared just before the write.
        """
        if len(data) > SINGLE_PUT_LIMIT_BYTES:
            raise StoreError(
                f"{self.uri_of(key)} would be {len(data)} bytes, past the 5 GiB of one PUT: "
                "use a larger stride or tissue threshold for this slide."
            )
        mode: Any = "create" if if_absent else "overwrite"
        if if_match is not None and self.scheme == "file":
            if self.head(key).etag != if_match:
                raise PreconditionError(f"{self.uri_of(key)} is no longer version {if_match}.")
        elif if_match is not None:
            # Unquoted: Ceph's gateway takes no other form on PUT, and the clouds take both.
            mode = {"e_tag": if_match}
        result = self._call(
            key,
            "write",
            lambda b, path: obstore.put(b, path, data, mode=mode, use_multipart=False),
        )
        return (result.get("e_tag") or "").strip('"')

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; absent ones are no error."""
        paths = [self._path(key) for key in keys]
        if not paths:
            return
        try:
            self._call("", "delete", lambda b, _: obstore.delete(b, paths))
        except NotFoundError:
            if len(paths) > 1:  # a local folder stops at the first absent file
                for path in paths:
                    self.delete([path.removeprefix(self.prefix).lstrip("/")])

    def open_file(
        self, key: str, *, etag: str | None = None, size_bytes: int | None = None
    ) -> RangedFile:
        """A seekable read-only file over ranged GETs; `etag` pins the version that is read."""
        if size_bytes is None or etag is None:
            info = self.head(key)
            size_bytes = info.size_bytes if size_bytes is None else size_bytes
            etag = info.etag if etag is None else etag

        def fetch(start: int, length: int) -> bytes:
            return self.get_range(key, start, length, etag=etag)

        name = key.rpartition("/")[2]
        return RangedFile(fetch, name=name, etag=etag, size_bytes=size_bytes)

    def _path(self, key: str) -> str:
        return "/".join(part for part in (self.prefix, key.strip("/")) if part)

    def _info(self, meta: dict[str, Any]) -> ObjectInfo:
        path = str(meta["path"])
        key = path[len(self.prefix) :].lstrip("/") if self.prefix else path
        return ObjectInfo(key=key, size_bytes=int(meta["size"]), etag=_etag(meta))

    def _replaced(self, key: str, expected: str, found: str) -> str:
        return (
            f"{self.uri_of(key)} was replaced while it was read (was {expected}, is {found}): "
            "run again to take the new version."
        )

    def _call(self, key: str, verb: str, action: Callable[[ObjectStore, str], T]) -> T:
        try:
            if self._backend is None:
                self._backend = _connect(self)
            return action(self._backend, self._path(key))
        except StoreError:
            raise
        except (obstore_errors.BaseError, OSError, ValueError, NotImplementedError) as error:
            raise _translated(error, self, key, verb) from error


_CLOUD_PREFIXES = ("AWS_", "GOOGLE_", "STORAGE_", "AZURE_")


def _connect(store: Store) -> ObjectStore:
    """The client for the store's bucket; one per process, so that its connections are reused."""
    said = sorted(item for item in os.environ.items() if item[0].startswith(_CLOUD_PREFIXES))
    return _client(store.scheme, store.bucket, tuple(said))


@lru_cache(maxsize=64)
def _client(scheme: Scheme, bucket: str, environment: tuple[tuple[str, str], ...]) -> ObjectStore:
    said = dict(environment)
    options: dict[str, Any] = dict(_CLIENT_OPTIONS)
    common: dict[str, Any] = {"client_options": options, "retry_config": _RETRY}
    if scheme == "file":
        return LocalStore("/", automatic_cleanup=False)
    if scheme == "s3":
        endpoint = said.get("AWS_ENDPOINT_URL_S3") or said.get("AWS_ENDPOINT_URL")
        options["allow_http"] = bool(endpoint and endpoint.startswith("http://"))
        return S3Store(bucket, config={"endpoint": endpoint} if endpoint else None, **common)
    if scheme == "gs":
        emulator = said.get("STORAGE_EMULATOR_HOST")
        if not emulator:
            return GCSStore(bucket, **common)
        base = emulator if "://" in emulator else f"http://{emulator}"
        options["allow_http"] = base.startswith("http://")
        config: Any = {"base_url": base.rstrip("/"), "skip_signature": True}
        return GCSStore(bucket, config=config, **common)
    if scheme == "az":
        options["allow_http"] = said.get("AZURE_STORAGE_ENDPOINT", "").startswith("http://")
        return AzureStore(bucket, **common)
    options["allow_http"] = scheme == "http"
    return HTTPStore(bucket, **common)


def _etag(meta: dict[str, Any]) -> str:
    raw = meta.get("e_tag")
    if raw and not raw.startswith("W/"):
        return str(raw).strip('"')
    modified = meta.get("last_modified")
    stamp = int(modified.timestamp()) if isinstance(modified, datetime) else 0
    return f"~{meta['size']}-{stamp}"


_ACCESS = (
    obstore_errors.PermissionDeniedError,
    obstore_errors.UnauthenticatedError,
    PermissionError,
)
_CREDENTIAL_VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, or the role of this machine",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or the service account of this machine",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or this machine's identity",
}


def _translated(error: Exception, store: Store, key: str, verb: str) -> StoreError:
    """The one place where a client's error becomes ours, by class, then by its words."""
    where, text = store.uri_of(key), str(error)
    # The status only: a bare "403" also stands in keys, request ids and durations.
    found = re.search(r"status code: (\d{3})", text)
    status = found[1] if found else ""
    if isinstance(error, (obstore_errors.AlreadyExistsError, obstore_errors.PreconditionError)):
        return PreconditionError(f"{where} is not in the state this {verb} asked for.")
    if store.scheme == "s3" and "169.254.169.254" in text:
        mend = _CREDENTIAL_VARIABLES["s3"]
        return AccessError(f"{where}: no credentials found to {verb} it; set {mend}.")
    if isinstance(error, _ACCESS) or status in ("401", "403"):
        mend = _CREDENTIAL_VARIABLES.get(store.scheme, "the permissions of the folder")
        return AccessError(f"{where} refused to {verb}: check {mend}, and that they allow it.")
    if "NoSuchBucket" in text:
        return NotFoundError(f"{where}: there is no bucket '{store.bucket}'; check its name.")
    if isinstance(error, (obstore_errors.NotFoundError, FileNotFoundError)):
        return NotFoundError(f"{where} does not exist; check the URI.")
    if isinstance(error, NotImplementedError) or status == "501":
        return UnsupportedError(f"{where}: this store does not know conditional writes.")
    if isinstance(error, (IsADirectoryError, NotADirectoryError)):
        return NotFoundError(f"{where} is a folder, not an object; check the URI.")
    return UnreachableError(
        f"{where}: the store gave no usable answer to {verb} after all retries; "
        "check the endpoint and the network, then run again."
    )
