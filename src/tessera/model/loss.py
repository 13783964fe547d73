"""Cross-entropy of masked tokens, without ever holding the logits of more than a chunk of them.

Legend: `M` predicted tokens, `D` hidden size, `V` vocabulary.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tessera.batch import IGNORED

_CHUNK_LOGITS = 2**28
"""Logits held at a time, at most: half a gigabyte of bfloat16, and as much for their gradient."""
_CHUNK_LOGITS_ON_CPU = 2**22
"""Few enough to stay near the cores between one pass over them and the next."""
_CHUNK_ROWS = 256
"""Fewer tokens a chunk, and adding to the weight's gradient costs more than the products."""


def masked_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    *,
    z_loss: float = 0.0,
    chunk_logits: int | None = None,
    compiled: bool = False,
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
        compiled: fuse the passes over a chunk of logits with torch.compile.

    Returns:
        The sum, a float32 scalar.
    """
    device = hidden.device.type
    if chunk_logits is None:
        chunk_logits = _CHUNK_LOGITS_ON_CPU if device == "cpu" else _CHUNK_LOGITS
        chunk_logits = max(chunk_logits, _CHUNK_ROWS * weight.size(0))
    chunks = max(1, -(-hidden.size(0) * weight.size(0) // chunk_logits))
    rows = max(1, -(-hidden.size(0) // chunks))
    function = _compiled_loss_and_gradient() if compiled else _loss_and_gradient
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    constants = (dtype, z_loss, rows, function, torch.is_grad_enabled())
    with torch.autocast(device, enabled=False):
        return _ChunkedLoss.apply(hidden.to(dtype), weight, bias, labels, *constants)


def _loss_and_gradient(
    logits: Tensor, labels: Tensor, counted: Tensor, z_loss: float
) -> tuple[Tensor, Tensor]:
    """The chunk's loss, and its gradient with respect to the logits of the tokens counted.

    The gradient, rounded to the logits' type last, is left as if every token counted: the caller
    drops those that do not where they are small.
    """
    labels = labels.clamp(min=0).unsqueeze(1)
    log_shares = logits.float().log_softmax(1)
    label_log_shares = log_shares.gather(1, labels)
    losses = -label_log_shares
    gradient = log_shares.exp_()
    if z_loss:
        log_z = logits.gather(1, labels).float() - label_log_shares
        losses += z_loss * log_z.square()
        gradient *= 1 + 2 * z_loss * log_z
    of_labels = gradient.gather(1, labels) - 1
    gradient = gradient.to(logits.dtype).scatter_(1, labels, of_labels.to(logits.dtype))
    return losses.squeeze(1).where(counted, 0.0).sum(), gradient


@cache
def _compiled_loss_and_gradient() -> Callable:
    return torch.compile(_loss_and_gradient, dynamic=False)


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
        rows: int,
        loss_and_gradient: Callable,
        training: bool,
    ) -> Tensor:
        cast_weight, cast_bias = weight.to(dtype), bias.to(dtype)
        loss = hidden.new_zeros((), dtype=torch.float32)
        gradients = [torch.zeros_like(x) for x in (hidden, weight, bias)] if training else []
        for start in range(0, hidden.size(0), rows):
            part = slice(start, start + rows)
            counted = labels[part] != IGNORED
            logits = torch.addmm(cast_bias, hidden[part], cast_weight.t())
            chunk_loss, gradient = loss_and_gradient(logits, labels[part], counted, z_loss)
            loss += chunk_loss
            if not training:
                continue
            d_hidden, d_weight, d_bias = gradients
            shares = counted.to(dtype)
            torch.mm(gradient, cast_weight, out=d_hidden[part]).mul_(shares.unsqueeze(1))
            inputs = hidden[part] * shares.unsqueeze(1)
            if dtype == weight.dtype:
                torch.addmm(d_weight, gradient.t(), inputs, out=d_weight)
                d_bias.addmv_(gradient.t(), shares)
            else:
                d_weight += gradient.t() @ inputs
                d_bias += gradient.t() @ shares
        ctx.gradients = gradients
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.gradients, "a second backward pass would find the gradients scaled already"
        d_hidden, d_weight, d_bias = (x.mul_(scale) for x in ctx.gradients)
        ctx.gradients = []
        return d_hidden, d_weight, d_bias, *[None] * 6
