"""QuPath's GeoJSON: the tiles as detections, and around them what the output knows of the tissue.

Object types, classifications and measurements as QuPath reads and writes them:
github.com/qupath/qupath, `qupath-core/src/main/java/qupath/lib/io/QuPathTypeAdapters.java`.
Coordinates are level-0 px from the left top corner.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import numpy as np

from ray_pipeline.exports.outline import outline
from ray_pipeline.exports.source import SlideFile

TISSUE = {"name": "Tissue", "color": [0, 140, 0]}
TILE = {"name": "Tile", "color": [30, 60, 220]}
"""Classifications: QuPath makes a class of each name."""


class GeoJsonWriter:
    """Writes one FeatureCollection per slide."""

    suffix = ".geojson"

    def write(self, slide: SlideFile, path: Path) -> None:
        """One annotation for each piece of the tiles' union, one detection per tile.

        The mask on which tissue was found is not kept in an output, so the union of the kept tiles
        stands for it: coarser by up to a tile. Ids are the same in every export.
        """
        family = uuid5(NAMESPACE_URL, f"historay:{slide.footer.recipe_fp}:{slide.slide_id}")
        with path.open("w", encoding="utf-8") as file:
            facts = json.dumps(slide.facts(), ensure_ascii=False)
            file.write(f'{{"type":"FeatureCollection","historay":{facts},"features":[')
            mark = "\n"
            for feature in _features(slide, family):
                file.write(mark + json.dumps(feature, ensure_ascii=False, separators=(",", ":")))
                mark = ",\n"
            file.write("\n]}\n")


def _features(slide: SlideFile, family: UUID) -> Iterator[dict[str, Any]]:
    xy = slide.table(["x", "y"])
    corners = np.stack([xy["x"].to_numpy(), xy["y"].to_numpy()], axis=1).astype(np.int64)
    # Corners are rounded down: whole squares rounded up leave no gaps between neighbours.
    for number, rings in enumerate(outline(corners, math.ceil(slide.size_l0 - 1e-6))):
        yield _feature(uuid5(family, f"tissue {number}"), "annotation", TISSUE, rings)
    side = slide.size_l0
    for batch in slide.batches(["tile", "x", "y", "tissue"]):
        for tile, x, y, tissue in zip(*(column.to_pylist() for column in batch), strict=True):
            right, bottom = x + side, y + side
            ring = [(x, y), (right, y), (right, bottom), (x, bottom), (x, y)]
            feature = _feature(uuid5(family, f"tile {tile}"), "detection", TILE, [ring])
            feature["properties"]["measurements"] = {"tile": tile, "tissue": round(tissue, 4)}
            yield feature


def _feature(
    identity: UUID, kind: str, classification: dict[str, Any], rings: list[Any]
) -> dict[str, Any]:
    return {
        "type": "Feature",
        "id": str(identity),
        "geometry": {"type": "Polygon", "coordinates": rings},
        "properties": {"objectType": kind, "classification": classification},
    }
