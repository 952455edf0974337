"""tiffslide over s3fs, in a process of its own beside the reader that it is compared with."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import s3fs
from PIL import Image
from tiffslide import TiffSlide

FSSPEC_SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "blockcache_4_mib": {"default_cache_type": "blockcache", "default_block_size": 4 << 20},
    "blockcache_1_mib": {"default_cache_type": "blockcache", "default_block_size": 1 << 20},
    "background_4_mib": {"default_cache_type": "background", "default_block_size": 4 << 20},
}
"""What fsspec offers tiffslide; the best of them is what ours is compared with."""


class TiffSlideProcess:
    """Reads tiles of one slide when it is asked to; by itself, so that neither slows the other.

    In one process the memory that one reader frees, and the threads it leaves, are the next one's.
    """

    def __init__(
        self, endpoint: str, key: str, xy: Sequence[Sequence[int]], *, side_l0: int, tile_px: int
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve,
            args=(theirs, endpoint, key, xy),
            kwargs={"side_l0": side_l0, "tile_px": tile_px},
            daemon=True,
        )
        self._process.start()
        theirs.close()

    def seconds(self, setting: str) -> float:
        """Seconds of reading all tiles from a slide newly opened, whose opening does not count."""
        self._pipe.send(setting)
        return float(self._pipe.recv())

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


def _serve(
    pipe: Connection,
    endpoint: str,
    key: str,
    xy: Sequence[Sequence[int]],
    *,
    side_l0: int,
    tile_px: int,
) -> None:
    stores = {
        setting: s3fs.S3FileSystem(
            anon=True, endpoint_url=endpoint, skip_instance_cache=True, **options
        )
        for setting, options in FSSPEC_SETTINGS.items()
    }
    while True:
        try:
            setting = pipe.recv()
        except EOFError:
            return
        with stores[setting].open(key) as file, TiffSlide(file) as slide:
            slide.read_region((0, 0), 0, (16, 16))
            started = time.perf_counter()
            for x, y in xy:
                tile = slide.read_region((x, y), 0, (side_l0, side_l0), as_array=True)
                if side_l0 != tile_px:
                    np.asarray(Image.fromarray(tile).resize((tile_px, tile_px)))
            pipe.send(time.perf_counter() - started)
