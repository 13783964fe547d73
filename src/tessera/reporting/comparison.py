"""Several runs on one page: their losses over tokens, operations and time, and how they differ."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tessera.files import write_whole
from tessera.quantities import NOTHING, short_number
from tessera.reporting import summary
from tessera.reporting.canvas import (
    HUES,
    MUTED,
    NARROW_INCHES,
    THEME,
    WIDE_INCHES,
    Canvas,
    axes_alone,
    label_ends,
    log_scale,
    render,
)
from tessera.reporting.html import document, save_button
from tessera.reporting.metrics import read_chain
from tessera.reporting.phase import Phase, predicted_tokens, source_names
from tessera.reporting.plots import FEWEST_SMOOTHED, SMOOTHED_SHARE, running_mean, thinned
from tessera.reporting.report import machines_table, summary_of

AXES = ("tokens", "operations", "time")
"""What the losses are drawn over."""
_LOSSES = ("validation", "training")
_NAMES = {"tokens": "real tokens", "operations": "floating-point operations, counted"}
_UNITS = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
_ELSEWHERE = ("run_folder", "run_name", "logging")
"""Keys that say where a run is, and not what it is."""


def write_comparison(
    run_folders: Sequence[str | Path],
    out_path: str | Path,
    *,
    operations: Callable[[Phase], float] = lambda phase: math.nan,
    refresh_seconds: int | None = None,
) -> None:
    """Write one HTML file, which needs no other, about runs beside one another.

    Args:
        run_folders: at least two.
        out_path: the file.
        operations: of a whole run; NaN if they cannot be counted.
        refresh_seconds: after which a browser reads the page again.

    Raises:
        ValueError: naming the folder, file or line that cannot be read or written.
    """
    runs = read_chain(run_folders)
    out = Path(out_path)
    if out.is_dir():
        raise ValueError(f"{out}: is a folder; name the file to write, such as {out}/compare.html")
    counted = {run.name: operations(run) for run in runs}
    title = escape(" / ".join(run.name for run in runs))
    said = [f"<p>{escape(text)}</p>" for text in _sentences(runs)]
    said += [f'<p class="note">{escape(text)}</p>' for text in summary.notes(runs)]
    body = [
        f"<h1>{title}</h1>",
        f'<div class="lead"><div>{"".join(said)}</div>\n{summary_of(runs)}</div>',
        *(_figure(what, axis, runs, counted) for axis in AXES for what in _LOSSES),
        _differences(runs),
        machines_table(runs),
    ]
    page = document(title, [part for part in body if part], refresh_seconds=refresh_seconds)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, page.encode())


def loss_over(
    runs: Sequence[Phase],
    what: str,
    axis: str,
    operations: Mapping[str, float],
    inches: float = WIDE_INCHES,
) -> Figure | None:
    """A curve a run.

    Args:
        runs: in order.
        what: "training", smoothed, or "validation", the mean over the sources that all runs have.
        axis: of `AXES`.
        operations: of each whole run by its name.
        inches: width of the figure.
    """
    shared = _shared_sources(runs)
    longest = max((run.seconds for run in runs if math.isfinite(run.seconds)), default=0.0)
    second, unit = next(((n, u) for n, u in _UNITS if longest >= 2 * n), _UNITS[-1])
    over = _NAMES.get(axis, f"{unit} of steps")
    figure, axes = axes_alone(f"nats per {predicted_tokens(runs)} token, log scale", over, inches)
    ends = []
    for number, run in enumerate(runs):
        places = _places(run, axis, operations.get(run.name, math.nan), second)
        if what == "training":
            known = np.isfinite(run.column("loss")) & np.isfinite(places)
            raw = run.column("loss")[known]
            if not raw.size:
                continue
            values = running_mean(raw, max(FEWEST_SMOOTHED, round(SMOOTHED_SHARE * raw.size)))
            shown = thinned(values.size)
            places, values = places[known][shown], values[shown]
        else:
            at = np.array([evaluation.tokens for evaluation in run.evaluations])
            values = np.array(
                [
                    np.mean([evaluation.loss.get(name, math.nan) for name in shared])
                    for evaluation in run.evaluations
                ]
            )
            if not shared or not at.size:
                continue
            places = np.interp(at, run.column("tokens"), places)
            known = np.isfinite(values) & np.isfinite(places)
            places, values = places[known], values[known]
            if not values.size:
                continue
        color = THEME[f"source-{number % HUES}"][0]
        marker = "o" if values.size <= 30 else None
        dashes: Any = ("-", (0, (5, 2)))[number // HUES % 2]
        axes.plot(places, values, color=color, linestyle=dashes, linewidth=1.6, marker=marker,
                  markersize=3.2, markeredgewidth=0)  # fmt: skip
        ends.append((run.name, float(values[-1]), color))
    if not ends:
        return None
    axes.set_xlim(left=0)
    log_scale(axes)
    label_ends(Canvas(figure, axes, (), ()), ends)
    axes.tick_params(axis="x", colors=MUTED)
    return figure


def _places(run: Phase, axis: str, operations: float, second: float) -> np.ndarray:
    """(steps,) where each step is on the axis."""
    if axis == "time":
        return np.cumsum(run.column("step_seconds")) / second
    tokens = run.column("tokens")
    return tokens if axis == "tokens" else tokens * operations / max(run.tokens, 1.0)


def _shared_sources(runs: Sequence[Phase]) -> list[str]:
    each = [
        {name for evaluation in run.evaluations for name in evaluation.loss}
        for run in runs
        if run.evaluations
    ]
    shared = set.intersection(*each) if each else set()
    return [name for name in source_names(runs) if name in shared]


def _sentences(runs: Sequence[Phase]) -> list[str]:
    shared = _shared_sources(runs)
    ends = {}
    for run in runs:
        final = run.final_evaluation()
        if final is not None and shared:
            ends[run.name] = float(np.mean([final.loss.get(name, math.nan) for name in shared]))
    ends = {name: loss for name, loss in ends.items() if math.isfinite(loss)}
    said = [f"{len(runs)} runs beside one another; each starts at the left."]
    if ends:
        each = summary.listed([f"{loss:.3f} in {name}" for name, loss in ends.items()])
        several = f", the mean over {summary.listed(shared)}"
        over = several if len(shared) > 1 else f" on {shared[0]}"
        said.append(f"Validation loss ends at {each}{over}.")
    elif any(run.evaluations for run in runs):
        said.append("No source was evaluated in all of them, so validation losses are not drawn.")
    return said


def _figure(what: str, axis: str, runs: Sequence[Phase], operations: Mapping[str, float]) -> str:
    name = f"{what}-loss-over-{axis}"
    wide = render(f"{name}-wide", loss_over, runs, what, axis, operations, WIDE_INCHES)
    narrow = render(f"{name}-narrow", loss_over, runs, what, axis, operations, NARROW_INCHES)
    if wide is None or narrow is None:
        return ""
    said = {
        "training": f"The mean over {SMOOTHED_SHARE:.0%} of the steps, {FEWEST_SMOOTHED} at least.",
        "validation": "The mean over the sources that all runs were evaluated on.",
    }[what]
    lacking = [run.name for run in runs if not math.isfinite(operations.get(run.name, math.nan))]
    if axis == "operations" and lacking:
        said += f" Not counted of {summary.listed(lacking)}: no model in its configuration."
    title = f"{what.capitalize()} loss over {axis}"
    return (
        f'<figure class="saved">\n<h2>{save_button(f"{name}.svg")}{title}</h2>\n'
        f'<div class="wide" role="img" aria-label="{title}">{wide}</div>\n'
        f'<div class="narrow" role="img" aria-label="{title}">{narrow}</div>\n'
        f'<figcaption class="caption">{escape(said)}</figcaption>\n</figure>'
    )


def _differences(runs: Sequence[Phase]) -> str:
    """The keys of the configurations that are not the same in all runs."""
    flat = [dict(_leaves(run.config, "")) for run in runs]
    keys = list(dict.fromkeys(key for settings in flat for key in settings))
    rows = ""
    for key in keys:
        values = [settings.get(key, NOTHING) for settings in flat]
        if len(set(values)) > 1 and key.split(".")[0] not in _ELSEWHERE:
            cells = "".join(f"<td>{escape(value)}</td>" for value in values)
            rows += f'<tr><th scope="row">{escape(key)}</th>{cells}</tr>\n'
    if not rows:
        return "<h2>Settings</h2>\n<p>The same in all of them.</p>"
    head = "".join(f'<th scope="col">{escape(run.name)}</th>' for run in runs)
    return (
        f'<div class="saved"><h2>Settings that differ</h2>\n<div class="scroll"><table><thead><tr>'
        f"<td></td>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>"
        f"{save_button('settings.csv')}</div>"
    )


def _leaves(value: Any, key: str) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [
            leaf
            for name, inner in value.items()
            for leaf in _leaves(inner, f"{key}.{name}" if key else str(name))
        ]
    if isinstance(value, float) and abs(value) >= 1e6:
        return [(key, short_number(value))]
    return [(key, str(value))]
