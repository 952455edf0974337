"""OME-XML: the physical size of a pixel."""

from __future__ import annotations

from xml.etree import ElementTree

UM_PER_UNIT = {
    "µm": 1.0,
    "μm": 1.0,
    "um": 1.0,
    "nm": 1e-3,
    "pm": 1e-6,
    "Å": 1e-4,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
}
"""Microns per unit of length; micro in both its spellings. Other units are not lengths."""


def ome_mpp(xml: str, width_px: int, height_px: int) -> tuple[float | None, float | None]:
    """Microns per pixel across and down of the image of that size; None where it states none.

    PhysicalSizeX/Y and their units, microns without (OME schema 2016-06, Pixels). Raises ParseError
    for what is no XML.
    """
    for element in ElementTree.fromstring(xml).iter():  # noqa: S314 (expat bounds entities)
        if not element.tag.endswith("}Pixels") and element.tag != "Pixels":
            continue
        if (element.get("SizeX"), element.get("SizeY")) == (str(width_px), str(height_px)):
            return _size(element, "X"), _size(element, "Y")
    return None, None


def _size(pixels: ElementTree.Element, axis: str) -> float | None:
    stated = pixels.get(f"PhysicalSize{axis}")
    scale = UM_PER_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    if stated is None or scale is None:
        return None
    try:
        return float(stated) * scale
    except ValueError:
        return None
