"""From uint8 tiles to vectors on a device: the reference, and what may be done to be faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - as everyone calls it
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import nn

from ray_pipeline.encoders.spec import ModelSpec, Precision

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.float16,
}
"""What autocast computes products in; with `fp8` those that are not of blocks' linear layers."""
FP8_STEP = 16
"""Multiple of which both sides of a float8 matrix must be, bytes (cuBLAS's rule)."""
FP8_MAX = 448.0
"""Largest number of float8 e4m3 (Micikevicius et al. 2022, arXiv:2209.05433, table 1)."""

Encode = Callable[[torch.Tensor], torch.Tensor]
"""uint8 [N, h, w, 3] -> float16 [N, dim], on one device."""


class Forward(nn.Module):
    """The reference: scale, mean and deviation in fp32, then the plain model under autocast."""

    def __init__(self, model: nn.Module, spec: ModelSpec, precision: Precision) -> None:
        super().__init__()
        self.model = model
        self._dtype = DTYPES[precision]
        self._scale = spec.preprocessing.scale
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Vectors float16 [N, dim] of tiles uint8 [N, h, w, 3]."""
        pixels = tiles.permute(0, 3, 1, 2)
        # Planes, and in place: a third of the time that interleaved colours take on a CPU.
        images = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        images.div_(self._scale).sub_(cast(torch.Tensor, self.mean))
        images.div_(cast(torch.Tensor, self.std))
        lowered = self._dtype != torch.float32
        with torch.autocast(tiles.device.type, dtype=self._dtype, enabled=lowered):
            pooled: torch.Tensor = self.model(images)
        return pooled.to(torch.float16)


def hold_products_in(model: nn.Module, precision: Precision) -> None:
    """Keep matrices in the type autocast would cast them to before each product.

    The results are the same bits; without it every pass casts all the weights anew (autocast
    remembers casts of trainable parameters only).
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.to(DTYPES[precision])


class ClassTokenBlock(nn.Module):
    """A last block that computes the class token alone: all that CLS pooling looks at.

    Every token still gives its key and value, so the class token is the same; the other 260 queries
    and their way through the MLP are left out, 2.1 % of the giant's work.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        attention = cast(Attention, block.attn)
        width = attention.qkv.in_features
        # Layers of their own, so that whatever is done to linear layers is done to these.
        self.query = _rows_of(attention.qkv, 0, width)
        self.key_value = _rows_of(attention.qkv, width, 3 * width)
        del attention.qkv
        self.block = block

    def forward(self, tokens: torch.Tensor, **_masks: Any) -> torch.Tensor:
        """The block's class token [N, 1, D] from all its tokens [N, T, D]."""
        block, attention = self.block, cast(Attention, self.block.attn)
        n, count, dim = tokens.shape
        heads = attention.num_heads
        normed = block.norm1(tokens)
        q = self.query(normed[:, :1]).view(n, 1, heads, -1).transpose(1, 2)
        kv = self.key_value(normed).view(n, count, 2, heads, -1)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = attention.q_norm(q), attention.k_norm(k)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, 1, dim)
        first = tokens[:, :1] + block.ls1(attention.proj(attention.norm(seen)))
        return cast(torch.Tensor, first + block.ls2(block.mlp(block.norm2(first))))


def _rows_of(linear: nn.Linear, start: int, stop: int) -> nn.Linear:
    """The layer that gives outputs `start` to `stop` of `linear`, on the same memory."""
    part = nn.Linear(linear.in_features, stop - start, linear.bias is not None, device="meta")
    part.weight = nn.Parameter(linear.weight[start:stop], requires_grad=False)
    if linear.bias is not None:
        part.bias = nn.Parameter(linear.bias[start:stop], requires_grad=False)
    return part


def leave_out_unseen_tokens(model: nn.Module, spec: ModelSpec) -> bool:
    """Make the last block a `ClassTokenBlock` where pooling allows; whether it could be done."""
    blocks = getattr(model, "blocks", None)
    if spec.pooling != "cls" or not isinstance(blocks, nn.Sequential):
        return False
    last = blocks[-1]
    if type(last) is not Block or type(last.attn) is not Attention:
        return False
    blocks[-1] = ClassTokenBlock(last)
    return True


class Fp8Linear(nn.Module):
    """A linear layer in float8: one scale for each row of the input, one for each output.

    Scaling rows by their own largest number is exact but for the rounding to 4 bits of mantissa;
    sums are fp32 in the tensor cores. Sides that the kernels don't take are filled up with zeros.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._outputs = linear.out_features
        more_inputs, more_outputs = -linear.in_features % FP8_STEP, -self._outputs % FP8_STEP
        self._more_inputs = more_inputs
        weight = F.pad(linear.weight.detach().float(), (0, more_inputs, 0, more_outputs))
        scale = _row_scale(weight)
        self.register_buffer("weight", (weight / scale).to(torch.float8_e4m3fn))
        self.register_buffer("scale", scale.view(1, -1))
        bias: torch.Tensor | None = linear.bias
        if bias is not None:
            bias = F.pad(bias.detach().to(torch.bfloat16), (0, more_outputs))
        self.register_buffer("bias", bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out], in the type of `inputs`."""
        rows = F.pad(inputs.reshape(-1, inputs.shape[-1]).float(), (0, self._more_inputs))
        scale = _row_scale(rows)
        # The kernels for rows know bf16 alone as a result.
        product: torch.Tensor = torch._scaled_mm(
            (rows / scale).to(torch.float8_e4m3fn),
            cast(torch.Tensor, self.weight).t(),
            scale_a=scale,
            scale_b=cast(torch.Tensor, self.scale),
            bias=cast(torch.Tensor | None, self.bias),
            out_dtype=torch.bfloat16,
        )
        return product[:, : self._outputs].reshape(*inputs.shape[:-1], -1).to(inputs.dtype)


def _row_scale(rows: torch.Tensor) -> torch.Tensor:
    return rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / FP8_MAX


def lower_blocks_to_fp8(model: nn.Module) -> None:
    """Make every linear layer of the blocks an `Fp8Linear`; attention stays as it is."""
    for block in cast(nn.Sequential, model.blocks):
        for parent in list(block.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, Fp8Linear(child))
