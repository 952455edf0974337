"""Where the frames of a DICOM instance lie: by its offset tables (PS3.5, A.4), or item by item."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ray_pipeline.errors import NotASlideError, SlideError
from ray_pipeline.ranged_file import RangedFile
from ray_pipeline.store import ObjectInfo, Store

MOST_HEADER_BYTES = 64 << 20
"""Longest header that is read: positions of a million frames take less."""
WALK_GET_BYTES = 4 << 20
"""First request of a walk along frames that no table tells of."""
NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
"""Transfer syntaxes without compression."""

_ITEM, _DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_UNDEFINED = 0xFFFFFFFF
Ints = npt.NDArray[np.int64]


def frames_of(
    store: Store, info: ObjectInfo, *, header: Any, file: RangedFile, frames: int, named: str
) -> tuple[Ints, Ints]:
    """First byte and length of each frame, int64 [frames] each; `file` stands at the pixel data.

    Raises ValueError for what is damaged, NotASlideError for frames in several fragments.
    """
    implicit = header.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    head = file.read(8 if implicit else 12)
    group, element, length = struct.unpack("<HHI" if implicit else "<HH4xI", head)
    if (group, element) != (0x7FE0, 0x0010):
        raise ValueError("no pixel data")
    start = file.tell()
    if header.file_meta.TransferSyntaxUID in NATIVE:
        size = int(header.Rows) * int(header.Columns) * 3
        if length < size * frames:
            raise ValueError(f"{length} bytes for {frames} frames of {size}")
        return start + np.arange(frames, dtype=np.int64) * size, np.full(frames, size, np.int64)
    if length != _UNDEFINED:
        raise ValueError("compressed frames of defined length")
    table_bytes = _item(file, start)
    if 8 * frames + table_bytes > MOST_HEADER_BYTES:
        raise ValueError(f"an offset table of {table_bytes} bytes")
    table = np.frombuffer(file.read(table_bytes), "<u4").astype(np.int64)
    data = start + 8 + table_bytes
    if extended := header.get("ExtendedOffsetTable"):
        lengths = np.frombuffer(header.ExtendedOffsetTableLengths, "<u8").astype(np.int64)
        offsets = np.frombuffer(extended, "<u8").astype(np.int64)
        if not len(offsets) == len(lengths) == frames:
            raise ValueError(f"an offset table of {len(offsets)} for {frames} frames")
        return data + offsets + 8, lengths
    if len(table) == 0:
        return _walked(store, info, data, frames, named)
    if len(table) != frames or (np.diff(table) <= 8).any():
        raise ValueError(f"an offset table of {len(table)} for {frames} frames")
    last = _item(file, data + int(table[-1]))
    lengths = np.append(np.diff(table) - 8, last)
    if _item(file, data) != lengths[0]:
        raise _fragmented(named)
    return data + table + 8, lengths


def _walked(
    store: Store, info: ObjectInfo, position: int, frames: int, named: str
) -> tuple[Ints, Ints]:
    """Where frames lie that no table tells of: from item to item."""
    file = store.open_file(
        info.key, etag=info.etag, size_bytes=info.size_bytes, first_get_bytes=WALK_GET_BYTES
    )
    offsets, lengths = list[int](), list[int]()
    while True:
        file.seek(position)
        tag, length = struct.unpack("<4sI", file.read(8))
        if tag == _DELIMITER:
            break
        if tag != _ITEM:
            raise ValueError(f"no frame at byte {position}")
        if len(offsets) == frames:
            raise _fragmented(named)
        offsets.append(position + 8)
        lengths.append(length)
        position += 8 + length
    if len(offsets) != frames:
        raise _fragmented(named)
    return np.array(offsets, np.int64), np.array(lengths, np.int64)


def _item(file: RangedFile, position: int) -> int:
    """Length of the item at `position`; leaves the file at its first byte."""
    file.seek(position)
    tag, length = struct.unpack("<4sI", file.read(8))
    if tag != _ITEM:
        raise ValueError(f"no frame at byte {position}")
    return int(length)


def _fragmented(named: str) -> SlideError:
    return NotASlideError(
        f"{named} has frames cut into several fragments, which can't be read: convert it to one "
        "fragment per frame."
    )
