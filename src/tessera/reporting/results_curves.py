"""A table of a task's details as curves: its rows from left to right, a colour a model."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from tessera.files import JsonObject

HUES = 6
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 560.0, 250.0, 46.0, 16.0, 14.0, 44.0
_TICKS = 4
_DASHED = ' stroke-dasharray="5 4"'


def curves(found: Sequence[tuple[str, JsonObject]]) -> str:
    """An SVG figure of one table of each model; '' if it does not ask for one, or has one row.

    Args:
        found: names of models with their tables, all of the same title.
    """
    table = found[0][1]
    columns = [name for name in table.get("plot", []) if name in table["columns"]]
    names = list(dict.fromkeys(str(row[0]) for _, table in found for row in table["rows"]))
    if not columns or len(names) < 2:
        return ""
    lines = [
        (number, place, _points(table, column))
        for number, (_, table) in enumerate(found)
        for place, column in enumerate(columns)
    ]
    values = [value for *_, points in lines for value in points.values()]
    if not values:
        return ""
    ticks = _ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]

    def x(name: str) -> float:
        return _LEFT + 16 + names.index(name) / (len(names) - 1) * (_WIDTH - _LEFT - _RIGHT - 32)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _BOTTOM - _TOP)

    marks = "".join(
        f'<line x1="{_LEFT}" y1="{y(tick):.1f}" x2="{_WIDTH - _RIGHT}" y2="{y(tick):.1f}" '
        f'stroke="var(--grid)"/><text class="axis" x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" '
        f'text-anchor="end">{tick:.4g}</text>'
        for tick in ticks
    )
    every = math.ceil(max(map(len, names)) * 7 * len(names) / (_WIDTH - _LEFT - _RIGHT))
    marks += "".join(
        f'<text class="axis" x="{x(name):.1f}" y="{_HEIGHT - 26}" text-anchor="middle">'
        f"{escape(name)}</text>"
        for number, name in enumerate(names)
        if (len(names) - 1 - number) % every == 0
    )
    for number, place, points in lines:
        color = f"var(--source-{number % HUES})"
        path = " ".join(f"{x(name):.1f},{y(value):.1f}" for name, value in points.items())
        marks += (
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"'
            f"{_DASHED if place else ''}/>"
        )
        marks += "".join(
            f'<circle cx="{x(name):.1f}" cy="{y(value):.1f}" r="3" fill="{color}"/>'
            for name, value in points.items()
            if not place
        )
    said = escape(f"{columns[0]}, by {table['columns'][0]}")
    return (
        f'<figure><svg class="curves" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" '
        f'aria-label="{said}">{marks}<text class="axis" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" '
        f'text-anchor="end">{escape(str(table["columns"][0]))}</text></svg>'
        f'<figcaption class="caption">{_legend(found, columns)}</figcaption></figure>'
    )


def _legend(found: Sequence[tuple[str, JsonObject]], columns: Sequence[str]) -> str:
    models = " ".join(
        f'<span class="key"><i style="background:var(--source-{number % HUES})"></i>'
        f"{escape(model)}</span>"
        for number, (model, _) in enumerate(found)
    )
    dashed = f"; dashed: {escape(columns[1])}" if len(columns) > 1 else ""
    return f"{models} {escape(columns[0])}{dashed}"


def _points(table: JsonObject, column: str) -> dict[str, float]:
    """The values of a column by the names of their rows, where there is a finite one."""
    place = table["columns"].index(column)
    return {str(row[0]): float(row[place]) for row in table["rows"] if _is_number(row[place])}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers around a range, a few."""
    span = max(high - low, 1e-3 * abs(high), 0.01)
    raw = span / _TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * n for n in range(first, max(last, first + 1) + 1)]
