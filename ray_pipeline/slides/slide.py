"""The seam between a slide file and everything else: what an opened slide is and can do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ray_pipeline.errors import EmptySlideError, ObjectReplacedError
from ray_pipeline.ranged_file import ReadCounts
from ray_pipeline.slides.fallback import TiffSlideReader
from ray_pipeline.slides.levels import Level, Mpp, Overview
from ray_pipeline.slides.tiff import index_tiff, open_tiff
from ray_pipeline.slides.tiled import TiledSlide
from ray_pipeline.store import Store, split_uri

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
    """Open the slide at `uri`, in the version `etag` where one is given.

    `threads` decode its tiles. Raises SlideError subclasses for what is wrong with the file,
    StoreError subclasses for what is wrong with getting at it; either is one sentence naming the
    slide and the mend.
    """
    root, key = split_uri(uri)
    store = Store.open(root)
    info = store.head(key)
    name = slide_id if slide_id is not None else key.rpartition("/")[2].rpartition(".")[0]
    if etag is not None and info.etag != etag:
        raise ObjectReplacedError(
            f"{name}: {uri} was replaced after it was listed (was {etag}, is {info.etag}): "
            "run again to take the new version."
        )
    if info.size_bytes == 0:
        raise EmptySlideError(f"{name}: {uri} is empty (0 bytes): upload the slide again.")
    named = f"{name}: {uri}"
    file = store.open_file(
        key, etag=info.etag, size_bytes=info.size_bytes, first_get_bytes=INDEX_GET_BYTES
    )
    with open_tiff(file, named) as parsed:
        index = index_tiff(file, parsed, named)
    if index is None:
        whole = store.open_file(key, etag=info.etag, size_bytes=info.size_bytes)
        return TiffSlideReader(whole, uri=uri, slide_id=name, mpp_override=mpp_override)
    return TiledSlide(
        store,
        index,
        uri=uri,
        slide_id=name,
        etag=info.etag,
        counts=file.counts,
        mpp_override=mpp_override,
        threads=threads,
    )
