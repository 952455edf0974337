"""The seam between a slide file and everything else: what an opened slide is and can do."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from ray_pipeline.errors import EmptySlideError, ObjectReplacedError
from ray_pipeline.slides.fallback import TiffSlideReader
from ray_pipeline.slides.levels import Level, Mpp, Overview
from ray_pipeline.store import Store, split_uri


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

    @property
    def gets(self) -> int:
        """Ranged GETs so far."""
        ...

    @property
    def bytes_fetched(self) -> int:
        """Bytes fetched so far."""
        ...

    def overview(self, mpp: float) -> Overview:
        """The whole slide at about `mpp` microns per pixel, never coarser than that."""
        ...

    def read_tiles(
        self, *, level: int, xy: npt.NDArray[np.int32], side_px: float, tile_px: int
    ) -> npt.NDArray[np.uint8]:
        """Tiles as uint8 [n, tile_px, tile_px, 3].

        `xy` int32 [n, 2] are left top corners in level-0 px, `side_px` is a tile's side in px of
        `level`; tiles are resampled where it differs from `tile_px`. Raises DamagedSlideError,
        or a StoreError.
        """
        ...

    def compressed_bytes(self, *, level: int, xy: npt.NDArray[np.int32], side_px: float) -> int:
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
) -> Slide:
    """Open the slide at `uri`, in the version `etag` where one is given.

    Raises SlideError subclasses for what is wrong with the file, StoreError subclasses for what is
    wrong with getting at it; either is one sentence naming the slide and the mend.
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
    file = store.open_file(key, etag=info.etag, size_bytes=info.size_bytes)
    return TiffSlideReader(file, uri=uri, slide_id=name, mpp_override=mpp_override)
