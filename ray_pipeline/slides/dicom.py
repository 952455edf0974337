"""DICOM whole slide images: from the headers of a series' instances to tables of frames.

A slide is a folder of instances, or one file. Only headers are read here; where each frame lies is
computed from the offset tables (PS3.5, A.4), so that frames are then fetched as any other tiles.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import (
    JPEG2000,
    UID,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    VLWholeSlideMicroscopyImageStorage,
)

from ray_pipeline.errors import DamagedSlideError, NotASlideError, TooLargeError
from ray_pipeline.ranged_file import RangedFile, ReadCounts
from ray_pipeline.slides.decode import Codec, Jpeg2000Codec, JpegCodec, RawCodec
from ray_pipeline.slides.dicom_frames import MOST_HEADER_BYTES, NATIVE, Ints, frames_of
from ray_pipeline.slides.levels import MOST_SIDE_PX, MOST_TILE_PX
from ray_pipeline.slides.tables import SlideIndex, TileTable
from ray_pipeline.slides.tiff_header import PARSER_ERRORS, short
from ray_pipeline.store import ObjectInfo, Store

MOST_FRAMES = 1 << 24
"""Largest grid of frames: its table takes 300 MB however few of them there are."""
HEADER_GET_BYTES = 64 << 10
"""First request of a header."""

_APART = ("LABEL", "OVERVIEW", "THUMBNAIL", "LOCALIZER")
_SYNTAXES = (JPEGBaseline8Bit, JPEG2000Lossless, JPEG2000, *NATIVE)
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def dicom_etag(infos: Iterable[ObjectInfo]) -> str:
    """The version of a slide of many objects: a hash over their sorted keys and etags."""
    listed = sorted(f"{info.key}\0{info.etag}\n" for info in infos)
    return hashlib.sha256("".join(listed).encode()).hexdigest()[:32]


def index_dicom(
    store: Store, infos: Sequence[ObjectInfo], *, slide_id: str
) -> tuple[SlideIndex, ReadCounts]:
    """The tables of the instances `infos` of one series, keys below `store`, and what that cost.

    Raises NotASlideError for what is no 8-bit RGB whole slide image, TooLargeError,
    DamagedSlideError, and StoreErrors.
    """
    counts = ReadCounts()
    infos = sorted(infos, key=lambda info: info.key)
    found = [_instance(store, number, info, slide_id, counts) for number, info in enumerate(infos)]
    instances = [instance for instance in found if instance is not None]
    if not instances:
        raise NotASlideError(
            f"{slide_id}: {store.uri} holds no volume of a DICOM whole slide image (VL Whole Slide "
            "Microscopy): check the folder."
        )
    series = {instance.series for instance in instances}
    if len(series) > 1:
        raise NotASlideError(
            f"{slide_id}: {store.uri} holds instances of {len(series)} series: "
            "put each series into a folder of its own."
        )
    by_size: dict[tuple[int, int], list[_Instance]] = {}
    for instance in instances:
        by_size.setdefault(instance.size, []).append(instance)
    tables = []
    for _, parts in sorted(by_size.items(), reverse=True):
        _check_parts(parts, slide_id)
        tables.append(_table(parts))
    first = by_size[max(by_size)][0]
    index = SlideIndex(
        vendor="dicom",
        objects=tuple(infos),
        tables=tuple(tables),
        mpp_x=first.mpp[0],
        mpp_y=first.mpp[1],
        icc_profile=first.icc_profile,
    )
    return index, counts


@dataclass(frozen=True, kw_only=True)
class _Instance:
    """What one instance's header tells."""

    number: int
    """Its place among the slide's objects."""
    key: str
    series: str
    concatenation: str | None
    size: tuple[int, int]
    tile: tuple[int, int]
    mpp: tuple[float | None, float | None]
    codec: Codec
    icc_profile: bytes | None
    places: Ints
    """int64 [frames]: the tile that each frame is."""
    offsets: Ints
    counts: Ints


class _Bounded:
    """A file of which no more than a header's worth is read, whatever lengths the header claims."""

    def __init__(self, file: RangedFile) -> None:
        self._file, self.name = file, file.name
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """As a file's; ValueError past the bound."""
        if size < 0 or self._file.tell() + size > MOST_HEADER_BYTES:
            raise ValueError(f"a header of more than {MOST_HEADER_BYTES} bytes")
        return self._file.read(size)


def _instance(
    store: Store, number: int, info: ObjectInfo, slide_id: str, counts: ReadCounts
) -> _Instance | None:
    """One instance; None for what is no volume: labels, overviews, other kinds of objects."""
    named = f"{slide_id}: {store.uri_of(info.key)}"
    file = store.open_file(
        info.key, etag=info.etag, size_bytes=info.size_bytes, first_get_bytes=HEADER_GET_BYTES
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(cast(BinaryIO, _Bounded(file)), stop_before_pixels=True)
            kind = list(header.get("ImageType", []))
            if header.get("SOPClassUID") != VLWholeSlideMicroscopyImageStorage or (
                len(kind) > 2 and kind[2] in _APART
            ):
                return None
            _check_pixels(header, named)
            return _read_instance(store, number, info, header=header, file=file, named=named)
    except (BytesLengthException, InvalidDicomError, *PARSER_ERRORS) as error:
        raise DamagedSlideError(
            f"{named} has a DICOM header that can't be read ({short(error)}): it is cut short or "
            "damaged; upload it again."
        ) from error
    finally:
        counts.add(vars(file.counts))


def _check_pixels(header: Any, named: str) -> None:
    syntax = UID(header.file_meta.TransferSyntaxUID)
    if syntax not in _SYNTAXES:
        raise NotASlideError(
            f"{named} has the transfer syntax {syntax.name}; only JPEG baseline, JPEG 2000 and "
            "uncompressed little endian can be read: convert it."
        )
    samples, bits = int(header.SamplesPerPixel), int(header.BitsAllocated)
    colour = str(header.PhotometricInterpretation)
    planar = syntax in NATIVE and int(header.get("PlanarConfiguration", 0)) != 0
    odd = syntax in NATIVE and colour != "RGB"
    if samples != 3 or bits != 8 or colour not in _COLOURS or planar or odd:
        raise NotASlideError(
            f"{named} has {samples} channels of {bits} bits ({colour}{', planar' * planar}); "
            "only 8-bit RGB slides can be read: convert it to RGB first."
        )
    planes = int(header.get("TotalPixelMatrixFocalPlanes", 1) or 1)
    paths = int(header.get("NumberOfOpticalPaths", 1) or 1)
    if planes != 1 or paths != 1:
        raise NotASlideError(
            f"{named} has {planes} focal planes and {paths} optical paths; only slides of one each "
            "can be read: export one of them."
        )
    width, height = int(header.TotalPixelMatrixColumns), int(header.TotalPixelMatrixRows)
    tile = int(header.Columns), int(header.Rows)
    if max(width, height) > MOST_SIDE_PX or math.prod(tile) > MOST_TILE_PX:
        raise TooLargeError(
            f"{named} claims {width} x {height} px in frames of {tile[0]} x {tile[1]}, past the "
            f"limit of {MOST_SIDE_PX} px a side: it was not decoded; check the file."
        )
    if min(width, height, *tile) < 1:
        raise ValueError(f"{width} x {height} px in frames of {tile[0]} x {tile[1]}")


def _read_instance(
    store: Store, number: int, info: ObjectInfo, *, header: Any, file: RangedFile, named: str
) -> _Instance:
    size = int(header.TotalPixelMatrixColumns), int(header.TotalPixelMatrixRows)
    tile = int(header.Columns), int(header.Rows)
    places = _places(header, size, tile, named)
    offsets, lengths = frames_of(
        store, info, header=header, file=file, frames=len(places), named=named
    )
    if (np.minimum(offsets, lengths) < 0).any() or (offsets > info.size_bytes - lengths).any():
        raise ValueError(f"frames past its end ({info.size_bytes} bytes)")
    optics = (header.get("OpticalPathSequence") or [None])[0]
    profile = None if optics is None else optics.get("ICCProfile")
    return _Instance(
        number=number,
        key=info.key,
        series=str(header.get("SeriesInstanceUID", "")),
        concatenation=str(header.get("ConcatenationUID", "")) or None,
        size=size,
        tile=tile,
        mpp=_mpp(header),
        codec=_codec(header, tile),
        icc_profile=bytes(profile) if profile else None,
        places=places,
        offsets=offsets,
        counts=lengths,
    )


def _places(header: Any, size: tuple[int, int], tile: tuple[int, int], named: str) -> Ints:
    """Which tile of the grid each frame is (PS3.3, C.7.6.17.3): by position, or row by row."""
    columns, rows = (-(-side // step) for side, step in zip(size, tile, strict=True))
    frames = int(header.get("NumberOfFrames", 1) or 1)
    if not 1 <= frames <= columns * rows <= MOST_FRAMES:
        raise ValueError(f"{frames} frames for a grid of {columns} x {rows}")
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    sparse = str(header.get("DimensionOrganizationType", "")) == "TILED_SPARSE"
    if sparse or (len(groups) == frames and "PlanePositionSlideSequence" in groups[0]):
        position = [group.PlanePositionSlideSequence[0] for group in groups]
        left = np.array([p.ColumnPositionInTotalImagePixelMatrix for p in position], np.int64) - 1
        top = np.array([p.RowPositionInTotalImagePixelMatrix for p in position], np.int64) - 1
        if len(left) != frames:
            raise ValueError(f"{len(left)} positions of {frames} frames")
        if (left % tile[0]).any() or (top % tile[1]).any():
            raise NotASlideError(
                f"{named} has frames that lie off the grid of {tile[0]} x {tile[1]} px: "
                "convert it to a slide of regular tiles."
            )
        places = top // tile[1] * columns + left // tile[0]
        if min(left.min(), top.min()) < 0 or (left >= size[0]).any() or (top >= size[1]).any():
            raise ValueError("frames outside of the slide")
    else:
        first = int(header.get("ConcatenationFrameOffsetNumber", 0) or 0)
        places = np.arange(first, first + frames, dtype=np.int64)
        if "ConcatenationUID" not in header and frames != columns * rows:
            raise ValueError(f"{frames} frames for a grid of {columns} x {rows}")
    if len(np.unique(places)) != frames or places.max() >= columns * rows:
        raise ValueError("frames that lie over each other")
    return places


def _codec(header: Any, tile: tuple[int, int]) -> Codec:
    syntax = header.file_meta.TransferSyntaxUID
    if syntax in NATIVE:
        return RawCodec("none")
    if syntax == JPEGBaseline8Bit:
        # What the JPEG says of itself is believed, as all readers do: writers get the header wrong.
        return JpegCodec(None)
    return Jpeg2000Codec()


def _mpp(header: Any) -> tuple[float | None, float | None]:
    """Microns per pixel across and down: PixelSpacing (mm, down first), else the imaged volume."""
    shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
    frames = (header.get("PerFrameFunctionalGroupsSequence") or [None])[0]
    for group in (shared, frames):
        measures = None if group is None else group.get("PixelMeasuresSequence")
        if measures and measures[0].get("PixelSpacing"):
            down, across = (float(value) for value in measures[0].PixelSpacing)
            return 1000 * across, 1000 * down
    across, down = (header.get(f"ImagedVolume{side}") for side in ("Width", "Height"))
    if not across or not down:
        return None, None
    return (
        1000 * float(across) / int(header.TotalPixelMatrixColumns),
        1000 * float(down) / int(header.TotalPixelMatrixRows),
    )


def _check_parts(parts: Sequence[_Instance], slide_id: str) -> None:
    """Several instances of one size must be parts of one concatenation."""
    one = parts[0]
    for other in parts[1:]:
        if one.concatenation is None or other.concatenation != one.concatenation:
            raise NotASlideError(
                f"{slide_id}: {one.key} and {other.key} are both {one.size[0]} x {one.size[1]} px: "
                "remove the copy."
            )
        if other.tile != one.tile or other.codec != one.codec:
            raise NotASlideError(
                f"{slide_id}: {one.key} and {other.key} are parts of one level but not alike: "
                "export the slide again."
            )


def _table(parts: Sequence[_Instance]) -> TileTable:
    one = parts[0]
    columns, rows = (-(-side // step) for side, step in zip(one.size, one.tile, strict=True))
    offsets, counts = (np.zeros(rows * columns, np.int64) for _ in range(2))
    objects = np.zeros(rows * columns, np.int32)
    for part in parts:
        offsets[part.places], counts[part.places] = part.offsets, part.counts
        objects[part.places] = part.number
    return TileTable(
        width_px=one.size[0],
        height_px=one.size[1],
        tile_width_px=one.tile[0],
        tile_height_px=one.tile[1],
        offsets=offsets,
        counts=counts,
        codec=one.codec,
        objects=objects,
    )
