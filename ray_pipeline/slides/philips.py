"""Philips' XML: the physical size of a pixel, and how much of each level is slide."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import numpy as np

_SPACING = "Attribute[@Name='DICOM_PIXEL_SPACING']"
_IMAGE = ".//DataObject[@ObjectType='DPScannedImage']"
_TYPE = "Attribute[@Name='PIM_DP_IMAGE_TYPE']"


def philips_mpp(xml: str) -> tuple[float | None, float | None]:
    """Microns per pixel across and down; None where it states none.

    Those of the scan, else of its finest level. Raises ParseError for what is no XML, ValueError
    for spacings that are no numbers.
    """
    scan = _scan(xml)
    stated = scan.findtext(_SPACING) or scan.findtext(f".//{_SPACING}")
    if stated is None:
        return None, None
    down, across = _millimetres(stated)
    return 1000 * across, 1000 * down


def drop_padding(pages: list[Any], xml: str) -> None:
    """Cut tifffile's pages, one per level, down to what is slide.

    Their directories count the padding to whole tiles, and sometimes more of it, as slide; only
    the levels' pixel spacings tell the truth. Raises ParseError, ArithmeticError or ValueError.
    """
    if len(pages) == 1:
        return
    levels = _scan(xml).iterfind(f".//DataObject[@ObjectType='PixelDataRepresentation']/{_SPACING}")
    spacings = [_millimetres(level.text or "") for level in levels]
    for page, (down, across) in zip(pages[1:], spacings[1:], strict=True):
        times = round((down / spacings[0][0] + across / spacings[0][1]) / 2)
        stated_width, stated_height = (page.tags.valueof(tag) for tag in (256, 257))
        page.imagewidth = min(pages[0].imagewidth // times, stated_width)
        page.imagelength = min(pages[0].imagelength // times, stated_height)
        grid = np.arange(len(page.dataoffsets)).reshape(-1, -(-stated_width // page.tilewidth))
        rows = -(-page.imagelength // page.tilelength)
        held = grid[:rows, : -(-page.imagewidth // page.tilewidth)].ravel()
        page.dataoffsets = np.asarray(page.dataoffsets)[held]
        page.databytecounts = np.asarray(page.databytecounts)[held]


def _scan(xml: str) -> ElementTree.Element:
    """What the XML says of the slide, apart from label and macro; all of it where it has no parts.

    Raises ParseError.
    """
    root = ElementTree.fromstring(xml)  # noqa: S314 (expat bounds entities)
    scans = (image for image in root.iterfind(_IMAGE) if image.findtext(_TYPE) == "WSI")
    return next(scans, root)


def _millimetres(spacing: str) -> tuple[float, float]:
    """Down and across, as in DICOM: two numbers in quotes."""
    down, across = (float(word) for word in spacing.replace('"', " ").split())
    return down, across
