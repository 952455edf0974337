"""Published checkpoints whose tensors bear other names than timm's, read as timm's.

The same networks are written down in three ways. `dinov2` is the reference code
(https://github.com/facebookresearch/dinov2, `dinov2/models/vision_transformer.py`), `transformers`
the port of Hugging Face (`ViTModel`, `Dinov2Model`, `Dinov2WithRegistersModel`). Both differ from
timm in names; `transformers` keeps queries, keys and values apart, which timm stacks in this order;
and where there are registers, both add a position to the class token, which timm expects to be
part of it already.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from ray_pipeline.encoders.spec import Layout
from ray_pipeline.encoders.tensors import Shapes, TensorSource

_Renames = tuple[tuple[str, str], ...]

_BLOCK = r"encoder\.layer\.(\d+)\."
_RENAMES: dict[Layout, _Renames] = {
    "timm": (),
    "dinov2": (
        (r"register_tokens", "reg_token"),
        (r"(blocks\.\d+\.mlp)\.w12\.(\w+)", r"\1.fc1.\2"),
        (r"(blocks\.\d+\.mlp)\.w3\.(\w+)", r"\1.fc2.\2"),
    ),
    "transformers": (
        (r"embeddings\.cls_token", "cls_token"),
        (r"embeddings\.register_tokens", "reg_token"),
        (r"embeddings\.position_embeddings", "pos_embed"),
        (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
        (_BLOCK + r"attention\.attention\.(query|key|value)\.(\w+)", r"blocks.\1.attn.qkv.\3"),
        (_BLOCK + r"attention\.output\.dense\.(\w+)", r"blocks.\1.attn.proj.\2"),
        (_BLOCK + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
        (_BLOCK + r"(?:norm1|layernorm_before)\.(\w+)", r"blocks.\1.norm1.\2"),
        (_BLOCK + r"(?:norm2|layernorm_after)\.(\w+)", r"blocks.\1.norm2.\2"),
        (
            _BLOCK + r"(?:mlp\.fc1|mlp\.weights_in|intermediate\.dense)\.(\w+)",
            r"blocks.\1.mlp.fc1.\2",
        ),
        (_BLOCK + r"(?:mlp\.fc2|mlp\.weights_out|output\.dense)\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
        (r"layernorm\.(\w+)", r"norm.\1"),
    ),
}
# Used in training only: the token of masked patches, and the layer behind ViTModel's class token.
_UNUSED = {
    "timm": (),
    "dinov2": ("mask_token",),
    "transformers": ("embeddings.mask_token", "pooler.dense.weight", "pooler.dense.bias"),
}
_STACKED = ("query", "key", "value")


def as_timm(source: TensorSource, layout: Layout, expected: Iterable[str]) -> TensorSource:
    """The tensors of `source` under timm's names; `source` itself where it has the `expected`.

    Names that the layout does not know stay as they are, so that a strict comparison names them.
    """
    if layout == "timm" or set(source.shapes) == set(expected):
        return source
    return _Renamed(source, layout)


class _Renamed:
    def __init__(self, source: TensorSource, layout: Layout) -> None:
        self._source = source
        self._parts: dict[str, list[str]] = {}
        for name in sorted(source.shapes, key=_stacking_order):
            if name not in _UNUSED[layout]:
                self._parts.setdefault(_renamed(name, _RENAMES[layout]), []).append(name)
        # With registers, timm gives positions to patches only.
        self._folds = "reg_token" in self._parts and {"cls_token", "pos_embed"} <= set(self._parts)
        self.shapes: Shapes = {name: self._shape(name) for name in self._parts}

    def read(self, name: str) -> torch.Tensor:
        parts = [self._source.read(part) for part in self._parts[name]]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        if self._folds and name == "cls_token":
            (positions,) = self._parts["pos_embed"]
            return tensor + self._source.read(positions)[:, :1]
        return tensor[:, 1:] if self._folds and name == "pos_embed" else tensor

    def _shape(self, name: str) -> tuple[int, ...]:
        shapes = [self._source.shapes[part] for part in self._parts[name]]
        shape = shapes[0]
        if len(shapes) > 1:
            shape = (sum(each[0] for each in shapes), *shape[1:])
        if self._folds and name == "pos_embed":
            shape = (shape[0], shape[1] - 1, *shape[2:])
        return shape


def _renamed(name: str, renames: _Renames) -> str:
    for pattern, replacement in renames:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return name


def _stacking_order(name: str) -> int:
    return next((i for i, part in enumerate(_STACKED) if f".{part}." in name), 0)
