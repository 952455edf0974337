"""Where weights come from: the hub's local cache, a file, a store, or a seeded generator.

`resolve_weights` finds them and their version without reading them; `local_file` brings them to
this machine's disk, `fetch_weights` to a file of your choice. None needs torch, so a finished job
can be recognised without it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from huggingface_hub import try_to_load_from_cache

from ray_pipeline.encoders.spec import ModelSpec
from ray_pipeline.errors import SettingsError, StoreError, WeightsError
from ray_pipeline.store import Store
from ray_pipeline.uris import shown_uri, split_uri

SourceKind = Literal["random", "hub", "path", "uri"]

PICKLE_SUFFIXES = (".bin", ".pth", ".pt", ".torch")
"""Files of `torch.save`, opened with `weights_only=True`: no code in them is ever run."""
WEIGHTS_SUFFIXES = (*PICKLE_SUFFIXES, ".safetensors")
RANDOM_SCHEME = "philox-int16-1"
"""Name of the rule that makes random weights (`tensors.random_tensor`); part of cache keys."""
DOWNLOAD_CHUNK_BYTES = 16 << 20
"""One ranged GET of a download."""
DOWNLOAD_THREADS = 8
"""Ranged GETs in flight; with the chunk size this bounds a download's memory to ~128 MiB."""


@dataclass(frozen=True, kw_only=True)
class WeightsSource:
    """Weights that exist, not yet read: where they are and which version it is."""

    kind: SourceKind
    """`random`; `hub`: a file of the hub's local cache; `path`: a local file; `uri`: an object."""
    location: str
    """Absolute path or URI, without secrets; `random` for random weights."""
    version: str
    """Commit (hub), `size-mtime_ns` (path), etag (uri), generator's rule and timm's version."""

    @property
    def meaningful(self) -> bool:
        """False for random weights."""
        return self.kind != "random"


def resolve_weights(spec: ModelSpec, weights: str | None) -> WeightsSource:
    """Find the weights a user asked for, at the cost of one stat or one HEAD.

    `weights` is None (the hub's local cache, HF_HOME honoured; nothing is downloaded), `random`,
    a local path, or an object's URI. Files are `.safetensors`, or pickles of PICKLE_SUFFIXES.
    Models without any weights (`toy`) take None or `random`. Raises WeightsError, telling the ways
    to give weights.
    """
    if weights == "random" or (weights is None and not spec.published):
        return WeightsSource(
            kind="random",
            location="random",
            version=f"{RANDOM_SCHEME};timm-{version('timm')}",
        )
    if not spec.published:
        raise WeightsError(
            f"{spec.name} has no weights but random ones: "
            f"leave out weights '{shown_uri(weights or '')}'."
        )
    if weights is None:
        return _from_hub_cache(spec)
    if "://" in weights and not weights.startswith("file://"):
        return _from_store(spec, weights)
    return _from_path(spec, unquote(urlsplit(weights).path) if "://" in weights else weights)


def weights_cache_key(spec: ModelSpec, source: WeightsSource) -> str:
    """A short name (16 hex digits) for `spec` with `source`, under which an identity can be kept.

    Equal keys mean equal identities on equal devices; an entry of the registry that was corrected
    has another key. Computing it reads no weights and needs no torch.
    """
    # A commit of the hub is the same wherever a node keeps its cache; a path may not be.
    place = spec.hub_id if source.kind == "hub" else source.location
    text = "\n".join((repr(spec), source.kind, place or "", source.version))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def local_file(spec: ModelSpec, source: WeightsSource) -> Path:
    """Path of the weights on this machine, downloaded first where they are a store's object.

    Downloads go to `$HISTORAY_CACHE`, else `$XDG_CACHE_HOME/historay`, else `~/.cache/historay`,
    once per machine and version: concurrent processes wait for one of them. Raises WeightsError.
    """
    if source.kind != "uri":
        return Path(source.location)
    root, key = split_uri(source.location)
    uri_hash, version_hash = (
        hashlib.sha256(text.encode()).hexdigest()[:16] for text in (source.location, source.version)
    )
    folder = cache_folder() / "weights"
    target = folder / f"{uri_hash}-{version_hash}{_suffix(key)}"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with target.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                # The lock makes this name ours; what a killed process left is written over.
                part = target.with_suffix(".part")
                _download(Store.open(root), key, source.version, part)
                part.replace(target)
    except StoreError as error:
        raise _unavailable(spec, str(error)) from error
    except OSError as error:
        raise WeightsError(
            f"{source.location} can't be kept in {folder} ({error.strerror}): "
            "free some space there, or point HISTORAY_CACHE to another folder."
        ) from error
    return target


def fetch_weights(uri: str, target: Path, sha256: str) -> bool:
    """Bring the object at `uri` to `target`, which then has the SHA-256 (64 hex digits) asked for.

    Comes back with False, and asks nobody, where `target` has it already; concurrent processes of
    one machine wait for one of them. Where this fails, `target` is as it was. Raises SettingsError
    for a digest that is none, StoreError, and WeightsError where the object is another or the file
    can't be written.
    """
    asked = sha256.lower()
    if not re.fullmatch("[0-9a-f]{64}", asked):
        raise SettingsError(f"sha256 '{sha256}' is no SHA-256: give 64 hex digits.")
    root, key = split_uri(uri)
    store = Store.open(root)
    part, lock_file = (target.with_name(f"{target.name}.{end}") for end in ("part", "lock"))
    try:
        if target.exists() and _sha256(target) == asked:
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        with lock_file.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if target.exists() and _sha256(target) == asked:
                return False
            _download(store, key, store.head(key).etag, part)
            if (found := _sha256(part)) != asked:
                part.unlink()
                raise WeightsError(
                    f"{store.uri_of(key)} is not what was asked for (its SHA-256 is "
                    f"{found[:12]}..., not {asked[:12]}...): check both, for one was changed."
                )
            part.replace(target)
    except OSError as error:
        raise WeightsError(
            f"{target} can't be written ({error.strerror}): give another place, or free some space."
        ) from error
    return True


def check_original(spec: ModelSpec, path: Path) -> None:
    """Compare a pickle's SHA-256 with the registry's, where that knows it. Raises WeightsError.

    Safetensors are not the file the registry knows; their tensors' digest stands for them.
    """
    if spec.weights_sha256 is None or _suffix(path.name) not in PICKLE_SUFFIXES:
        return
    try:
        found = _sha256(path)
    except OSError as error:
        raise WeightsError(f"{path} can't be read ({error.strerror}): check the file.") from error
    if found != spec.weights_sha256:
        raise WeightsError(
            f"{path} is not the original {spec.weights_file} of {spec.name} (its SHA-256 is "
            f"{found[:12]}..., not {spec.weights_sha256[:12]}...): download it again, or give "
            "weights you changed on purpose as .safetensors."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_hub_cache(spec: ModelSpec) -> WeightsSource:
    if spec.hub_id is None:
        raise _unavailable(spec, "they are not on the hub")
    assert spec.weights_file is not None
    found = try_to_load_from_cache(spec.hub_id, spec.weights_file, revision=spec.revision)
    if not isinstance(found, str):
        raise _unavailable(spec, f"{spec.weights_file} is not in the hub's local cache")
    path = Path(found)
    return WeightsSource(kind="hub", location=str(path), version=path.parent.name)


def _from_store(spec: ModelSpec, uri: str) -> WeightsSource:
    try:
        Store.open(uri)  # refuses secrets anywhere in the URI, before any sentence repeats it
        root, key = split_uri(uri)
        _check_suffix(spec, key)
        store = Store.open(root)
        info = store.head(key)
    except (StoreError, SettingsError) as error:
        raise _unavailable(spec, str(error)) from error
    return WeightsSource(kind="uri", location=store.uri_of(key), version=info.etag)


def _from_path(spec: ModelSpec, given: str) -> WeightsSource:
    path = Path(given).expanduser().absolute()
    _check_suffix(spec, path.name)
    try:
        status = path.stat()
    except OSError as error:
        raise _unavailable(spec, f"{path} can't be read ({error.strerror})") from error
    if not path.is_file():
        raise _unavailable(spec, f"{path} is not a file")
    return WeightsSource(
        kind="path", location=str(path), version=f"{status.st_size}-{status.st_mtime_ns}"
    )


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def _check_suffix(spec: ModelSpec, name: str) -> None:
    if _suffix(name) not in WEIGHTS_SUFFIXES:
        raise _unavailable(spec, f"'{name}' is not one of {', '.join(WEIGHTS_SUFFIXES)}")


def _unavailable(spec: ModelSpec, reason: str) -> WeightsError:
    return WeightsError(
        f"no weights for {spec.name}: {reason.rstrip('.')}; give a local file "
        "(--weights /path/file.safetensors or .bin), an object (--weights s3://bucket/key), or "
        f"{_where_to_get(spec)}."
    )


def _where_to_get(spec: ModelSpec) -> str:
    if spec.hub_id is None:
        return f"download {spec.weights_url} and give that"
    pinned = "" if spec.revision == "main" else f" --revision {spec.revision}"
    agreed = f", once you have accepted its terms at hf.co/{spec.hub_id}" if spec.gated else ""
    command = f"hf download {spec.hub_id} {spec.weights_file}{pinned}"
    return f"fill the hub's cache on every encoder node ({command}{agreed})"


def cache_folder() -> Path:
    """Where this machine keeps what is costly to get again."""
    if own := os.environ.get("HISTORAY_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(shared).expanduser() / "historay"


def _download(store: Store, key: str, etag: str, target: Path) -> None:
    size_bytes = store.head(key).size_bytes

    def fetch(start: int) -> bytes:
        length = min(DOWNLOAD_CHUNK_BYTES, size_bytes - start)
        return bytes(store.get_range(key, start, length, etag=etag))

    starts = iter(range(0, size_bytes, DOWNLOAD_CHUNK_BYTES))
    with target.open("wb") as file, ThreadPoolExecutor(DOWNLOAD_THREADS) as pool:
        waiting: deque[Future[bytes]] = deque()
        while True:
            while len(waiting) < DOWNLOAD_THREADS and (start := next(starts, None)) is not None:
                waiting.append(pool.submit(fetch, start))
            if not waiting:
                break
            file.write(waiting.popleft().result())
        file.flush()
        os.fsync(file.fileno())
