"""What an encoder is: its registry entry, and the identity that goes into a recipe.

Plain values only. Reading a spec or an identity imports neither torch nor timm, and needs no
weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

AskedPrecision = Literal["auto", "fp32", "bf16", "fp16", "fp8"]
"""What a user can ask for; `auto` is resolved by the device's abilities."""
Precision = Literal["fp32", "bf16", "fp16", "fp8"]
"""What matrix products are computed in; norms, residuals and softmax sums stay in fp32.

`fp8` is the linear layers of the blocks alone, by rows; attention and the rest are fp16."""
Pooling = Literal["cls", "cls+mean"]
"""`cls`: the class token after the final norm. `cls+mean`: the class token, then the mean of the
patch tokens, after the final norm. Register tokens are never looked at."""
Layout = Literal["timm", "dinov2", "transformers"]
"""Whose names the tensors of a published checkpoint bear; see `layouts`."""
Rgb = tuple[float, float, float]
"""One number per channel: red, green, blue."""
IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)
"""Of ImageNet's training images; `timm.data.IMAGENET_DEFAULT_MEAN` and `_STD`."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How uint8 pixels become the network's input: `(pixel / scale - mean) / std`, in fp32."""

    tile_px: int
    """Side of the square input, pixels; tiles of any other size are refused."""
    mean: Rgb
    """Subtracted, per channel, in units of 0..1."""
    std: Rgb
    """Divided by, per channel, in units of 0..1."""
    scale: float = 255.0
    """Pixel value that maps to 1."""
    resize: Literal["none"] = "none"
    """Tiles are read at the model's own size, never resized here."""
    crop: Literal["none"] = "none"
    """Tiles are never cropped: the network sees the whole square that was planned."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A registry entry: all there is to know of a model before its weights are at hand."""

    name: str
    """What users write: `--model NAME`."""
    arch: str
    """Name of the architecture in timm's registry."""
    arch_kwargs: Mapping[str, int | float | bool | str] = field(hash=False)
    """Keyword arguments of `timm.create_model`, complete; layers by name (`model.LAYERS`)."""
    tile_px: int
    """Side of the square input, pixels."""
    published_resize: str | None = None
    """How the publishers bring an image to `tile_px`; None: not at all. Here tiles are read at
    `tile_px` and `mpp` from the slide, so nothing is resized twice."""
    mpp: float
    """Microns per pixel the model was trained at."""
    mean: Rgb
    """Per-channel mean of training pixels, in units of 0..1."""
    std: Rgb
    """Per-channel standard deviation of training pixels, in units of 0..1."""
    dim: int
    """Length of an embedding."""
    pooling: Pooling
    """How tokens become one embedding."""
    prefix_tokens: int
    """Tokens before the patch tokens: the class token and the registers."""
    tokens: int
    """All tokens of one tile: prefix and patches."""
    parameters: int
    """Count of parameters of the architecture that `arch` and `arch_kwargs` build."""
    licence: str
    """The weights' licence: its SPDX identifier, or its name where it has none."""
    non_commercial: bool = False
    """Whether that licence forbids commercial use."""
    gated: bool = False
    """Whether the hub asks for an accepted agreement before it gives the weights."""
    hub_id: str | None = None
    """Repository on the Hugging Face hub, if the weights are there."""
    revision: str = "main"
    """Branch or commit of the hub repository; `weights_sha256` is what pins the content."""
    weights_file: str | None = None
    """Name of the weights file in the hub repository; given wherever `hub_id` is."""
    weights_sha256: str | None = None
    """SHA-256 of that file, hex; None: not known."""
    least_cosine: float = 0.999
    """Of a tile's vector by a faster path to those by the reference and in float32; below it that
    path refuses to run."""
    most_error: float = 0.25
    """Largest difference of one number of such vectors, over the root mean square of the vector;
    above it that path refuses to run. Errors spread evenly over a vector at `least_cosine` have a
    deviation of 0.045, and five of those are passed by no number of a few thousand."""
    weights_url: str | None = None
    """Where the publishers keep weights that are not on the hub."""
    layout: Layout = "timm"
    """Whose tensor names the published file bears; a file with timm's own is always taken."""
    unverified: tuple[str, ...] = ()
    """Fields whose values no primary source confirmed: model card, publishers' code or paper."""
    description: str
    """One line: what it is and whose."""

    @property
    def licence_notice(self) -> str:
        """What the weights' licence asks of whoever uses them, as a sentence; empty for nothing."""
        conditions = []
        if self.non_commercial:
            conditions.append("commercial use is forbidden")
        if self.gated:
            conditions.append(f"each user is to accept the terms at hf.co/{self.hub_id}")
        if not conditions:
            return ""
        return f"{self.name}: the weights' licence is {self.licence}: {', and '.join(conditions)}."

    @property
    def published(self) -> bool:
        """Whether weights exist at all; those of other models are always random."""
        return self.hub_id is not None or self.weights_url is not None

    @property
    def preprocessing(self) -> Preprocessing:
        """How this model's tiles are normalised."""
        return Preprocessing(tile_px=self.tile_px, mean=self.mean, std=self.std)


@dataclass(frozen=True, kw_only=True)
class EncoderIdentity:
    """Everything of an encoder that determines its vectors; part of the recipe."""

    model: str
    """Name in the registry."""
    weights_digest: str
    """`tensors.weights_digest` of the weights, hex: the same for a `.bin` and its safetensors."""
    meaningful: bool
    """False where the weights are random: the vectors are for trials only."""
    precision: Precision
    """As resolved on an encoder's node."""
    preprocessing: Preprocessing
    """From uint8 pixels to the network's input."""
    pooling: Pooling
    """From tokens to the vector."""
    dim: int
    """Length of an embedding."""

    @classmethod
    def of(
        cls, spec: ModelSpec, *, weights_digest: str, meaningful: bool, precision: Precision
    ) -> Self:
        """The identity of `spec` with weights whose digest is known."""
        return cls(
            model=spec.name,
            weights_digest=weights_digest,
            meaningful=meaningful,
            precision=precision,
            preprocessing=spec.preprocessing,
            pooling=spec.pooling,
            dim=spec.dim,
        )

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; `from_json` gives an equal identity back."""
        values = asdict(self)
        preprocessing = values["preprocessing"]
        preprocessing.update(mean=list(self.preprocessing.mean), std=list(self.preprocessing.std))
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The identity that `to_json` wrote. Raises KeyError or TypeError on any other fields."""
        nested = dict(values["preprocessing"])
        nested.update(mean=tuple(nested["mean"]), std=tuple(nested["std"]))
        return cls(**{**values, "preprocessing": Preprocessing(**nested)})
