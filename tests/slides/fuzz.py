"""Hostile slides: small files of every kind, damaged by seeded mutations, read in other processes.

`python -m tests.slides.fuzz --cases 10000 --seed 0 --processes 2` prints one line of JSON. A case
is a base and a seed, and these are enough to make it again: `run([("svs", 17)])`. It may be read,
or refused by a SlideError or a StoreError; all else is a finding: another exception, a crash, a
hang, pixels of another shape than was asked for, or memory over the limit (also where a MemoryError
was caught and told as damage: without this limit the memory would have been taken).
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import json
import logging
import multiprocessing
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
import tifffile
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, parse_fragments
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    VLWholeSlideMicroscopyImageStorage,
)

from ray_pipeline.errors import SlideError, StoreError
from ray_pipeline.slides.decode import HALF_JPEG
from ray_pipeline.slides.half_jpeg.scan import compiled
from ray_pipeline.slides.slide import Slide, open_slide
from tests.slides.slide_files import write_bif, write_scn

ROOT = Path(__file__).resolve().parents[2]
SLIDES = Path(os.environ.get("HISTORAY_SLIDES") or ROOT.parent / "shared" / "slides")
NDPI = SLIDES / "test3-DAPI-2-387.ndpi"
LIMIT_BYTES = 1536 << 20
"""Private memory of a worker: what one tile of MOST_TILE_PX needs several times over."""
WATCHDOG_S = 10.0
"""A case that takes longer hangs."""
START_S = 120.0
"""Longest start of a worker, imports included."""
TILE_PX = 48
"""Side of the tiles that are read."""
MOST_LEVELS = 6
"""Levels of one slide that are read; mutations can make many."""
Case = tuple[str, int]
"""(base, seed)."""

# ---------------------------------------------------------------- bases


@dataclass(frozen=True)
class Base:
    """A whole slide that mutations start from."""

    data: bytes
    suffix: str
    """How its name ends: readers look at it."""


def _picture(width: int, height: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 250, (height // 16 + 1, width // 16 + 1, 3))
    smooth = np.repeat(np.repeat(coarse, 16, axis=0), 16, axis=1)[:height, :width]
    return (smooth + rng.integers(-5, 6, smooth.shape)).astype(np.uint8)


def _tiles(pixels: npt.NDArray[np.uint8], side: int) -> Iterator[npt.NDArray[np.uint8]]:
    for top in range(0, pixels.shape[0], side):
        for left in range(0, pixels.shape[1], side):
            tile = np.full((side, side, 3), 255, np.uint8)
            part = pixels[top : top + side, left : left + side]
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile


def _split_jpeg(whole: bytes) -> tuple[bytes, bytes]:
    """(tables, the rest): the abbreviated streams that TIFF keeps apart."""
    tables, rest, position = [b"\xff\xd8"], [b"\xff\xd8"], 2
    while whole[position + 1] != 0xDA:
        length = 2 + int.from_bytes(whole[position + 2 : position + 4], "big")
        kept = tables if whole[position + 1] in (0xDB, 0xC4) else rest
        kept.append(whole[position : position + length])
        position += length
    return b"".join((*tables, b"\xff\xd9")), b"".join(rest) + whole[position:]


# Another every time where it is not given.
_OME_ID = {"axes": "YXS", "UUID": "00000000-0000-0000-0000-000000000000"}
_SVS = "Aperio Image Library v11.2.1\n256x192 (64x64) JPEG/RGB Q=70|AppMag = 40|MPP = 0.2500"


def _svs(*, jpeg2000: bool) -> bytes:
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as file:
        for size in ((256, 192), (128, 96)):
            pixels = _picture(*size)
            if jpeg2000:
                tiles = [
                    bytes(imagecodecs.jpeg2k_encode(tile, level=30, codecformat="j2k", mct=False))
                    for tile in _tiles(pixels, 64)
                ]
                tables, compression = b"", 33005
            else:
                encoded = [
                    _split_jpeg(bytes(imagecodecs.jpeg_encode(tile, level=80, outcolorspace="RGB")))
                    for tile in _tiles(pixels, 64)
                ]
                tables, compression = encoded[0][0], 7
                tiles = [rest for _, rest in encoded]
            file.write(
                iter(tiles),
                shape=pixels.shape,
                dtype=np.uint8,
                tile=(64, 64),
                photometric="rgb",
                compression=compression,
                description=_SVS,
                metadata=None,
                extratags=[(347, 7, len(tables), tables, True)] if tables else [],
            )
            if size == (256, 192):
                thumbnail = _picture(64, 48)
                file.write(thumbnail, compression="jpeg", description=_SVS, metadata=None)
        file.write(_picture(48, 48), subfiletype=1, compression="lzw", metadata=None)
        file.write(_picture(96, 48), subfiletype=9, compression="jpeg", metadata=None)
    return out.getvalue()


def _pyramid(*, sizes: Sequence[tuple[int, int]] = ((192, 128), (96, 64)), **options: Any) -> bytes:
    out = io.BytesIO()
    kind = {name: options.pop(name) for name in ("bigtiff", "byteorder", "ome") if name in options}
    if "rowsperstrip" not in options:
        options["tile"] = (64, 64)
    with tifffile.TiffWriter(out, **kind) as file:
        file.write(
            _picture(*sizes[0]),
            subifds=len(sizes) - 1,
            resolution=(4e4, 4e4),
            resolutionunit="CENTIMETER",
            **options,
        )
        options.pop("metadata", None)
        for size in sizes[1:]:
            file.write(_picture(*size), subfiletype=1, metadata=None, **options)
    return out.getvalue()


def _philips() -> bytes:
    level = (
        '<DataObject ObjectType="PixelDataRepresentation"><Attribute '
        'Name="DICOM_PIXEL_SPACING" Group="0x0028" Element="0x0030" PMSVR="IDoubleArray">'
        '"{0}" "{0}"</Attribute></DataObject>'
    )
    xml = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport"><Attribute '
        'Name="PIM_DP_SCANNED_IMAGES"><Array><DataObject ObjectType="DPScannedImage"><Attribute '
        f'Name="PIIM"><Array>{level.format("0.00025")}{level.format("0.0005")}</Array></Attribute>'
        "</DataObject></Array></Attribute></DataObject>"
    )
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as file:
        for number, size in enumerate(((256, 192), (128, 128))):
            file.write(
                _picture(*size),
                tile=(64, 64),
                compression="jpeg",
                software="Philips DP v1.0",
                description=xml if number == 0 else "",
                metadata=None,
            )
        file.write(_picture(48, 48), rowsperstrip=48, description="Label", metadata=None)
    return out.getvalue()


def _ndpi(stripes: int = 12) -> bytes:
    """The finest level of the real slide, cut down to its first stripes.

    What lies between these and the directory's values is taken out, and the offsets are mended.
    """
    data = bytearray(NDPI.read_bytes())
    first = directories(bytes(data), ndpi=True)[0]
    entries = {entry.tag: entry for entry in first.entries}
    starts_at = entries[65426].values_at
    start = struct.unpack_from("<I", data, entries[273].at + 8)[0]
    end = start + struct.unpack_from("<I", data, starts_at + 4 * stripes)[0]
    moved = starts_at - end
    for tag, value in ((257, 8 * stripes), (278, 8 * stripes), (279, end - start)):
        struct.pack_into("<I", data, entries[tag].at + 8, value)
    struct.pack_into("<I", data, entries[65426].at + 4, stripes)
    for entry in first.entries:
        if entry.values_at >= starts_at and not entry.inline:
            struct.pack_into("<I", data, entry.at + 8, entry.values_at - moved)
    struct.pack_into("<Q", data, first.next_at, 0)
    struct.pack_into("<Q", data, 4, first.at - moved)
    # One value of 64 bits for each entry follows: the upper halves of what the entries hold.
    stop = first.next_at + 8 + 4 * len(first.entries)
    return bytes(data[:end] + data[starts_at:stop])


def _dicom(*, native: bool) -> bytes:
    """One instance of a whole slide image, as scanners write them."""
    pixels = _picture(192, 128)
    frames = [tile.tobytes() for tile in _tiles(pixels, 64)]
    if not native:
        frames = [bytes(imagecodecs.jpeg_encode(tile)) for tile in _tiles(pixels, 64)]
    header = FileDataset(io.BytesIO(), Dataset(), preamble=bytes(128))
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if native else JPEGBaseline8Bit
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = (
        VLWholeSlideMicroscopyImageStorage
    )
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    header.SeriesInstanceUID = UID("1.2.4")
    header.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    header.ImagedVolumeWidth, header.ImagedVolumeHeight = 0.048, 0.032
    header.TotalPixelMatrixColumns, header.TotalPixelMatrixRows = 192, 128
    header.Columns = header.Rows = 64
    header.NumberOfFrames = len(frames)
    header.DimensionOrganizationType = "TILED_FULL"
    header.SamplesPerPixel, header.BitsAllocated, header.BitsStored, header.HighBit = 3, 8, 8, 7
    header.PixelRepresentation = header.PlanarConfiguration = 0
    header.PhotometricInterpretation = "RGB" if native else "YBR_FULL_422"
    measures, group = Dataset(), Dataset()
    measures.PixelSpacing = [0.00025, 0.00025]
    group.PixelMeasuresSequence = [measures]
    header.SharedFunctionalGroupsSequence = [group]
    header.PixelData = b"".join(frames) if native else encapsulate(frames)
    header["PixelData"].VR = "OB"
    header["PixelData"].is_undefined_length = not native
    out = io.BytesIO()
    header.save_as(out, enforce_file_format=True)
    return out.getvalue()


def _written(write: Callable[[Path], None], suffix: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{suffix}"
        write(path)
        return path.read_bytes()


@lru_cache(maxsize=1)
def bases() -> dict[str, Base]:
    """The slides that are damaged, by name. Seeds belong to names: add, but never rename."""
    made = {
        "svs": Base(_svs(jpeg2000=False), ".svs"),
        "svs-j2k": Base(_svs(jpeg2000=True), ".svs"),
        "plain": Base(_pyramid(photometric="rgb"), ".tif"),
        "lzw": Base(_pyramid(compression="lzw", byteorder=">"), ".tif"),
        "deflate": Base(_pyramid(compression="deflate", predictor=True), ".tif"),
        "zstd": Base(_pyramid(compression="zstd", bigtiff=True, byteorder=">"), ".tif"),
        "webp": Base(_pyramid(compression="webp"), ".tif"),
        "jpeg": Base(_pyramid(compression="jpeg", bigtiff=True), ".tif"),
        "ome": Base(_pyramid(compression="deflate", ome=True, metadata=_OME_ID), ".ome.tif"),
        "stripped": Base(_pyramid(sizes=[(160, 120)], rowsperstrip=24), ".tif"),
        "philips": Base(_philips(), ".tiff"),
        "dicom": Base(_dicom(native=False), ".dcm"),
        "dicom-native": Base(_dicom(native=True), ".dcm"),
    }
    # What tiffslide reads.
    made["scn"] = Base(_written(write_scn, ".scn"), ".scn")
    made["bif"] = Base(_written(write_bif, ".bif"), ".bif")
    if NDPI.is_file():
        made["ndpi"] = Base(_ndpi(), ".ndpi")
    return made


# ---------------------------------------------------------------- where things lie

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_TYPE_BYTES |= {13: 4, 16: 8, 17: 8, 18: 8}


@dataclass(frozen=True)
class Entry:
    """One tag of a directory."""

    at: int
    tag: int
    type: int
    count: int
    values_at: int
    n_bytes: int
    inline: bool


@dataclass(frozen=True)
class Directory:
    """One IFD."""

    at: int
    entries: tuple[Entry, ...]
    next_at: int
    """Where the offset of the next one stands."""

    def entry(self, *tags: int) -> Entry | None:
        """The first entry of one of the tags."""
        return next((entry for entry in self.entries if entry.tag in tags), None)


@dataclass(frozen=True)
class _Words:
    """How a TIFF's numbers are written."""

    order: str
    big: bool
    ndpi: bool

    @staticmethod
    def of(data: bytes, *, ndpi: bool) -> _Words:
        return _Words(">" if data[:2] == b"MM" else "<", data[2:4] in (b"+\0", b"\0+"), ndpi)

    @property
    def count(self) -> str:
        return self.order + ("Q" if self.big else "H")

    @property
    def offset(self) -> str:
        return self.order + ("Q" if self.big else "I")

    @property
    def entry_bytes(self) -> int:
        return 20 if self.big else 12


def directories(data: bytes, *, ndpi: bool = False) -> list[Directory]:
    """The IFDs of a TIFF that is whole, SubIFDs after the chain."""
    words = _Words.of(data, ndpi=ndpi)
    found: list[Directory] = []
    ahead = [struct.unpack_from(words.offset, data, 8 if words.big else 4)[0]]
    while ahead:
        at = ahead.pop(0)
        (number,) = struct.unpack_from(words.count, data, at)
        first = at + struct.calcsize(words.count)
        entries = [_entry(data, first + i * words.entry_bytes, words) for i in range(number)]
        next_at = first + number * words.entry_bytes
        found.append(Directory(at, tuple(entries), next_at))
        (following,) = struct.unpack_from(words.offset, data, next_at)
        for entry in entries:
            if entry.tag == 330:
                kind = (
                    words.order + str(entry.count) + ("I" if _TYPE_BYTES[entry.type] == 4 else "Q")
                )
                ahead.extend(struct.unpack_from(kind, data, entry.values_at))
        if following:
            ahead.insert(0, following)
    return found


def _entry(data: bytes, at: int, words: _Words) -> Entry:
    tag, kind = struct.unpack_from(words.order + "HH", data, at)
    (count,) = struct.unpack_from(words.offset, data, at + 4)
    value_at = at + (12 if words.big else 8)
    n_bytes = count * _TYPE_BYTES[kind]
    inline = n_bytes <= (8 if words.big else 4)
    values_at = value_at if inline else struct.unpack_from(words.offset, data, value_at)[0]
    return Entry(at, tag, kind, count, values_at, n_bytes, inline)


@dataclass
class Wound:
    """A slide while it is being damaged; `at` says where things lay when it was whole."""

    data: bytearray
    at: list[Directory]
    tiles: list[tuple[int, int, int]]
    """(first byte, bytes, index of the directory) of each compressed tile."""
    elements: list[tuple[int, int]]
    words: _Words
    rng: random.Random
    done: list[str] = field(default_factory=list)

    def put(self, where: int, value: bytes) -> None:
        """Overwrite what lies inside the file."""
        stop = min(where + len(value), len(self.data))
        if 0 <= where < stop:
            self.data[where:stop] = value[: stop - where]

    def put_number(self, where: int, value: int, n_bytes: int) -> None:
        """Overwrite a number in the file's byte order, cut to the bytes it has."""
        packed = (value % (1 << 8 * n_bytes)).to_bytes(n_bytes, "little")
        self.put(where, packed if self.words.order == "<" else packed[::-1])

    def put_entry(self, entry: Entry, kind: int, values: Sequence[int]) -> None:
        """Give an entry other values, behind the end of the file where they do not fit into it."""
        packed = struct.pack(
            f"{self.words.order}{len(values)}" + {1: "B", 3: "H", 4: "I", 7: "B", 16: "Q"}[kind],
            *values,
        )
        room = 8 if self.words.big else 4
        self.put_number(entry.at + 2, kind, 2)
        self.put_number(entry.at + 4, len(values), room)
        value_at = entry.at + 4 + room
        if len(packed) <= room:
            self.put(value_at, packed.ljust(room, b"\0"))
        else:
            self.put_number(value_at, len(self.data), room)
            self.data += packed

    def number(self, like: int = 0) -> int:
        """A number that hurts, or one near `like`."""
        rng, size = self.rng, len(self.data)
        return rng.choice(
            (
                *(0, 1, 2, 3, 7, 8, 255, 256, 4096, 65535, 65536, 1 << 20, (1 << 20) + 1),
                *((1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
                *(
                    size,
                    size - 1,
                    size // 2,
                    rng.randrange(size),
                    rng.getrandbits(rng.choice((8, 16, 32))),
                ),
                *(like + 1, like - 1, like * 2, like // 2, -like, like ^ (1 << rng.randrange(32))),
            )
        )

    def entry(self, *tags: int) -> Entry | None:
        """An entry of one of the tags, of any directory; of any tag without."""
        found = [
            entry
            for directory in self.at
            for entry in directory.entries
            if not tags or entry.tag in tags
        ]
        return self.rng.choice(found) if found else None


@dataclass(frozen=True)
class Anatomy:
    """Where things lie in a base."""

    directories: list[Directory]
    tiles: list[tuple[int, int, int]]
    """(first byte, bytes, index of the directory) of each compressed tile."""
    elements: list[tuple[int, int]] = field(default_factory=list)
    """(first byte, bytes) of the value of each element of a DICOM header."""


@lru_cache(maxsize=32)
def _anatomy(name: str) -> Anatomy:
    base = bases()[name]
    if base.suffix == ".dcm":
        return _dicom_anatomy(base.data)
    with tifffile.TiffFile(io.BytesIO(base.data), name=f"x{base.suffix}") as file:
        by_offset = {page.offset: page for page in _pages(file)}
    at = directories(base.data, ndpi=base.suffix == ".ndpi")
    tiles = [
        (start, count, index)
        for index, directory in enumerate(at)
        for start, count in zip(
            by_offset[directory.at].dataoffsets,
            by_offset[directory.at].databytecounts,
            strict=True,
        )
    ]
    return Anatomy(at, tiles)


def _dicom_anatomy(data: bytes) -> Anatomy:
    header = pydicom.dcmread(io.BytesIO(data))
    elements: list[Any] = [header.get_item(tag) for tag in header.keys()]  # noqa: SIM118
    lengths = {int(element.tag): element.length for element in elements}
    places = {int(element.tag): element.value_tell for element in elements}
    pixels_at, pixels = places[0x7FE00010], lengths[0x7FE00010]
    if pixels != 0xFFFFFFFF:
        size = pixels // 6
        tiles = [(pixels_at + i * size, size, 0) for i in range(6)]
    else:
        _, starts = parse_fragments(io.BytesIO(data[pixels_at:]))
        # The first fragment is the offset table.
        found = [pixels_at + start for start in starts]
        tiles = [
            (start + 8, int.from_bytes(data[start + 4 : start + 8], "little"), 0) for start in found
        ]
    values = [(places[tag], length) for tag, length in lengths.items() if length < 0xFFFFFFFF]
    return Anatomy([], tiles, [*values, (pixels_at, 64), (pixels_at, 64)])


def _pages(file: tifffile.TiffFile) -> Iterator[Any]:
    page: Any
    for page in file.pages:
        yield page
        yield from page.pages or ()


# ---------------------------------------------------------------- mutations

Mutation = Callable[[Wound], None]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))


_LAYOUT_TAGS = _numbers("254 256 257 258 259 262 266 277 278 284 317 322 323 330 338 339 530")
_ARRAY_TAGS = (273, 279, 324, 325, 330, 65426)
_TEXT_TAGS = (270, 305, 65449)
_VENDOR_TAGS = (
    *(271, 513, 514, 700, 4864, 33471, 33560, 33628, 33629, 33630, 34118, 34361, 34362, 34412),
    *(34680, 34735, 37706, 40100, 42112, 42113, 48129, 50838, 50839, 51023, 51123, 65000, 65001),
    *(65420, 65426, 65432, 65439, 34665, 34675, 32997, 32998, 33445, 33550, 34142),
)
_COMPRESSIONS = _numbers("1 2 3 4 5 6 7 8 32773 32909 32946 33003 33004 33005 34712 34713")
_COMPRESSIONS += (34887, 34892, 34925, 34933, 34934, 50000, 50001, 50002, 52546, 65000)
_SIZES = _numbers("1 8 15 16 17 48 64 128 250 4096 32768 65536 262144 1048576")
_SIZES += ((1 << 20) + 1, (1 << 31) - 1)
_OME = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
    '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="{0}" SizeY="{1}" SizeC="{2}" '
    'SizeZ="{3}" SizeT="{4}"><Channel ID="Channel:0:0" SamplesPerPixel="3"/>'
    '<TiffData IFD="{5}" PlaneCount="{6}"/></Pixels></Image></OME>'
)
_TEXTS = (
    _OME,
    "ImageJ=1.11a\nimages={3}\nslices={4}\nchannels={2}\nframes={5}\nhyperstack=true\n",
    '{{"shape": [{3}, {1}, {0}, 3], "axes": "ZYXS"}}',
    '{{"shape": [{4}, {3}, {1}, {0}, 3]}}',
    "Aperio Image Library v1\n{0}x{1}|MPP = {2}|AppMag = {3}",
    "state.configName='x'\nstate.acq.numberOfFrames={3}\nstate.acq.numberOfZSlices={4}\n",
    "SI.x=1\nscanimage.SI.hStackManager.framesPerSlice = {3}\n",
    (
        '<scn><collection sizeX="{0}" sizeY="{1}"><image><pixels sizeX="{0}" sizeY="{1}">'
        '<dimension sizeX="{0}" sizeY="{1}" r="0" ifd="{5}"/></pixels></image></collection></scn>'
    ),
    "Label Image",
    "Philips DP v1.0",
    "PerkinElmer-QPI",
    "IndicaLabsImageWriter v1",
    "SI.LINE = {3}",
    (
        '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "{0}"><!ENTITY y "&x;&x;&x;&x;&x;&x;&x;&x;">'
        '<!ENTITY z "&y;&y;&y;&y;&y;&y;&y;&y;">]><DataObject>&z;&z;</DataObject>'
    ),
)


def flip_header(wound: Wound) -> None:
    """Bits of the first bytes."""
    start = 0 if wound.at else 128
    for _ in range(wound.rng.randint(1, 3)):
        wound.data[start + wound.rng.randrange(16)] ^= 1 << wound.rng.randrange(8)


def flip_entries(wound: Wound) -> None:
    """Bits, or whole bytes, of a directory."""
    directory = wound.rng.choice(wound.at)
    for _ in range(wound.rng.randint(1, 6)):
        where = wound.rng.randrange(directory.at, directory.next_at + 8)
        if where < len(wound.data):
            old = wound.data[where]
            flipped = old ^ (1 << wound.rng.randrange(8))
            wound.data[where] = wound.rng.choice((flipped, wound.rng.randrange(256)))


def set_entry(wound: Wound) -> None:
    """One field of an entry."""
    pool: tuple[int, ...] = wound.rng.choice((_LAYOUT_TAGS, _ARRAY_TAGS, _TEXT_TAGS, (), ()))
    entry = wound.entry(*pool)
    if entry is None:
        return
    room = 8 if wound.words.big else 4
    match wound.rng.randrange(5):
        case 0:
            tag = wound.rng.choice((*_LAYOUT_TAGS, *_ARRAY_TAGS, *_TEXT_TAGS, *_VENDOR_TAGS))
            wound.put_number(entry.at, tag, 2)
        case 1:
            wound.put_number(entry.at + 2, wound.rng.choice((*range(20), 129, 65535)), 2)
        case 2:
            wound.put_number(entry.at + 4, wound.number(entry.count), room)
        case _:
            wound.put_number(entry.at + 4 + room, wound.number(entry.values_at), room)


def set_layout(wound: Wound) -> None:
    """Compression, colours, sample format: values that exist, in the wrong place."""
    choices: dict[int, tuple[int, ...]] = {
        259: _COMPRESSIONS,
        262: (0, 1, 2, 3, 4, 5, 6, 8, 32803, 34892),
        258: (1, 4, 7, 8, 12, 16, 32, 64, 0),
        277: (0, 1, 2, 3, 4, 5, 65535),
        284: (0, 1, 2, 3),
        317: (0, 1, 2, 3, 34892, 34894),
        266: (0, 1, 2),
        339: (1, 2, 3, 4, 5, 6),
        254: (0, 1, 2, 4, 9, 16),
        278: (0, 1, 7, 24, 1 << 31),
        322: (*_SIZES, 0),
        323: (*_SIZES, 0),
        256: (*_SIZES, 0),
        257: (*_SIZES, 0),
        530: (0x00020002, 0x00020001, 0, 0xFFFFFFFF),
    }
    tag = wound.rng.choice(list(choices))
    directory = wound.rng.choice(wound.at)
    entry = directory.entry(tag) or wound.rng.choice(directory.entries)
    wound.put_number(entry.at, tag, 2)
    if not entry.inline:
        # Three values of 16 bits lie elsewhere.
        for i in range(3):
            wound.put_number(entry.values_at + 2 * i, wound.rng.choice(choices[tag]), 2)
        return
    n_bytes = _TYPE_BYTES[entry.type] if tag != 530 else 4
    where = entry.values_at
    wound.put_number(where, wound.rng.choice(choices[tag]), max(n_bytes, 2))


def set_array(wound: Wound) -> None:
    """Some of the offsets or counts."""
    entry = wound.entry(*_ARRAY_TAGS)
    if entry is None:
        return
    width = _TYPE_BYTES[entry.type]
    for _ in range(wound.rng.choice((1, 1, 2, entry.count))):
        where = entry.values_at + width * wound.rng.randrange(entry.count)
        old = int.from_bytes(wound.data[where : where + width], "little")
        wound.put_number(where, wound.number(old), width)


def set_picture_header(wound: Wound) -> None:
    """Sizes, tables, restart intervals and lengths in the markers of a JPEG or JPEG 2000 tile."""
    tables = wound.entry(347)
    if tables is not None and wound.rng.random() < 0.2:
        start, count = tables.values_at, tables.n_bytes
    else:
        start, count, _ = wound.rng.choice(wound.tiles)
    markers = [
        where
        for where in range(start, min(start + count, start + 900, len(wound.data) - 4))
        if wound.data[where] == 0xFF and wound.data[where + 1] not in (0, 0xFF)
    ]
    for _ in range(wound.rng.randint(1, 3)):
        where = wound.rng.choice(markers) if markers else start
        reach = wound.rng.choice((4, 12, 20, 60))
        where += wound.rng.randrange(reach)
        value = wound.rng.choice(
            (0, 1, 0x11, 0x22, 0x44, 0x7F, 0x80, 0xFF, wound.rng.randrange(256))
        )
        wound.put(where, bytes([value]) * wound.rng.choice((1, 1, 2, 4)))


def swap_marker(wound: Wound) -> None:
    """One kind of JPEG or JPEG 2000 marker becomes another."""
    start, count, _ = wound.rng.choice(wound.tiles)
    kinds = bytes.fromhex("c0c1c2c3c4c9caccd8d9dadbdde0ee")
    kinds += bytes.fromhex("4f5152535c5e90935060")
    where = wound.data.find(b"\xff", start + wound.rng.randrange(max(1, min(count, 700))))
    if start <= where < start + count:
        wound.put(where + 1, bytes([wound.rng.choice(kinds)]))


def scribble_tile(wound: Wound) -> None:
    """Bytes of a compressed tile."""
    start, count, _ = wound.rng.choice(wound.tiles)
    for _ in range(wound.rng.choice((1, 4, 30))):
        where = start + wound.rng.randrange(max(1, count))
        length = wound.rng.choice((1, 1, 2, 16, count))
        filling = wound.rng.choice((b"\0", b"\xff", wound.rng.randbytes(1)))
        wound.put(where, (filling * length)[: max(0, start + count - where)])


def cut(wound: Wound) -> None:
    """The end is missing."""
    del wound.data[wound.rng.randrange(1, len(wound.data)) :]


def swap_blocks(wound: Wound) -> None:
    """Two pieces change places."""
    length = wound.rng.choice((4, 12, 64, 512))
    if len(wound.data) < 2 * length:
        return
    one, other = (wound.rng.randrange(len(wound.data) - length) for _ in range(2))
    first, second = wound.data[one : one + length], wound.data[other : other + length]
    wound.put(one, bytes(second))
    wound.put(other, bytes(first))


def loop_chain(wound: Wound) -> None:
    """The chain of directories, or a SubIFD, leads back, astray, or on into pixels."""
    room = 8 if wound.words.big else 4
    target = wound.rng.choice(
        (
            wound.rng.choice(wound.at).at,
            wound.rng.choice(wound.at).at,
            wound.rng.randrange(len(wound.data)),
            wound.number(),
        )
    )
    sub = wound.entry(330)
    if sub is not None and wound.rng.random() < 0.5:
        times = wound.rng.choice((1, 2, 300, 2000))
        wound.put_entry(sub, 16 if wound.words.big else 4, [target % (1 << 8 * room)] * times)
    else:
        wound.put_number(wound.rng.choice(wound.at).next_at, target, room)


def long_chain(wound: Wound) -> None:
    """Many tiny directories, the last of which leads back to one of them, or nowhere."""
    room = 8 if wound.words.big else 4
    number = wound.rng.choice((50, 150, 600))
    each = struct.calcsize(wound.words.count) + wound.words.entry_bytes + room
    first = len(wound.data)
    back = wound.rng.choice((0, 0, first, first + each * (number // 2), wound.at[0].at))
    for i in range(number):
        following = first + (i + 1) * each if i + 1 < number else back
        wound.data += struct.pack(wound.words.count, 1)
        wound.data += struct.pack(wound.words.order + "HH", 256, 4)
        wound.data += struct.pack(wound.words.offset, 1) + struct.pack(wound.words.offset, 64)
        wound.data += struct.pack(wound.words.offset, following)
    wound.put_number(wound.rng.choice(wound.at).next_at, first, room)


def many_entries(wound: Wound) -> None:
    """A directory of thousands of entries whose values are the whole file."""
    room = 8 if wound.words.big else 4
    old = wound.at[0]
    size, start = len(wound.data), len(wound.data)
    tag, kind = wound.rng.choice((270, 305, 347, 50839, 33628)), wound.rng.choice((1, 2, 7))
    number = wound.rng.choice((200, 2000, 4000))
    entries = [bytes(wound.data[e.at : e.at + wound.words.entry_bytes]) for e in old.entries]
    extra = struct.pack(wound.words.order + "HH", tag, kind)
    extra += struct.pack(wound.words.offset, size - 8) + struct.pack(wound.words.offset, 8)
    wound.data += struct.pack(wound.words.count, number + len(entries))
    wound.data += b"".join(entries) + extra * number + bytes(8)
    wound.put_number(8 if wound.words.big else 4, start, room)


def claim_size(wound: Wound) -> None:
    """A level, or only its tiles, of another size, with the offsets and counts that takes."""
    directory = wound.rng.choice(wound.at)
    entries = [directory.entry(256), directory.entry(257)]
    entries += [directory.entry(322) or directory.entry(278), directory.entry(323)]
    sizes = []
    for entry in entries:
        if entry is None:
            continue
        value = wound.rng.choice(_SIZES)
        if entry.tag in (322, 323) and value > 64 and wound.rng.random() < 0.5:
            value = 64
        sizes.append((entry, value))
    claimed = {entry.tag: value for entry, value in sizes}
    width, height = claimed.get(256, 1), claimed.get(257, 1)
    tile_width, tile_height = claimed.get(322, width), claimed.get(323, claimed.get(278, height))
    number = -(-width // tile_width) * -(-height // tile_height)
    # What is within the limits takes as long as a slide of that size: no hang, but no case either.
    if number > 20_000 or (width * height > 1 << 27 and max(width, height) <= 1 << 20):
        return
    for entry, value in sizes:
        wound.put_entry(entry, 4, [value])
    offsets, counts = directory.entry(324, 273), directory.entry(325, 279)
    if offsets is None or counts is None:
        return
    start, count, _ = wound.rng.choice(wound.tiles)
    count = wound.rng.choice((count, count, 0))
    kind = 16 if wound.words.big else 4
    wound.put_entry(offsets, kind, [start] * number)
    wound.put_entry(counts, 4, [count] * number)


def set_text(wound: Wound) -> None:
    """Numbers in a description, or the description of another format."""
    entry = wound.entry(*_TEXT_TAGS)
    if entry is None:
        return
    numbers = [
        wound.rng.choice(
            ("0", "1", "2", "3", "7", "192", "128", "-1", "1000000", "99999999999", "1e9")
        )
        for _ in range(7)
    ]
    if wound.rng.random() < 0.5:
        text = wound.rng.choice(_TEXTS).format(*numbers).encode()
        wound.put_entry(entry, 7, list(text + b"\0"))
        wound.put_number(entry.at + 2, 2, 2)
        return
    digits = [
        where
        for where in range(entry.values_at, entry.values_at + entry.n_bytes)
        if where < len(wound.data) and chr(wound.data[where]).isdigit()
    ]
    for _ in range(wound.rng.randint(1, 6)):
        if digits:
            where = wound.rng.choice(digits)
            wound.put(where, wound.rng.choice((b"9", b"0", b"-", b"e9", b'"', b"<", b"\xff", b" ")))


def plant_picture(wound: Wound) -> None:
    """A tile becomes a picture that is whole but hostile."""
    start, count, index = wound.rng.choice(wound.tiles)
    planted = wound.rng.choice(_hostile_pictures())
    number = [tile for tile in wound.tiles if tile[2] == index].index((start, count, index))
    directory = wound.at[index]
    for tags, value in (((324, 273), len(wound.data)), ((325, 279), len(planted))):
        entry = directory.entry(*tags)
        if entry is not None:
            width = _TYPE_BYTES[entry.type]
            wound.put_number(entry.values_at + width * min(number, entry.count - 1), value, width)
    wound.data += planted


def _pillow_jpeg(picture: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, "jpeg", **options)
    return out.getvalue()


@lru_cache(maxsize=1)
def _hostile_pictures() -> tuple[bytes, ...]:
    tile = _picture(64, 64)
    jpeg = bytes(imagecodecs.jpeg_encode(tile))
    frame = jpeg.index(b"\xff\xc0") + 5
    progressive = _pillow_jpeg(Image.fromarray(tile), progressive=True)
    last_scan = progressive.rindex(b"\xff\xda")
    refinement = progressive[last_scan:-2]
    codestream = bytes(imagecodecs.jpeg2k_encode(tile, codecformat="j2k"))
    boxed = bytes(imagecodecs.jpeg2k_encode(tile, codecformat="jp2"))
    siz = codestream.index(b"\xff\x51")
    huge = codestream[: siz + 6] + struct.pack(">II", 1 << 20, 1 << 20) + codestream[siz + 14 :]
    small_parts = codestream[: siz + 22] + struct.pack(">II", 1, 1) + codestream[siz + 30 :]
    shifted = (
        codestream[: siz + 6]
        + struct.pack(">IIII", (1 << 31) + 64, (1 << 31) + 64, 1 << 31, 1 << 31)
        + codestream[siz + 22 :]
    )
    box = boxed.index(b"jp2c") - 4
    # A box that readers skip holds a small codestream's header; the real one behind it is huge.
    decoy = boxed[:box] + struct.pack(">I", 8 + siz + 60) + b"free" + codestream[: siz + 60]
    decoy += struct.pack(">I", 8 + len(huge)) + b"jp2c" + huge
    zeros = bytes(50 << 20)
    return (
        jpeg[:frame] + struct.pack(">HH", 65500, 65500) + jpeg[frame + 4 :],
        jpeg[:frame] + struct.pack(">HH", 0, 64) + jpeg[frame + 4 :],
        progressive,
        progressive[:-2] + refinement * 400 + b"\xff\xd9",
        _pillow_jpeg(Image.fromarray(tile).convert("L")),
        _pillow_jpeg(Image.fromarray(tile).convert("CMYK")),
        jpeg[:2] + b"\xff\xdd\x00\x04\x00\x01" + jpeg[2:],
        huge,
        small_parts,
        shifted,
        decoy,
        boxed,
        bytes(imagecodecs.jpeg2k_encode(tile[..., 0].copy(), codecformat="j2k")),
        bytes(imagecodecs.jpeg2k_encode(tile.astype(np.uint16), codecformat="j2k")),
        bytes(imagecodecs.webp_encode(_picture(640, 640), level=10)),
        bytes(imagecodecs.webp_encode(np.dstack([tile, tile[..., :1]]), lossless=True)),
        zlib.compress(zeros),
        bytes(imagecodecs.zstd_encode(zeros)),
        bytes(imagecodecs.lzw_encode(zeros[: 4 << 20])),
        b"",
    )


MUTATIONS: tuple[Mutation, ...] = (
    *(flip_header, flip_entries, flip_entries, set_entry, set_entry, set_entry, set_layout),
    *(set_layout, set_array, set_array, set_picture_header, set_picture_header, swap_marker),
    *(scribble_tile, scribble_tile, cut, swap_blocks, loop_chain, long_chain, many_entries),
    *(claim_size, claim_size, set_text, set_text, plant_picture, plant_picture),
)


def set_element(wound: Wound) -> None:
    """The value of a DICOM element, its length, its kind, or its tag."""
    where, length = wound.rng.choice(wound.elements)
    match wound.rng.randrange(4):
        case 0:
            wound.put(
                where - wound.rng.randint(1, 12), wound.rng.randbytes(wound.rng.randint(1, 4))
            )
        case 1:
            wound.put_number(where - 4, wound.number(length), 4)
        case 2:
            digits = wound.rng.choice(
                (b"0", b"1", b"-1", b"99999999", b"1e99", b"TILED_SPARSE", b"x")
            )
            wound.put(where, digits[: length or 1].ljust(length, b" "))
        case _:
            width = wound.rng.choice((2, 4, 8))
            offset = wound.rng.randrange(max(1, length // width)) * width
            wound.put_number(where + offset, wound.number(length), width)


DICOM_MUTATIONS: tuple[Mutation, ...] = (
    *(set_element, set_element, set_element, set_element, set_element, set_picture_header),
    *(swap_marker, scribble_tile, cut, swap_blocks, flip_header),
)


def mutated(case: Case) -> tuple[bytes, list[str]]:
    """The bytes of a case, and the names of what was done to its base."""
    name, seed = case
    base = bases()[name]
    whole = _anatomy(name)
    words = _Words.of(base.data, ndpi=base.suffix == ".ndpi")
    rng = random.Random(f"{name}:{seed}")
    wound = Wound(bytearray(base.data), whole.directories, whole.tiles, whole.elements, words, rng)
    mutations = DICOM_MUTATIONS if base.suffix == ".dcm" else MUTATIONS
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
        mutation = rng.choice(mutations)
        wound.done.append(mutation.__name__)
        mutation(wound)
        if len(wound.data) < 256:
            break
    return bytes(wound.data), wound.done


def cases(number: int, first_seed: int) -> list[Case]:
    """One after another over all bases."""
    names = list(bases())
    return [(names[seed % len(names)], seed) for seed in range(first_seed, first_seed + number)]


# ---------------------------------------------------------------- one case


class WrongPixelsError(Exception):
    """What came back is not what was asked for."""


@dataclass
class Outcome:
    """What became of one case."""

    case: Case
    refused: list[str] = field(default_factory=list)
    """Kinds of the errors that it was refused with; none where all of it was read."""
    finding: str | None = None
    """`error`, `memory`, `wrong`, `crash` or `hang`; None for what is allowed."""
    detail: str = ""
    """The end of the traceback."""
    seconds: float = 0.0
    peak_mb: int = 0
    """Highest resident memory of the worker so far."""


def exercise(uri: str) -> list[str]:
    """Open, look over and read a slide; the kinds of the errors it was refused with.

    One level's damage does not keep the others from being read. Raises what is no such error.
    """
    refused: list[str] = []

    def attempt(action: Callable[[], None]) -> None:
        try:
            action()
        except (SlideError, StoreError) as error:
            if _ran_out_of_memory(error):
                raise
            refused.append(error.kind)

    slide: Slide | None = None

    def opening() -> None:
        nonlocal slide
        slide = open_slide(uri, slide_id="x", mpp_override=0.25)

    attempt(opening)
    if slide is None:
        return refused
    try:
        attempt(lambda: _look(slide))
        for level in slide.levels[:MOST_LEVELS]:
            for reduce in level.reduces:
                if reduce <= 2:
                    attempt(lambda at=level.index, by=reduce: _read(slide, at, by))  # type: ignore[misc]
    finally:
        slide.close()
    return refused


def _look(slide: Slide) -> None:
    rgb = slide.overview(8.0).rgb
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.size:
        raise WrongPixelsError(f"an overview of {rgb.dtype} {rgb.shape}")


def _read(slide: Slide, level: int, reduce: int) -> None:
    chosen, finest = slide.levels[level], slide.levels[0]
    # As they are, and resampled.
    for side in (float(TILE_PX), TILE_PX * 1.3):
        room = np.array([finest.width_px, finest.height_px]) - side * chosen.downsample * reduce
        if room.min() < 0:
            continue
        xy = np.unique(
            np.floor(room * np.array([[0, 0], [0.5, 0.5], [1, 1], [1, 0]])), axis=0
        ).astype(np.int32)
        tiles = slide.read_tiles(level=level, xy=xy, side_px=side, tile_px=TILE_PX, reduce=reduce)
        if tiles.shape != (len(xy), TILE_PX, TILE_PX, 3) or tiles.dtype != np.uint8:
            raise WrongPixelsError(f"tiles of {tiles.dtype} {tiles.shape}")
        count = slide.compressed_bytes(level=level, xy=xy, side_px=side, reduce=reduce)
        if count < 0:
            raise WrongPixelsError(f"{count} compressed bytes")


def _ran_out_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def attempt_case(case: Case, data: bytes, path: Path) -> Outcome:
    """Read one case, in this process."""
    path.write_bytes(data)
    outcome = Outcome(case)
    start = time.monotonic()
    try:
        outcome.refused = exercise(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001  (a panic of a Rust library is no Exception)
        outcome.finding = "memory" if _ran_out_of_memory(error) else "error"
        if isinstance(error, WrongPixelsError):
            outcome.finding = "wrong"
        outcome.detail = "".join(traceback.format_exception(error))[-3000:]
    outcome.seconds = time.monotonic() - start
    outcome.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return outcome


# ---------------------------------------------------------------- many cases


def _work(cases_in: Connection, log: str) -> None:
    """A worker: cases in, outcomes out, until None comes."""
    faults = Path(log).open("w")  # noqa: SIM115  (faulthandler writes to it to the end)
    faulthandler.enable(faults, all_threads=False)
    faulthandler.register(signal.SIGUSR1, faults, all_threads=False)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    # What decodes half-size JPEGs after many tiles does so from the first one on.
    compiled()
    HALF_JPEG.compile_after(0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
    with tempfile.TemporaryDirectory() as folder:
        cases_in.send("ready")
        while (sent := cases_in.recv()) is not None:
            case, data, suffix = sent
            outcome = attempt_case(case, data, Path(folder) / f"x{suffix}")
            cases_in.send(outcome)


class _Worker:
    """A process that reads cases, started again whenever one took it down."""

    def __init__(self, folder: Path, number: int) -> None:
        self._log = folder / f"faults-{number}"
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, str(self._log)), daemon=True)
        self._process.start()
        theirs.close()
        if not self._pipe.poll(START_S) or self._pipe.recv() != "ready":
            raise RuntimeError("a worker did not start")

    def attempt(self, case: Case) -> Outcome:
        """One case, whatever it does to the process."""
        # Damaged here, outside the worker's limit: what goes wrong there is the reader's.
        self._pipe.send((case, mutated(case)[0], bases()[case[0]].suffix))
        try:
            if self._pipe.poll(WATCHDOG_S):
                outcome: Outcome = self._pipe.recv()
                return outcome
            finding = "hang"
            self._ask_where()
        except (EOFError, ConnectionError):
            finding = "crash"
        self._process.kill()
        self._process.join()
        # The innermost frame comes first in the log.
        frames = self._log.read_text().rpartition("most recent call first")[2].splitlines()[1:]
        detail = "\n".join((*frames[::-1], f"exit {self._process.exitcode}"))
        seconds = WATCHDOG_S if finding == "hang" else 0.0
        self._start()
        return Outcome(case, finding=finding, detail=detail, seconds=seconds)

    def _ask_where(self) -> None:
        if self._process.pid is not None:
            os.kill(self._process.pid, signal.SIGUSR1)
            time.sleep(0.5)

    def stop(self) -> None:
        """Let it go."""
        self._pipe.send(None)
        self._process.join(5)
        self._process.kill()


def run(chosen: Sequence[Case], *, processes: int = 1) -> list[Outcome]:
    """All outcomes, in the order of the cases."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(processes) as threads:

        def share(number: int) -> list[Outcome]:
            worker = _Worker(Path(folder), number)
            try:
                return [worker.attempt(case) for case in chosen[number::processes]]
            finally:
                worker.stop()

        shares = list(threads.map(share, range(processes)))
    return [shares[i % processes][i // processes] for i in range(len(chosen))]


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What happened, in numbers; findings that end in the same place count as one."""
    refused = Counter(outcome.refused[0] for outcome in outcomes if outcome.refused)
    findings: dict[tuple[str, str], dict[str, Any]] = {}
    for outcome in outcomes:
        if outcome.finding is None:
            continue
        frames = [line.strip() for line in outcome.detail.splitlines() if "File " in line]
        key = (outcome.finding, frames[-1] if frames else outcome.detail[-200:])
        known = findings.setdefault(
            key,
            {
                "what": outcome.finding,
                "base": outcome.case[0],
                "seed": outcome.case[1],
                "done": mutated(outcome.case)[1],
                "times": 0,
                "tail": outcome.detail[-600:],
            },
        )
        known["times"] += 1
    slowest = max(outcomes, key=lambda outcome: outcome.seconds)
    return {
        "cases": len(outcomes),
        "ok": sum(not o.refused and o.finding is None for o in outcomes),
        "refused": dict(refused.most_common()),
        "findings": list(findings.values()),
        "seconds": round(sum(outcome.seconds for outcome in outcomes), 1),
        "slowest": [*slowest.case, round(slowest.seconds, 2)],
        "peak_mb": max(outcome.peak_mb for outcome in outcomes),
    }


def main() -> int:
    """Read many cases and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--base", help="of one base only")
    options = parser.parse_args()
    chosen = cases(options.cases, options.seed)
    if options.base:
        chosen = [(options.base, seed) for _, seed in chosen]
    result = summary(run(chosen, processes=options.processes))
    sys.stdout.write(json.dumps(result) + "\n")
    return 1 if result["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
