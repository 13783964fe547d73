"""What a checkpoint knows of the way to it: phases before its own, and whether its rate decayed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tessera.checkpoints.checkpoint import Checkpoint
from tessera.files import JsonObject
from tessera.quantities import Duration

_KEPT = ("steps", "tokens", "lr", "max_lr")


def with_phase(checkpoint: Checkpoint) -> list[JsonObject]:
    """The phases up to and including a checkpoint's own: what a phase that starts there has before.

    Each has `phase` (a name without a place), `decayed`, of `steps`, `tokens`, `lr` and `max_lr`
    what is known, and `objective` if that was causal.
    """
    known = {key: checkpoint.progress[key] for key in _KEPT if key in checkpoint.progress}
    if checkpoint.causal:
        known["objective"] = "causal"
    own = {"phase": _name(checkpoint), "decayed": decayed(checkpoint), **known}
    return [*phases_before(checkpoint), own]


def phases_before(checkpoint: Checkpoint) -> list[JsonObject]:
    """The phases before a checkpoint's own, the first one first."""
    found = checkpoint.progress.get("phases_before")
    return [p for p in found if isinstance(p, dict)] if isinstance(found, list) else []


def is_known(checkpoint: Checkpoint) -> bool:
    """Whether what came before is recorded; older checkpoints of later phases do not say."""
    return "phases_before" in checkpoint.progress or not checkpoint.run_config.get("start_from")


def decayed(checkpoint: Checkpoint) -> bool | None:
    """Whether the learning rate has begun its final fall; None if nothing tells."""
    settings = checkpoint.run_config
    # An export has no settings of its run, but what the run's progress says of its schedule.
    begin = decay_begin(settings if "schedule" in settings else checkpoint.progress)
    if begin is None:
        return None
    done = checkpoint.progress.get(begin.counted)
    if begin.value < 0 or not isinstance(done, int) or done <= begin.value:
        return False
    # A length in tokens ends inside a step, which is made at the rate that it began with.
    rate, peak = (checkpoint.progress.get(key) for key in ("lr", "max_lr"))
    return rate is None or peak is None or rate < peak


def decay_begin(settings: Mapping[str, Any]) -> Duration | None:
    """Where the schedule of a resolved YAML begins to fall for good; below 0 if it never does."""
    schedule = settings.get("schedule")
    try:
        total = Duration.parse(settings["duration"])
        assert isinstance(schedule, Mapping)
        warmup, decay = (
            Duration.parse(schedule[key]).value if schedule.get(key) is not None else None
            for key in ("warmup", "decay")
        )
    except (KeyError, ValueError, AssertionError):
        return None
    name = schedule.get("name")
    if name in ("cosine", "linear") or (name == "one_minus_sqrt" and decay is None):
        return Duration(warmup or 0, total.unit)
    if name in ("one_minus_sqrt", "warmup_stable_decay") and decay:
        return Duration(total.value - decay, total.unit)
    return Duration(-1, total.unit) if name in ("constant", "warmup_stable_decay") else None


def _name(checkpoint: Checkpoint) -> str:
    path = Path(checkpoint.path)
    if path.parent.name == "checkpoints":
        return path.parent.parent.name
    return path.name
