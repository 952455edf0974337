"""What is exported: the committed files of one recipe, and the rows of one slide in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ray_pipeline.dataset.layout import Layout
from ray_pipeline.dataset.schema import BATCH_TILES, Footer
from ray_pipeline.dataset.slide_files import standing_files
from ray_pipeline.errors import DamagedOutputError, SettingsError
from ray_pipeline.store import Store

MOST_NAMED = 5
"""Slides that a sentence lists."""
UNREADABLE = (pa.ArrowException, KeyError, OSError, TypeError, ValueError)
"""What comes of reading a file that is cut short, or none of ours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Committed:
    """One slide's file as the output's listing tells it."""

    slide_id: str
    """The slide's id."""
    key: str
    """Key of its file below the output's root."""
    etag: str
    """Version of the file."""
    size_bytes: int
    """Length of the file, bytes."""


def committed_slides(
    output: Store, layout: Layout, slide_ids: Sequence[str] = ()
) -> list[Committed]:
    """The recipe's slides by one LIST, in slide_id order: all, or those that `slide_ids` names.

    Raises SettingsError naming slides that have no file.
    """
    found = {
        slide_id: Committed(
            slide_id=slide_id, key=info.key, etag=info.etag, size_bytes=info.size_bytes
        )
        for slide_id, info in standing_files(output, layout)
    }
    if absent := [f"'{slide_id}'" for slide_id in slide_ids if slide_id not in found]:
        more = f" and {len(absent) - MOST_NAMED} more" if len(absent) > MOST_NAMED else ""
        raise SettingsError(
            f"slides: {', '.join(absent[:MOST_NAMED])}{more}: no file of recipe "
            f"{layout.recipe_fp} in {output.uri}; `historay errors` tells what became of them."
        )
    return [found[slide_id] for slide_id in sorted(slide_ids or found)]


class SlideFile:
    """A committed file, opened in the version that was listed. Raises DamagedOutputError."""

    def __init__(self, output: Store, slide: Committed) -> None:
        self.slide_id, self._uri = slide.slide_id, output.uri_of(slide.key)
        with self._readable():
            self._file = pq.ParquetFile(
                output.open_file(slide.key, etag=slide.etag, size_bytes=slide.size_bytes)
            )
            footer = Footer.from_metadata(self._file.schema_arrow.metadata)
            if footer is None or footer.slide_id != slide.slide_id:
                raise ValueError("its footer is not this slide's")
            self.footer: Footer = footer
            """What the file says of itself."""
            tiling = footer.recipe["tiling"]
            self.tile_px: int = tiling["tile_px"]
            """Side of a tile as the model took it, px."""
            self.stride_px: int = tiling["stride_px"]
            """Step between tiles, in the same px."""
            if not (footer.mpp_used and footer.mpp_achieved):
                raise ValueError("its footer states no microns per pixel")
            self.mpp_l0: float = footer.mpp_used
            """Microns per pixel of level 0."""
            self.mpp: float = footer.mpp_achieved
            """Microns per pixel of the tiles."""
            self.dim: int = self._file.schema_arrow.field("embedding").type.list_size
            """Numbers of a vector."""

    @property
    def n_tiles(self) -> int:
        """Rows."""
        return int(self._file.metadata.num_rows)

    @property
    def size_l0(self) -> float:
        """Side of a tile, level-0 px."""
        return self.tile_px * self.mpp / self.mpp_l0

    def facts(self) -> dict[str, Any]:
        """Where the rows come from, for formats that have a place for it; plain values."""
        footer = self.footer
        return {
            "slide_id": self.slide_id,
            "uri": footer.uri,
            "recipe_fp": footer.recipe_fp,
            "model": footer.recipe["encoder"]["model"],
            "mpp": self.mpp,
            "mpp_level0": self.mpp_l0,
            "tile_px": self.tile_px,
            "tile_size_level0": self.size_l0,
            "warning": footer.warning,
        }

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows, in order of `tile`, up to BATCH_TILES at a time."""
        with self._readable():
            names = None if columns is None else list(columns)
            # One group after the other: asked for all at once, Arrow holds more the more there are.
            for group in range(self._file.num_row_groups):
                yield from self._file.iter_batches(BATCH_TILES, row_groups=[group], columns=names)

    def vectors(self) -> Iterator[npt.NDArray[np.float32]]:
        """The vectors alone: float32 [n, dim] for each batch."""
        for batch in self.batches(["embedding"]):
            yield batch.column(0).flatten().to_numpy(zero_copy_only=False).reshape(-1, self.dim)

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Some columns of all rows; for the narrow ones."""
        with self._readable():
            return self._file.read(columns=list(columns)).replace_schema_metadata(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close(force=True)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except UNREADABLE as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise DamagedOutputError(
                f"{self.slide_id}: {self._uri} can't be read ({reason}): put it back from a copy, "
                "or delete it and embed the slide again."
            ) from None
