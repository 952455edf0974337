"""The object stores' clients: how they are set up, and what they tell of an object."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import obstore
from obstore import exceptions as obstore_errors
from obstore.store import AzureStore, GCSStore, HTTPStore, LocalStore, ObjectStore, S3Store

from ray_pipeline.errors import SettingsError
from ray_pipeline.store_options import VARIABLE, options_of

Scheme = Literal["file", "s3", "gs", "az", "http", "https"]

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
_VARIABLES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}
_PREFIXES = (*_VARIABLES.values(), "STORAGE_", VARIABLE)


def connect(scheme: Scheme, bucket: str, *, retries: bool = True) -> ObjectStore:
    """The client for a bucket; one per process, so that its connections are reused.

    Without `retries` each failure is told at once, for callers that count and try again themselves.
    Raises SettingsError where the environment's variables make no client.
    """
    said = sorted(item for item in os.environ.items() if item[0].startswith(_PREFIXES))
    try:
        return _client(scheme, bucket, tuple(said), retries)
    except (obstore_errors.BaseError, OSError, ValueError):
        # Not in the client's words, which repeat values.
        names = [name for name, _ in said if name.startswith(_VARIABLES.get(scheme, "-"))]
        root = bucket if "://" in bucket else f"{scheme}://{bucket}"
        raise SettingsError(
            f"{root}: the variables of the environment make no client for it: check "
            f"{', '.join(names) or 'its name'}."
        ) from None


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
        return _s3(bucket, said, common)
    if scheme == "gs":
        return _google(bucket, said, common)
    if scheme == "az":
        endpoint = said.get("AZURE_STORAGE_ENDPOINT") or said.get("AZURE_ENDPOINT", "")
        options["allow_http"] = endpoint.startswith("http://")
        unsigned: Any = {"skip_signature": True} if _anonymous("az", bucket, said) else None
        return AzureStore(bucket, config=unsigned, **common)
    options["allow_http"] = scheme == "http"
    return HTTPStore(bucket, **common)


def _s3(bucket: str, said: Mapping[str, str], common: dict[str, Any]) -> ObjectStore:
    wanted = options_of(f"s3://{bucket}", said)
    config: Any = {}
    endpoint = wanted.endpoint or said.get("AWS_ENDPOINT_URL_S3") or said.get("AWS_ENDPOINT_URL")
    if endpoint:
        host = urlsplit(endpoint).netloc
        virtual = said.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "").lower() in ("true", "1", "yes")
        if virtual and not host.startswith(f"{bucket}."):
            # The client wants it there; nobody else's does.
            endpoint = endpoint.replace("://", f"://{bucket}.", 1)
        # Under both its names: the client lets AWS_ENDPOINT_URL_S3 win over `endpoint`.
        config = {"endpoint": endpoint, "aws_endpoint_url_s3": endpoint}
    if wanted.region:
        config["region"] = wanted.region
    if wanted.anonymous:
        config["skip_signature"] = True
    options = common["client_options"]
    options["allow_http"] = bool(endpoint and endpoint.startswith("http://"))
    if bundle := said.get("AWS_CA_BUNDLE"):
        options["root_certificate"] = Path(bundle).read_bytes()
    return S3Store(bucket, config=config or None, **common)


def _google(bucket: str, said: Mapping[str, str], common: dict[str, Any]) -> ObjectStore:
    options, emulator = common["client_options"], said.get("STORAGE_EMULATOR_HOST")
    if not emulator:
        options["allow_http"] = said.get("GOOGLE_BASE_URL", "").startswith("http://")
        anonymous: Any = {"skip_signature": True} if _anonymous("gs", bucket, said) else None
        return GCSStore(bucket, config=anonymous, **common)
    base = emulator if "://" in emulator else f"http://{emulator}"
    options["allow_http"] = base.startswith("http://")
    # Not `skip_signature`: writes ask this machine for a token all the same.
    unsigned = {"gcs_base_url": base.rstrip("/"), "disable_oauth": True}
    unsigned |= {"client_email": "", "private_key": "", "private_key_id": ""}
    config: Any = {"service_account_key": json.dumps(unsigned)}
    return GCSStore(bucket, config=config, **common)


def _anonymous(scheme: str, bucket: str, said: Mapping[str, str]) -> bool:
    return options_of(f"{scheme}://{bucket}", said).anonymous


def absent(backend: ObjectStore, path: str) -> bool:
    """Whether a listing, where it is allowed, tells that nothing stands at `path`.

    S3 answers a read of what is not there with 403, not 404, where the policy grants listing under
    a prefix only (Amazon S3 API reference, "GetObject").
    """
    folder = path.rpartition("/")[0]
    # No segment may be empty: '.' is what comes before '/'.
    just_before = f"{path[:-1]}{chr(ord(path[-1]) - 1).replace('/', '.')}~"
    try:
        for chunk in obstore.list(backend, prefix=folder or None, offset=just_before):
            for meta in chunk:
                if str(meta["path"]) >= path:
                    return str(meta["path"]) != path
    except (obstore_errors.BaseError, OSError, ValueError):
        return False
    return True


def etag_of(meta: Mapping[str, Any]) -> str:
    """An object's version tag without quotes; `~size-mtime` for none, or a weak one."""
    raw: str | None = meta.get("e_tag")
    if raw and raw[:2] != "W/":
        return raw.strip('"')
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
