"""Watches for steps that never end, and for code that is compiled again and again."""

import contextlib
import faulthandler
from collections.abc import Callable
from pathlib import Path

from composer.core import Callback, State
from composer.loggers import Logger

from tessera.model.compilation import graphs_compiled
from tessera.training import distributed

WARM_UP_STEPS = 20
"""First steps, rarer shapes and the first evaluation may compile."""


class Watchdog(Callback):
    """Prints the stacks of all threads when no step finishes for too long.

    A timer of the interpreter's own does the printing, so that even a process that hangs in C, such
    as in a collective operation, says where. Each finished step sets the timer anew.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        self._path = folder / f"stacks-rank{distributed.rank()}.txt"
        self._seconds = minutes * 60
        self._file = self._path.open("a")

    def fit_start(self, state: State, logger: Logger) -> None:
        """Set the timer for the first step."""
        self._set_timer()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Set the timer anew: a step has finished."""
        self._set_timer()

    def _set_timer(self) -> None:
        faulthandler.dump_traceback_later(self._seconds, repeat=True, file=self._file)

    def stop(self) -> None:
        """Stop the timer, and leave no empty file."""
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        with contextlib.suppress(OSError):
            if self._path.stat().st_size == 0:
                self._path.unlink()


class RecompileWatch(Callback):
    """Says so when compiled layers are compiled again after they should have settled."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._steps = 0
        self._before = 0

    def batch_start(self, state: State, logger: Logger) -> None:
        """Count the graphs before the step."""
        self._before = graphs_compiled()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Count again; to come before whatever else may compile between steps."""
        self._steps += 1
        new = graphs_compiled() - self._before
        if new and self._steps > WARM_UP_STEPS:
            self._warn(
                f"step {state.timestamp.batch.value} compiled {new} more graphs; shapes should be "
                "the same at every step. TORCH_LOGS=recompiles says what differed"
            )
