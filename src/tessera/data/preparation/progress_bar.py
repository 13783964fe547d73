"""How far a preparation is: a bar on a terminal, a line a minute in a log that is none."""

import sys
from collections.abc import Callable
from typing import Any, TextIO

from tqdm import tqdm

LOG_SECONDS = 60.0
_LINE = "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left"


def progress_bar(total: float, name: str, file: TextIO | None = None) -> "tqdm[Any]":
    """A bar of so many bytes or characters on the standard error, or whatever stands for it."""
    file = sys.stderr if file is None else file
    how: dict[str, Any] = {"total": total, "desc": name, "unit": "B", "unit_scale": True}
    if file.isatty():
        return tqdm(**how, file=file, mininterval=1)
    lines: Any = _Lines(file.write, file.flush)
    return tqdm(
        **how, file=lines, mininterval=LOG_SECONDS, maxinterval=LOG_SECONDS, bar_format=_LINE
    )


class _Lines:
    """A file for tqdm, which begins each line by going back over the one before."""

    def __init__(self, write: Callable[[str], object], flush: Callable[[], object]) -> None:
        self._write, self.flush = write, flush

    def write(self, text: str) -> None:
        """Pass on what is more than going back, as a line."""
        if text.strip():
            self._write(text.strip() + "\n")
