"""Stacks of all threads of every rank, when no step finishes for too long."""

import contextlib
import faulthandler
from pathlib import Path

from composer.core import Callback, State
from composer.loggers import Logger

from tessera.training import distributed


class Watchdog(Callback):
    """Re-armed at every step; what it prints survives a process that hangs in C."""

    def __init__(self, folder: Path, minutes: float) -> None:
        self._path = folder / f"stacks-rank{distributed.rank()}.txt"
        self._seconds = minutes * 60
        self._file = self._path.open("a")

    def fit_start(self, state: State, logger: Logger) -> None:
        """Arm."""
        self._arm()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Arm again."""
        self._arm()

    def _arm(self) -> None:
        faulthandler.dump_traceback_later(self._seconds, repeat=True, file=self._file)

    def disarm(self) -> None:
        """Stop watching, and leave no empty file."""
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        with contextlib.suppress(OSError):
            if self._path.stat().st_size == 0:
                self._path.unlink()
