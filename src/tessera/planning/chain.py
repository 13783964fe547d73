"""Several phases as one run: a table, curves over total tokens, what goes from one to the next."""

from collections.abc import Callable, Sequence

from tessera.data.batch_schedule import BatchPlan
from tessera.planning.drawing import bars, table, width
from tessera.planning.mixture import epochs_text
from tessera.planning.plan import Plan
from tessera.quantities import NOTHING, short_number
from tessera.training.config import RunConfig

_NARROWEST = 8
"""Columns of a phase that is short beside the others."""


def chain_lines(plans: Sequence[Plan]) -> list[str]:
    """The table, the curves, what is handed on, and what several phases read of each source."""
    lines = [*_table(plans), ""]
    if all(plan.work.tokens for plan in plans):
        lines += [*_curves(plans), ""]
    before: RunConfig | None = None
    for plan in plans:
        lines.append(f"{plan.config.name}: {handed_on(plan.config, before)}")
        before = plan.config
    return [*lines, *_read_altogether(plans)]


def handed_on(config: RunConfig, before: RunConfig | None) -> str:
    """What a phase begins with, and what differs from the phase before."""
    if config.initial_weights is not None:
        begins = f"weights laid from tiles of {config.initial_weights.tile}, nothing else"
    elif config.start_from is None:
        begins = "random weights"
    else:
        carried = "weights and optimizer" if config.start_from.optimizer else "weights alone"
        begins = f"{carried} of {config.start_from.checkpoint}; clock, schedule and data begin anew"
    if before is None:
        return begins
    changed = [
        f"{name} {_value(old(before))} -> {_value(old(config))}"
        for name, old in _COMPARED.items()
        if old(before) != old(config)
    ]
    return f"{begins}; {', '.join(changed)}" if changed else begins


_COMPARED: dict[str, Callable[[RunConfig], object]] = {
    "length": lambda c: c.train_data.max_seq_len,
    "theta": lambda c: c.model.global_rope_theta,
    "lr": lambda c: c.optimizer.lr,
    "weight decay": lambda c: c.optimizer.weight_decay,
    "optimizer": lambda c: c.optimizer.name,
    "schedule": lambda c: c.schedule.name,
    "masking": lambda c: "none: causal" if c.train_data.causal else c.train_data.masking.rate,
    "seed of the data": lambda c: c.seed if c.train_data.seed is None else c.train_data.seed,
    "tokenizer": lambda c: c.tokenizer,
}


def _table(plans: Sequence[Plan]) -> list[str]:
    rows = [["", *(plan.config.name for plan in plans)]]

    def row(label: str, text: Callable[[Plan], str]) -> None:
        rows.append([label, *map(text, plans)])

    row("tokens", lambda p: _number(p.work.tokens))
    row("steps", lambda p: _number(p.steps))
    row("length", lambda p: f"{p.config.train_data.max_seq_len:,}")
    row("batch, token slots", lambda p: _number(_batch_slots(p.config)))
    row("schedule", lambda p: p.config.schedule.name)
    row("lr", lambda p: f"{p.config.optimizer.lr:g}")
    row("masking", lambda p: _masking(p.config))
    row("operations", lambda p: NOTHING if p.work.flops is None else f"{p.work.flops:.2e}")
    row("GPU memory", lambda p: f"{p.memory.total / 2**30:.1f} GiB")
    if plans[0].hardware.gpu is not None:
        row("largest microbatch_rows", lambda p: str(p.fitting_rows or "none fits"))
        row("GPU-hours", lambda p: _number(p.gpu_hours))
        hours = [plan.gpu_hours for plan in plans]
        known = [hour for hour in hours if hour is not None]
        if len(known) == len(hours):
            price = plans[0].hardware.price
            money = "" if price is None else f", {sum(known) * price:,.0f} at {price:g} each"
            world = plans[0].hardware.world_size
            rows.append(["", *[""] * len(plans)])
            total = f"all phases: {sum(known):,.0f} GPU-hours{money}"
            return [*table(rows[:-1]), f"{total}, {sum(known) / world / 24:,.1f} days on {world}"]
    return table(rows)


def _curves(plans: Sequence[Plan]) -> list[str]:
    """Learning rate and batch size over the tokens of all phases."""
    tokens = [plan.work.tokens or 0.0 for plan in plans]
    columns = _columns(tokens, width() - 12)
    rates: list[float] = []
    sizes: list[float] = []
    for plan, count in zip(plans, columns, strict=True):
        config = plan.config
        batches = BatchPlan.of(config.batch, config.train_data.row_tokens)
        total, rows = config.duration.value, (plan.work.tokens or 0) / config.train_data.row_tokens
        for column in range(count):
            share = column / max(1, count - 1)
            multiplier = config.schedule.multiplier(min(total, int(share * total)), total)
            rates.append(config.optimizer.lr * multiplier)
            slots = batches.rows_at(int(share * rows)) * config.train_data.row_tokens
            sizes.append(float(slots))
    marks, names, done = "", "", 0.0
    for plan, count, each in zip(plans, columns, tokens, strict=True):
        done += each
        marks += "|" + f"{short_number(done)}".rjust(count - 1)
        names += plan.config.name[: count - 1].ljust(count)
    lines = _labelled("lr", rates, 6, lambda v: f"{v:.1e}")
    lines += _labelled("batch", sizes, 3, short_number)
    scaled = "" if _is_to_scale(tokens, columns) else " (short phases are drawn wider)"
    return [*lines, " " * 12 + marks, " " * 12 + names.rstrip() + scaled]


def _labelled(
    name: str, values: Sequence[float], height: int, text: Callable[[float], str]
) -> list[str]:
    labels = [f"{name} {text(max(values))}", *[""] * (height - 1)]
    return [
        f"{label:>11} {line}".rstrip()
        for label, line in zip(labels, bars(values, height), strict=True)
    ]


def _columns(tokens: Sequence[float], room: int) -> list[int]:
    """Columns of each phase, by its tokens but for the shortest."""
    total = sum(tokens)
    narrow = [each / total * room < _NARROWEST for each in tokens]
    left = room - _NARROWEST * sum(narrow)
    wide = sum(each for each, thin in zip(tokens, narrow, strict=True) if not thin) or 1.0
    return [
        _NARROWEST if thin else max(_NARROWEST, int(left * each / wide))
        for each, thin in zip(tokens, narrow, strict=True)
    ]


def _is_to_scale(tokens: Sequence[float], columns: Sequence[int]) -> bool:
    shares = [each / sum(tokens) * sum(columns) for each in tokens]
    return all(abs(share - count) < 2 for share, count in zip(shares, columns, strict=True))


def _read_altogether(plans: Sequence[Plan]) -> list[str]:
    """Epochs over all phases of folders that more than one of them reads."""
    epochs: dict[tuple[str, str], list[float | None]] = {}
    names: dict[tuple[str, str], str] = {}
    for plan in plans:
        for reading in plan.readings:
            epochs.setdefault(reading.place, []).append(reading.epochs)
            names.setdefault(reading.place, reading.name)
    found = [
        f"{names[place]} {epochs_text(sum(known))}"
        for place, each in epochs.items()
        if len(known := [n for n in each if n is not None]) == len(each) > 1
    ]
    return [f"epochs over all phases: {', '.join(found)}"] if found else []


def _masking(config: RunConfig) -> str:
    if config.train_data.causal:
        return "causal"
    rates = (config.train_data.masking.rate, config.train_data.masking.final_rate)
    return " to ".join(f"{rate:.0%}" for rate in rates if rate is not None)


def _batch_slots(config: RunConfig) -> float:
    return float(config.batch.rows * config.train_data.row_tokens)


def _number(value: float | None) -> str:
    return NOTHING if value is None else short_number(value)


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
