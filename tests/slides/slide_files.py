"""Small slides in the layouts that scanners and converters write, each with edges inside tiles.

What tifffile can't write of a layout is given to it ready-made: tiles as compressed bytes, and
tags as extra tags.
"""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Size = tuple[int, int]

TILE = 64
SIZES: tuple[Size, ...] = ((301, 205), (150, 102), (75, 51))
"""Level sizes, px: no multiple of the tile, one odd, one smaller than a tile."""
PER_CM = (4e4, 4e4)
"""Pixels per centimetre: 0.25 microns per pixel."""


def picture(width: int, height: int, *, seed: int = 0) -> Pixels:
    """Waves of all colours with some noise: what subsampling and edges can be seen on."""
    y, x = np.mgrid[0:height, 0:width]
    phases = [x / 7 + y / 31, y / 9 - x / 43, (x + y) / 13]
    waves = 128 + 110 * np.stack([np.sin(phase + seed) for phase in phases], axis=-1)
    noise = np.random.default_rng(seed).normal(0, 6, waves.shape)
    return np.clip(np.rint(waves + noise), 0, 255).astype(np.uint8)


def tiles_of(pixels: Pixels, side: int = TILE) -> Iterator[Pixels]:
    """The tiles of a level, row by row; those at the edges go on past it."""
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % side), (0, -width % side), (0, 0)), mode="symmetric")
    for top in range(0, height, side):
        for left in range(0, width, side):
            yield np.ascontiguousarray(padded[top : top + side, left : left + side])


# ---------------------------------------------------------------- JPEG


def jpeg(pixels: Pixels, *, ycbcr: bool, subsampling: str = "444") -> bytes:
    """A JPEG with the marker that libjpeg writes: JFIF for YCbCr, Adobe's for RGB."""
    colours = "YCBCR" if ycbcr else "RGB"
    encoded = imagecodecs.jpeg8_encode(
        pixels, level=85, colorspace="RGB", outcolorspace=colours, subsampling=subsampling
    )
    return bytes(encoded)


def jpeg_with_restarts(pixels: Pixels) -> bytes:
    """A JPEG (4:2:0) with a restart marker after every fourth block."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=85, restart_marker_blocks=4)
    return out.getvalue()


def jpeg_segments(whole: bytes) -> tuple[list[bytes], bytes]:
    """The segments between SOI and SOS, and the rest from SOS on."""
    segments, position = [], 2
    while whole[position + 1] != 0xDA:
        length = 2 + int.from_bytes(whole[position + 2 : position + 4], "big")
        segments.append(whole[position : position + length])
        position += length
    return segments, whole[position:]


def without_markers(whole: bytes) -> bytes:
    """A JPEG without any APP marker, its components numbered from 0: as Aperio writes RGB."""
    segments, rest = jpeg_segments(whole)
    kept = [bytearray(segment) for segment in (*segments, rest) if not 0xE0 <= segment[1] <= 0xEF]
    for segment in kept:
        if segment[1] == 0xC0:
            segment[10:19:3] = b"\0\1\2"
        elif segment[1] == 0xDA:
            segment[5:11:2] = b"\0\1\2"
    return b"\xff\xd8" + b"".join(kept)


def with_jfif(whole: bytes, *, after: bytes = b"") -> bytes:
    """A JPEG that a JFIF marker declares to be YCbCr, right after SOI or after other segments."""
    marker = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
    return b"\xff\xd8" + after + marker + without_markers(whole)[2:]


def split_jpeg(whole: bytes) -> tuple[bytes, bytes]:
    """The tables as an abbreviated stream, for JPEGTables, and the tile without them."""
    segments, rest = jpeg_segments(whole)
    tables = [s for s in segments if s[1] in (0xDB, 0xC4)]
    others = [s for s in segments if s[1] not in (0xDB, 0xC4)]
    return b"".join((b"\xff\xd8", *tables, b"\xff\xd9")), b"".join((b"\xff\xd8", *others, rest))


# ---------------------------------------------------------------- Aperio

_APERIO = (
    "Aperio Image Library v11.2.1\r\n{w}x{h} [0,0 {w}x{h}] ({t}x{t}) {codec} Q=70"
    "|AppMag = 40|MPP = 0.2528"
)


def write_svs(
    path: Path,
    *,
    photometric: str,
    compression: int,
    tiles: Callable[[Pixels], Iterable[bytes]],
    tables: bytes = b"",
    subsampling: Size | None = None,
    side: int = TILE,
    sizes: Sequence[Size] = SIZES,
    thumbnail: bool = True,
) -> None:
    """An Aperio slide as they lie: baseline, thumbnail, the other levels, label, macro."""
    with tifffile.TiffWriter(path) as file:
        for number, (width, height) in enumerate(sizes):
            pixels = picture(width, height, seed=number)
            about = _APERIO.format(w=width, h=height, t=side, codec="JPEG/RGB")
            file.write(
                iter(tiles(pixels)),
                shape=pixels.shape,
                dtype=np.uint8,
                tile=(side, side),
                photometric=photometric,
                subsampling=subsampling,
                compression=compression,
                # Else tifffile calls RGB in JPEG YCbCr, whatever its tiles are.
                compressionargs={"outcolorspace": photometric},
                description=about,
                metadata=None,
                extratags=[(347, 7, len(tables), tables, True)] if tables else [],
            )
            if number == 0 and thumbnail:
                file.write(picture(64, 48), rowsperstrip=16, description=about, metadata=None)
        label, macro = picture(40, 48), picture(96, 48)
        file.write(label, subfiletype=1, compression="lzw", rowsperstrip=48, metadata=None)
        file.write(macro, subfiletype=9, rowsperstrip=48, metadata=None)


def write_svs_jpeg(
    path: Path,
    *,
    ycbcr: bool,
    subsampling: str = "444",
    shared_tables: bool = False,
    dress: Callable[[bytes], bytes] = without_markers,
) -> None:
    """Aperio's JPEG; `dress` gives each tile its markers."""

    def encode(pixels: Pixels) -> bytes:
        return dress(jpeg(pixels, ycbcr=ycbcr, subsampling=subsampling))

    def tiles(pixels: Pixels) -> Iterator[bytes]:
        for tile in tiles_of(pixels):
            yield split_jpeg(encode(tile))[1] if shared_tables else encode(tile)

    write_svs(
        path,
        photometric="ycbcr" if ycbcr else "rgb",
        compression=7,
        tiles=tiles,
        tables=split_jpeg(encode(picture(TILE, TILE)))[0] if shared_tables else b"",
        subsampling={"444": (1, 1), "422": (2, 1), "420": (2, 2)}[subsampling] if ycbcr else None,
    )


def jpeg2000(pixels: Pixels, *, level: int = 40) -> bytes:
    """A bare codestream of the components as they are, without a colour transform."""
    encoded = imagecodecs.jpeg2k_encode(pixels, level=level, codecformat="j2k", mct=False)
    return bytes(encoded)


def ycbcr_of_rgb(pixels: Pixels) -> Pixels:
    """The components of ITU-T T.871."""
    r, g, b = (pixels[..., i].astype(np.float64) for i in range(3))
    y = 0.299 * r + 0.587 * g + 0.114 * b
    planes = np.stack((y, 128 + (b - y) / 1.772, 128 + (r - y) / 1.402), axis=-1)
    return np.clip(np.rint(planes), 0, 255).astype(np.uint8)


SUBSAMPLED_SIDE = 32
# Components of 32 x 32 px, those of the chroma half as wide (422), or half as high too (420):
#   opj_compress -i planes.raw -o tile.j2k -F 32,32,3,8,u@1x1:2x1:2x1 -mct 0 -n 3 -I -r 8
SUBSAMPLED = {
    "422": base64.b64decode(
        "/0//UQAvAAAAAAAgAAAAIAAAAAAAAAAAAAAAIAAAACAAAAAAAAAAAAADBwEBBwIBBwIB/1IADAAAAAEAAgQEAAD/"
        "XAARQl9SUAVQBVBHV9NX01di/2QAJQABQ3JlYXRlZCBieSBPcGVuSlBFRyB2ZXJzaW9uIDIuNS4w/5AACgAAAAAB"
        "EwAB/5PH0KwXtOhEUZZOFcgn9bOSJuG1C7gx2/VMT260VYTYFiLA7BFuRA5xYRbLHWulx9ZAE5tJcBtDR499hMw/"
        "9UylFbxqGLyZ05IGqhZdZmOUuA/H0oAOSqtha1YFctbxGsqAG7lAsLj4kMT2z7EP1ohervCFicPkHQfEKDZ9g+Hp"
        "UTwAJSIVXY/zQsE/ovM6E8RJWsfOTg+AYCH3aztKspJjshP/VS1yzLo1jlAuRhXkrybD5BsPiEQIgCLk7SsGRaTh"
        "P26TxeMuQHF3O9pqEDlMwOjwEwBflRtqsu54n8z0a2EjwfEQADaAC31A7yJDmIWfRZq3y+PA4aBiAF7ZWJyDuoZB"
        "KI7/2Q=="
    ),
    "420": base64.b64decode(
        "/0//UQAvAAAAAAAgAAAAIAAAAAAAAAAAAAAAIAAAACAAAAAAAAAAAAADBwEBBwICBwIC/1IADAAAAAEAAgQEAAD/"
        "XAARQl9SUAVQBVBHV9NX01di/2QAJQABQ3JlYXRlZCBieSBPcGVuSlBFRyB2ZXJzaW9uIDIuNS4w/5AACgAAAAAB"
        "DAAB/5PH1mgXtOhEUZZOFcgn9bOSJuG1C7gx2/VMT260VYTYFiLA7BFuRA5xYRbLHWulvdzwhujYfCvGx9JIE5tJ"
        "cPlkYeTJLUVx7cL0XyqPx9JADkqrY1ypl68dSmAEdwnBvMPlHwfEKgIQNn2D4elRPAAlIhVdj/NeQsE/ovM6E8RJ"
        "WmHH0C4PiEQPgDAh/1AyE94uQjJs1ADWm0n0bqUjJMZOw+UVD6BsD4AwIxaX6Nq1thoPBgDBPzkbHQvN1aUtpg0k"
        "b77A6PAY4F+VG2qy7nifzPRrYSMqwfGKgMUANoOT8DROPob2Sj5cDJldwPgGgeHAXt/qfdJ/PmIAmb/GAP/Z"
    ),
}


def write_svs_subsampled(path: Path, *, chroma: str, compression: int = 33003) -> None:
    """Aperio's 33003 as their scanners write it: every tile the same, its chroma subsampled."""
    write_svs(
        path,
        photometric="ycbcr",
        compression=compression,
        tiles=lambda pixels: (SUBSAMPLED[chroma] for _ in tiles_of(pixels, SUBSAMPLED_SIDE)),
        side=SUBSAMPLED_SIDE,
        sizes=((75, 51), (37, 25)),
    )


# ---------------------------------------------------------------- generic


def write_pyramid(
    path: Path,
    *,
    subifds: bool = False,
    strips: bool = False,
    sizes: Sequence[Size] = SIZES,
    bigtiff: bool = False,
    byteorder: Literal["<", ">"] = "<",
    ome: bool = False,
    **options: Any,
) -> None:
    """A pyramid as tifffile (SubIFDs) or libvips (pages of NewSubfileType 1) writes it."""
    stated = {"photometric": "rgb", "resolution": PER_CM, "resolutionunit": "CENTIMETER"}
    options = stated | options
    options |= {"rowsperstrip": 24} if strips else {"tile": (TILE, TILE)}
    with tifffile.TiffWriter(path, bigtiff=bigtiff, byteorder=byteorder, ome=ome) as file:
        for number, (width, height) in enumerate(sizes):
            first = number == 0
            if not first:
                options["metadata"] = None
            file.write(
                picture(width, height, seed=number),
                subifds=len(sizes) - 1 if first and subifds else None,
                subfiletype=0 if first else 1,
                **options,
            )


def write_sparse(path: Path, *, compression: str | None) -> None:
    """One level of which every other tile has no bytes."""
    pixels = picture(*SIZES[0])

    def tiles() -> Iterator[Pixels | None]:
        for index, tile in enumerate(tiles_of(pixels)):
            yield None if index % 2 else tile

    tifffile.imwrite(
        path,
        tiles(),
        shape=pixels.shape,
        dtype=np.uint8,
        tile=(TILE, TILE),
        photometric="rgb",
        compression=compression,
        resolution=PER_CM,
        resolutionunit="CENTIMETER",
    )


def write_ome_images(path: Path, *, sizes: Sequence[Size], **metadata: Any) -> None:
    """An OME-TIFF of several Image elements; `metadata` of the largest, 100 microns elsewhere."""
    with tifffile.TiffWriter(path, ome=True) as file:
        for size in sizes:
            largest = size == max(sizes)
            stated = metadata if largest else {"PhysicalSizeX": 100.0, "PhysicalSizeY": 100.0}
            file.write(
                picture(*size),
                photometric="rgb",
                tile=(TILE, TILE),
                metadata={"axes": "YXS", **stated},
            )


# ---------------------------------------------------------------- Philips

_REPRESENTATION = (
    '<DataObject ObjectType="PixelDataRepresentation">'
    '<Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" Element="0x0030" PMSVR="IDoubleArray">'
    "&quot;{0}&quot; &quot;{0}&quot;</Attribute></DataObject>"
)
_PHILIPS = (
    '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
    '<Attribute Name="DICOM_MANUFACTURER" PMSVR="IString">PHILIPS</Attribute>'
    '<Attribute Name="PIM_DP_SCANNED_IMAGES" PMSVR="IDataObjectArray"><Array>'
    '<DataObject ObjectType="DPScannedImage">'
    '<Attribute Name="PIM_DP_IMAGE_TYPE" PMSVR="IString">MACROIMAGE</Attribute>'
    '<Attribute Name="DICOM_PIXEL_SPACING" PMSVR="IDoubleArray">'
    "&quot;0.01&quot; &quot;0.01&quot;</Attribute></DataObject>"
    '<DataObject ObjectType="DPScannedImage">'
    '<Attribute Name="PIM_DP_IMAGE_TYPE" PMSVR="IString">WSI</Attribute>'
    '<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE" PMSVR="IDataObjectArray"><Array>'
    "{levels}</Array></Attribute>"
    '<Attribute Name="DICOM_PIXEL_SPACING" PMSVR="IDoubleArray">'
    "&quot;{down}&quot; &quot;{across}&quot;</Attribute>"
    "</DataObject></Array></Attribute></DataObject>"
)


def write_philips(
    path: Path, *, sizes: Sequence[Size], subsampling: str = "420", sparse: bool = False
) -> None:
    """Sublevels padded to whole tiles, of which only the XML tells how much is slide.

    `sizes` are those the directories state. Its own pixel spacing stands beside the levels', which
    only tell their downsamples, and after that of the macro picture.
    """
    levels = "".join(
        _REPRESENTATION.format(f"{0.00025 * 2**number:.6f}") for number in range(len(sizes))
    )
    about = _PHILIPS.format(levels=levels, across="0.000226907", down="0.000226891")

    def tiles(pixels: Pixels) -> Iterator[bytes]:
        for index, tile in enumerate(tiles_of(pixels)):
            left_out = sparse and index % 3 == 1
            yield b"" if left_out else jpeg(tile, ycbcr=True, subsampling=subsampling)

    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for number, (width, height) in enumerate(sizes):
            pixels = picture(width, height, seed=number)
            file.write(
                tiles(pixels),
                shape=pixels.shape,
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="ycbcr",
                subsampling={"444": (1, 1), "422": (2, 1), "420": (2, 2)}[subsampling],
                compression="jpeg",
                subfiletype=1 if number else 0,
                software="Philips DP v1.0",
                description=about if number == 0 else f"level={number}",
                metadata=None,
            )
        for name in ("Macro", "Label"):
            file.write(picture(48, 40), rowsperstrip=40, description=name, metadata=None)


# ---------------------------------------------------------------- Leica, Ventana

_SCN_IMAGE = (
    '<image name="{name}" uuid="{name}"><creationDate>2012-05-16T10:23:47.7Z</creationDate>'
    '<device model="Leica SCN400" version="1.4"/>'
    '<pixels sizeX="{w}" sizeY="{h}">{dimensions}</pixels>'
    '<view sizeX="{x}" sizeY="{y}" offsetX="{left}" offsetY="{top}" spacingZ="0"/>'
    "<scanSettings><objectiveSettings><objective>40</objective></objectiveSettings>"
    "<illuminationSettings><numericalAperture>0.65</numericalAperture>"
    "<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings>"
    "</image>"
)


def write_scn(path: Path) -> None:
    """A Leica slide: a macro picture of the glass, and one scan of 0.5 microns per pixel in it."""
    glass, scan, macro = (256_000, 192_000), ((320, 256), (160, 128)), (128, 96)
    dimensions = "".join(
        f'<dimension sizeX="{w}" sizeY="{h}" r="{r}" ifd="{r + 1}"/>'
        for r, (w, h) in enumerate(scan)
    )
    (width, height), (across, down) = scan[0], macro
    about = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection name="c" uuid="c" sizeX="{glass[0]}" sizeY="{glass[1]}">'
        + _SCN_IMAGE.format(
            name="macro", w=across, h=down, x=glass[0], y=glass[1], left=0, top=0,
            dimensions=f'<dimension sizeX="{across}" sizeY="{down}" r="0" ifd="0"/>',
        )
        + _SCN_IMAGE.format(
            name="scan", w=width, h=height, x=500 * width, y=500 * height, left=32_000,
            top=32_000, dimensions=dimensions,
        )
        + "</collection></scn>"
    )  # fmt: skip
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for number, size in enumerate((macro, *scan)):
            file.write(
                picture(*size, seed=number),
                tile=(TILE, TILE),
                compression="jpeg",
                description=about if number == 0 else "",
                metadata=None,
            )


def write_bif(path: Path) -> None:
    """A Ventana slide of one area without overlaps: label, then levels that are named so."""
    iscan = b'<Metadata><iScan Magnification="40" ScanRes="0.25"/></Metadata>'
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        options: dict[str, Any] = {"software": "ScanOutputManager 1.1.0.15854", "metadata": None}
        file.write(
            picture(48, 40),
            description="Label_Image",
            rowsperstrip=40,
            extratags=[(700, 1, len(iscan), iscan, True)],
            **options,
        )
        for number, (width, height) in enumerate(((320, 256), (160, 128))):
            file.write(
                picture(width, height, seed=number),
                tile=(TILE, TILE),
                compression="jpeg",
                description=f"level={number} mag={40 >> number} quality=95",
                resolution=PER_CM,
                resolutionunit="CENTIMETER",
                **options,
            )


# ---------------------------------------------------------------- patches


def patch_tag(path: Path, name: str, value: Any, *, page: int = 0) -> None:
    """Overwrite a tag's value."""
    with tifffile.TiffFile(path, mode="r+") as file:
        tag = file.pages[page].tags[name]  # type: ignore[union-attr]
        tag.overwrite(value, dtype=tag.dtype)


def czi() -> bytes:
    """The header of a ZISRAW file."""
    return b"ZISRAWFILE".ljust(16, b"\0") + struct.pack("<qq", 512, 512) + bytes(512)


# ---------------------------------------------------------------- Hamamatsu


def write_ndpi(path: Path, *, restarts: bool = True) -> None:
    """Levels of one JPEG each, cut by restart markers into stripes of 64 x 8 px, then a macro.

    The offsets in header and directories have 64 bits, though the TIFF is a classic one; a word for
    each entry, the upper half of what it holds, follows a directory.
    """
    data = bytearray(b"II*\0" + bytes(8))
    place = 4
    for number, ((width, height), lens) in enumerate(
        [((384, 208), 40.0), ((192, 104), 20.0), ((96, 48), -1.0)]
    ):
        whole = io.BytesIO()
        options: dict[str, Any] = {"restart_marker_blocks": 4} if restarts else {}
        pixels = Image.fromarray(picture(width, height, seed=number))
        pixels.save(whole, "JPEG", subsampling="4:2:2", quality=85, **options)
        strip = whole.getvalue()
        start = len(data)
        data += strip + bytes(-len(strip) % 2)
        entries = [
            _ndpi_entry(data, tag, kind, values)
            for tag, kind, values in (
                (256, "I", [width]),
                (257, "I", [height]),
                (258, "H", [8, 8, 8]),
                (259, "H", [7]),
                (262, "H", [6]),
                (271, "c", [b"Hamamatsu\0"]),
                (272, "c", [b"C9600-12\0"]),
                (273, "I", [start]),
                (277, "H", [3]),
                (278, "I", [height]),
                (279, "I", [len(strip)]),
                (282, "R", [int(PER_CM[0]) >> number, 1]),
                (283, "R", [int(PER_CM[0]) >> number, 1]),
                (296, "H", [3]),
                (65420, "I", [1]),
                (65421, "f", [lens]),
                (65422, "i", [0]),
                (65423, "i", [0]),
                (65424, "i", [0]),
                (65426, "I", _restarts(strip)),
            )
            if tag != 65426 or (restarts and lens > 0)
        ]
        struct.pack_into("<Q", data, place, len(data))
        place = len(data) + 2 + 12 * len(entries)
        data += struct.pack("<H", len(entries)) + b"".join(entries)
        data += bytes(8 + 4 * len(entries))
    path.write_bytes(data)


def _ndpi_entry(data: bytearray, tag: int, kind: str, values: Sequence[Any]) -> bytes:
    """One entry of a directory; values that it has no room for go to the end of `data`."""
    number = {"c": 2, "H": 3, "I": 4, "R": 5, "i": 9, "f": 11}[kind]
    packed = (
        values[0]
        if kind == "c"
        else struct.pack(f"<{len(values)}{'I' if kind == 'R' else kind}", *values)
    )
    count = {"c": len(packed), "R": 1}.get(kind, len(values))
    if len(packed) > 4:
        at = len(data)
        data += packed + bytes(len(packed) % 2)
        packed = struct.pack("<I", at)
    return struct.pack("<HHI", tag, number, count) + packed.ljust(4, b"\0")


def _restarts(whole: bytes) -> list[int]:
    """Where the coded pixels start, and start again after each restart marker."""
    _, rest = jpeg_segments(whole)
    first = len(whole) - len(rest) + 2 + int.from_bytes(rest[2:4], "big")
    return [first] + [
        at + 2
        for at in range(first, len(whole) - 1)
        if whole[at] == 0xFF and 0xD0 <= whole[at + 1] <= 0xD7
    ]
