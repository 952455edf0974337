"""GeoJSON that QuPath imports: annotations around the tissue, a detection per tile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from ray_pipeline.exports.run import export_slides
from ray_pipeline.store import Store
from tests.exports.conftest import columns, commit


def features(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(annotations, detections), each checked for what QuPath asks of a feature."""
    told = json.loads(path.read_text(encoding="utf-8"))
    assert told["type"] == "FeatureCollection"
    for feature in told["features"]:
        assert feature["type"] == "Feature"
        UUID(feature["id"])
        assert feature["geometry"]["type"] == "Polygon"
        for ring in feature["geometry"]["coordinates"]:
            assert ring[0] == ring[-1]
        classification = feature["properties"]["classification"]
        assert len(classification["color"]) == 3
    kinds = [feature["properties"]["objectType"] for feature in told["features"]]
    assert set(kinds) <= {"annotation", "detection"}
    found = [
        [f for f, kind in zip(told["features"], kinds, strict=True) if kind == wanted]
        for wanted in ("annotation", "detection")
    ]
    return found[0], found[1]


def test_tiles_are_detections_in_level_0_pixels(output: Store, tmp_path: Path) -> None:
    export_slides(output, str(tmp_path / "g"), "geojson")
    _, detections = features(tmp_path / "g" / "gewebe ä µ.geojson")
    tile, x, y, tissue = columns(output, "gewebe ä µ", ["tile", "x", "y", "tissue"])
    assert len(detections) == len(tile)
    for feature, number, left, top, share in zip(detections, tile, x, y, tissue, strict=True):
        (ring,) = feature["geometry"]["coordinates"]
        corners = np.array(ring)
        assert corners.min(axis=0).tolist() == [left, top]
        assert corners.max(axis=0).tolist() == [left + 448, top + 448]
        measured = feature["properties"]["measurements"]
        assert measured == {"tile": number, "tissue": round(float(share), 4)}
        assert feature["properties"]["classification"]["name"] == "Tile"
    assert len({feature["id"] for feature in detections}) == len(tile)


def test_the_tissue_is_the_union_of_the_tiles(tmp_path: Path) -> None:
    """300 tiles of 448 px on a pitch of 224: 50 a row, six rows."""
    store = Store.open(str(tmp_path / "out"))
    commit(store, "a", 300, stride_px=112)
    export_slides(store, str(tmp_path / "g"), "geojson")
    (annotation,), _ = features(tmp_path / "g" / "a.geojson")
    (ring,) = annotation["geometry"]["coordinates"]
    width, height = 49 * 224 + 448, 5 * 224 + 448
    assert {tuple(point) for point in ring} == {(0, 0), (width, 0), (width, height), (0, height)}
    assert annotation["properties"]["classification"]["name"] == "Tissue"


def test_ids_are_the_same_in_every_export(output: Store, tmp_path: Path) -> None:
    for name in ("one", "two"):
        export_slides(output, str(tmp_path / name), "geojson", slide_ids=["007"])
    one, two = ((tmp_path / name / "007.geojson").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_slide_without_tiles_has_no_features(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "out"))
    commit(store, "blank", 0)
    export_slides(store, str(tmp_path / "g"), "geojson")
    assert features(tmp_path / "g" / "blank.geojson") == ([], [])
