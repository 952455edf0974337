"""Wire types: what requests and replies look like as JSON."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class EmbeddingRequest(_Asked):
    """`POST /v1/embeddings`: OpenAI's request, with images for texts."""

    input: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="Images: data URIs (data:image/png;base64,...) or plain base64."
    )
    model: str | None = Field(default=None, description="Model; default: the first one served.")
    encoding_format: Literal["float", "base64"] = Field(
        default="float", description="base64: little-endian float32."
    )
    dimensions: int | None = Field(
        default=None, description="Only the model's own; vectors are never cut."
    )
    resize: bool = Field(default=False, description="Bring square images to the model's size.")
    user: str | None = Field(default=None, description="Ignored.")


class RegionRequest(_Asked):
    """`POST /v1/regions`: tiles of a slide in object storage."""

    uri: str = Field(min_length=1, description="The slide, under one of the allowed prefixes.")
    tiles: list[
        Annotated[
            list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(min_length=2, max_length=2)
        ]
    ] = Field(min_length=1, description="Left top corners [x, y], level-0 px.")
    model: str | None = Field(default=None, description="Model; default: the first one served.")
    mpp: float | None = Field(
        default=None, gt=0, le=1000, description="Microns per pixel of tiles; default: the model's."
    )
    mpp_override: float | None = Field(
        default=None,
        ge=0.05,
        le=20,
        description="Microns per pixel of level 0, where the file states none or a wrong one.",
    )


class Usage(BaseModel):
    """What a request cost."""

    prompt_tokens: int = Field(description="Tokens the model saw: tiles x tokens of a tile.")
    total_tokens: int = Field(description="The same.")
    tiles: int = Field(description="Tiles embedded.")


class EmbeddingItem(BaseModel):
    """One vector."""

    object: Literal["embedding"] = "embedding"
    index: int = Field(description="Of the image in `input`.")
    embedding: list[float] | str = Field(description="Numbers, or base64 of little-endian float32.")


class EmbeddingReply(BaseModel):
    """OpenAI's reply."""

    object: Literal["list"] = "list"
    data: list[EmbeddingItem]
    model: str = Field(description="The model's name.")
    encoder: str = Field(description="Fingerprint of the encoder, as /info tells.")
    usage: Usage


class Source(BaseModel):
    """The slide that tiles were read from."""

    etag: str = Field(description="Its version.")
    level: int = Field(description="Pyramid level that was read.")
    mpp: float = Field(description="Microns per pixel of the tiles.")


class TilesReply(BaseModel):
    """Reply of /v1/tiles and /v1/regions as JSON."""

    model: str = Field(description="The model's name.")
    encoder: str = Field(description="Fingerprint of the encoder, as /info tells.")
    dim: int = Field(description="Length of a vector.")
    embeddings: list[list[float]] = Field(description="A vector for each tile, in order.")
    usage: Usage
    source: Source | None = Field(default=None, description="For /v1/regions.")


class ModelItem(BaseModel):
    """One model of `GET /v1/models`."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "historay"


class ModelList(BaseModel):
    """Reply of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelItem]


class ModelInfo(BaseModel):
    """What one model is."""

    name: str = Field(description="What clients write as `model`.")
    ready: bool = Field(description="Whether a replica is loaded and warm.")
    description: str
    licence: str = Field(description="SPDX identifier of the weights' licence.")
    dim: int = Field(description="Length of a vector.")
    tile_px: int = Field(description="Side of a tile, px.")
    mpp: float = Field(description="Microns per pixel the model was trained at.")
    replicas: int = Field(description="Replicas that answered.")
    encoders: list[dict[str, Any]] = Field(
        description="Of each encoder that is loaded somewhere: fingerprint, identity (model, "
        "weights_digest, precision, preprocessing, pooling), device, batch_size, versions. Two "
        "while an update goes round."
    )


class Info(BaseModel):
    """Reply of `GET /info`."""

    service: str = "historay"
    version: str
    research_only: str = "For research only: not for diagnosis or treatment."
    reading: dict[str, str | float] = Field(description="How /v1/regions makes tiles of a slide.")
    limits: dict[str, float]
    models: list[ModelInfo]


class Health(BaseModel):
    """Reply of `GET /health` and `GET /ready`."""

    status: Literal["ok", "starting", "draining"]


class ErrorDetail(BaseModel):
    """What went wrong."""

    type: str = Field(description="A stable kind, such as `overloaded`.")
    message: str = Field(description="One sentence, with the mend.")
    param: str | None = Field(description="The parameter at fault, where there is one.")


class ErrorReply(BaseModel):
    """The JSON of every error."""

    error: ErrorDetail
