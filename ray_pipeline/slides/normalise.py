"""From a scanner's and a laboratory's colours to common ones, on the tiles, before the encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ray_pipeline.errors import NormaliseError
from ray_pipeline.slides.colour import ToSrgb
from ray_pipeline.slides.stains import fit_from_json, fit_macenko, fit_reinhard

Colour = Literal["scanner", "srgb"]
Stain = Literal["own", "macenko", "reinhard"]


@dataclass(frozen=True, kw_only=True)
class NormaliseRule:
    """What is done to the pixels of tiles; the model's mean and deviation are not part of it."""

    colour: Colour = "scanner"
    """`scanner` leaves colours as they are stored; `srgb` converts by the slide's ICC profile,
    where it has one."""
    stain: Stain = "own"
    """`own` leaves the staining; `macenko` and `reinhard` bring it to a common one."""
    stain_sample_tiles: int = 32
    """Tiles of a slide, evenly spaced in its plan, that its staining is fitted on."""


class Normaliser:
    """A rule, made ready for one slide."""

    def __init__(
        self,
        rule: NormaliseRule,
        *,
        slide_id: str,
        icc_profile: bytes | None,
        stain_fit: str | None = None,
    ) -> None:
        """`stain_fit` is what `fit_stain` returned. Raises NormaliseError for a broken profile."""
        self._rule, self._slide_id = rule, slide_id
        self._to_srgb = None
        if rule.colour == "srgb" and icc_profile is not None:
            try:
                self._to_srgb = ToSrgb(icc_profile)
            except ValueError as error:
                raise NormaliseError(
                    f"{slide_id}: {error}: leave the slide out, or run with colour: scanner."
                ) from error
        self._fit = None if stain_fit is None else fit_from_json(stain_fit)

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Normalised `tiles`, uint8 [n, h, w, 3]; the same array where there is nothing to do."""
        if self._to_srgb is not None:
            tiles = self._to_srgb(tiles)
        return tiles if self._fit is None else self._fit.apply(tiles)

    def fit_stain(self, sample: npt.NDArray[np.uint8]) -> str | None:
        """The slide's staining as JSON, from tiles uint8 [n, h, w, 3]; None for the rule `own`.

        Raises NormaliseError where the tiles show no staining that can be fitted.
        """
        if self._rule.stain == "own":
            return None
        fit = fit_macenko if self._rule.stain == "macenko" else fit_reinhard
        try:
            return fit(self(sample)).to_json()
        except ValueError as error:
            raise NormaliseError(
                f"{self._slide_id}: {error}: leave the slide out, or run with stain: own."
            ) from error
