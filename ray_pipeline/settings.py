"""What a user can say about a job: one flat set of keys, the same in YAML and as flags.

`tile_px: 224` in a YAML file and `--tile-px 224` on the command line mean the same; a flag wins
over the file. Units stand in the names (`_px` pixels, `mpp` microns per pixel).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ray_pipeline.encoders.spec import AskedPrecision
from ray_pipeline.errors import NotFoundError, SettingsError, error_kinds
from ray_pipeline.slides.normalise import Colour, NormaliseRule, Stain
from ray_pipeline.slides.tissue import TissueRule
from ray_pipeline.store import Store
from ray_pipeline.uris import split_uri

LogFormat = Literal["auto", "json"]

_TISSUE, _NORMALISE = TissueRule(), NormaliseRule()

Words = list[Annotated[str, Field(min_length=1)]]
"""A key that may be said several times as a flag; in YAML a list, or one alone."""


class JobSettings(BaseModel):
    """One embedding job."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    slides: Words = Field(
        min_length=1,
        description="Slides: a prefix, a glob, a slide's URI, or a CSV/Parquet manifest.",
    )
    output: str = Field(
        min_length=1, description="Where the dataset goes: a prefix in object storage, or a folder."
    )
    model: str = Field(default="h-optimus-0", description="Model name; see `historay models`.")
    weights: str | None = Field(
        default=None,
        min_length=1,
        description="A file or store URI of weights, or 'random'; default: the hub's local cache.",
    )
    precision: AskedPrecision = Field(
        default="auto", description="Arithmetic of the encoder; auto takes the device's best."
    )
    mpp: float | None = Field(
        default=None,
        ge=0.05,
        le=20,
        description="Microns per pixel of a tile; default: the model's.",
    )
    tile_px: int | None = Field(
        default=None, ge=14, le=4096, description="Side of a tile, pixels; default: the model's."
    )
    stride_px: int | None = Field(
        default=None, ge=1, description="Step between tiles, tile pixels; default: the tile's side."
    )
    allow_off_spec: bool = Field(
        default=False, description="Take a tiling the model was not made for (kept in the recipe)."
    )
    mpp_override: float | None = Field(
        default=None,
        ge=0.05,
        le=20,
        description="Microns per pixel of level 0 for all slides, whatever their files state.",
    )
    min_tissue: float = Field(
        default=_TISSUE.min_tissue, ge=0, le=1, description="Least tissue share of a kept tile."
    )
    overview_mpp: float = Field(
        default=_TISSUE.overview_mpp,
        ge=1,
        le=64,
        description="Microns per pixel of the overview on which tissue is found.",
    )
    colour: Colour = Field(
        default=_NORMALISE.colour,
        description="Colours: as the scanner stored them, or srgb by the slide's ICC profile.",
    )
    stain: Stain = Field(
        default=_NORMALISE.stain,
        description="Staining: the slide's own, or brought to a common one, fitted per slide.",
    )
    max_tiles_per_slide: int | None = Field(
        default=None, ge=1, description="Keep only the first tiles of each slide: for trials."
    )
    partition_by: Words = Field(
        default_factory=list, description="Manifest columns that become folders above `slide=`."
    )
    retry: Words = Field(
        default_factory=list, description="Take just the slides that ended with these error kinds."
    )
    readers: int | None = Field(
        default=None, ge=1, description="Reading actors; default: by the cluster."
    )
    reader_cpus: float = Field(default=0.5, gt=0, description="CPUs held by one reading actor.")
    encoders: int | None = Field(
        default=None, ge=1, description="Encoding actors; default: one per GPU, or one."
    )
    encoder_cpus: float | None = Field(
        default=None, gt=0, description="CPUs held by one encoding actor; default: by the cluster."
    )
    encoder_gpus: float | None = Field(
        default=None,
        ge=0,
        description="GPUs held by one encoding actor; default: 1 where there are any.",
    )
    encoder_resource: str | None = Field(
        default=None,
        min_length=1,
        description="What a node must have to hold encoders: a custom resource of Ray, or a "
        "kind of GPU such as accelerator_type:H100.",
    )
    batch_size: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Tiles of one forward pass; default: by the device.",
    )
    compile: bool | None = Field(
        default=None,
        description="Compile the model, which takes minutes; default: for large ones without "
        "max_tiles_per_slide.",
    )
    autoscaling: bool = Field(
        default=False,
        description="The cluster grows on demand: what doesn't fit yet is a warning, not an error.",
    )
    stop_grace_s: float = Field(
        default=20,
        ge=0,
        description="Seconds that SIGTERM or Ctrl-C leaves for staging what is in flight.",
    )
    no_progress_s: float = Field(
        default=1800, gt=0, description="Give up when nothing at all has moved for so many seconds."
    )

    log_format: LogFormat = Field(
        default="auto",
        description="What standard error gets: auto is a bar and sentences on a terminal and JSON "
        "lines elsewhere; json is always lines.",
    )

    @field_validator("slides", "partition_by", "retry", mode="before")
    @classmethod
    def _one_alone(cls, said: Any) -> Any:
        return [said] if isinstance(said, str) else said

    @field_validator("weights")
    @classmethod
    def _absolute(cls, weights: str | None) -> str | None:
        """A relative path means the same on every worker of this machine."""
        if weights in (None, "random") or "://" in str(weights):
            return weights
        return str(Path(str(weights)).expanduser().absolute())

    @field_validator("retry")
    @classmethod
    def _known_kinds(cls, retry: list[str]) -> list[str]:
        kinds = sorted(error_kinds())
        for kind in retry:
            if kind not in kinds:
                raise ValueError(f"no error kind '{kind}'; there are {', '.join(kinds)}")
        return retry


def load_settings(
    config: str | None, flags: Mapping[str, Any], *, defaults: Mapping[str, Any] | None = None
) -> JobSettings:
    """Settings from a YAML file (path or store URI) overlaid by flags that are not None or empty.

    `defaults` stand in for keys that neither says, for commands that need less than a job does.

    Raises SettingsError naming the key, what is wrong with it and the mend.
    """
    said: dict[str, Any] = dict(defaults or {})
    if config is not None:
        said.update(keys_of(config, flag="--config", such_as="output: s3://..."))
    said.update({key: value for key, value in flags.items() if value not in (None, [], ())})
    try:
        return JobSettings(**said)
    except ValidationError as error:
        raise SettingsError(
            sentence_of(error, JobSettings, see="see `historay embed --help`.")
        ) from None
    except TypeError:
        raise SettingsError(f"{config}: every key must be text.") from None


def keys_of(uri: str, *, flag: str, such_as: str) -> dict[str, Any]:
    """Keys and values of a YAML file (path or store URI), which `flag` names.

    Raises SettingsError where it is none, is not there, or says a key twice.
    """
    root, key = split_uri(uri)
    try:
        text = Store.open(root).get(key)
    except NotFoundError as error:
        raise SettingsError(f"{flag}: {error}") from None
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise SettingsError(f"{uri} is no valid YAML{line}; mend it and run again.") from None
    if not isinstance(loaded, dict):
        raise SettingsError(f"{uri} must hold keys and values, such as '{such_as}'.")
    node: Any = yaml.compose(text, yaml.SafeLoader)
    names = [name.value for name, _ in node.value]
    if twice := [name for name in loaded if names.count(name) > 1]:
        raise SettingsError(f"{uri} says '{twice[0]}' twice: keep one.")
    return loaded


def sentence_of(error: ValidationError, model: type[BaseModel], *, see: str) -> str:
    """One sentence for each problem with the keys of `model`; `see` tells where they are listed."""
    parts = []
    for problem in error.errors(include_url=False, include_context=False):
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, model.model_fields, n=1)
            hint = f"did you mean '{near[0]}'?" if near else see
            parts.append(f"'{key}' is no known key; {hint}")
        elif problem["type"] == "missing":
            parts.append(
                f"'{key}' is missing; give it in the file or as --{key.replace('_', '-')}."
            )
        else:
            words = problem["msg"].removeprefix("Value error, ")
            parts.append(f"'{key}': {words} (got {problem['input']!r}).")
    return " ".join(parts)
