"""The optimizer of a configuration, and which weights decay."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tessera.optim.config import AdamW, Muon, OptimizerConfig, StableAdamW

_PROGRESS = ("params", "step", "setup")
"""What in a parameter group is not a setting but how far training is."""


def build_optimizer(
    config: OptimizerConfig,
    parameters: Iterable[tuple[str, Tensor]],
    device: str,
    *,
    sharded: bool = False,
) -> Optimizer:
    """The optimizer, at its peak rate.

    Norms and biases do not decay; matrices and the embedding do.

    Args:
        config: which one, and its settings.
        parameters: names and weights; of weights that are one (tied), the first name counts.
        device: type of the device that will hold them, 'cpu' or 'cuda'.
        sharded: whether each rank will hold a part of each weight. Neither fused steps nor all of
            those over lists of tensors know such weights.

    Raises:
        ValueError: the optimizer needs a newer torch.
    """
    unique = {id(weight): (name, weight) for name, weight in reversed(list(parameters))}
    named = {name: weight for name, weight in reversed(unique.values()) if weight.requires_grad}
    if isinstance(config, Muon):
        return _muon(config, named, fused=device == "cuda" and not sharded)
    groups = _decay_groups(named, config.weight_decay)
    if isinstance(config, AdamW):
        return torch.optim.AdamW(
            groups,
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            fused=device == "cuda" and not sharded,
        )
    return _stable_adamw(config, groups, device, sharded)


def _decay_groups(named: dict[str, Tensor], weight_decay: float) -> list[dict[str, Any]]:
    still = [weight for name, weight in named.items() if not decays(name, weight)]
    decaying = [weight for name, weight in named.items() if decays(name, weight)]
    groups = [(still, 0.0), (decaying, weight_decay)]
    return [{"params": weights, "weight_decay": decay} for weights, decay in groups if weights]


def decays(name: str, weight: Tensor) -> bool:
    """Whether weight decay applies: to matrices, not to norms and biases."""
    return weight.ndim > 1 and not name.endswith(".bias")


def _stable_adamw(
    config: StableAdamW, groups: list[dict[str, Any]], device: str, sharded: bool
) -> Optimizer:
    import optimi

    with warnings.catch_warnings():
        # optimi calls its foreach step deprecated; without a GPU it is the faster of the two.
        warnings.simplefilter("ignore", DeprecationWarning)
        return optimi.StableAdamW(
            groups,
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            decouple_lr=True,
            max_lr=config.lr,
            foreach=device != "cuda" and not sharded,
            triton=device == "cuda" and not sharded,
        )


def _muon(config: Muon, named: dict[str, Tensor], *, fused: bool) -> Optimizer:
    from tessera.optim.muon import MuonWithAdamW

    matrices = {n: w for n, w in named.items() if w.ndim == 2 and ".layers." in f".{n}"}
    rest = {name: weight for name, weight in named.items() if name not in matrices}
    return MuonWithAdamW(
        [{"params": list(matrices.values()), "weight_decay": config.weight_decay}],
        _decay_groups(rest, config.rest.weight_decay),
        config,
        fused=fused,
    )


def settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Per parameter group, everything the configuration decides."""
    return [
        {key: value for key, value in group.items() if key not in _PROGRESS}
        for group in optimizer.param_groups
    ]


def leading_group(optimizer: Optimizer) -> dict[str, Any]:
    """The group whose rate and decay are the configuration's `lr` and `weight_decay`.

    Of Muon the matrices, which come first; else the weights that decay, which come last.
    """
    groups = optimizer.param_groups
    return groups[0] if "momentum" in groups[0] else groups[-1]


def set_rate(optimizer: Optimizer, multiplier: float) -> None:
    """Set every group's rate to this fraction of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * multiplier


def remember_peak(optimizer: Optimizer) -> None:
    """Note each group's present rate as its peak."""
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]


def decay_of_step(optimizer: Optimizer) -> float:
    """The share of a decaying weight that the next step takes away; the largest group's."""
    return max(_decay(group) for group in optimizer.param_groups)


def _decay(group: dict[str, Any]) -> float:
    if group.get("decouple_lr"):
        return group["weight_decay"] * group["lr"] / group["max_lr"]
    return group["weight_decay"] * group["lr"]


# Composer offers no way to leave out an optimizer's step once gradients are there, and setting
# gradients to None would still count the step. So the step itself is replaced on this one object.
def make_skippable(optimizer: Optimizer, skip: Callable[[], bool]) -> None:
    """Make `optimizer.step` change nothing, not even its count, whenever `skip()` is true.

    Composer has a step compute its gradients itself, in a closure; `skip` is asked after that.
    """
    step = optimizer.step

    def step_unless_skipped(closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not skip():
            step()
        return loss

    optimizer.step = step_unless_skipped  # type: ignore[method-assign]
