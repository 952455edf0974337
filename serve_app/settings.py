"""What an operator can say about the service: `serve.yaml`, and the `args` of a RayService.

Units stand in the names. Secrets are never among them: tokens come from a file or the environment,
stores' credentials from the environment of their cloud.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.encoders.spec import AskedPrecision
from ray_pipeline.errors import SettingsError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EncoderSettings(_Strict):
    """What is loaded. A change is taken up by running replicas, without a break."""

    model: str = Field(default="h-optimus-0", description="Model; see `historay models`.")
    weights: str | None = Field(
        default=None,
        description="A file or store URI of weights, or 'random'; default: the hub's local cache.",
    )
    precision: AskedPrecision = Field(
        default="auto", description="Arithmetic of the encoder; auto takes the device's best."
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N.")
    batch_size: int | None = Field(
        default=None, ge=1, le=4096, description="Tiles of a forward pass; default: by the device."
    )
    threads: int | None = Field(
        default=None, ge=1, description="Threads of the CPU encoder; default: torch's own choice."
    )

    @field_validator("model")
    @classmethod
    def _known(cls, model: str) -> str:
        try:
            get_spec(model)
        except SettingsError as error:
            raise ValueError(str(error)) from None
        return model


class Autoscaling(_Strict):
    """How many replicas, by load."""

    min_replicas: int = Field(default=1, ge=0, description="Replicas kept without load.")
    max_replicas: int = Field(default=2, ge=1, description="Most replicas.")
    target_ongoing_requests: float = Field(
        default=8, gt=0, description="Requests in one replica that Ray Serve aims at."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas is below min_replicas")
        return self


class ModelSettings(_Strict):
    """One model that is served, and what its replicas hold."""

    encoder: EncoderSettings = Field(default=EncoderSettings(), description="What is loaded.")
    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="What clients write as `model`; default: the encoder's own name.",
    )
    replicas: int = Field(default=1, ge=1, description="Replicas, unless autoscaling is given.")
    autoscaling: Autoscaling | None = Field(default=None, description="Replicas by load.")
    cpus: float = Field(default=1, gt=0, description="CPUs held by a replica.")
    gpus: float | None = Field(
        default=None, ge=0, description="GPUs held by a replica; default: 1 where there are any."
    )
    queue_tiles: int = Field(
        default=2048, ge=1, description="Tiles that may wait in a replica; past it, 429."
    )

    @property
    def served_as(self) -> str:
        """What clients write as `model`."""
        return self.name or self.encoder.model


class Limits(_Strict):
    """What one request, and all requests in hand together, may take."""

    body_bytes: int = Field(default=64 << 20, ge=1024, description="Bytes of one request's body.")
    body_s: float = Field(default=30, gt=0, description="Seconds in which a body must arrive.")
    image_bytes: int = Field(default=8 << 20, ge=64, description="Bytes of one encoded image.")
    image_px: int = Field(default=1 << 24, ge=1, description="Pixels one image may claim.")
    request_px: int = Field(default=1 << 26, ge=1, description="Pixels of a request's images.")
    request_tiles: int = Field(default=256, ge=1, le=4096, description="Tiles of one request.")
    tiles_in_hand: int = Field(
        default=2048, ge=1, description="Tiles of all requests in an ingress; past it, 429."
    )
    bytes_in_hand: int = Field(
        default=1 << 30, ge=1024, description="Bytes of all bodies in an ingress; past it, 429."
    )
    request_s: float = Field(
        default=60, gt=0, description="Seconds after which a request is given up and not computed."
    )

    @model_validator(mode="after")
    def _one_request_fits(self) -> Self:
        if self.request_tiles > self.tiles_in_hand:
            raise ValueError("request_tiles is more than tiles_in_hand: no such request could pass")
        if self.body_bytes > self.bytes_in_hand:
            raise ValueError("body_bytes is more than bytes_in_hand: no such body could pass")
        return self


class RegionSettings(_Strict):
    """`/v1/regions`: which slides may be read."""

    prefixes: list[str] = Field(
        default_factory=list,
        description="s3://, gs:// or az:// prefixes whose slides may be read; none: no slide.",
    )
    allow_file: bool = Field(default=False, description="Take file:// prefixes too.")
    allow_off_spec: bool = Field(
        default=False, description="Take an mpp that the model was not made for."
    )
    open_slides: int = Field(
        default=8, ge=1, le=256, description="Slides kept open: each may hold 64 MB of pixels."
    )
    open_s: float = Field(default=300, gt=0, description="Seconds a slide is kept open at most.")
    threads: int = Field(default=4, ge=1, description="Slides read at once in an ingress.")


class ServiceSettings(_Strict):
    """The whole service."""

    models: list[ModelSettings] = Field(
        default=[ModelSettings()], min_length=1, description="Models; the first is the default."
    )
    tokens_file: str | None = Field(
        default=None, description="File of bearer tokens, one a line, readable by the service only."
    )
    allow_anonymous: bool = Field(
        default=False, description="Serve without any token: for trials on one machine."
    )
    host: str = Field(
        default="127.0.0.1",
        description="Address that historay-serve binds; tokens are needed "
        "for any but loopback. Under `serve run` and RayService, Ray's own option decides.",
    )
    port: int = Field(default=8000, ge=1, le=65535, description="Port that historay-serve binds.")
    ingress_replicas: int = Field(default=1, ge=1, description="Processes that speak HTTP.")
    ingress_cpus: float = Field(default=1, gt=0, description="CPUs held by each of them.")
    decode_threads: int = Field(default=4, ge=1, description="Threads of each that decode images.")
    drain_s: float = Field(
        default=120, gt=0, description="Seconds that accepted requests are given when stopping."
    )
    limits: Limits = Limits()
    regions: RegionSettings = RegionSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [model.served_as for model in self.models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two models are called '{name}': give one another name")
        for model in self.models:
            if model.queue_tiles < self.limits.request_tiles:
                raise ValueError(
                    f"queue_tiles of '{model.served_as}' is less than limits.request_tiles: "
                    "no such request could pass"
                )
        return self


def load_service_settings(file: str) -> ServiceSettings:
    """Settings of a YAML file. Raises SettingsError naming the key, what is wrong and the mend."""
    try:
        loaded: Any = yaml.safe_load(Path(file).expanduser().read_text())
    except (OSError, UnicodeDecodeError):
        raise SettingsError(f"{file} can't be read: check its path and mode.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise SettingsError(f"{file} is no valid YAML{line}; mend it and run again.") from None
    if not isinstance(loaded, dict):
        raise SettingsError(f"{file} must hold keys and values, such as 'models: [...]'.")
    return service_settings(loaded)


def service_settings(values: dict[str, Any]) -> ServiceSettings:
    """Settings of plain values. Raises SettingsError; values are not repeated, but for numbers."""
    try:
        return ServiceSettings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(sentence_of(error)) from None


def encoder_settings(values: dict[str, Any]) -> EncoderSettings:
    """The same for the settings of an encoder alone: the `user_config` of its deployment."""
    try:
        return EncoderSettings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(sentence_of(error)) from None


def sentence_of(error: ValidationError) -> str:
    """One sentence for each problem: the key, and what is wrong with it; never the value."""
    parts = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        key = ".".join(str(part) for part in problem["loc"]) or "the whole"
        said = "is no known key" if problem["type"] == "extra_forbidden" else problem["msg"]
        parts.append(f"'{key}': {said.removeprefix('Value error, ')}.")
    return " ".join(parts)
