"""What the next step is where a phase is resumed: in numbers, before and after a change.

Rates, batches and masks are functions of progress, so that a changed key changes the step to come
and nothing that was done. What it changes is not always what the key says: a longer warm-up of the
batch makes it smaller again, another `row_tokens` moves the masking rate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tessera.config import ConfigError, decode, with_defaults
from tessera.data.batch_schedule import BatchPlan
from tessera.data.pipeline.masking import rate_at
from tessera.training.config import RunConfig


@dataclass(frozen=True)
class NextStep:
    """What a configuration makes of the step after a checkpoint."""

    lr: float
    rows: int
    """Of the global batch."""
    masking_rate: float | None
    """None where nothing is masked."""
    steps_left: int | None
    """This one included, about; None where the duration is counted in documents."""


def next_step(config: RunConfig, progress: Mapping[str, Any], rows_before: int) -> NextStep:
    """The step after a checkpoint.

    Args:
        config: of the phase.
        progress: what the checkpoint says was done.
        rows_before: rows of all the batches so far.
    """
    data, row_tokens = config.train_data, config.train_data.row_tokens
    rows = BatchPlan.of(config.batch, row_tokens).rows_at(rows_before)
    left = config.duration.value - progress[config.duration.counted]
    each = {"tok": rows * row_tokens, "ba": 1}.get(config.duration.unit)
    return NextStep(
        lr=next_rate(config, progress),
        rows=rows,
        masking_rate=None if data.causal else rate_at(data.masking, rows_before, row_tokens),
        steps_left=-(-left // each) if each else None,
    )


def next_rate(config: RunConfig, progress: Mapping[str, Any]) -> float:
    """The learning rate of the step after a checkpoint."""
    done, total = progress[config.duration.counted], config.duration.value
    return config.optimizer.lr * config.schedule.multiplier(min(done, total), total)


def configuration_of(before: Mapping[str, Any]) -> RunConfig | None:
    """What a checkpoint was trained with; None if this version or machine cannot read it."""
    try:
        return decode(RunConfig, with_defaults(RunConfig, dict(before)), "checkpoint")
    except ConfigError:
        return None


def describe_change(
    config: RunConfig, before: Mapping[str, Any], progress: Mapping[str, Any], rows_before: int
) -> str | None:
    """What another configuration makes of the next step, in words; None if nothing.

    Args:
        config: the present one.
        before: the configuration that the checkpoint was trained with, as it stores it.
        progress: as for `next_step`.
        rows_before: as for `next_step`.
    """
    meant = configuration_of(before)
    if meant is None:
        return None
    was, now = (next_step(each, progress, rows_before) for each in (meant, config))
    parts = []
    if was.lr != now.lr:
        parts.append(f"lr {was.lr:.4g} -> {now.lr:.4g}")
    if was.rows != now.rows:
        parts.append(f"a batch of {was.rows} -> {now.rows} rows")
    if was.masking_rate != now.masking_rate and None not in (was.masking_rate, now.masking_rate):
        parts.append(f"masks {was.masking_rate:.4g} -> {now.masking_rate:.4g} of the tokens")
    if was.steps_left != now.steps_left and None not in (was.steps_left, now.steps_left):
        parts.append(f"about {was.steps_left:,} -> {now.steps_left:,} steps to go")
    return f"the next step: {', '.join(parts)}" if parts else None
