"""`historay import-coords`: tiles cut by TRIDENT or CLAM, for `embed` to read instead of its own.

What their files hold: github.com/mahmoodlab/TRIDENT, `trident/IO.py`; github.com/mahmoodlab/CLAM,
`wsi_core/WholeSlideImage.py`. Corners are level-0 px in both.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ray_pipeline.coordinates import Coordinates, in_read_order
from ray_pipeline.errors import CoordinatesError, HistorayError, NotFoundError, SettingsError
from ray_pipeline.exports.extra import needing
from ray_pipeline.exports.target import file_name
from ray_pipeline.slides.slide import open_slide
from ray_pipeline.sources import SlideSource, find_slides
from ray_pipeline.store import ObjectInfo, Store

MANIFEST = "manifest.parquet"
"""The manifest that is written where slides are named."""
FIRST_GET_BYTES = 64 << 10
"""Of a file whose coordinates may be a small part of it."""


@dataclass(kw_only=True)
class ImportReport:
    """What was imported; what `import-coords --json` prints."""

    out: str
    """Root of the coordinates' files."""
    files: int = 0
    """HDF5 files that were found."""
    tiles: int = 0
    """Tiles of those that were imported."""
    repeated: int = 0
    """Tiles left out that were there twice."""
    past_the_edge: int = 0
    """Tiles left out that reach past the slide's edge, where its size is known."""
    manifest: str | None = None
    """URI of the manifest, where slides are named."""
    slides_without: int = 0
    """Named slides without coordinates: not in the manifest."""
    failures: list[dict[str, str]] = field(default_factory=list)
    """One {file, kind, reason} per file that could not be imported."""


def import_coords(src: str, out: str, slides: Sequence[str] = ()) -> ImportReport:
    """Make a file of coordinates of every `.h5` below `src`, and a manifest of `slides`.

    A named slide is opened where its file does not tell its size. A file is written only where it
    would differ from the one that stands. Raises SettingsError where there are none, or two of
    one slide.
    """
    with needing("import-coords"):
        import h5py  # noqa: PLC0415 (an extra)
    source, target = Store.open(src), Store.open(out)
    found = [info for info in source.list() if info.key.lower().endswith((".h5", ".hdf5"))]
    if not found:
        raise SettingsError(f"src: {source.uri} holds no .h5 files of coordinates.")
    report, made = ImportReport(out=target.uri, files=len(found)), dict[str, str]()
    sources = {source.slide_id: source for source in find_slides(slides)} if slides else {}
    for info in sorted(found, key=lambda info: info.key):
        try:
            slide_id, coordinates = _read(h5py, source, info, sources, report)
        except HistorayError as error:
            failure = {"file": info.key, "kind": error.kind, "reason": str(error)}
            report.failures.append(failure)
            continue
        if slide_id in made:
            raise SettingsError(
                f"src: slide '{slide_id}' has coordinates in {source.uri_of(info.key)} and in "
                f"another file: import one folder of them at a time."
            )
        key = f"{file_name(slide_id)}.parquet"
        _put_if_other(target, key, coordinates.to_bytes())
        made[slide_id] = target.uri_of(key)
        report.tiles += len(coordinates.xy)
    if slides:
        _write_manifest(target, list(sources.values()), made, report)
    return report


def _read(
    h5py: Any,
    source: Store,
    info: ObjectInfo,
    slides: Mapping[str, SlideSource],
    report: ImportReport,
) -> tuple[str, Coordinates]:
    uri = source.uri_of(info.key)
    file = source.open_file(
        info.key, etag=info.etag, size_bytes=info.size_bytes, first_get_bytes=FIRST_GET_BYTES
    )
    try:
        with h5py.File(file, "r") as opened:
            told = {name: _plain(value) for name, value in opened["coords"].attrs.items()}
            corners = np.asarray(opened["coords"][:])
        size_l0 = _size_l0(told)
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip("'\"").splitlines()[0]
        raise CoordinatesError(
            f"{uri} holds no coordinates of TRIDENT or CLAM ({reason}): cut them again."
        ) from None
    if corners.ndim != 2 or corners.shape[1] != 2 or not np.array_equal(corners, np.rint(corners)):
        raise CoordinatesError(f"{uri}: coords is {corners.shape}, not whole numbers [n, 2].")
    stem = info.key.rpartition("/")[2].rpartition(".")[0].removesuffix("_patches")
    slide_id = str(told.get("name") or stem)
    xy = in_read_order(corners)
    inside = _inside(xy, size_l0, _slide_px(told) or _opened_px(slides.get(slide_id)))
    report.repeated += len(corners) - len(xy)
    report.past_the_edge += int((~inside).sum())
    return slide_id, Coordinates(xy=xy[inside], size_l0=size_l0, source=uri)


def _size_l0(told: Mapping[str, Any]) -> float:
    """Side of a tile, level-0 px. Raises KeyError where the attributes do not tell it."""
    if "patch_size_level0" in told:
        return float(told["patch_size_level0"])
    side = float(told["patch_size"])
    if "target_magnification" in told:
        return side * float(told["level0_magnification"]) / float(told["target_magnification"])
    if "downsample" in told:
        return (
            side * float(np.ravel(told["downsample"])[0]) * float(told.get("custom_downsample", 1))
        )
    if told["patch_level"] == 0:
        return side
    raise KeyError("its attributes tell patch_level and no downsample")


def _slide_px(told: Mapping[str, Any]) -> tuple[float, float] | None:
    """Width and height of level 0, px, as far as the attributes tell them."""
    if "level0_width" in told:
        return float(told["level0_width"]), float(told["level0_height"])
    if "level_dim" in told and "downsample" in told:
        width, height = np.ravel(told["level_dim"]) * np.ravel(told["downsample"])
        return float(width), float(height)
    return None


def _opened_px(source: SlideSource | None) -> tuple[float, float] | None:
    """The same of the slide itself; None where it is not named, or can't be read: `embed` tells."""
    if source is None:
        return None
    try:
        opened = open_slide(source.uri, slide_id=source.slide_id, mpp_override=source.mpp_override)
        with closing(opened) as slide:
            return slide.levels[0].width_px, slide.levels[0].height_px
    except HistorayError:
        return None


def _inside(
    xy: npt.NDArray[np.int32], size_l0: float, slide_px: tuple[float, float] | None
) -> npt.NDArray[np.bool_]:
    """Which tiles lie wholly on the slide, where its size is known: bool [n].

    TRIDENT and CLAM pad at the right and the bottom edge; no tile of ours reaches past them.
    """
    if slide_px is None:
        return np.ones(len(xy), bool)
    inside = (xy >= 0) & (xy + size_l0 <= np.array(slide_px))
    return inside[:, 0] & inside[:, 1]


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _put_if_other(target: Store, key: str, data: bytes) -> None:
    """So that a local file keeps its version, and nothing downstream takes it for changed."""
    try:
        if target.get(key) == data:
            return
    except NotFoundError:
        pass
    target.put(key, data)


def _write_manifest(
    target: Store, sources: Sequence[SlideSource], made: Mapping[str, str], report: ImportReport
) -> None:
    rows = [
        {
            "uri": source.uri,
            "slide_id": source.slide_id,
            "mpp": source.mpp_override,
            **source.attributes,
            "coords": made[source.slide_id],
        }
        for source in sources
        if source.slide_id in made
    ]
    report.slides_without = len(sources) - len(rows)
    if not rows:
        raise SettingsError(
            f"slides: none of the {len(sources)} has coordinates: their ids, such as "
            f"'{sources[0].slide_id}', are not the names in the files, such as "
            f"'{next(iter(made), '')}'; give them by slide_id in a manifest."
        )
    table = pa.Table.from_pylist(rows)
    if table["mpp"].null_count == len(rows):
        table = table.drop_columns(["mpp"])
    sink = io.BytesIO()
    pq.write_table(table, sink)
    target.put(MANIFEST, sink.getvalue())
    report.manifest = target.uri_of(MANIFEST)
