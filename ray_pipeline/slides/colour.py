"""A scanner's colours as sRGB, by the ICC profile that its slides carry."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

MAX_PROFILE_BYTES = 4 << 20
"""A matrix takes half a kilobyte and tables some hundred; far more is no profile of a scanner."""


class ToSrgb:
    """Tiles in a scanner's colour space to sRGB, by Little CMS.

    The rendering intent is the one that the profile names as its own, without black point
    compensation: so does OpenSlide's viewer (openslide-python, pull request 227), and a tile then
    looks as it does there. Not every profile has tables for every intent, nor good ones; for a
    matrix profile perceptual and relative colorimetric are the same. (255, 255, 255) stays as it is
    where the profile has tables, whatever they say: so Little CMS keeps white white.

    May be shared between threads: once built, a transform is only read, and Pillow lets go of the
    interpreter's lock while it runs.
    """

    def __init__(self, profile: bytes) -> None:
        """Take the bytes of an ICC profile; ValueError if no RGB picture can be converted by it."""
        if len(profile) > MAX_PROFILE_BYTES:
            raise ValueError(
                f"the ICC profile has {len(profile)} bytes, more than {MAX_PROFILE_BYTES}"
            )
        try:
            scanner = ImageCms.ImageCmsProfile(BytesIO(profile))
        except OSError as error:
            raise ValueError(f"the ICC profile of {len(profile)} bytes is broken") from error
        space = scanner.profile.xcolor_space.strip()
        if space != "RGB":
            raise ValueError(f"the ICC profile is for {space or 'unnamed'} colours, not RGB")
        try:
            self._transform = ImageCms.buildTransform(
                scanner,
                ImageCms.createProfile("sRGB"),
                "RGB",
                "RGB",
                ImageCms.Intent(ImageCms.getDefaultIntent(scanner)),
            )
        except (ImageCms.PyCMSError, ValueError) as error:
            raise ValueError("the ICC profile lacks what a conversion to sRGB needs") from error

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return `tiles`, uint8 [n, h, w, 3] in the scanner's colours, as sRGB of the same shape.

        A tile at a time stays in the processor's cache; one tall picture of all is slower.
        """
        converted = np.empty_like(tiles)
        for index, tile in enumerate(tiles):
            picture = Image.fromarray(tile)
            # In place, Pillow has no fourth byte of each pixel to carry over.
            self._transform.apply_in_place(picture)
            converted[index] = np.asarray(picture)
        return converted
