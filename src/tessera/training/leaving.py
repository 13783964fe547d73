"""The end of a process: one message or a traceback, and an exit status that means something.

0 done, 2 the user's mistake, 1 ours, 75 stopped by a signal with everything saved.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from tessera.config import mistake
from tessera.training import distributed
from tessera.training.shutdown import PREEMPTED, SIGNALS, StopRequest, end_with_parent

_PATIENCE_SECONDS = {2: 3.0, PREEMPTED: 1.0}
"""All ranks leave with these together; what is wrong with one alone is to be seen at once."""


class TrainingStopped(RuntimeError):
    """Training cannot go on, and a traceback would not say more than the text: why, what to do."""


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
    if distributed.local_rank() > 0 and status in _PATIENCE_SECONDS:
        _wait_for_the_launcher(_PATIENCE_SECONDS[status])
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
