"""Cross-entropy of masked tokens, without ever holding the logits of more than a chunk of them.

Legend: `M` predicted tokens, `D` hidden size, `V` vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tessera.batch import IGNORED

CHUNK_LOGITS = 2**27
"""Logits held at a time, at most: half a gigabyte of float32."""


def masked_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    *,
    z_loss: float = 0.0,
    chunk_logits: int = CHUNK_LOGITS,
) -> Tensor:
    """Sum over tokens of the cross-entropy of `softmax(hidden @ weight.T + bias)`.

    Args:
        hidden: (M, D).
        weight: (V, D).
        bias: (V,).
        labels: (M,) int64; tokens labelled `IGNORED` count nothing.
        z_loss: adds this times log(sum(exp(logits)))**2, which keeps logits from drifting
            (https://arxiv.org/abs/2204.02311, section 5).
        chunk_logits: logits to hold at a time. Fewer need less memory and more passes.

    Returns:
        The sum, a float32 scalar.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        return _ChunkedLoss.apply(
            hidden.to(dtype), weight, bias, labels, dtype, z_loss, chunk_logits
        )


def _loss_and_gradient(logits: Tensor, labels: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    """The chunk's loss, and in place of `logits` the loss's gradient with respect to them."""
    logits = logits.float()
    counted = (labels != IGNORED).unsqueeze(1)
    labels = labels.clamp(min=0).unsqueeze(1)
    log_z = logits.logsumexp(1, keepdim=True)
    losses = log_z - logits.gather(1, labels) + z_loss * log_z.square()
    loss = losses.where(counted, 0.0).sum()

    gradient = logits.sub_(log_z).exp_()
    if z_loss:
        gradient *= 1 + 2 * z_loss * log_z
    gradient.scatter_add_(1, labels, gradient.new_full((), -1.0).expand_as(labels))
    gradient *= counted
    return loss, gradient


class _ChunkedLoss(torch.autograd.Function):
    """Gradients are computed on the way forward, while a chunk's logits exist."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        labels: Tensor,
        dtype: torch.dtype,
        z_loss: float,
        chunk_logits: int,
    ) -> Tensor:
        training = any(ctx.needs_input_grad)
        rows = max(1, chunk_logits // weight.size(0))
        cast_weight, cast_bias = weight.to(dtype), bias.to(dtype)
        loss = hidden.new_zeros((), dtype=torch.float32)
        if training:
            d_hidden = torch.empty_like(hidden)
            d_weight = torch.zeros_like(weight)
            d_bias = torch.zeros_like(bias)
        for start in range(0, hidden.size(0), rows):
            part = slice(start, start + rows)
            logits = torch.addmm(cast_bias, hidden[part], cast_weight.t())
            chunk_loss, gradient = _loss_and_gradient(logits, labels[part], z_loss)
            loss += chunk_loss
            if training:
                d_bias += gradient.sum(0)
                gradient = gradient.to(dtype)
                torch.mm(gradient, cast_weight, out=d_hidden[part])
                if dtype == weight.dtype:
                    d_weight.addmm_(gradient.t(), hidden[part])
                else:
                    d_weight += gradient.t() @ hidden[part]
        if training:
            ctx.save_for_backward(d_hidden, d_weight, d_bias)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        return d_hidden * scale.to(d_hidden.dtype), d_weight * scale, d_bias * scale, *[None] * 4
