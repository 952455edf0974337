"""The seam between a slide file and everything else: what an opened slide is and can do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Protocol
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from ray_pipeline.errors import EmptySlideError, NotFoundError, ObjectReplacedError
from ray_pipeline.ranged_file import ReadCounts
from ray_pipeline.slides.dicom import dicom_etag, index_dicom
from ray_pipeline.slides.fallback import TiffSlideReader
from ray_pipeline.slides.levels import Level, Mpp, Overview
from ray_pipeline.slides.tiff import index_tiff
from ray_pipeline.slides.tiff_header import open_tiff
from ray_pipeline.slides.tiled import TiledSlide
from ray_pipeline.store import ObjectInfo, Store
from ray_pipeline.uris import WEB, split_uri

SLIDE_SUFFIXES = (".svs", ".tif", ".tiff", ".btf", ".ndpi", ".scn", ".bif", ".dcm")
"""Objects with these endings (any case) are slides when a prefix is listed."""
DICOM_MAGIC = b"DICM"
"""Bytes 128 to 131 of a DICOM file (PS3.10, 7.1)."""
INDEX_GET_BYTES = 64 << 10
"""First request of a file's directory; reading on doubles it."""


class Slide(Protocol):
    """An opened slide. Opened where it is read, never pickled, used by one thread at a time."""

    slide_id: str
    """The slide's id."""
    uri: str
    """Where its bytes lie."""
    etag: str
    """The version that is read; every request insists on it."""
    size_bytes: int
    """Length of the file, bytes."""
    vendor: str
    """Format as the reader names it: `aperio`, `hamamatsu`, `generic-tiff`, ..."""
    levels: tuple[Level, ...]
    """Pyramid levels, the finest first."""
    mpp: Mpp
    """Microns per pixel of level 0, and where that number comes from."""

    icc_profile: bytes | None
    """The scanner's colour profile; None without one."""
    counts: ReadCounts
    """What opening and reading have cost so far."""
    reader: str
    """The path it takes: `direct`, or `tiffslide` for layouts that only tiffslide knows."""

    def overview(self, mpp: float) -> Overview:
        """The whole slide at about `mpp` microns per pixel, never coarser than that."""
        ...

    def read_tiles(
        self,
        *,
        level: int,
        xy: npt.NDArray[np.int32],
        side_px: float,
        tile_px: int,
        reduce: int = 1,
    ) -> npt.NDArray[np.uint8]:
        """Tiles as uint8 [n, tile_px, tile_px, 3].

        `xy` int32 [n, 2] are left top corners in level-0 px. `level` is read smaller by `reduce`,
        one of its `reduces`, and `side_px` is a tile's side in the px that are then read; tiles are
        resampled where it differs from `tile_px`. Raises DamagedSlideError, or a StoreError.
        """
        ...

    def read_parts(
        self,
        *,
        level: int,
        parts: Sequence[npt.NDArray[np.int32]],
        side_px: float,
        tile_px: int,
        reduce: int = 1,
    ) -> Iterator[npt.NDArray[np.uint8]]:
        """The tiles of each of `parts`, one after another, as `read_tiles` would give them.

        Later parts are fetched while earlier ones are decoded, and what two of them share is
        decoded once: so many at once cost less than one by one.
        """
        ...

    def compressed_bytes(
        self, *, level: int, xy: npt.NDArray[np.int32], side_px: float, reduce: int = 1
    ) -> int:
        """Bytes of the compressed tiles that lie under the given tiles, each counted once."""
        ...

    def ranges(
        self, *, level: int, xy: npt.NDArray[np.int32], side_px: float, reduce: int = 1
    ) -> int:
        """About how many ranged GETs reading these tiles takes, once the slide is open."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


def open_slide(
    uri: str,
    *,
    slide_id: str | None = None,
    etag: str | None = None,
    mpp_override: float | None = None,
    threads: int = 1,
) -> Slide:
    """Open the slide at `uri`, a file or a folder of DICOM, in the version `etag` if one is given.

    `threads` decode its tiles. Raises SlideError subclasses for what is wrong with the file,
    StoreError subclasses for what is wrong with getting at it; either is one sentence naming the
    slide and the mend.
    """
    store, infos, found = slide_objects(uri)
    name = slide_id if slide_id is not None else slide_id_of(uri)
    if etag is not None and found != etag:
        raise ObjectReplacedError(
            f"{name}: {uri} was replaced after it was listed (was {etag}, is {found}): "
            "run again to take the new version."
        )
    if infos[0].size_bytes == 0:
        raise EmptySlideError(f"{name}: {uri} is empty (0 bytes): upload the slide again.")
    named, first = f"{name}: {uri}", infos[0]
    file = store.open_file(
        first.key, etag=first.etag, size_bytes=first.size_bytes, first_get_bytes=INDEX_GET_BYTES
    )
    counts = file.counts
    if len(infos) > 1 or file.read(132)[128:] == DICOM_MAGIC:
        index, cost = index_dicom(store, infos, slide_id=name)
        counts.add(asdict(cost))
    else:
        file.seek(0)
        with open_tiff(file, named) as parsed:
            tiff = index_tiff(file, parsed, named)
        if tiff is None:
            whole = store.open_file(first.key, etag=first.etag, size_bytes=first.size_bytes)
            return TiffSlideReader(whole, uri=uri, slide_id=name, mpp_override=mpp_override)
        index = tiff
    return TiledSlide(
        store,
        index,
        uri=uri,
        slide_id=name,
        etag=found,
        counts=counts,
        mpp_override=mpp_override,
        threads=threads,
    )


def slide_objects(uri: str) -> tuple[Store, list[ObjectInfo], str]:
    """Where a slide's objects lie, which they are, and the version of them all.

    One file, or a folder of DICOM instances. Raises StoreErrors.
    """
    root, key = split_uri(uri)
    store = Store.open(root)
    try:
        info = store.head(key)
    except NotFoundError:
        if store.scheme in ("http", "https") or key.lower().endswith(SLIDE_SUFFIXES):
            raise
        folder = Store.open(uri)
        infos = [info for info in folder.list() if is_instance(info.key) and "/" not in info.key]
        if not infos:
            raise
        return folder, infos, dicom_etag(infos)
    return store, [info], info.etag


def slide_id_of(uri: str) -> str:
    """The id of a slide that nobody gave one: a file's stem, a folder's name."""
    name = uri.rstrip("/").rpartition("/")[2]
    name = unquote(name) if uri.startswith(WEB) else name
    return name.rpartition(".")[0] or name if name.lower().endswith(SLIDE_SUFFIXES) else name


def is_instance(key: str) -> bool:
    """Whether an object's name is that of a DICOM file."""
    return key.lower().endswith(".dcm")
