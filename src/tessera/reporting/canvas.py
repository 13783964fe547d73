"""The axes, colours, scales and labels of the figures, over the total tokens of a chain."""

import io
import os.path
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from tessera.quantities import short_number
from tessera.reporting.html import THEME
from tessera.reporting.phase import Phase

INK, MUTED, TRAIN = (THEME[name][0] for name in ("ink", "muted", "train"))
HUES = 6
NARROW_INCHES = 4.5
WIDE_INCHES = 10.4

_NARROWEST_PHASE = 0.15
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.55, 0.2, 0.45, 0.5
_SMALL: dict[str, Any] = {"textcoords": "offset points", "fontsize": 9, "color": MUTED}
_STYLE: Any = {
    "font.size": 10,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": THEME["grid"][0],
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "ytick.major.size": 0,
}


def render(name: str, draw: Callable[..., Figure | None], *arguments: Any) -> str | None:
    """What `draw(*arguments)` draws, as an SVG element for a page that defines `THEME`'s colours.

    Same inputs, same bytes. `name` keeps the ids of figures on one page apart.
    """
    with _styled(name):
        figure = draw(*arguments)
        if figure is None:
            return None
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    for color, (light, _) in THEME.items():
        text = text.replace(light, f"var(--{color})")
    return text


def picture(name: str, draw: Callable[..., Figure | None], *arguments: Any) -> bytes | None:
    """What `draw(*arguments)` draws, as a PNG on white; None if there is nothing to draw."""
    with _styled(name):
        figure = draw(*arguments)
        if figure is None:
            return None
        buffer = io.BytesIO()
        figure.savefig(
            buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None}
        )
    return buffer.getvalue()


@contextmanager
def _styled(name: str) -> Iterator[None]:
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        matplotlib.rcParams["svg.hashsalt"] = name
        yield


@dataclass(frozen=True)
class Canvas:
    """Axes over the total tokens of a chain, from left (0) to right (1)."""

    figure: Figure
    axes: Axes
    phases: Sequence[Phase]
    edges: tuple[float, ...]
    """(phases+1,) where each phase begins, and the last one ends."""

    def places(self, index: int, tokens: np.ndarray | float) -> np.ndarray:
        """Where so many tokens of a phase are on the horizontal axis."""
        left, right = self.edges[index : index + 2]
        return np.asarray(left + tokens / max(self.phases[index].tokens, 1.0) * (right - left))


def blank(
    phases: Sequence[Phase], unit: str, width: float = NARROW_INCHES, height: float = 2.8
) -> Canvas:
    """Empty axes of so many inches, with the phases marked, and the unit of the vertical axis."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes(
        (
            _LEFT / width,
            _BOTTOM / height,
            1 - (_LEFT + _RIGHT) / width,
            1 - (_BOTTOM + _TOP) / height,
        )
    )
    canvas = Canvas(figure, axes, phases, phase_edges(phases)[0])
    axes.set_xlim(0, 1)
    axes.set_xlabel("total tokens")
    above = 19 if len(phases) > 1 else 7
    axes.annotate(unit, (0, 1), (-72 * _LEFT + 4, above), xycoords="axes fraction", **_SMALL)
    for edge in canvas.edges[1:-1]:
        axes.axvline(edge, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    return canvas


def axes_alone(unit: str, over: str, width: float = WIDE_INCHES) -> tuple[Figure, Axes]:
    """Empty axes over numbers that begin at 0, with the units of both."""
    height = 2.9 + 0.08 * width
    figure = Figure(figsize=(width, height))
    inside = (1 - (_LEFT + _RIGHT) / width, 1 - (_BOTTOM + _TOP) / height)
    axes = figure.add_axes((_LEFT / width, _BOTTOM / height, *inside))
    axes.set_xlabel(over)
    axes.xaxis.set_major_locator(MaxNLocator(6 if width > NARROW_INCHES else 4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    axes.annotate(unit, (0, 1), (-72 * _LEFT + 4, 7), xycoords="axes fraction", **_SMALL)
    return figure, axes


def phase_edges(phases: Sequence[Phase]) -> tuple[tuple[float, ...], bool]:
    """Where phases begin and end on an axis from 0 to 1, and whether that is off their scale.

    The last phase of a recipe may hold 2% of the tokens and most of the interest, so no phase is
    drawn narrower than it takes to see it.
    """
    tokens = np.array([max(phase.tokens, 1.0) for phase in phases])
    least = min(_NARROWEST_PHASE, 0.6 / len(phases))
    short = np.zeros(len(phases), dtype=bool)
    while True:
        shares = np.where(short, 0.0, tokens)
        widths = np.where(short, least, shares / shares.sum() * (1 - least * short.sum()))
        if (widths >= least - 1e-9).all():
            return (0.0, *np.cumsum(widths)[:-1].tolist(), 1.0), bool(short.any())
        short |= widths < least


def finish(canvas: Canvas, ends: Sequence[tuple[str, float, str]] = ()) -> Figure:
    """Label the phases, the tokens and, at the right, where each curve ends, by its name.

    Args:
        canvas: with everything drawn and the vertical scale set.
        ends: name, last value and colour of each curve.
    """
    axes, width = canvas.axes, canvas.figure.get_size_inches()[0]
    if ends:
        label_ends(canvas, ends)
    inches = axes.get_position().width * width
    _label_tokens(canvas, gap=0.5 / inches)
    if len(canvas.phases) > 1:
        room = [int(share * inches / 0.075) for share in np.diff(canvas.edges)]
        names = distinguished([phase.name for phase in canvas.phases], room)
        for name, left in zip(names, canvas.edges, strict=False):
            axes.annotate(name, (left, 1), (2, 5), xycoords="axes fraction", **_SMALL)
    return canvas.figure


def linear_scale(axes: Axes, text: Callable[[float], str], from_zero: bool = True) -> None:
    """A few round ticks, written by `text`."""
    if from_zero:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def log_scale(axes: Axes) -> None:
    """A logarithmic axis with plain numbers, as round as the range allows."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    for mantissas in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), np.arange(1, 10, 0.5)):
        decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
        ticks = np.unique(np.outer(decades, mantissas))
        ticks = ticks[(ticks >= low) & (ticks <= high)]
        if ticks.size >= 4:
            break
    else:
        ticks = np.array(MaxNLocator(4).tick_values(low, high))
        ticks = ticks[(ticks >= low) & (ticks <= high)]
    axes.yaxis.set_major_locator(FixedLocator(ticks.tolist()))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


def shortened(text: str, most: int) -> str:
    """The text, or as much of it as fits in so many characters."""
    return text if len(text) <= most else text[: max(most - 1, 1)] + "\u2026"


def distinguished(names: Sequence[str], room: Sequence[int]) -> list[str]:
    """The names, cut to so many characters; if one must be, without what all begin with."""
    if any(len(name) > most for name, most in zip(names, room, strict=True)):
        common = len(os.path.commonprefix(names))
        names = [name[common:] or name for name in names]
    return [shortened(name, most) for name, most in zip(names, room, strict=True)]


def spread(places: Sequence[float], gap: float) -> list[float]:
    """The same places in [0, 1], moved apart as little as it takes to be `gap` from each other."""
    order = np.argsort(places, kind="stable")
    gap = min(gap, 1 / max(len(places) - 1, 1))
    moved = np.clip(np.asarray(places, dtype=float)[order], 0, 1)
    for _ in range(200):
        overlap = np.maximum(gap - np.diff(moved), 0)
        if not (overlap > 1e-6).any():
            break
        moved[:-1] -= overlap / 2
        moved[1:] += overlap / 2
        moved = np.clip(moved, gap * np.arange(len(moved)), 1 - gap * np.arange(len(moved))[::-1])
    result = np.empty(len(moved))
    result[order] = moved
    return result.tolist()


def _label_tokens(canvas: Canvas, gap: float) -> None:
    """Both ends, then boundaries, then round numbers, as far as there is room."""
    phases, edges = canvas.phases, canvas.edges
    before = [phase.tokens_before for phase in phases]
    wanted = [(0.0, before[0]), (1.0, before[-1] + phases[-1].tokens)]
    wanted += zip(edges[1:-1], before[1:], strict=True)
    for index, phase in enumerate(phases):
        for value in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(
            before[index], before[index] + phase.tokens
        ):
            if 0 < value - before[index] < phase.tokens:
                wanted.append((float(canvas.places(index, value - before[index])), float(value)))
    chosen: list[tuple[float, float]] = []
    for place, value in wanted:
        if all(abs(place - other) >= gap for other, _ in chosen):
            chosen.append((place, value))
    labels = [short_number(value) for _, value in chosen]
    canvas.axes.xaxis.set_major_locator(FixedLocator([place for place, _ in chosen]))
    canvas.axes.xaxis.set_major_formatter(FixedFormatter(labels))


def label_ends(canvas: Canvas, ends: Sequence[tuple[str, float, str]]) -> None:
    """Make room at the right, and write where each curve ends: name, last value and colour."""
    axes = canvas.axes
    width, height = canvas.figure.get_size_inches()
    names = [shortened(name, 12 if width < 7 else 24) for name, _, _ in ends]
    box = axes.get_position()
    margin = 0.3 + 0.078 * max(len(name) for name in names)
    axes.set_position((box.x0, box.y0, 1 - box.x0 - margin / width, box.height))
    axes.get_ylim()  # scales the axes to what is drawn, which transData alone would not
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = [to_axes.transform((1.0, value))[1] for _, value, _ in ends]
    gap = 0.175 / (box.height * height)
    for name, (_, _, color), y in zip(names, ends, spread(heights, gap), strict=True):
        axes.annotate(
            "\u25cf", (1, y), (4, 0), xycoords="axes fraction", textcoords="offset points",
            fontsize=8, color=color, va="center_baseline",
        )  # fmt: skip
        axes.annotate(
            name, (1, y), (14, 0), xycoords="axes fraction", textcoords="offset points",
            fontsize=10, va="center_baseline",
        )  # fmt: skip
