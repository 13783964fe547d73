"""Which optimizer, and its settings: the YAML's `optimizer` section. Imports no torch."""

from dataclasses import dataclass, field
from typing import Literal


def _common_problems(lr: float, weight_decay: float, clip_norm: float | None) -> list[str]:
    found = []
    if not lr > 0:
        found.append(f"lr must be positive; got {lr}")
    if not weight_decay >= 0:
        found.append(f"weight_decay must not be negative; got {weight_decay}")
    if clip_norm is not None and not clip_norm > 0:
        found.append(f"clip_norm must be positive, or null for no clipping; got {clip_norm}")
    return found


def _adam_problems(betas: tuple[float, float], eps: float) -> list[str]:
    found = []
    if not all(0 <= beta < 1 for beta in betas):
        found.append(f"betas are in [0, 1); got {list(betas)}")
    if not eps > 0:
        found.append(f"eps must be positive; got {eps}")
    return found


def _refuse(found: list[str]) -> None:
    if found:
        raise ValueError("\n".join(found))


@dataclass(frozen=True, kw_only=True)
class StableAdamW:
    """AdamW with updates clipped per tensor as in Adafactor (https://arxiv.org/abs/2304.13013).

    Weight decay is fully decoupled: at the peak rate a step multiplies a weight by
    1 - weight_decay, and by proportionally less when the schedule lowers the rate.
    """

    name: Literal["stable_adamw"] = "stable_adamw"
    lr: float = 8e-4
    """The peak rate, which the schedule multiplies."""
    betas: tuple[float, float] = (0.9, 0.98)
    """How much of the means of gradients and of their squares a step keeps."""
    eps: float = 1e-6
    """Added to the root of the mean square."""
    weight_decay: float = 1e-5
    """Per step, not times `lr`: about 1000 times smaller than what AdamW calls weight decay."""
    clip_norm: float | None = None
    """Scale gradients down to this norm over all parameters; this optimizer does without."""

    def __post_init__(self) -> None:
        found = _common_problems(self.lr, self.weight_decay, self.clip_norm)
        found += _adam_problems(self.betas, self.eps)
        if self.weight_decay >= 1e-2:
            found.append(
                f"weight_decay {self.weight_decay} is subtracted at every step in full (it is not "
                "multiplied by the rate) and would erase the weights: use about the rate times the "
                "usual value"
            )
        _refuse(found)


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (https://arxiv.org/abs/1711.05101)."""

    name: Literal["adamw"] = "adamw"
    lr: float = 5e-4
    """The peak rate, which the schedule multiplies."""
    betas: tuple[float, float] = (0.9, 0.98)
    """How much of the means of gradients and of their squares a step keeps."""
    eps: float = 1e-6
    """Added to the root of the mean square."""
    weight_decay: float = 0.01
    """A step multiplies a weight by 1 - rate * weight_decay."""
    clip_norm: float | None = 1.0
    """Scale gradients down to this norm over all parameters; null for never."""

    def __post_init__(self) -> None:
        found = _common_problems(self.lr, self.weight_decay, self.clip_norm)
        _refuse(found + _adam_problems(self.betas, self.eps))


@dataclass(frozen=True, kw_only=True)
class Rest(AdamW):
    """AdamW beside Muon."""

    clip_norm: float | None = None
    """Not here: `optimizer.clip_norm` is the norm over all parameters."""

    def __post_init__(self) -> None:
        if self.clip_norm == 1.0:  # what runs have stored from when it was a default without effect
            object.__setattr__(self, "clip_norm", None)
        super().__post_init__()
        if self.clip_norm is not None:
            raise ValueError(
                f"clip_norm {self.clip_norm} would clip nothing here: gradients are clipped all "
                "together, by optimizer.clip_norm"
            )


@dataclass(frozen=True, kw_only=True)
class Muon:
    """Orthogonalised momentum for the layers' matrices, `rest` for everything else.

    https://kellerjordan.github.io/posts/muon. Matrices of one shape step together.
    """

    name: Literal["muon"] = "muon"
    lr: float = 8e-4
    """The peak rate of the matrices, which the schedule multiplies."""
    adjust_lr: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """How a matrix's shape changes its rate: to steps of the size of AdamW's, so that one `lr` fits
    both (https://arxiv.org/abs/2502.16982, section 2.2); or by sqrt(rows / columns), if over 1."""
    momentum: float = 0.95
    """How much of the mean gradient a step keeps."""
    weight_decay: float = 0.01
    """A step multiplies a matrix by 1 - rate * weight_decay."""
    clip_norm: float | None = None
    """Scale gradients down to this norm over all parameters; null for never."""
    rest: Rest = field(default_factory=Rest)
    """For embeddings, norms, biases; its own `lr` follows the same schedule."""

    def __post_init__(self) -> None:
        found = _common_problems(self.lr, self.weight_decay, self.clip_norm)
        if not 0 <= self.momentum < 1:
            found.append(f"momentum is in [0, 1); got {self.momentum}")
        _refuse(found)


OptimizerConfig = StableAdamW | AdamW | Muon
