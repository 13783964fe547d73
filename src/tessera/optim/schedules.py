"""How the learning rate moves over a phase: pure functions of progress. Imports no torch.

A multiplier is the learning rate as a fraction of the optimizer's `lr`. Progress is what the
phase has consumed before the step, in the unit of its `duration`, almost always real tokens.
Formulas are those of the published recipe; `t` progress, `T` the whole phase, `w` the warmup,
`d` the decay, `f` the floor.

Another schedule is a class here with a `name`, a `warmup` and a `multiplier`, and its name in
`Schedule`, the union by which `schedule.name` of a YAML chooses. Lengths called `warmup`, `decay`
or `drop_at` are held against the phase's by `problems`; one of another name needs a line there.
"""

import math
from dataclasses import dataclass
from typing import Literal

from tessera.quantities import Duration

NONE = Duration(0, "tok")
FIRST = 1e-10
"""The fraction of the peak a warmup begins at: not zero, so that no step is without effect."""


def _warming(progress: int, warmup: int) -> float:
    return FIRST + (1.0 - FIRST) * progress / warmup


def _share(progress: int, begin: int, end: int) -> float:
    """How far progress is from `begin` to `end`, in [0, 1]."""
    return min(1.0, max(0.0, (progress - begin) / (end - begin))) if end > begin else 1.0


def _check_fractions(floor: float, drop_to: float = 1.0) -> None:
    found = []
    if not 0.0 <= floor < 1.0:
        found.append(f"floor is a fraction of the peak rate, in [0, 1); got {floor}")
    if not 0.0 < drop_to <= 1.0:
        found.append(f"drop_to is a fraction of the peak rate, in (0, 1]; got {drop_to}")
    if found:
        raise ValueError("\n".join(found))


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The peak rate throughout, after an optional linear warmup."""

    name: Literal["constant"] = "constant"
    warmup: Duration = NONE
    """Time to climb from zero to the peak rate."""

    def multiplier(self, progress: int, total: int) -> float:
        """The smaller of t / w and 1."""
        return _warming(progress, self.warmup.value) if progress < self.warmup.value else 1.0


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay:
    """Linear warmup, a long plateau, then decay (https://arxiv.org/abs/2404.06395, section 4)."""

    name: Literal["warmup_stable_decay"] = "warmup_stable_decay"
    warmup: Duration = NONE
    """Time to climb from zero to the peak rate."""
    decay: Duration = NONE
    """Time of the final decay; `0tok` leaves the plateau open for a later phase to decay."""
    decay_shape: Literal["linear", "one_minus_sqrt"] = "linear"
    """Linear, as in the published code, or 1 - sqrt as in https://arxiv.org/abs/2405.18392."""
    floor: float = 0.0
    """Final learning rate as a fraction of the peak."""
    drop_at: Duration | None = None
    """When the plateau drops to a lower one, as a run restarted at a lower rate would."""
    drop_to: float = 0.1
    """The lower plateau as a fraction of the peak."""

    def __post_init__(self) -> None:
        _check_fractions(self.floor, self.drop_to)

    def multiplier(self, progress: int, total: int) -> float:
        """Until w, t / w, then p; from T - d on, p - (p - f) s or p - (p - f) sqrt(s).

        s = (t - (T - d)) / d; the plateau p is 1, and `drop_to` from `drop_at` on.
        """
        if progress < self.warmup.value:
            return _warming(progress, self.warmup.value)
        dropped = self.drop_at is not None and progress >= self.drop_at.value
        plateau = self.drop_to if dropped else 1.0
        if self.decay.value == 0 or progress <= total - self.decay.value:
            return plateau
        share = _share(progress, total - self.decay.value, total)
        fallen = math.sqrt(share) if self.decay_shape == "one_minus_sqrt" else share
        return plateau - (plateau - self.floor) * fallen


@dataclass(frozen=True, kw_only=True)
class OneMinusSqrt:
    """Decay by 1 - sqrt at the end of the phase (https://arxiv.org/abs/2405.18392, section 4)."""

    name: Literal["one_minus_sqrt"] = "one_minus_sqrt"
    warmup: Duration = NONE
    """Time to climb from zero to the peak rate."""
    decay: Duration | None = None
    """Length of the decay, which ends with the phase; null decays from the end of the warmup."""
    floor: float = 0.001
    """Final learning rate as a fraction of the peak."""

    def __post_init__(self) -> None:
        _check_fractions(self.floor)

    def multiplier(self, progress: int, total: int) -> float:
        """1 until T - d, then f + (1 - f)(1 - sqrt(s)), s = (t - (T - d)) / d."""
        if progress < self.warmup.value:
            return _warming(progress, self.warmup.value)
        begin = self.warmup.value if self.decay is None else total - self.decay.value
        if progress <= begin:
            return 1.0
        return self.floor + (1.0 - self.floor) * (1.0 - math.sqrt(_share(progress, begin, total)))


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Linear warmup, then half a cosine down to the floor (https://arxiv.org/abs/1608.03983)."""

    name: Literal["cosine"] = "cosine"
    warmup: Duration = NONE
    """Time to climb from zero to the peak rate."""
    floor: float = 0.0
    """Final learning rate as a fraction of the peak."""

    def __post_init__(self) -> None:
        _check_fractions(self.floor)

    def multiplier(self, progress: int, total: int) -> float:
        """Until w, t / w, then f + (1 - f)(1 + cos(pi s)) / 2, s = (t - w) / (T - w)."""
        if progress < self.warmup.value:
            return _warming(progress, self.warmup.value)
        share = _share(progress, self.warmup.value, total)
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * share))


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Linear warmup, then a straight line down to the floor."""

    name: Literal["linear"] = "linear"
    warmup: Duration = NONE
    """Time to climb from zero to the peak rate."""
    floor: float = 0.0
    """Final learning rate as a fraction of the peak."""

    def __post_init__(self) -> None:
        _check_fractions(self.floor)

    def multiplier(self, progress: int, total: int) -> float:
        """Until w, t / w, then 1 - (1 - f) s, s = (t - w) / (T - w)."""
        if progress < self.warmup.value:
            return _warming(progress, self.warmup.value)
        return 1.0 - (1.0 - self.floor) * _share(progress, self.warmup.value, total)


Schedule = WarmupStableDecay | OneMinusSqrt | Constant | Cosine | Linear


def decay_begins(schedule: Schedule, duration: Duration) -> Duration | None:
    """Where the plateau ends and the final decay begins; None without a plateau before it."""
    decay = getattr(schedule, "decay", None)
    begin = 0 if decay is None or not decay.value else duration.value - decay.value
    return Duration(begin, duration.unit) if begin > schedule.warmup.value else None


def problems(schedule: Schedule, duration: Duration) -> list[str]:
    """What makes this schedule meaningless for a phase of this length; empty if nothing does."""
    found = []
    lengths = {"warmup": schedule.warmup, "decay": getattr(schedule, "decay", None)}
    given = {key: length for key, length in lengths.items() if length and length.value}
    for key, length in given.items():
        if length.unit != duration.unit:
            found.append(
                f"schedule.{key}: '{length}' cannot be compared with duration '{duration}': "
                f"give both in '{duration.unit}'"
            )
    drop = getattr(schedule, "drop_at", None)
    if drop is not None and drop.unit != duration.unit:
        found.append(
            f"schedule.drop_at: '{drop}' cannot be compared with duration '{duration}': "
            f"give both in '{duration.unit}'"
        )
    elif drop is not None and drop.value >= duration.value:
        found.append(f"schedule.drop_at: '{drop}' is not within duration '{duration}'")
    if not found and sum(length.value for length in given.values()) > duration.value:
        spent = " and ".join(f"{key} '{length}'" for key, length in given.items())
        found.append(
            f"schedule: {spent}{' together' * (len(given) > 1)}: longer than duration '{duration}'"
        )
    return found
