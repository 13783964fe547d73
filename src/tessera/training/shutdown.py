"""Being told to stop: finish the step, save, leave with a status that asks to be started again.

Exit statuses of a run: 0 done, 2 the user's mistake, 1 ours, `PREEMPTED` stopped by a signal with
everything saved (75, which sysexits.h calls a temporary failure: try again).
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

PREEMPTED = 75
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
ECHO_SECONDS = 2.0
"""A launcher passes on what it is sent, so one Ctrl-C may arrive twice within moments."""

_PR_SET_PDEATHSIG = 1


class StopRequest:
    """Whether, and by which signal, this process was asked to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.training = False
        """Before the first step there is nothing to save: a signal then ends the process."""
        self.on_request: Callable[[], None] | None = None
        """Called from the handler at the first signal of training."""
        self._since = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Handle the signals; once more after Composer's import, which leaves handlers too."""
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}

    def uninstall(self) -> None:
        """Leave the signals to whoever handled them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        now = time.monotonic()
        if not self.training:
            _say(f"{name}: stopped before the first step")
            os._exit(PREEMPTED)
        if self.signal is None:
            self.signal, self._since = number, now
            _say(f"{name}: finishing this step, then saving; once more stops at once")
            if self.on_request is not None:
                self.on_request()
        elif now - self._since > ECHO_SECONDS:
            _say(f"{name} again: stopped at once, nothing saved since the last checkpoint")
            os._exit(128 + number)


def end_with_parent() -> None:
    """Have the kernel send SIGTERM when the launcher is gone, so that no rank trains on alone."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if _orphaned(os.getppid(), Path(sys.argv[0]).name):
        _say("the launcher is gone: stopped before the first step")
        sys.exit(PREEMPTED)


def _orphaned(parent: int, script: str) -> bool:
    """Whether the launcher was gone before the kernel could be asked to watch it.

    The parent is then whoever takes in orphans. A launcher has its ranks in its own process group,
    or at least names their script in its command line.
    """
    try:
        command = Path(f"/proc/{parent}/cmdline").read_bytes()
        return os.getpgid(parent) != os.getpgid(0) and script.encode() not in command
    except OSError:  # no such file system; or no such process, and then the signal is on its way
        return False


def _say(text: str) -> None:
    # print() is not safe in a signal handler: it may interrupt itself.
    os.write(2, f"tessera: {text}\n".encode())
