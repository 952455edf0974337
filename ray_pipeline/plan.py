"""Slide -> tiles in read order -> shards. Reads the overview, keeps and writes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_pipeline.coordinates import Coordinates
from ray_pipeline.errors import CoordinatesError
from ray_pipeline.recipe import SHARD_TILES, fingerprint_of
from ray_pipeline.slides.grid import (
    MPP_TOLERANCE,
    ReadGeometry,
    TilingRule,
    choose_geometry,
    grid_origins,
    read_order,
)
from ray_pipeline.slides.normalise import Normaliser, NormaliseRule
from ray_pipeline.slides.slide import Slide
from ray_pipeline.slides.tissue import TissueRule, find_tissue, tissue_fractions


@dataclass(frozen=True, kw_only=True)
class TilePlan:
    """The tiles of one slide in read order, and how to read them."""

    slide_id: str
    """The slide's id within the job."""
    geometry: ReadGeometry
    """Level to read, tile side at that level, whether tiles are resampled."""
    tile_px: int
    """Side of a tile as the model takes it, px."""
    xy: npt.NDArray[np.int32]
    """Left top corner of each tile, level-0 px: int32 [n, 2]."""
    tissue: npt.NDArray[np.float32]
    """Share of each tile that is tissue, 0..1: float32 [n]."""
    plan_fp: str
    """Fingerprint of source version, geometry, coordinates, tissue and shard length."""
    stain_fit: str | None
    """The slide's staining as JSON, where tiles are brought to a common one."""
    facts: dict[str, Any]
    """What the slides table tells of the slide: sizes, mpp, level, mask numbers."""

    @property
    def n_tiles(self) -> int:
        """Tiles of the plan."""
        return len(self.xy)

    @property
    def n_shards(self) -> int:
        """Shards of the plan."""
        return -(-self.n_tiles // SHARD_TILES)

    def shard(self, index: int) -> slice:
        """Where shard `index` stands among the tiles."""
        return slice(index * SHARD_TILES, min((index + 1) * SHARD_TILES, self.n_tiles))


def tiles_in_shards(n_tiles: int, shards: Collection[int]) -> int:
    """How many of a plan's `n_tiles` tiles lie in `shards`."""
    return sum(min(SHARD_TILES, n_tiles - shard * SHARD_TILES) for shard in shards)


def plan_slide(
    slide: Slide,
    tiling: TilingRule,
    tissue_rule: TissueRule,
    normalise: NormaliseRule | None = None,
    *,
    max_tiles: int | None = None,
    coordinates: Coordinates | None = None,
) -> TilePlan:
    """Find the slide's tissue on its overview, lay the tiles over it, and fit its staining.

    Where `coordinates` are given they are the tiles, all of them, and the tissue found only tells
    how much of each it is. Raises TooCoarseError when even level 0 is coarser than `tiling.mpp`,
    CoordinatesError when those given do not fit, NormaliseError when the staining can't be fitted,
    and the reader's own SlideError or StoreError.
    """
    geometry = choose_geometry(slide.levels, tiling, slide_id=slide.slide_id)
    if coordinates is not None:
        _check_coordinates(slide, geometry, tiling, coordinates)
    mask = find_tissue(slide.overview(tissue_rule.overview_mpp), slide.mpp.value, tissue_rule)
    xy = grid_origins(slide.levels[0], geometry) if coordinates is None else coordinates.xy
    tissue = tissue_fractions(mask, xy, geometry.size_l0)
    if coordinates is None:
        # A tile without any tissue is never kept, not even where min_tissue is 0.
        kept = (tissue > 0) & (tissue >= tissue_rule.min_tissue)
        xy, tissue = xy[kept], tissue[kept]
    order = read_order(xy)[:max_tiles]
    xy, tissue = np.ascontiguousarray(xy[order]), np.ascontiguousarray(tissue[order])
    stain_fit = None if normalise is None else _stain_fit(slide, geometry, tiling, normalise, xy)
    return TilePlan(
        slide_id=slide.slide_id,
        geometry=geometry,
        tile_px=tiling.tile_px,
        xy=xy,
        tissue=tissue,
        plan_fp=_plan_fingerprint(slide, geometry, tiling, xy, tissue, stain_fit=stain_fit),
        stain_fit=stain_fit,
        facts={
            "vendor": slide.vendor,
            "width_px": slide.levels[0].width_px,
            "height_px": slide.levels[0].height_px,
            "mpp_found": slide.mpp.found,
            "mpp_source": slide.mpp.source,
            "mpp_used": slide.mpp.value,
            "mpp_asked": tiling.mpp,
            "mpp_achieved": geometry.mpp_achieved,
            "level": geometry.level,
            "reduce": geometry.reduce,
            "resampled": geometry.resampled,
            "icc_profile": slide.icc_profile is not None,
            "tile_size_l0": geometry.size_l0,
            "tissue_mm2": mask.tissue_mm2,
            "mask": mask.numbers(),
        },
    )


def _check_coordinates(
    slide: Slide, geometry: ReadGeometry, tiling: TilingRule, coordinates: Coordinates
) -> None:
    """Raise CoordinatesError unless the tiles are as large as the recipe's and on the slide."""
    asked, given, level0 = geometry.size_l0, coordinates.size_l0, slide.levels[0]
    if abs(given / asked - 1) > MPP_TOLERANCE:
        raise CoordinatesError(
            f"{slide.slide_id}: its coordinates are of tiles of {given:g} px at level 0, and "
            f"{tiling.tile_px} px at {tiling.mpp:g} microns per pixel are {asked:g} px there, more "
            f"than {MPP_TOLERANCE:.0%} off: cut tiles of that size, or ask for another mpp."
        )
    # To the pixel: a reader would move a tile that reaches past the edge.
    limit = np.array([level0.width_px, level0.height_px]) - np.floor(asked + 1e-6)
    outside = ((coordinates.xy < 0) | (coordinates.xy > limit)).any(axis=1)
    if outside.any():
        x, y = coordinates.xy[outside.argmax()].tolist()
        raise CoordinatesError(
            f"{slide.slide_id}: {outside.sum()} of its coordinates, the first at x {x}, y {y}, are "
            f"of tiles of {asked:g} px that do not lie on the slide's {level0.width_px} x "
            f"{level0.height_px} px: are they another slide's? Else leave those at its edges out."
        )


def _stain_fit(
    slide: Slide,
    geometry: ReadGeometry,
    tiling: TilingRule,
    rule: NormaliseRule,
    xy: npt.NDArray[np.int32],
) -> str | None:
    """The slide's staining, from tiles evenly spaced in read order."""
    normaliser = Normaliser(rule, slide_id=slide.slide_id, icc_profile=slide.icc_profile)
    if rule.stain == "own" or not len(xy):
        return None
    chosen = np.unique(np.linspace(0, len(xy) - 1, rule.stain_sample_tiles).astype(int))
    sample = slide.read_tiles(
        level=geometry.level,
        xy=xy[chosen],
        side_px=geometry.side_px,
        tile_px=tiling.tile_px,
        reduce=geometry.reduce,
    )
    return normaliser.fit_stain(sample)


def _plan_fingerprint(
    slide: Slide,
    geometry: ReadGeometry,
    tiling: TilingRule,
    xy: npt.NDArray[np.int32],
    tissue: npt.NDArray[np.float32],
    *,
    stain_fit: str | None,
) -> str:
    return fingerprint_of(
        {
            "stain_fit": stain_fit,
            "etag": slide.etag,
            "geometry": asdict(geometry),
            "tile_px": tiling.tile_px,
            "xy": hashlib.sha256(xy.astype("<i4").tobytes()).hexdigest(),
            "tissue": hashlib.sha256(tissue.astype("<f4").tobytes()).hexdigest(),
            "shard_tiles": SHARD_TILES,
        }
    )
