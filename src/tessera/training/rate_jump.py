"""Whether the learning rate would jump where a phase is resumed: in numbers, before it runs.

A schedule is a function of progress and of the whole length. Extending a phase whose rate had
decayed therefore sends the rate back up within one step, without a mistake in any key.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tessera.paths import join
from tessera.training import run_folder
from tessera.training.config import RunConfig
from tessera.training.next_step import configuration_of, next_rate

FAR_APART = 2.0
"""A rate that changes by such a factor within a step is worth a warning."""


@dataclass(frozen=True)
class RateJump:
    """The rate of the last step that was made, and of the one that would come next."""

    stopped: float
    next: float

    @property
    def factor(self) -> float:
        """How far apart they are, from 1 up."""
        low, high = sorted((self.stopped, self.next))
        return high / low if low > 0 else float("inf")


def find_jump(
    config: RunConfig, before: Mapping[str, Any], progress: Mapping[str, Any]
) -> RateJump | None:
    """The jump between a checkpoint's last step and the next; None if there is none to speak of.

    A change that the configuration before would have made too, such as a step of the warmup or a
    planned drop, is no jump.

    Args:
        config: the present one.
        before: the configuration that the checkpoint was trained with, as it stores it.
        progress: what the checkpoint says was done, and its last `lr`.
    """
    stopped = progress.get("lr")
    if stopped is None:
        return None
    jump = RateJump(float(stopped), next_rate(config, progress))
    if jump.factor < FAR_APART or jump.stopped == jump.next:
        return None
    meant = configuration_of(before)
    if meant is None:
        return jump
    planned = next_rate(meant, progress)
    return jump if RateJump(planned, jump.next).factor >= FAR_APART else None


def describe_jump(
    config: RunConfig, before: Mapping[str, Any], progress: Mapping[str, Any]
) -> str | None:
    """The jump in words, with both rates and the checkpoint to start again from.

    Args:
        config: the present one.
        before: as for `find_jump`.
        progress: as for `find_jump`.
    """
    jump = find_jump(config, before, progress)
    if jump is None:
        return None
    text = (
        f"the learning rate jumps from {jump.stopped:.3g}, where the checkpoint of step "
        f"{progress['steps']} stopped, to {jump.next:.3g} at the next step"
    )
    if jump.next < jump.stopped:
        return f"{text}; if that is not meant, put optimizer, schedule and duration back"
    earlier = before_decay(config, progress["steps"])
    if earlier is None:
        return (
            f"{text}; no checkpoint from before the decay is pinned here: start a phase of its own "
            "with start_from and the rate you want, or put duration and schedule back"
        )
    return (
        f"{text}. To extend the plateau, go on from before the decay: start_from: {earlier} in a "
        "run_folder of its own"
    )


def cut_short(
    config: RunConfig, before: Mapping[str, Any], progress: Mapping[str, Any]
) -> str | None:
    """That a phase counts as complete only because its duration was shortened, and at what rate.

    Args:
        config: the present one.
        before: as for `find_jump`.
        progress: as for `find_jump`.
    """
    meant = configuration_of(before)
    if meant is None or meant.duration.unit != config.duration.unit:
        return None
    done = progress[config.duration.counted]
    if not config.duration.value <= done < meant.duration.value:
        return None
    rate = progress.get("lr")
    return (
        f"duration: {done:,} {config.duration.unit} of {meant.duration} are done, no less than "
        f"the {config.duration} that are wanted now: the phase counts as complete"
        + ("" if rate is None else f", at a learning rate of {float(rate):.3g}")
        + ", and whatever its schedule had for later is left out. To end it by a decay, give a "
        "duration beyond what is done"
    )


def before_decay(config: RunConfig, step: int) -> str | None:
    """The newest pinned checkpoint before a step: runs pin the one at which their decay begins."""
    kept = run_folder.checkpoints(config.folder)
    earlier = [pinned for pinned in run_folder.pinned(config.folder) if pinned < step]
    if config.remote is not None and earlier:
        name = run_folder.checkpoint_path(config.folder, max(earlier)).name
        return join(config.remote, "checkpoints", name)
    here = [pinned for pinned in earlier if pinned in kept]
    return str(kept[max(here)]) if here else None
