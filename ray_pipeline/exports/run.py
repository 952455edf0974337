"""`historay export`: committed slides to another tool's format, a few at a time, resumable."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from ray_pipeline.dataset.recipes import layout_of
from ray_pipeline.errors import HistorayError, SettingsError
from ray_pipeline.exports.geojson import GeoJsonWriter
from ray_pipeline.exports.h5ad import H5adWriter
from ray_pipeline.exports.iceberg import IcebergTable
from ray_pipeline.exports.lance import LanceTable
from ray_pipeline.exports.source import Committed, SlideFile, committed_slides
from ray_pipeline.exports.target import Target, file_name
from ray_pipeline.exports.trident import H5Writer
from ray_pipeline.progress import Counts
from ray_pipeline.store import Store

Format = Literal["h5", "h5ad", "geojson", "iceberg", "lance"]
End = tuple[Committed, int | HistorayError]
"""A slide, and its rows or why it is not exported."""

FILES_AT_ONCE = 2
"""Slides written concurrently, one read while the other is put. Two of 8,000 tiles and 1,536
numbers held 0.4 GB as HDF5 or AnnData (`tests/dataset/test_memory.py`), two of 40,000 tiles 0.7 GB:
0.2 to read each, and the parts under way when it is put."""


class FileWriter(Protocol):
    """A format of one file per slide."""

    suffix: str
    """Ending of the files' names."""

    def write(self, slide: SlideFile, path: Path) -> None:
        """Write the slide to a local file."""
        ...


class TableWriter(Protocol):
    """A format of one table for all slides."""

    slides_at_once: int
    """Slides of one commit."""

    def holds(self, slides: Sequence[Committed]) -> set[str]:
        """Of these slides, the ids that the table has, in whatever version."""
        ...

    def put(self, slides: Sequence[Committed], earlier: set[str]) -> Iterator[End]:
        """Add slides, in place of what the `earlier` ones have there."""
        ...


@dataclass(kw_only=True)
class ExportReport:
    """What an export did; what `export --json` prints."""

    output: str
    """Root of the exported output."""
    recipe_fp: str
    """The recipe that was exported."""
    to: str
    """The format."""
    out: str
    """Root of the export."""
    slides: int = 0
    """Slides that were asked for."""
    slides_exported: int = 0
    """Written by this run."""
    slides_current: int = 0
    """There already, from the same version of their file."""
    tiles: int = 0
    """Rows written by this run."""
    failures: list[dict[str, str]] = field(default_factory=list)
    """One {slide_id, kind, reason} per slide that could not be exported."""


def export_slides(
    output: Store,
    out: str,
    to: Format,
    *,
    recipe_fp: str | None = None,
    slide_ids: Sequence[str] = (),
    overwrite: bool = False,
    watch: Callable[[Counts], None] = lambda _: None,
) -> ExportReport:
    """Export the committed slides of one recipe, those left out that are there already.

    A slide that fails is in the report and ends nothing. Raises UsageError or StoreError when
    nothing can be exported at all.
    """
    layout = layout_of(output, recipe_fp)
    slides = committed_slides(output, layout, slide_ids)
    root = Store.open(out)
    if root.scheme in ("http", "https"):
        raise SettingsError(f"out: {root.uri}: web servers can't be written to.")
    export = _opened(output, root, to, layout.recipe_fp)
    target = export.target
    target.claim({"output": output.uri, "recipe": layout.recipe_fp, "to": to})
    todo = [slide for slide in slides if overwrite or not export.current(slide)]
    report = ExportReport(
        output=output.uri, recipe_fp=layout.recipe_fp, to=to, out=root.uri, slides=len(slides)
    )
    report.slides_current = len(slides) - len(todo)
    counts = Counts(slides=len(todo))
    for slide, end in export.write(todo):
        counts.slides_planned += 1
        if isinstance(end, HistorayError):
            report.failures.append(
                {"slide_id": slide.slide_id, "kind": end.kind, "reason": str(end)}
            )
            counts.slides_failed += 1
        else:
            report.slides_exported += 1
            report.tiles += end
            counts.slides_done += 1
            counts.tiles += end
            counts.tiles_planned += end
        watch(counts)
    return report


class _Files:
    """One file per slide, whole or not at all: written here, then put."""

    def __init__(self, output: Store, target: Target, writer: FileWriter) -> None:
        self.target, self._output, self._writer = target, output, writer

    def current(self, slide: Committed) -> bool:
        return self.target.current(slide, self._name(slide))

    def write(self, slides: Sequence[Committed]) -> Iterator[End]:
        with (
            tempfile.TemporaryDirectory(prefix="historay-") as folder,
            ThreadPoolExecutor(FILES_AT_ONCE) as pool,
        ):
            try:
                jobs = ((slide, Path(folder) / str(i)) for i, slide in enumerate(slides))
                yield from pool.map(lambda job: self._one(*job), jobs)
            finally:
                pool.shutdown(cancel_futures=True)  # when the user gives up

    def _one(self, slide: Committed, path: Path) -> End:
        try:
            with SlideFile(self._output, slide) as file:
                self._writer.write(file, path)
                tiles = file.n_tiles
            self.target.begin([slide])
            self.target.store.put_file(self._name(slide), path)
            self.target.finish(slide)
        except HistorayError as error:
            return slide, error
        finally:
            path.unlink(missing_ok=True)
        return slide, tiles

    def _name(self, slide: Committed) -> str:
        return file_name(slide.slide_id) + self._writer.suffix


class _Tables:
    """One table for all slides, written some slides at a time."""

    def __init__(self, target: Target, table: TableWriter) -> None:
        self.target, self._table = target, table
        self._held: set[str] | None = None

    def current(self, slide: Committed) -> bool:
        return self.target.current(slide)

    def write(self, slides: Sequence[Committed]) -> Iterator[End]:
        held = self._table.holds(slides)
        for start in range(0, len(slides), self._table.slides_at_once):
            group = slides[start : start + self._table.slides_at_once]
            self.target.begin(group)
            for slide, end in self._table.put(group, held):
                if not isinstance(end, HistorayError):
                    self.target.finish(slide)
                yield slide, end


def _opened(output: Store, root: Store, to: Format, recipe_fp: str) -> _Files | _Tables:
    target = Target(root)
    files: dict[str, Callable[[], FileWriter]] = {
        "h5": lambda: H5Writer(root.uri),
        "h5ad": H5adWriter,
        "geojson": GeoJsonWriter,
    }
    tables: dict[str, Callable[[], Any]] = {
        "iceberg": lambda: IcebergTable(output, recipe_fp, root),
        "lance": lambda: LanceTable(output, root),
    }
    if to in files:
        return _Files(output, target, files[to]())
    return _Tables(target, tables[to]())
