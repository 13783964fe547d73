"""A call in a process of its own, forked so that imports cost nothing; watched and limited."""

import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MOST_BYTES = 6 * 2**30
"""More memory than the parent has, that a child may take."""


@dataclass
class Child:
    """A forked process."""

    pid: int
    folder: Path
    """Where it works; its output goes beside, into a file of the same name and `.out`."""
    deadline: float
    cpu_seconds: float = 0.0
    status: int | None = None
    """As a shell has it: 128 and the signal for one that was killed; -1 for one that hung."""

    @property
    def output(self) -> str:
        """What it has printed."""
        return self.folder.with_suffix(".out").read_text(errors="replace")

    def ended(self) -> bool:
        """Whether it has; one past its time is killed."""
        pid, status, used = os.wait4(self.pid, os.WNOHANG)
        if pid:
            self.cpu_seconds = used.ru_utime + used.ru_stime
            code = os.waitstatus_to_exitcode(status)
            self.status = code if code >= 0 else 128 - code
        elif time.monotonic() > self.deadline:
            self.status = -1
        if self.status is not None:
            for number in (signal.SIGKILL,):
                try:
                    os.killpg(self.pid, number)
                except ProcessLookupError:
                    break
            if self.status == -1:
                os.waitpid(self.pid, 0)
        return self.status is not None

    def clear(self) -> None:
        """Remove what it left."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.with_suffix(".out").unlink(missing_ok=True)


def start(work: Callable[[], int], folder: Path, seconds: float) -> Child:
    """Call `work` in a fork, in `folder`; its status is what it returns or exits with."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, folder, time.monotonic() + seconds)
    status = 1
    try:
        os.setsid()
        os.chdir(folder)
        file = os.open(folder.with_suffix(".out"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MOST_BYTES, size + MOST_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        status = work()
    except SystemExit as leaving:
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:  # as the interpreter would say it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def call(work: Callable[[], int], folder: Path, seconds: float = 120) -> tuple[int, str]:
    """Call `work` in a fork and wait; its status and output."""
    child = start(work, folder, seconds)
    while not child.ended():
        time.sleep(0.005)
    assert child.status is not None
    return child.status, child.output
