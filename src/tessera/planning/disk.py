"""Disk that a phase needs: checkpoints, and caches of remote sources."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from tessera.data.batch_schedule import BatchPlan
from tessera.optim.schedules import decay_begins
from tessera.planning.memory import parameters
from tessera.quantities import Duration
from tessera.training.config import RunConfig

_CACHED = 2
"""Checkpoints that a folder in an object store keeps on this machine."""


@dataclass(frozen=True, kw_only=True)
class Disk:
    """What a phase writes on this machine, and what is free there."""

    checkpoint_bytes: int
    checkpoints: int | None
    """At most, kept at a time; None if their number cannot be told."""
    cache_bytes: int | None
    """Of remote sources; None if one has no `cache_limit`."""
    free_bytes: int
    folder: Path

    @property
    def needed_bytes(self) -> int | None:
        """Checkpoints and caches; one more checkpoint is written before an old one is deleted."""
        if self.checkpoints is None or self.cache_bytes is None:
            return None
        return (self.checkpoints + 1) * self.checkpoint_bytes + self.cache_bytes


def disk_of(config: RunConfig, tokens: float | None) -> Disk:
    """What a phase writes, of `tokens` in all."""
    there = next(p for p in (config.folder, *config.folder.absolute().parents) if p.exists())
    muon = config.optimizer.name == "muon"
    numbers = parameters(config.model)
    matrices = numbers - config.model.vocab_size * config.model.hidden_size
    return Disk(
        checkpoint_bytes=12 * numbers - (4 * matrices if muon else 0),
        checkpoints=_CACHED if config.is_cached else _kept(config, tokens),
        cache_bytes=_cached(config),
        free_bytes=shutil.disk_usage(there).free,
        folder=there,
    )


def steps_of(config: RunConfig, tokens: float | None) -> float | None:
    """Optimizer steps of the phase, its rows being full; None if that cannot be told."""
    if config.duration.unit == "ba":
        return float(config.duration.value)
    if tokens is None:
        return None
    plan = BatchPlan.of(config.batch, config.train_data.row_tokens)
    rows = tokens / config.train_data.row_tokens
    stage = max(n for n, first in enumerate(plan.first_rows) if first <= rows)
    return plan.first_steps[stage] + (rows - plan.first_rows[stage]) / plan.sizes[stage]


def _kept(config: RunConfig, tokens: float | None) -> int | None:
    """Checkpoints at the end: milestones, the start of a decay, the newest or all."""
    chosen = config.checkpoints
    decays = decay_begins(config.schedule, config.duration) is not None
    pinned = len(chosen.milestones) + int(decays)
    made = _times(chosen.interval, config, tokens)
    if chosen.keep != "all":
        return pinned + (chosen.keep if made is None else min(chosen.keep, made + 1))
    return None if made is None else pinned + made + 1


def _times(interval: Duration | None, config: RunConfig, tokens: float | None) -> int | None:
    """How often an interval passes in the phase."""
    if interval is None:
        return 0
    if interval.unit == config.duration.unit:
        return config.duration.value // interval.value
    whole = {"tok": tokens, "ba": steps_of(config, tokens), "sp": None}[interval.unit]
    return None if whole is None else int(whole / interval.value)


def _cached(config: RunConfig) -> int | None:
    """Bytes of the caches of remote sources with a limit; None if one has none."""
    remote = [s for s in config.train_data.sources.values() if s.weight and s.remote]
    limits = [source.cache_limit for source in remote]
    known = [limit.value for limit in limits if limit is not None]
    return sum(known) if len(known) == len(limits) else None
