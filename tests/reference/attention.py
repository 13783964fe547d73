"""Attention within documents and windows, dense and in float64."""

import torch
from torch import Tensor


def visible(lengths: list[int], window: int | None, causal: bool = False) -> Tensor:
    """(T, T) bool: may the token of the row see the token of the column?"""
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    slot = torch.arange(len(document))
    same = document[:, None] == document[None, :]
    if causal:
        same = same & (slot[:, None] >= slot[None, :])
    if window is None:
        return same
    return same & ((slot[:, None] - slot[None, :]).abs() <= window)


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: list[int],
    window: int | None,
    causal: bool = False,
) -> Tensor:
    """(T, H, D) of any type -> (T, H, D) float64; differentiable."""
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    scores = q @ k.transpose(1, 2) / q.size(-1) ** 0.5
    scores = scores.masked_fill(~visible(lengths, window, causal).to(q.device), float("-inf"))
    return (scores.softmax(-1) @ v).transpose(0, 1)
