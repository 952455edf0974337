"""Which slides a job is about: prefixes, globs, single URIs and manifests become `SlideSource`s."""

from __future__ import annotations

import gc
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import chain, islice, pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from ray_pipeline.coordinates import Coordinates, read_coordinates
from ray_pipeline.errors import (
    DuplicateSlideError,
    HistorayError,
    NotFoundError,
    SettingsError,
    SlideError,
    StoreError,
)
from ray_pipeline.recipe import input_fingerprint
from ray_pipeline.redaction import fit_to_keep
from ray_pipeline.side_by_side import side_by_side
from ray_pipeline.slides.dicom import dicom_etag
from ray_pipeline.slides.slide import (
    SLIDE_SUFFIXES,
    is_instance,
    slide_id_of,
    slide_objects,
)
from ray_pipeline.store import ObjectInfo, Store
from ray_pipeline.uris import shown_uri, split_uri

HEADS_AT_ONCE = 64
"""Concurrent HEAD requests for slides that no LIST told about."""
MANY_SLIDES, KEYS_PER_SLIDE = 100, 20
"""Slides of one folder whose versions are told by a LIST, not a HEAD each, and keys for each of
them that are looked at: where it holds mostly other things, HEADs are sooner done."""
NO_ATTRIBUTES: Mapping[str, Any] = {}
"""Of all slides that no manifest tells of: a million empty dicts would be 64 MB."""
CODE = r"^[+-]?(0\d|\d{19})"
"""Digits in a CSV that no number keeps: with leading zeros, or more than 18 of them."""


@dataclass(kw_only=True, slots=True)
class SlideSource:
    """One slide as the job's settings name it, before it is opened. Nobody changes one."""

    # Not frozen: making one would then take three times as long, and a job may make a million.

    slide_id: str
    """Unique within a job; the file's stem unless the manifest says otherwise."""
    uri: str
    """Where its bytes lie."""
    etag: str = ""
    """Version tag at listing time; empty when the object could not be found."""
    size_bytes: int = 0
    """Length of the object, bytes."""
    mpp_override: float | None = None
    """Microns per pixel of level 0 to use instead of the file's."""
    attributes: Mapping[str, Any] = field(default_factory=lambda: NO_ATTRIBUTES)
    """The manifest's further columns, carried to the slides table."""
    coords: str | None = None
    """URI of the tiles to read, where they are not to be found on the overview."""
    coords_digest: str | None = None
    """Digest of those tiles."""
    error: HistorayError | None = None
    """Why the object, or its coordinates, could not be had, if so."""

    @property
    def input_fp(self) -> str:
        """Fingerprint of this version of the source, as it will be read."""
        tiles = None if self.coords is None else {"digest": self.coords_digest}
        return input_fingerprint(
            uri=self.uri, etag=self.etag, mpp_override=self.mpp_override, coordinates=tiles
        )

    def coordinates(self) -> Coordinates | None:
        """The tiles that were brought for it, if any, read anew; raises as `read_coordinates`."""
        if self.coords is None:
            return None
        return read_coordinates(self.coords, slide_id=self.slide_id, digest=self.coords_digest)


def find_slides(slides: Sequence[str], *, mpp_override: float | None = None) -> list[SlideSource]:
    """Every slide that `slides` names, each once, sorted by slide_id.

    Raises SettingsError when an entry names nothing, DuplicateSlideError when two different
    slides share a slide_id or rows of manifests tell different things of one, and the store's own
    error when no slide at all can be reached.
    """
    with _uncollected():
        sources = _with_versions(_named(slides))
    errors = [source.error for source in sources if source.error is not None]
    if errors and len(errors) == len(sources):
        raise errors[0]
    sources.sort(key=attrgetter("slide_id"))
    for one, other in pairwise(sources):
        if one.slide_id == other.slide_id:
            raise DuplicateSlideError(
                f"slide_id '{one.slide_id}' stands for both {one.uri} and {other.uri}: "
                "give them different ids in the slide_id column of a manifest."
            )
    _read_digests(sources)
    if mpp_override is not None:
        sources = [replace(s, mpp_override=s.mpp_override or mpp_override) for s in sources]
    return sources


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without looking for garbage: there is none, and among a million slides it takes long."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _named(slides: Sequence[str]) -> list[SlideSource]:
    """What the entries name, each slide once."""
    told: dict[tuple[str, str], SlideSource] = {}
    for entry in filter(_is_manifest, slides):
        for source in _expand(entry):
            if told.setdefault((source.uri, source.slide_id), source) != source:
                raise DuplicateSlideError(
                    f"slide_id '{source.slide_id}': two rows of a manifest tell different things "
                    f"of {source.uri}: keep one, or give them different slide_ids."
                )
    known = {uri for uri, _ in told}
    listed: dict[str, SlideSource] = {}
    for entry in slides:
        if not _is_manifest(entry):
            for source in _expand(entry):
                listed.setdefault(source.uri, source)
    # What a listing finds tells nothing new of an object that a manifest names.
    return [*told.values(), *(s for s in listed.values() if s.uri not in known)]


def _expand(entry: str) -> Iterator[SlideSource]:
    lowered = entry.lower()
    if any(mark in entry for mark in "*?["):
        yield from _from_glob(entry)
    elif _is_manifest(entry):
        yield from _from_manifest(entry)
    elif lowered.endswith(SLIDE_SUFFIXES) and not _is_local_folder(entry):
        root, key = split_uri(entry)
        uri = Store.open(root).uri_of(key)
        yield SlideSource(slide_id=slide_id_of(uri), uri=uri)
    else:
        store = Store.open(entry)
        yield from _listed(store, _all_of(store), f"{shown_uri(entry)} holds no slides")


def _from_glob(entry: str) -> Iterator[SlideSource]:
    fixed = re.split(r"[*?\[]", entry, maxsplit=1)[0].rpartition("/")[0]
    if "://" in entry and fixed.count("/") < 2:
        raise SettingsError(f"{entry}: the bucket's name can't hold a wildcard.")
    store = Store.open(fixed or ("/" if entry.startswith("/") else "."))
    matches = re.compile(_glob_regex(entry[len(fixed) :].lstrip("/")))
    keys = (info for info in _all_of(store) if matches.fullmatch(info.key))
    yield from _listed(store, keys, f"{entry} matches no slide")


def _all_of(store: Store) -> Iterator[ObjectInfo]:
    """Its objects, in any order; while some are looked at, the next are already asked for."""
    return chain.from_iterable(side_by_side([store.pages(in_order=False)], 1))


def _listed(store: Store, infos: Iterable[ObjectInfo], nothing: str) -> Iterator[SlideSource]:
    empty, folders = True, dict[str, list[ObjectInfo]]()
    for info in infos:
        if not info.key.lower().endswith(SLIDE_SUFFIXES):
            continue
        if is_instance(info.key):
            folders.setdefault(info.key.rpartition("/")[0], []).append(info)
        else:
            empty = False
            yield _source_of(store, info)
    for folder, instances in folders.items():
        if len(instances) == 1:
            yield _source_of(store, instances[0])
            continue
        # A series of DICOM instances is one slide, and its folder is the slide's name.
        uri, inside = store.uri_of(folder), len(folder) + 1 if folder else 0
        named = [info._replace(key=info.key[inside:]) for info in instances]
        yield SlideSource(
            slide_id=slide_id_of(uri),
            uri=uri,
            etag=dicom_etag(named),
            size_bytes=sum(info.size_bytes for info in instances),
        )
    if empty and not folders:
        endings = " ".join(SLIDE_SUFFIXES)
        raise SettingsError(f"{nothing}: check slides (looked for names ending in {endings}).")


def _source_of(store: Store, info: ObjectInfo) -> SlideSource:
    uri = store.uri_of(info.key)
    return SlideSource(
        slide_id=slide_id_of(uri), uri=uri, etag=info.etag, size_bytes=info.size_bytes
    )


def _from_manifest(entry: str) -> Iterator[SlideSource]:
    root, key = split_uri(entry)
    table = _read_manifest(entry, Store.open(root).get(key))
    names = table.column_names
    if "uri" not in names:
        raise SettingsError(f"{entry} has no column 'uri' (it has: {', '.join(names)}).")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SettingsError(f"{entry} has the column '{twice[0]}' twice; rename one.")
    if not table.num_rows:
        raise SettingsError(f"{entry} names no slides: it has no rows.")
    for line, row in enumerate(table.to_pylist(), start=1):
        uri, slide_id, mpp = row.pop("uri"), row.pop("slide_id", None), row.pop("mpp", None)
        if not uri:
            raise SettingsError(f"{entry}: row {line} has no uri.")
        uri = _absolute(str(uri), root)
        if row.get("coords"):  # stays among the attributes: the slides table tells it
            row["coords"] = _absolute(str(row["coords"]), root)
        if mpp is not None and not (isinstance(mpp, float | int) and 0.05 <= mpp <= 20):
            raise SettingsError(f"{entry}: row {line}: mpp {mpp!r} is not within 0.05..20.")
        yield SlideSource(
            slide_id=str(slide_id) if slide_id not in (None, "") else slide_id_of(uri),
            uri=uri,
            mpp_override=float(mpp) if mpp is not None else None,
            coords=row.get("coords") or None,
            attributes={
                name: fit_to_keep(value) if isinstance(value, str) else value
                for name, value in row.items()
            },
        )


def _absolute(uri: str, root: str) -> str:
    """A manifest's URI; a relative one starts at `root`, where the manifest lies."""
    if "://" not in uri and not uri.startswith("/"):
        uri = f"{root}/{uri}"
    store, key = split_uri(uri)
    return Store.open(store).uri_of(key)


def _read_manifest(entry: str, data: bytes) -> pa.Table:
    try:
        if entry.lower().endswith(".parquet"):
            return pq.read_table(io.BytesIO(data))
        return _read_csv(data)
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(f"{entry} can't be read as a manifest: {reason}.") from None


def _read_csv(data: bytes) -> pa.Table:
    """Numbers as numbers, but ids as text, and codes such as 0012 too."""

    def read(types: dict[str, pa.DataType]) -> pa.Table:
        options = pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=True)
        return pyarrow.csv.read_csv(io.BytesIO(data), convert_options=options)

    table = read(dict.fromkeys(("uri", "slide_id"), pa.string()))
    texts = read(dict.fromkeys(table.column_names, pa.string()))
    for index, name in enumerate(table.column_names):
        codes = pc.match_substring_regex(texts.column(index), CODE)
        if name != "mpp" and pc.any(codes).as_py():
            table = table.set_column(index, name, texts.column(index))
    return table


def _with_versions(sources: list[SlideSource]) -> list[SlideSource]:
    """Fill in size and etag where no LIST has told them: by one, or by a HEAD each."""
    _list_versions(sources)
    unknown = [at for at, source in enumerate(sources) if not source.etag]
    with ThreadPoolExecutor(HEADS_AT_ONCE) as pool:
        for at, source in zip(
            unknown, pool.map(_headed, [sources[at] for at in unknown]), strict=True
        ):
            sources[at] = source
    return sources


def _list_versions(sources: list[SlideSource]) -> None:
    """The same by one LIST of each folder that holds many of them. DICOM's folders are left."""
    folders: dict[str, dict[str, int]] = {}
    for at, source in enumerate(sources):
        if source.etag:
            continue
        root, key = split_uri(source.uri)
        if key.lower().endswith(SLIDE_SUFFIXES):
            folders.setdefault(root, {})[key] = at
    for root, keys in folders.items():
        store = Store.open(root)
        if len(keys) < MANY_SLIDES or store.scheme in ("http", "https"):
            continue
        with suppress(StoreError):  # what can be read may not be listed: then HEADs tell
            for info in islice(store.list(), KEYS_PER_SLIDE * len(keys)):
                if (found := keys.pop(info.key, None)) is not None:
                    sources[found] = replace(
                        sources[found], etag=info.etag, size_bytes=info.size_bytes
                    )


def _read_digests(sources: list[SlideSource]) -> None:
    """Fill in the digests of coordinates: each file is read once here, and let go of again."""
    brought = [at for at, source in enumerate(sources) if source.coords and not source.error]
    with ThreadPoolExecutor(HEADS_AT_ONCE) as pool:
        found = pool.map(_with_digest, [sources[at] for at in brought])
        for at, source in zip(brought, found, strict=True):
            sources[at] = source


def _with_digest(source: SlideSource) -> SlideSource:
    try:
        tiles = source.coordinates()
    except (SlideError, StoreError) as error:
        return replace(source, error=error)
    return replace(source, coords_digest=tiles.digest if tiles else None)


def _headed(source: SlideSource) -> SlideSource:
    root, key = split_uri(source.uri)
    store = Store.open(root)
    try:
        try:
            _, infos, etag = slide_objects(source.uri)
        except NotFoundError:
            # A HEAD has no body to tell a missing bucket from a missing object; a LIST has.
            if store.scheme in ("s3", "gs", "az"):
                next(store.list(key), None)
            raise
    except StoreError as error:
        return replace(source, error=error)
    return replace(source, etag=etag, size_bytes=sum(info.size_bytes for info in infos))


def _is_manifest(entry: str) -> bool:
    return entry.lower().endswith((".csv", ".parquet")) and not re.search(r"[*?\[]", entry)


def _is_local_folder(entry: str) -> bool:
    return "://" not in entry and Path(entry).is_dir()


def _glob_regex(pattern: str) -> str:
    """Regular expression of a glob: `*` and `?` within one segment, `**` over any number."""
    out, i = "", 0
    while i < len(pattern):
        if pattern.startswith("**/", i):
            out, i = out + r"(?:[^/]+/)*", i + 3
        elif pattern.startswith("**", i):
            out, i = out + ".*", i + 2
        elif pattern[i] in "*?":
            out, i = out + ("[^/]*" if pattern[i] == "*" else "[^/]"), i + 1
        elif pattern[i] == "[" and (end := pattern.find("]", i + 2)) > 0:
            inside = pattern[i + 1 : end].replace("\\", r"\\")
            inside = "^" + inside[1:] if inside.startswith("!") else inside
            out, i = out + f"[{inside}]", end + 1
        else:
            out, i = out + re.escape(pattern[i]), i + 1
    return out
