"""DICOM whole slide images, written with pydicom instance by instance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    JPEG2000,
    UID,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    VLWholeSlideMicroscopyImageStorage,
    generate_uid,
)

SERIES, STUDY, FRAME_OF_REFERENCE = (generate_uid(entropy_srcs=[name]) for name in "abc")
Pixels = npt.NDArray[np.uint8]


def picture(width: int, height: int, seed: int = 1) -> Pixels:
    """A smooth coloured picture, uint8 [height, width, 3]."""
    y, x = np.mgrid[0:height, 0:width] / (20.0 + seed)
    waves = [np.sin(x) + np.cos(y), np.sin(x + y), np.cos(x * 0.5 - y)]
    pixels: Pixels = np.rint(128 + 50 * np.stack(waves, -1)).clip(0, 255).astype(np.uint8)
    return pixels


def frames_of(pixels: Pixels, tile: int) -> list[Pixels]:
    """The frames of a picture row by row, the last ones filled up with white."""
    height, width = pixels.shape[:2]
    padded = np.full((-(-height // tile) * tile, -(-width // tile) * tile, 3), 255, np.uint8)
    padded[:height, :width] = pixels
    return [
        np.ascontiguousarray(padded[y : y + tile, x : x + tile])
        for y in range(0, padded.shape[0], tile)
        for x in range(0, padded.shape[1], tile)
    ]


def coded(frames: Sequence[Pixels], syntax: str) -> list[bytes]:
    """Frames as their transfer syntax has them."""
    if syntax == JPEGBaseline8Bit:
        return [bytes(imagecodecs.jpeg8_encode(frame, level=90)) for frame in frames]
    if syntax == JPEG2000:
        return [bytes(imagecodecs.jpeg2k_encode(f, level=0, codecformat="j2k")) for f in frames]
    return [frame.tobytes() for frame in frames]


def write_instance(
    path: Path,
    pixels: Pixels,
    *,
    tile: int = 64,
    syntax: str = JPEGBaseline8Bit,
    mpp: float | None = 0.5,
    flavour: str = "VOLUME",
    table: str = "basic",
    keep: Sequence[int] | None = None,
    sparse: bool = False,
    **tags: Any,
) -> Path:
    """One instance; `keep` says which frames are in it, `table` which offset table it has.

    Whatever else a test wants of the header comes as `tags`.
    """
    frames = frames_of(pixels, tile)
    kept = list(range(len(frames))) if keep is None else list(keep)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    meta.TransferSyntaxUID = UID(syntax)
    instance = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    instance.SOPClassUID = meta.MediaStorageSOPClassUID
    instance.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    instance.Modality = "SM"
    instance.SeriesInstanceUID, instance.StudyInstanceUID = SERIES, STUDY
    instance.FrameOfReferenceUID = FRAME_OF_REFERENCE
    instance.ImageType = ["ORIGINAL", "PRIMARY", flavour, "NONE"]
    instance.SamplesPerPixel, instance.PlanarConfiguration = 3, 0
    colours = {str(JPEGBaseline8Bit): "YBR_FULL_422", str(JPEG2000): "YBR_RCT"}
    instance.PhotometricInterpretation = colours.get(syntax, "RGB")
    instance.BitsAllocated = instance.BitsStored = 8
    instance.HighBit, instance.PixelRepresentation = 7, 0
    instance.Rows = instance.Columns = tile
    instance.NumberOfFrames = len(kept)
    instance.TotalPixelMatrixRows, instance.TotalPixelMatrixColumns = pixels.shape[:2]
    instance.TotalPixelMatrixFocalPlanes = instance.NumberOfOpticalPaths = 1
    instance.DimensionOrganizationType = "TILED_SPARSE" if sparse else "TILED_FULL"
    optics = Dataset()
    optics.OpticalPathIdentifier = "1"
    instance.OpticalPathSequence = Items([optics])
    if mpp is not None:
        measures, group = Dataset(), Dataset()
        measures.PixelSpacing = [mpp / 1000, mpp / 1000]
        measures.SliceThickness = 0.005
        group.PixelMeasuresSequence = Items([measures])
        instance.SharedFunctionalGroupsSequence = Items([group])
    if sparse:
        across = -(-pixels.shape[1] // tile)
        groups = [_position(index % across * tile, index // across * tile) for index in kept]
        instance.PerFrameFunctionalGroupsSequence = Items(groups)
    for name, value in tags.items():
        setattr(instance, name, value)
    _put_frames(instance, coded([frames[i] for i in kept], syntax), syntax, table)
    instance.save_as(path, enforce_file_format=True)
    return path


def _position(left: int, top: int) -> Dataset:
    plane, group = Dataset(), Dataset()
    plane.ColumnPositionInTotalImagePixelMatrix = left + 1
    plane.RowPositionInTotalImagePixelMatrix = top + 1
    group.PlanePositionSlideSequence = Items([plane])
    return group


def _put_frames(instance: Any, frames: list[bytes], syntax: str, table: str) -> None:
    if syntax == ExplicitVRLittleEndian:
        whole = b"".join(frames)
        instance.PixelData = whole + b"\0" * (len(whole) % 2)
        instance["PixelData"].VR = "OB"
        return
    if table == "extended":
        data, offsets, lengths = encapsulate_extended(frames)
        instance.ExtendedOffsetTable, instance.ExtendedOffsetTableLengths = offsets, lengths
        instance.PixelData = data
    else:
        instance.PixelData = encapsulate(frames, has_bot=table == "basic")
    instance["PixelData"].is_undefined_length = True
    instance["PixelData"].VR = "OB"
