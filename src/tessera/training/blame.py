"""When one rank of many fails, its error is to be seen first, not those of the ranks it left."""

import contextlib
import signal
import sys
import time
import traceback
from pathlib import Path

from tessera.training import distributed

_SIGNS = (
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


def settle(folder: Path, error: Exception) -> None:
    """Note this rank's failure, or show the one that caused it.

    Returns if the failure is this rank's own; exits with status 1 if another rank's was found.
    """
    if distributed.world_size() == 1:
        return
    if not _lost_contact(error):
        with contextlib.suppress(OSError):
            _file(folder, distributed.rank()).write_text(traceback.format_exc())
        return
    # The launcher ends what is left of a broken job; this is about to end anyway, with its reason.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    first = _other(folder)
    line = (str(error).strip().splitlines() or ["no message"])[0]
    if first is None and "timed out" in line.lower():
        text = f"another rank did not answer in time; {folder}/stacks-rank*.txt say where ({line})"
    elif first is None:
        text = f"another rank is gone without a word; was it killed, or out of memory? ({line})"
    else:
        text = f"rank {first[0]} failed:\n{first[1]}"
    print(f"tessera: {text}", file=sys.stderr, flush=True)
    sys.exit(1)


def forget(folder: Path) -> None:
    """Remove what this rank noted in an earlier run."""
    with contextlib.suppress(OSError):
        _file(folder, distributed.rank()).unlink()


def _file(folder: Path, rank: int) -> Path:
    return folder / f"failure-rank{rank}.txt"


def _lost_contact(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)


def _other(folder: Path) -> tuple[int, str] | None:
    """The failure that another rank noted, waiting for it a moment."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < end:
        for rank in range(distributed.world_size()):
            if rank != distributed.rank() and _file(folder, rank).is_file():
                return rank, _file(folder, rank).read_text()
        time.sleep(0.1)
    return None
