"""The recipe: everything that determines an embedding's value, and its fingerprint.

The fingerprint stands in every path of the output, so numbers made in different ways never meet
in one folder. It is the first 12 hex digits of the SHA-256 of the recipe's canonical JSON (sorted
keys, no spaces, UTF-8).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.encoders.spec import EncoderIdentity
from ray_pipeline.errors import OffSpecError
from ray_pipeline.settings import JobSettings
from ray_pipeline.slides.grid import MPP_TOLERANCE, TilingRule
from ray_pipeline.slides.normalise import NormaliseRule
from ray_pipeline.slides.resample import RESAMPLE_RULE
from ray_pipeline.slides.tissue import TissueRule

FORMAT_VERSION = 1
"""Version of the output's layout and of the rules that no setting names."""
SHARD_TILES = 256
"""Tiles of one shard: the unit of reading, retry, staging and resume."""

CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
"""Made once: making it is a quarter of what a fingerprint costs."""


def canonical_json(value: Any) -> str:
    """The one spelling of `value` as JSON: sorted keys, no spaces, non-ASCII kept."""
    return CANONICAL.encode(value)


def fingerprint_of(value: Any) -> str:
    """First 12 hex digits of the SHA-256 of `value`'s canonical JSON."""
    return _short_digest(canonical_json(value))


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that determines an embedding's value, given the source's bytes."""

    encoder: EncoderIdentity
    """Model, weights digest, precision, preprocessing, pooling."""
    tiling: TilingRule
    """Tile side and stride (px at `mpp`) and the target microns per pixel."""
    tissue: TissueRule
    """How tissue is found and which tiles are kept."""
    normalise: NormaliseRule
    """What is done to the colours of tiles."""
    max_tiles_per_slide: int | None = None
    """Only the first tiles in read order, or None for all."""
    allow_off_spec: bool = False
    """The tiling may differ from the one the model was made for."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they stand in `recipe.json` and in every footer."""
        return {
            "format": FORMAT_VERSION,
            "encoder": self.encoder.to_json(),
            "tiling": asdict(self.tiling),
            "tissue": asdict(self.tissue),
            "reading": {
                "level": "coarsest not coarser than mpp",
                "mpp_tolerance": MPP_TOLERANCE,
                "resample": RESAMPLE_RULE,
                "normalise": asdict(self.normalise),
            },
            "max_tiles_per_slide": self.max_tiles_per_slide,
            "allow_off_spec": self.allow_off_spec,
        }

    @property
    def fingerprint(self) -> str:
        """12 hex digits that name the recipe in paths."""
        return fingerprint_of(self.to_dict())


def tiling_of(settings: JobSettings) -> TilingRule:
    """The tiling a job asks for, with the model's own numbers where it says nothing.

    Raises OffSpecError when the model was not made for it and `allow_off_spec` is not set, and
    always when the model can't take tiles of that side.
    """
    spec = get_spec(settings.model)
    tile_px, mpp = settings.tile_px or spec.tile_px, settings.mpp or spec.mpp
    if tile_px != spec.tile_px:
        raise OffSpecError(
            f"tile_px: {tile_px}: {spec.name} takes tiles of {spec.tile_px} px only; "
            "to see a wider field ask for a coarser mpp, with allow_off_spec: true."
        )
    if abs(mpp / spec.mpp - 1) > 1e-6 and not settings.allow_off_spec:
        raise OffSpecError(
            f"mpp: {mpp}: {spec.name} was made for {spec.tile_px} px at {spec.mpp} mpp; "
            "leave mpp out, or set allow_off_spec: true to go on all the same."
        )
    return TilingRule(tile_px=tile_px, stride_px=settings.stride_px or tile_px, mpp=mpp)


def tissue_rule_of(settings: JobSettings) -> TissueRule:
    """The tissue rule a job asks for."""
    return TissueRule(overview_mpp=settings.overview_mpp, min_tissue=settings.min_tissue)


def recipe_of(settings: JobSettings, encoder: EncoderIdentity) -> Recipe:
    """The recipe of a job whose encoder is `encoder`."""
    return Recipe(
        encoder=encoder,
        tiling=tiling_of(settings),
        tissue=tissue_rule_of(settings),
        normalise=NormaliseRule(colour=settings.colour, stain=settings.stain),
        max_tiles_per_slide=settings.max_tiles_per_slide,
        allow_off_spec=settings.allow_off_spec,
    )


def input_fingerprint(
    *, uri: str, etag: str, mpp_override: float | None, coordinates: Mapping[str, Any] | None = None
) -> str:
    """`input_fp`: which source a slide's output was made from."""
    if coordinates is None:
        # The same spelling, put together here: a job may ask for a million, and it takes a third.
        mpp = "null" if mpp_override is None else CANONICAL.encode(mpp_override)
        told = f'"etag":{CANONICAL.encode(etag)},"mpp_override":{mpp},"uri":{CANONICAL.encode(uri)}'
        return _short_digest(f'{{"coordinates":null,{told}}}')
    return fingerprint_of(
        {"uri": uri, "etag": etag, "mpp_override": mpp_override, "coordinates": coordinates}
    )
