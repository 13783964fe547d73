"""Rotary positions (https://arxiv.org/abs/2104.09864), in halves: channel i turns with i + D/2.

Legend: `T` token slots, `H` heads, `D` channels of a head.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Rotary = tuple[Tensor, Tensor]
"""(T, D/2) float32 cosines and sines."""


def rotary(positions: Tensor, head_size: int, theta: float) -> Rotary:
    """Cosine and sine of each token's angles.

    Args:
        positions: (T,) of any integer type.
        head_size: D; pair i of D/2 turns by `theta ** (-2i / D)` radians a position.
        theta: base of the wavelengths.
    """
    channels = torch.arange(0, head_size, 2, device=positions.device, dtype=torch.float32)
    frequencies = 1.0 / theta ** (channels / head_size)
    angles = positions.float()[:, None] * frequencies  # (T, D/2)
    return angles.cos(), angles.sin()


def rotate(qkv: Tensor, turn: Rotary) -> tuple[Tensor, Tensor, Tensor]:
    """Turn the channels of queries and keys, in float32 whatever their type.

    Args:
        qkv: (T, 3, H, D) queries, keys and values.
        turn: what `rotary` returned for each of the T tokens.

    Returns:
        Queries and keys, turned, and values, (T, H, D) each.
    """
    return _Rotate.apply(qkv, *turn)


class _Rotate(torch.autograd.Function):
    """Its own backward pass, since that is to lay the three gradients side by side only once."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        q, k, v = qkv.unbind(1)
        if not _in_place(qkv, cos):
            return _turned(q, cos, sin), _turned(k, cos, sin), v
        turned_q, turned_k = torch.empty_like(q), torch.empty_like(k)
        _turn_into(turned_q, q, cos, sin)
        _turn_into(turned_k, k, cos, sin)
        return turned_q, turned_k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_q: Tensor, d_k: Tensor, d_v: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        if not _in_place(d_v, cos):
            turned = _turned(d_q, cos, -sin), _turned(d_k, cos, -sin)
            return torch.stack((*turned, d_v), dim=1), None, None
        d_qkv = d_v.new_empty(d_v.size(0), 3, *d_v.shape[1:])
        _turn_into(d_qkv[:, 0], d_q, cos, -sin)
        _turn_into(d_qkv[:, 1], d_k, cos, -sin)
        d_qkv[:, 2].copy_(d_v)
        return d_qkv, None, None


def _in_place(x: Tensor, cos: Tensor) -> bool:
    """Whether writing into slices saves copies: a compiler makes one kernel of pure functions."""
    return x.dtype == cos.dtype and not torch.compiler.is_compiling()


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    halves = x.to(cos.dtype).unflatten(-1, (2, -1))  # (T, H, D) -> (T, H, 2, D/2)
    signed = torch.stack((-sin, sin), dim=1).unsqueeze(1)  # (T, D/2) -> (T, 1, 2, D/2)
    turned = halves * cos[:, None, None] + halves.flip(-2) * signed
    return turned.flatten(-2).to(x.dtype)  # half precision is rounded last


def _turn_into(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> None:
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    left, right = x.chunk(2, dim=-1)
    to_left, to_right = out.chunk(2, dim=-1)
    torch.mul(left, cos, out=to_left).addcmul_(right, sin, value=-1)
    torch.mul(right, cos, out=to_right).addcmul_(left, sin)
