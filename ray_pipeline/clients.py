"""The object stores' clients: how they are set up, and how their errors become ours."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Literal

from obstore import exceptions as obstore_errors
from obstore.store import AzureStore, GCSStore, HTTPStore, LocalStore, ObjectStore, S3Store

from ray_pipeline.errors import (
    AccessError,
    NotFoundError,
    PreconditionError,
    StoreError,
    UnreachableError,
    UnsupportedError,
)

Scheme = Literal["file", "s3", "gs", "az", "http", "https"]

CLIENT_ERRORS = (obstore_errors.BaseError, OSError, ValueError, NotImplementedError)
"""What the clients raise; `translated` makes a StoreError of each."""

_CLIENT_OPTIONS = {"timeout": "120s", "connect_timeout": "5s", "read_timeout": "15s"}
_RETRY = {
    "max_retries": 7,
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=8),
        "base": 2,
    },
    "retry_timeout": timedelta(seconds=120),
}
_CLOUD_PREFIXES = ("AWS_", "GOOGLE_", "STORAGE_", "AZURE_")


def connect(scheme: Scheme, bucket: str, *, retries: bool = True) -> ObjectStore:
    """The client for a bucket; one per process, so that its connections are reused.

    Without `retries` each failure is told at once, for callers that count and try again themselves.
    """
    said = sorted(item for item in os.environ.items() if item[0].startswith(_CLOUD_PREFIXES))
    return _client(scheme, bucket, tuple(said), retries)


@lru_cache(maxsize=64)
def _client(
    scheme: Scheme, bucket: str, environment: tuple[tuple[str, str], ...], retries: bool
) -> ObjectStore:
    said = dict(environment)
    options: dict[str, Any] = dict(_CLIENT_OPTIONS)
    retry: dict[str, Any] = _RETRY if retries else {**_RETRY, "max_retries": 0}
    common: dict[str, Any] = {"client_options": options, "retry_config": retry}
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
        # Not `skip_signature`: writes ask this machine for a token all the same.
        unsigned = {"gcs_base_url": base.rstrip("/"), "disable_oauth": True}
        unsigned |= {"client_email": "", "private_key": "", "private_key_id": ""}
        config: Any = {"service_account_key": json.dumps(unsigned)}
        return GCSStore(bucket, config=config, **common)
    if scheme == "az":
        options["allow_http"] = said.get("AZURE_STORAGE_ENDPOINT", "").startswith("http://")
        return AzureStore(bucket, **common)
    options["allow_http"] = scheme == "http"
    return HTTPStore(bucket, **common)


def etag_of(meta: Mapping[str, Any]) -> str:
    """An object's version tag without quotes; `~size-mtime` for none, or a weak one."""
    raw = meta.get("e_tag")
    if raw and not raw.startswith("W/"):
        return str(raw).strip('"')
    modified = meta.get("last_modified")
    stamp = int(modified.timestamp()) if isinstance(modified, datetime) else 0
    return f"~{meta['size']}-{stamp}"


def read_local(path: str, start: int, length: int) -> tuple[str, memoryview]:
    """(version, bytes) of a local file's range, as the client tells them, at a third of its cost.

    `start` and `length` in bytes; fewer come back at the file's end. Raises OSError.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        stat = os.fstat(handle)
        version = f"{stat.st_ino:x}-{max(0, stat.st_mtime_ns // 1000):x}-{stat.st_size:x}"
        return version, memoryview(os.pread(handle, length, start))
    finally:
        os.close(handle)


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


def translated(
    error: Exception, where: str, verb: str, *, scheme: Scheme, bucket: str
) -> StoreError:
    """The one place where a client's error becomes ours, by class, then by its words.

    `where` is the object's URI and `verb` what was tried: `read`, `write`, `list` or `delete`.
    """
    text = str(error)
    # The status only: a bare "403" also stands in keys, request ids and durations.
    found = re.search(r"status code: (\d{3})", text)
    status = found[1] if found else ""
    if isinstance(error, (obstore_errors.AlreadyExistsError, obstore_errors.PreconditionError)):
        return PreconditionError(f"{where} is not in the state this {verb} asked for.")
    if scheme == "s3" and "169.254.169.254" in text:
        mend = _CREDENTIAL_VARIABLES["s3"]
        return AccessError(f"{where}: no credentials found to {verb} it; set {mend}.")
    if isinstance(error, _ACCESS) or status in ("401", "403"):
        mend = _CREDENTIAL_VARIABLES.get(scheme, "the permissions of the folder")
        return AccessError(f"{where} refused to {verb}: check {mend}, and that they allow it.")
    if "NoSuchBucket" in text:
        return NotFoundError(f"{where}: there is no bucket '{bucket}'; check its name.")
    if isinstance(error, (obstore_errors.NotFoundError, FileNotFoundError)):
        return NotFoundError(f"{where} does not exist; check the URI.")
    if isinstance(error, NotImplementedError) or status == "501":
        return UnsupportedError(f"{where}: this store does not know conditional writes.")
    if isinstance(error, (IsADirectoryError, NotADirectoryError)):
        return NotFoundError(f"{where} is a folder, not an object; check the URI.")
    if scheme == "file":
        return UnreachableError(
            f"{where}: the file system could not {verb} it; check that what its path names as "
            "folders are some, and that the disk has room."
        )
    return UnreachableError(
        f"{where}: the store gave no usable answer to {verb} after all retries; "
        "check the endpoint and the network, then run again."
    )
