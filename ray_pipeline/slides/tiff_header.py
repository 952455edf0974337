"""The first look at a TIFF: whether it is one, and whether its directories can be followed.

tifffile trusts a file's chain of directories; hostile and damaged ones are found out before.
"""

from __future__ import annotations

import struct
import zlib
from typing import IO, cast
from xml.etree.ElementTree import ParseError

import numpy as np
import tifffile

from ray_pipeline.errors import DamagedSlideError, NotASlideError
from ray_pipeline.ranged_file import RangedFile

# What tifffile, tiffslide, zarr and imagecodecs (RuntimeError) raise over bytes that are not as
# they should be.
PARSER_ERRORS = (
    tifffile.TiffFileError,
    zlib.error,
    struct.error,
    ParseError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RecursionError,
    RuntimeError,
    StopIteration,
    TypeError,
    ValueError,
)
SUPPORTED = (
    "SVS, NDPI, Philips TIFF, OME-TIFF, pyramidal TIFF, SCN, BIF and DICOM of 8-bit RGB can be read"
)
_BIG_MAGIC = (b"II+\0", b"MM\0+")
_TIFF_MAGIC = (b"II*\0", b"MM\0*", *_BIG_MAGIC)
# By the first bytes, of text in small letters.
_OTHER_FORMATS = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture, as the .mrxs file of a MIRAX slide is",
    b"[general]": "the Slidedat.ini of a MIRAX slide",
    b"[virtual microscope specimen]": "a Hamamatsu VMS slide",
    b"GIF8": "a GIF picture",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 picture",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"%PDF": "a PDF document",
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
    b"ZISRAWFILE": "a Zeiss CZI slide",
    b"SIS\0": "the ETS part of an Olympus VSI slide",
    b"<dataobject objecttype": "a Philips iSyntax slide",
    b"SQLite format 3": "a SQLite database, as Sakura's slides are",
    b"\xd0\xcf\x11\xe0": "an OLE file, as Zeiss ZVI slides are",
    b"\x89HDF": "an HDF5 file",
}
MOST_DIRECTORIES = 1024
"""Directories in a file's chain: a slide has a dozen, and each costs its parsing."""
MOST_ENTRIES = 4096
"""Entries of one directory, as in tifffile."""
MOST_VALUES_BYTES = 64 << 20
"""Bytes of all values of all directories: the tables of a million compressed tiles, three times."""
# Of the types of values, by their numbers; the last stands for those that do not exist.
_TYPE_BYTES = np.array([0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8, 0], np.float64)


def open_tiff(file: RangedFile, named: str) -> tifffile.TiffFile:
    """Parse the directory of `file`; `named` is `<slide_id>: <uri>` for its errors.

    Raises NotASlideError for what is no TIFF, DamagedSlideError for one that breaks off.
    """
    start = file.read(64)
    file.seek(0)
    if start[:4] not in _TIFF_MAGIC:
        text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        known = [what for magic, what in _OTHER_FORMATS.items() if _starts(start, text, magic)]
        what = f"it is {known[0]}, not" if known else "its first bytes are not those of"
        raise NotASlideError(
            f"{named} is no slide: {what} a TIFF or a DICOM file ({SUPPORTED}); check the file."
        )
    if file.name.lower().endswith(".vsi"):
        raise NotASlideError(
            f"{named} is no slide: of an Olympus VSI slide it holds only the label and a "
            f"thumbnail ({SUPPORTED}); convert the slide to a TIFF."
        )
    try:
        _check_chain(file, start[:4])
        file.seek(0)
        # A TIFF of several files would have tifffile open the others by their names.
        parsed = tifffile.TiffFile(cast(IO[bytes], file), _multifile=False)
    except PARSER_ERRORS as error:
        raise unreadable(named, error) from error
    return parsed


def _starts(start: bytes, text: bytes, magic: bytes) -> bool:
    return start.startswith(magic) or text.startswith(magic)


def unreadable(named: str, error: BaseException) -> DamagedSlideError:
    """The error for a directory that a parser stumbled over."""
    return DamagedSlideError(
        f"{named} starts like a TIFF but its directory can't be read ({short(error)}): "
        "it is cut short or damaged; upload it again."
    )


def short(error: BaseException) -> str:
    """The first words of a library's error: enough to search for, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:100]}" if text else type(error).__name__


def _check_chain(file: RangedFile, start: bytes) -> None:
    """Raise ValueError, or struct.error, unless the chain of directories ends as it should.

    tifffile only logs where it breaks off, so a file that lost its end would pass for one with
    fewer levels; it follows a ring of more than a hundred for ever; and it reads every value that
    a directory points to, which may be the whole file a thousand times.
    """
    big = start in _BIG_MAGIC
    # tifffile goes by the name: Hamamatsu's offsets have 64 bits in an otherwise classic TIFF.
    hamamatsu = start == b"II*\0" and file.name.lower().endswith(".ndpi")
    order = "<" if start[:2] == b"II" else ">"
    number = struct.Struct(order + ("Q" if big else "H"))
    offset = struct.Struct(order + ("Q" if big or hamamatsu else "I"))
    count = order + ("u8" if big else "u4")
    entry = np.dtype(
        [("tag", order + "u2"), ("type", order + "u2"), ("count", count), ("at", count)]
    )
    position, seen, values_bytes = 8 if big else 4, set[int](), 0.0
    while True:
        file.seek(position)
        (directory,) = offset.unpack(file.read(offset.size))
        if directory == 0:
            break
        if directory in seen or len(seen) == MOST_DIRECTORIES:
            raise ValueError(f"no end to its directories after {len(seen)}")
        seen.add(directory)
        file.seek(directory)
        (entries,) = number.unpack(file.read(number.size))
        position = directory + number.size + entries * entry.itemsize
        if entries > MOST_ENTRIES:
            raise ValueError(f"{entries} entries in one directory")
        held = np.frombuffer(file.read(entries * entry.itemsize), entry)
        sizes = held["count"] * _TYPE_BYTES[np.minimum(held["type"], len(_TYPE_BYTES) - 1)]
        # What lies past the end is not read.
        values_bytes += float(sizes[sizes <= file.size_bytes].sum())
        if values_bytes > MOST_VALUES_BYTES:
            raise ValueError(f"more than {MOST_VALUES_BYTES} bytes in its directories")
    if not seen:
        raise ValueError("no directory")
