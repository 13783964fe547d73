"""What a chain of phases came to: in sentences, in a table, and in notes on the record itself."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from tessera.quantities import NOTHING, Duration, short_number, short_time
from tessera.reporting import spikes
from tessera.reporting.phase import Phase, predicted_tokens, source_names

Row = tuple[str, list[str]]
"""What is measured, and its value in each phase as text; none above a group of indented rows."""

_MOST_NAMED = 4


def rows(phases: Sequence[Phase]) -> list[Row]:
    """The table: a row for everything any phase recorded, a cell a phase."""

    def row(label: str, text: Callable[[Phase], str]) -> Row:
        return label, [text(phase) for phase in phases]

    def loss(name: str) -> Callable[[Phase], str]:
        return lambda phase: number(_final(phase, "loss").get(name, math.nan), ".3f")

    found = [
        row("tokens", lambda phase: short_number(phase.tokens)),
        row("steps", lambda phase: f"{phase.steps:,}"),
        *([row("objective", _objective)] if any(phase.causal for phase in phases) else []),
        row("time in steps", lambda phase: short_time(phase.seconds)),
        *([("validation loss", [])] if any(phase.evaluations for phase in phases) else []),
        *(row(f"  {name}", loss(name)) for name in source_names(phases)),
        row("tokens per second", lambda phase: number(phase.tokens_per_second, "short")),
        row("FLOP utilisation", lambda phase: number(phase.flop_utilisation, ".1%")),
        row("rows filled", lambda phase: number(phase.fill, ".2%")),
        row("waiting for data", lambda phase: number(phase.wait_share, ".2%")),
        row("time in evaluation", lambda phase: number(phase.evaluation_share, ".2%")),
        row("time in probes", lambda phase: number(phase.probe_share, ".2%")),
    ]
    return [(label, cells) for label, cells in found if set(cells) != {NOTHING}]


def as_text(phases: Sequence[Phase]) -> str:
    """The table in columns of plain text, with the notes under it."""
    table = [("", [phase.name for phase in phases]), *rows(phases)]
    label_width = max(len(label) for label, _ in table)
    widths = [max(map(len, column)) for column in zip(*(c for _, c in table if c), strict=True)]
    lines = [
        "  ".join([label.ljust(label_width), *map(str.rjust, cells, widths)]).rstrip()
        for label, cells in table
    ]
    remarks = notes(phases)
    return "\n".join([*lines, *([""] if remarks else []), *remarks])


def sentences(phases: Sequence[Phase]) -> list[str]:
    """What a person asks first: how much, how good, and whether anything was wasted."""
    count = "One phase" if len(phases) == 1 else f"{len(phases)} phases"
    tokens = sum(phase.tokens for phase in phases)
    steps = sum(phase.steps for phase in phases)
    seconds = sum(phase.seconds for phase in phases)
    taken = f" and {short_time(seconds)}" if math.isfinite(seconds) else ""
    said = [f"{count}: {short_number(tokens)} tokens in {steps:,} steps{taken}."]

    losses, accuracies = _final(phases[-1], "loss"), _final(phases[-1], "accuracy")
    names = [n for n in source_names(phases) if math.isfinite(losses.get(n, math.nan))]
    if len(names) > _MOST_NAMED:
        names = sorted(names, key=lambda name: losses[name])
        names = [names[0], names[-1]]
    scores = []
    for name in names:
        scores.append(f"{losses[name]:.2f} on {name}")
        if math.isfinite(accuracies.get(name, math.nan)):
            guessed = f" of the {predicted_tokens(phases[-1:])} tokens guessed"
            guessed = guessed if len(scores) == 1 else ""
            scores[-1] += f" ({accuracies[name]:.0%}{guessed})"
    kind = "Causal validation loss" if phases[-1].causal else "Validation loss"
    if len(losses) > _MOST_NAMED:
        said.append(f"{kind} ends between {listed(scores)}.")
    elif scores:
        said.append(f"{kind} ends at {listed(scores)}.")

    fill = _average([phase.fill for phase in phases], [phase.tokens for phase in phases])
    wait = _average([phase.wait_share for phase in phases], [phase.seconds for phase in phases])
    if math.isfinite(fill) and math.isfinite(wait):
        said.append(f"Rows were {fill:.1%} full; {wait:.2%} of the time went on waiting for data.")
    return said


def notes(phases: Sequence[Phase]) -> list[str]:
    """What a reader of the numbers should know about the records, one sentence each."""
    found = []
    causal = [phase.name for phase in phases if phase.causal]
    if causal and len(causal) < len(phases):
        found.append(
            f"{listed(causal)}: loss and accuracy are of next tokens (train_data.objective: "
            "causal), and not to be compared with those of masked tokens in the other "
            f"{'phase' if len(phases) - len(causal) == 1 else 'phases'}."
        )
    for phase in phases:
        remarks = [*spikes.remarks(phase), *phase.notes, *_unfinished(phase)]
        lost = int((~np.isfinite(phase.column("loss"))).sum())
        if lost:
            remarks.append(f"{lost:,} {'step has' if lost == 1 else 'steps have'} no finite loss")
        final = phase.final_evaluation()
        if final is None:
            remarks.append("no evaluation was recorded")
        elif final.tokens < 0.999 * phase.tokens:
            at, of = short_number(final.tokens), short_number(phase.tokens)
            remarks.append(f"its newest evaluation is not from its end, but at {at} of {of} tokens")
        found += [f"{phase.name}: {remark}." for remark in remarks]
    return found


def number(value: float, form: str) -> str:
    """A number in a format ('short' for three digits and a unit), or the sign for none."""
    if not math.isfinite(value):
        return NOTHING
    return short_number(value) if form == "short" else format(value, form)


def listed(items: Sequence[str]) -> str:
    """The items in one phrase: 'one, two and three'."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def _objective(phase: Phase) -> str:
    return "causal" if phase.causal else "masked"


def _unfinished(phase: Phase) -> list[str]:
    """How far a phase is that has not reached the duration of its configuration."""
    text = phase.setting("duration")
    if text is None:
        return []
    planned = Duration.parse(text)
    done = getattr(phase, planned.counted)
    if not done < planned.value:
        return []
    total = f"{short_number(planned.value)} {planned.counted}"
    return [f"it has trained {short_number(done)} of {total}"]


def _final(phase: Phase, what: str) -> dict[str, float]:
    final = phase.final_evaluation()
    return getattr(final, what) if final is not None else {}


def _average(values: Sequence[float], weights: Sequence[float]) -> float:
    return float(np.average(values, weights=weights)) if sum(weights) > 0 else math.nan
