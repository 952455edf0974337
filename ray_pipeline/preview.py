"""`historay preview`: a picture of the overview, the tissue's contour and the kept tiles."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

from ray_pipeline.plan import TilePlan, plan_slide
from ray_pipeline.slides.grid import TilingRule
from ray_pipeline.slides.slide import Slide
from ray_pipeline.slides.tissue import TissueRule, find_tissue
from ray_pipeline.store import Store
from ray_pipeline.uris import split_uri

CONTOUR = (0, 140, 0)
TILE = (30, 60, 220)


def draw_preview(
    slide: Slide, tiling: TilingRule, rule: TissueRule, *, max_tiles: int | None = None
) -> tuple[Image.Image, TilePlan]:
    """The picture (RGB, the overview's size) and the plan it shows."""
    overview = slide.overview(rule.overview_mpp)
    mask = find_tissue(overview, slide.mpp.value, rule)
    plan = plan_slide(slide, tiling, rule, max_tiles=max_tiles)
    pixels: npt.NDArray[np.uint8] = overview.rgb.copy()
    edge = mask.mask & ~ndimage.binary_erosion(mask.mask, border_value=1)
    pixels[edge] = CONTOUR
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    width = plan.geometry.size_l0 / overview.downsample_x
    height = plan.geometry.size_l0 / overview.downsample_y
    for x, y in plan.xy:
        left, top = x / overview.downsample_x, y / overview.downsample_y
        draw.rectangle((left, top, left + width, top + height), outline=TILE)
    return picture, plan


def save_preview(picture: Image.Image, out: str) -> None:
    """Write the picture as PNG to a path or a store URI."""
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    root, key = split_uri(out)
    Store.open(root).put(key, sink.getvalue())
