"""Muon for the layers' matrices and AdamW for the rest, as one optimizer.

Legend: `L` matrices of one shape, `m` and `n` their rows and columns.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from tessera.optim.config import Muon

_COEFFICIENTS = (3.4445, -4.775, 2.0315)
_STEPS = 5
_EPS = 1e-7


def orthogonalized(matrices: Tensor) -> Tensor:
    """Matrices of the same singular vectors, whose singular values are all near 1.

    Five Newton-Schulz iterations of the quintic of https://kellerjordan.github.io/posts/muon, which
    send any singular value above a hundredth or so of the largest to somewhere in 0.7 to 1.2. In
    bfloat16 on a GPU, as published; in float32 on a CPU, most of which emulate bfloat16.

    Args:
        matrices: (..., m, n).

    Returns:
        (..., m, n), in the type computed in.
    """
    a, b, c = _COEFFICIENTS
    x = matrices.float() if matrices.device.type == "cpu" else matrices.bfloat16()
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x  # the smaller Gram matrix
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=_EPS)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


class MuonWithAdamW(Optimizer):
    """Two optimizers over one list of groups and one state.

    Composer trains with a single optimizer, and a checkpoint holds one. The state of the matrices
    is named as that of torch's own Muon, by which earlier runs were trained: it steps one matrix at
    a time and in bfloat16 whatever the device, which on a CPU takes as long as the rest of a step.
    """

    def __init__(
        self,
        matrices: list[dict[str, Any]],
        rest: list[dict[str, Any]],
        config: Muon,
        *,
        fused: bool,
    ):
        """Split the groups."""
        shared = {
            "lr": config.lr,
            "momentum": config.momentum,
            "adjust_lr": config.adjust_lr,
        }
        self._adamw = torch.optim.AdamW(
            rest,
            lr=config.rest.lr,
            betas=config.rest.betas,
            eps=config.rest.eps,
            fused=fused,
        )
        self._matrix_groups = len(matrices)
        own = [{**shared, **group} for group in matrices]
        super().__init__([*own, *self._adamw.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Loading replaces groups and state, sharding fills the list with other groups.
        self._adamw.param_groups = self.param_groups[self._matrix_groups :]
        self._adamw.state = self.state
        for group in self.param_groups[: self._matrix_groups]:
            self._step_matrices(group)
        self._adamw.step()
        return loss

    @torch.no_grad()
    def _step_matrices(self, group: dict[str, Any]) -> None:
        by_shape: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for weight in group["params"]:
            if weight.grad is not None:
                by_shape[tuple(weight.shape)].append(weight)
        for (rows, columns), weights in by_shape.items():
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            momenta = [self._momentum(weight) for weight in weights]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            rate = group["lr"] * _adjustment(group["adjust_lr"], rows, columns)
            for weight, update in zip(weights, _orthogonalized_each(updates), strict=True):
                weight.add_(update, alpha=-rate)

    def _momentum(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        return state["momentum_buffer"]


def _orthogonalized_each(updates: Sequence[Tensor]) -> Iterable[Tensor]:
    """All of one shape at once, but for those of which each rank holds a part."""
    if any(isinstance(update, DTensor) for update in updates):
        return (orthogonalized(update) for update in updates)
    return orthogonalized(torch.stack(tuple(updates))).unbind()


def _adjustment(name: str, rows: int, columns: int) -> float:
    """What multiplies the rate of a matrix, by its shape."""
    if name == "match_rms_adamw":  # https://arxiv.org/abs/2502.16982, section 2.2
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))
