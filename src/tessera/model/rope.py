"""Rotary positions (https://arxiv.org/abs/2104.09864), in halves: channel i turns with i + D/2.

Legend: `T` token slots, `H` heads, `D` channels of a head.
"""

import torch
from torch import Tensor

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


def rotate(x: Tensor, turn: Rotary) -> Tensor:
    """Turn each token's channels by its angles, in float32 whatever the type of `x`.

    Args:
        x: (T, ..., D); the dimensions between are heads, or queries and keys and heads.
        turn: what `rotary` returned.
    """
    shape = (-1, *(1,) * (x.dim() - 2), x.size(-1) // 2)
    cos, sin = (part.view(shape) for part in turn)
    left, right = x.float().chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1).to(x.dtype)
