"""How a training process ends: asked to stop, failed, or done.

Exit statuses of a run: 0 done; 2 the user's mistake, said in one message; 75 (`PREEMPTED`) stopped
by a signal with everything saved, which sysexits.h calls a temporary failure: try again; 1 anything
else. Of several ranks that fail together, the one that failed first is the one to be heard.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tessera.config import mistake
from tessera.training import distributed
from tessera.training.run_folder import STOP_FILE, checkpoints, note_end

PREEMPTED = 75
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
ECHO_SECONDS = 2.0
"""A launcher passes on what it is sent, so one Ctrl-C may arrive twice within moments."""

_PR_SET_PDEATHSIG = 1
_STATUSES_OF_ALL_RANKS = {2: 3.0, PREEMPTED: 1.0}
"""Statuses that all ranks leave with together, and how many seconds the others wait for rank 0.

Any other status comes from one rank alone; it exits at once, so that the launcher reports it.
"""
_LOST_CONTACT = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "timed out waiting",
    "remote process exited",
    "ncclremoteerror",
    "ncclsystemerror",
    "communicator was aborted",
    "watchdog caught collective operation timeout",
)
"""What gloo and NCCL say when the other side of a connection is no more."""
_PATIENCE_SECONDS = 3.0
"""How long a rank that lost contact waits for the note of the rank that failed first."""


class TrainingStopped(RuntimeError):
    """Training cannot go on, and a traceback would not say more than the text: why, what to do."""


# ---- being asked to stop


_Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None


class StopRequest:
    """Whether, and by which signal, this process was asked to stop."""

    def __init__(self, run_folder: Path | None = None) -> None:
        """Nobody has asked yet.

        Args:
            run_folder: where a file named `stop` also asks for it, on rank 0.
        """
        self.signal: int | None = None
        self.training = False
        """Before the first step there is nothing to save: a signal then ends the process."""
        self.obeyed = False
        """Whether training ended because somebody, on any rank, had asked for it."""
        self.on_request: Callable[[], None] | None = None
        """Called from the handler at the first signal of training."""
        self._run_folder = run_folder
        self._since = 0.0
        self._before: dict[signal.Signals, _Handler] = {}

    def install(self) -> None:
        """Handle the signals; once more after Composer's import, which leaves handlers too."""
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}

    def uninstall(self) -> None:
        """Leave the signals to whoever handled them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def asked(self) -> int | None:
        """The signal that asked for it; SIGUSR1 stands for the file `stop` in the run folder."""
        if self.signal is None and self._run_folder is not None and distributed.rank() == 0:
            wish = self._run_folder / STOP_FILE
            if wish.exists():
                wish.unlink()
                self.signal = signal.SIGUSR1
        return self.signal

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        now = time.monotonic()
        if not self.training:
            self._note(f"stopped by {name} before the first step of this start")
            _say(f"{name}: stopped before the first step")
            os._exit(PREEMPTED)
        if self.signal is None:
            self.signal, self._since = number, now
            _say(f"{name}: finishing this step, then saving; once more stops at once")
            if self.on_request is not None:
                self.on_request()
        elif now - self._since > ECHO_SECONDS:
            self._note(f"stopped at once by a second {name}: goes on from the newest checkpoint")
            _say(f"{name} again: stopped at once, nothing saved since the last checkpoint")
            os._exit(128 + number)

    def _note(self, how: str) -> None:
        """Leave word in a run folder that there is."""
        folder = self._run_folder
        if folder is not None and folder.is_dir() and distributed.rank() == 0:
            note_end(folder, how, max(checkpoints(folder), default=0))


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


# ---- leaving


def leave_after(work: Callable[[], int]) -> NoReturn:
    """Do the work of a training process, and exit with its status.

    There is no moment at which a signal would end it with another: before the first step, and
    again once the work is done, it is obeyed at once.
    """
    StopRequest().install()
    try:
        if distributed.launched():
            end_with_parent()
        status = work()
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
        if status in {128 + number for number in SIGNALS}:
            status = PREEMPTED  # by a handler that Composer's import leaves for a moment
    except BaseException as error:
        message = mistake(error) or (str(error) if isinstance(error, TrainingStopped) else None)
        if message is None:
            traceback.print_exc()
        else:
            print(f"tessera: {message}", file=sys.stderr)
        status = 2 if mistake(error) else 1
    for number in SIGNALS:
        signal.signal(number, lambda *_: os._exit(status))
    sys.stdout.flush()
    sys.stderr.flush()
    if distributed.local_rank() > 0 and status in _STATUSES_OF_ALL_RANKS:
        _wait_for_the_launcher(_STATUSES_OF_ALL_RANKS[status])
    if distributed.launched():
        # Others may wait for this process, or have gone: no clean-up that might wait for them.
        os._exit(status)
    sys.exit(status)


def _wait_for_the_launcher(seconds: float) -> None:
    """Let the node's first rank leave first: its status is what the launcher reports.

    The launcher then ends the others by SIGTERM, and is silent about those that die of it.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(seconds)


# ---- which rank failed first


def report_first_failure(run_folder: Path, error: Exception) -> None:
    """Note this rank's failure, or say which rank failed first and exit with status 1.

    Returns if the failure is this rank's own, for the caller to raise it again.
    """
    if distributed.world_size() == 1:
        return
    if not _lost_contact(error):
        with contextlib.suppress(OSError):
            _failure_file(run_folder, distributed.rank()).write_text(traceback.format_exc())
        return
    # The launcher sends SIGTERM to what is left of a broken job. It is ignored from here on, so
    # that the reason is still printed.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    first = _other_failure(run_folder)
    line = (str(error).strip().splitlines() or ["no message"])[0]
    if first is None and "timed out" in line.lower():
        written = [p.name for p in run_folder.glob("stacks-rank*.txt") if p.stat().st_size]
        where = f"{', '.join(sorted(written))} in {run_folder} say where each waits"
        text = "another rank did not answer in time; " + (
            where if written else "no rank wrote where it waits (watchdog_minutes)"
        )
        text += f" ({line})"
    elif first is None:
        text = f"another rank is gone without a word; was it killed, or out of memory? ({line})"
    else:
        text = f"rank {first[0]} failed:\n{first[1]}"
    print(f"tessera: {text}", file=sys.stderr, flush=True)
    sys.exit(1)


def forget_failure(run_folder: Path) -> None:
    """Remove what this rank noted in an earlier run."""
    with contextlib.suppress(OSError):
        _failure_file(run_folder, distributed.rank()).unlink()


def _failure_file(run_folder: Path, rank: int) -> Path:
    return run_folder / f"failure-rank{rank}.txt"


def _lost_contact(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _LOST_CONTACT)


def _other_failure(run_folder: Path) -> tuple[int, str] | None:
    """The failure that another rank noted, waiting for it a moment."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < end:
        for rank in range(distributed.world_size()):
            path = _failure_file(run_folder, rank)
            if rank != distributed.rank() and path.is_file():
                return rank, path.read_text()
        time.sleep(0.1)
    return None
