"""The models historay knows, by name; a new model is a new entry in `catalogue`, nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from ray_pipeline.encoders.catalogue import (
    bioptimus,
    histai,
    hkust,
    kaiko,
    lunit,
    mahmood,
    owkin,
    paige,
    providence,
    toy,
)
from ray_pipeline.encoders.spec import ModelSpec
from ray_pipeline.errors import SettingsError

_ENTRIES = (
    *bioptimus.ENTRIES,
    *mahmood.ENTRIES,
    *paige.ENTRIES,
    *providence.ENTRIES,
    *histai.ENTRIES,
    *owkin.ENTRIES,
    *kaiko.ENTRIES,
    *hkust.ENTRIES,
    *lunit.ENTRIES,
    *toy.ENTRIES,
)

MODELS: Mapping[str, ModelSpec] = {spec.name: spec for spec in _ENTRIES}
"""Every known model by name, in the order they are listed to users."""


def get_spec(name: str) -> ModelSpec:
    """The entry called `name`. Raises SettingsError naming the known models."""
    spec = MODELS.get(name)
    if spec is None:
        raise SettingsError(f"model '{name}' is not known; choose one of {', '.join(MODELS)}.")
    return spec
