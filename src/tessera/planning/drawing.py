"""Tables and curves in plain text, as wide as the terminal."""

import shutil
import sys
from collections.abc import Sequence

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_PLAIN = " .:-=+*#@"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of aligned columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])],
        ).rstrip()
        for row in rows
    ]


def width(least: int = 60, most: int = 110) -> int:
    """Columns of the terminal, or of a page where there is none."""
    return min(most, max(least, shutil.get_terminal_size((100, 24)).columns))


def bars(values: Sequence[float], height: int = 1) -> list[str]:
    """Columns of `height` lines, the largest value full: block characters, or plain ones.

    Args:
        values: not negative.
        height: lines of text.
    """
    steps = _EIGHTHS if _speaks_unicode() else _PLAIN
    largest = max(values, default=0.0) or 1.0
    eighths = [round(value / largest * 8 * height) for value in values]
    eighths = [max(n, 1) if value > 0 else 0 for n, value in zip(eighths, values, strict=True)]
    return [
        "".join(steps[min(8, max(0, n - 8 * line))] for n in eighths)
        for line in reversed(range(height))
    ]


def _speaks_unicode() -> bool:
    try:
        _EIGHTHS.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
