"""Tables to figures. Reads no files.

Every `*_figure` takes the phases of a chain and gives a figure, or None if nothing was recorded
to draw. Draw them through `tessera.reporting.canvas.render`, which sets the style.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tessera.quantities import short_number
from tessera.reporting.canvas import (
    HUES,
    MUTED,
    THEME,
    TRAIN,
    WIDE_INCHES,
    Canvas,
    blank,
    finish,
    linear_scale,
    log_scale,
)
from tessera.reporting.phase import Evaluation, Phase, predicted_tokens, source_names
from tessera.reporting.spikes import unusual

SMOOTHED_SHARE = 0.02
"""A smoothed curve is the running mean over this share of a phase's steps, or over a few."""
FEWEST_SMOOTHED = 9

_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)))
_MOST_POINTS = 500
_MOST_MARKERS = 30


def loss_figure(phases: Sequence[Phase], inches: float = WIDE_INCHES) -> Figure | None:
    """Training loss, raw and smoothed, with the validation loss of every source."""
    unit = f"nats per {predicted_tokens(phases)} token, log scale"
    canvas = blank(phases, unit, inches, 3.5 + 0.1 * inches)
    end = _noisy(canvas, lambda phase: _positive(phase.column("loss")))
    _mark(canvas, "loss")
    ends = _sources(canvas, lambda evaluation: evaluation.loss)
    if end is not None:
        ends.append(("training", end, TRAIN))
    if not ends:
        return None
    log_scale(canvas.axes)
    return finish(canvas, ends)


def accuracy_figure(phases: Sequence[Phase]) -> Figure | None:
    """The share of predicted validation tokens that are guessed, per source."""
    canvas = blank(phases, f"of {predicted_tokens(phases)} tokens")
    ends = _sources(canvas, lambda evaluation: evaluation.accuracy)
    if not ends:
        return None
    linear_scale(canvas.axes, lambda value: f"{100 * value:.3g}%", from_zero=False)
    return finish(canvas, ends)


def position_figure(phases: Sequence[Phase]) -> Figure | None:
    """Masked-LM loss by position in the document."""
    canvas = blank(phases, "nats per masked token")
    ends = _probes(canvas, "position.", ".loss")
    if not ends:
        return None
    linear_scale(canvas.axes, lambda value: f"{value:.3g}", from_zero=False)
    return finish(canvas, ends)


def context_figure(phases: Sequence[Phase]) -> Figure | None:
    """The loss of the same targets with all of their document in view, and with little."""
    canvas = blank(phases, "nats per masked token")
    ends = _probes(canvas, "context.loss", "", _seen)
    if not ends:
        return None
    linear_scale(canvas.axes, lambda value: f"{value:.3g}", from_zero=False)
    return finish(canvas, ends)


def recall_figure(phases: Sequence[Phase]) -> Figure | None:
    """Share of the names' tokens that are recalled, by how far before they stood."""
    canvas = blank(phases, "of the names' tokens")
    ends = _probes(canvas, "recall.", ".accuracy", lambda name: name.replace("without_", "no "))
    if not ends:
        return None
    linear_scale(canvas.axes, lambda value: f"{100 * value:.3g}%")
    canvas.axes.set_ylim(-0.02, 1.02)
    return finish(canvas, ends)


def linear_probe_figure(phases: Sequence[Phase]) -> Figure | None:
    """Share of labelled texts that logistic regression on frozen features gets right."""
    canvas = blank(phases, "of labelled texts")
    ends = _probes(canvas, "linear_probe.", "accuracy", lambda name: "right")
    if not ends:
        return None
    linear_scale(canvas.axes, lambda value: f"{100 * value:.3g}%", from_zero=False)
    return finish(canvas, ends)


def learning_rate_figure(phases: Sequence[Phase]) -> Figure | None:
    """The learning rate each step used."""
    canvas = blank(phases, "used by each step")
    if not _exact(canvas, "lr"):
        return None
    linear_scale(canvas.axes, lambda value: f"{value:.3g}")
    return finish(canvas)


def batch_figure(phases: Sequence[Phase]) -> Figure | None:
    """Rows of the global batch."""
    canvas = blank(phases, "rows per step")
    if not _exact(canvas, "rows", drawstyle="steps-pre"):
        return None
    linear_scale(canvas.axes, short_number)
    return finish(canvas)


def masking_figure(phases: Sequence[Phase]) -> Figure | None:
    """The share of tokens that training predicts, if it is meant to move."""
    if len({rate for phase in phases for rate in phase.masking_rates()}) < 2:
        return None
    canvas = blank(phases, "of all tokens")
    if _noisy(canvas, lambda phase: phase.column("mask_rate")) is None:
        return None
    linear_scale(canvas.axes, lambda value: f"{100 * value:.3g}%")
    return finish(canvas)


def gradient_figure(phases: Sequence[Phase]) -> Figure | None:
    """The norm of the gradient over all parameters."""
    canvas = blank(phases, "over all parameters, log scale")
    if _noisy(canvas, lambda phase: _positive(phase.column("grad_norm"))) is None:
        return None
    _mark(canvas, "grad_norm")
    log_scale(canvas.axes)
    return finish(canvas)


def speed_figure(phases: Sequence[Phase]) -> Figure | None:
    """Real tokens per second of step time."""
    canvas = blank(phases, "real tokens per second")
    if _noisy(canvas, lambda phase: phase.column("tokens_per_second")) is None:
        return None
    linear_scale(canvas.axes, short_number)
    return finish(canvas)


def wait_figure(phases: Sequence[Phase]) -> Figure | None:
    """The share of each step's time spent waiting for the loader, against the 1% aimed at."""
    canvas = blank(phases, "of step time")
    if _noisy(canvas, wait_shares) is None:
        return None
    shares = np.concatenate([wait_shares(phase) for phase in phases])
    usual = float(np.quantile(shares[np.isfinite(shares)], 0.99))
    linear_scale(canvas.axes, lambda value: f"{100 * value:.3g}%")
    canvas.axes.set_ylim(0, max(0.014, 1.15 * usual))
    canvas.axes.axhline(0.01, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    return finish(canvas)


def wait_shares(phase: Phase) -> np.ndarray:
    """(steps,) loader wait over step time."""
    return phase.column("loader_wait_seconds") / _positive(phase.column("step_seconds"))


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean over `window` values around each, or as many of them as there are at the ends."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    middle = np.arange(values.size)
    first = np.maximum(middle - (window - 1) // 2, 0)
    last = np.minimum(middle + window // 2 + 1, values.size)
    return (sums[last] - sums[first]) / (last - first)


def _noisy(canvas: Canvas, values: Callable[[Phase], np.ndarray]) -> float | None:
    """Raw values, pale, and their running mean over them; gives where the mean ends."""
    end = None
    for index, phase in enumerate(canvas.phases):
        places, raw = _known(canvas.places(index, phase.column("tokens")), values(phase))
        if not raw.size:
            continue
        if raw.size > 3 * _MOST_POINTS:
            cuts = np.arange(_MOST_POINTS) * raw.size // _MOST_POINTS
            low, high = np.minimum.reduceat(raw, cuts), np.maximum.reduceat(raw, cuts)
            canvas.axes.fill_between(places[cuts], low, high, color=TRAIN, alpha=0.25, lw=0)
        else:
            canvas.axes.plot(places, raw, color=TRAIN, alpha=0.35, linewidth=0.6)
        smooth = running_mean(raw, max(FEWEST_SMOOTHED, round(SMOOTHED_SHARE * raw.size)))
        shown = thinned(smooth.size)
        canvas.axes.plot(places[shown], smooth[shown], color=TRAIN, linewidth=1.6)
        end = float(smooth[-1])
    return end


def _mark(canvas: Canvas, name: str) -> None:
    """A ring around each step that stands out, the highest of them if there are many."""
    for index, phase in enumerate(canvas.phases):
        found = unusual(phase, name)
        highest = np.argsort(-found.values, kind="stable")[:_MOST_MARKERS]
        tokens = phase.column("tokens")[found.steps[highest]]
        canvas.axes.plot(
            canvas.places(index, tokens), found.values[highest], linestyle="", marker="o",
            markersize=6, markerfacecolor="none", markeredgecolor=THEME["source-1"][0],
            markeredgewidth=1.2, clip_on=False,
        )  # fmt: skip


def _exact(canvas: Canvas, name: str, **style: Any) -> bool:
    """Values as they are, without smoothing; False if there are none."""
    drawn = False
    for index, phase in enumerate(canvas.phases):
        places, values = _known(canvas.places(index, phase.column("tokens")), phase.column(name))
        if not values.size:
            continue
        moves = np.diff(values) != 0
        shown = np.flatnonzero(np.append(True, moves) | np.append(moves, True))
        shown = shown if shown.size <= _MOST_POINTS else thinned(values.size)
        canvas.axes.plot(places[shown], values[shown], color=TRAIN, linewidth=1.6, **style)
        drawn = True
    return drawn


def _sources(
    canvas: Canvas, scores: Callable[[Evaluation], dict[str, float]]
) -> list[tuple[str, float, str]]:
    """A curve a source; gives name, last value and colour of each."""
    return _curves(
        canvas,
        source_names(canvas.phases),
        lambda phase, name: [(e.tokens, scores(e).get(name, np.nan)) for e in phase.evaluations],
    )


def _curves(
    canvas: Canvas,
    names: Sequence[str],
    points: Callable[[Phase, str], Sequence[tuple[float, float]]],
) -> list[tuple[str, float, str]]:
    """A curve a name, broken where a phase ends; gives name, last value and colour of each."""
    ends = []
    for number, name in enumerate(names):
        color = THEME[f"source-{number % HUES}"][0]
        dashes = _DASHES[number // HUES % len(_DASHES)]
        end = None
        for index, phase in enumerate(canvas.phases):
            found = np.array(points(phase, name), dtype=float).reshape(-1, 2)
            places, values = _known(canvas.places(index, found[:, 0]), found[:, 1])
            if values.size:
                marker = "o" if values.size <= _MOST_MARKERS else None
                canvas.axes.plot(
                    places, values, color=color, linestyle=dashes, linewidth=1.5, marker=marker,
                    markersize=3.2, markeredgewidth=0, clip_on=False,
                )  # fmt: skip
                end = float(values[-1])
        if end is not None:
            ends.append((name, end, color))
    return ends


def _probes(
    canvas: Canvas, start: str, ending: str, text: Callable[[str], str] = str
) -> list[tuple[str, float, str]]:
    """A curve for each number of the probes whose path is `start`, a name, and `ending`."""
    paths = dict.fromkeys(
        path
        for phase in canvas.phases
        for probe in phase.probes
        for path in probe.values
        if path.startswith(start) and path.endswith(ending)
    )
    named = {text(path[len(start) : len(path) - len(ending)]): path for path in paths}
    return _curves(
        canvas,
        list(named),
        lambda phase, name: [(p.tokens, p.values.get(named[name], np.nan)) for p in phase.probes],
    )


def _seen(name: str) -> str:
    """What is in view, from the end of a key such as `loss_with_512_tokens`."""
    return name.removeprefix("_with_").replace("_", " ") or "all of it"


def _known(places: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known = np.isfinite(values)
    return places[known], values[known]


def thinned(count: int) -> np.ndarray:
    """Indices of at most 500 of so many points, evenly spread, both ends among them."""
    return np.unique(np.linspace(0, count - 1, _MOST_POINTS).round().astype(int))


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, np.nan)
