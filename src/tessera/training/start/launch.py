"""The ranks of one machine: started together, told of signals together, and silent about it.

Composer's launcher does the same and more, among lines of its own: a traceback around each status
that is not 0, and a wait that it announces at every end. Here the ranks' own last line is the last.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import FrameType
from typing import Any

_TOGETHER_SECONDS = 6.0
"""How long ranks have to end by themselves once one has failed: they tell which was the first."""
_STOP_SECONDS = 30.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@dataclass(frozen=True, kw_only=True)
class Node:
    """Which ranks this machine has, and where they meet those of others."""

    ranks: int
    world_size: int
    base_rank: int = 0
    node_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = 0


def launch(arguments: Sequence[str], node: Node) -> int:
    """Train with these arguments of `python -m tessera.training` on this machine's ranks.

    Returns:
        The exit status: that of the first rank here that has one other than 0.
    """
    command = [sys.executable, "-m", "tessera.training", *arguments]
    if node.world_size == 1:
        os.execv(sys.executable, command)
    ranks: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _SIGNALS}
    with ExitStack() as closing:
        logs = [closing.enter_context(tempfile.TemporaryFile()) for _ in range(1, node.ranks)]
        closing.callback(_restore, before)
        closing.callback(_end, ranks)
        for local in range(node.ranks):
            output = None if local == 0 else logs[local - 1]
            ranks.append(
                subprocess.Popen(
                    command,
                    env={**os.environ, **_variables(node, local)},
                    stdout=output,
                    stderr=None if output is None else subprocess.STDOUT,
                )
            )
        _wait(ranks)
        statuses = [rank.returncode for rank in ranks]
        if statuses[0] in (0, -signal.SIGTERM) and any(statuses[1:]):
            _show_others(statuses, logs)
        return _status(statuses)


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _end(ranks: Sequence["subprocess.Popen[bytes]"]) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.kill()


def _variables(node: Node, local: int) -> dict[str, str]:
    return {
        "RANK": str(node.base_rank + local),
        "WORLD_SIZE": str(node.world_size),
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(node.ranks),
        "NODE_RANK": str(node.node_rank),
        "MASTER_ADDR": node.master_addr,
        "MASTER_PORT": str(node.master_port),
        "PYTHONUNBUFFERED": "1",
    }


def _wait(ranks: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Until all have ended; those that outlive one that failed are asked to, then made to."""
    failed_at: float | None = None
    asked = False
    while any(rank.poll() is None for rank in ranks):
        time.sleep(0.1)
        if failed_at is None and any(rank.returncode for rank in ranks):
            failed_at = time.monotonic()
        if failed_at is None:
            continue
        since = time.monotonic() - failed_at
        for rank in ranks:
            if rank.poll() is None and since > _TOGETHER_SECONDS and not asked:
                rank.terminate()
            if rank.poll() is None and since > _TOGETHER_SECONDS + _STOP_SECONDS:
                rank.kill()
        asked = asked or since > _TOGETHER_SECONDS


def _status(statuses: Sequence[int]) -> int:
    first = next((status for status in statuses if status and status != -signal.SIGTERM), 0)
    first = first or next(filter(None, statuses), 0)
    return first if first >= 0 else 1


def _show_others(statuses: Sequence[int], logs: Sequence[Any]) -> None:
    """What ranks said that failed while the first one did not."""
    for local, (status, log) in enumerate(zip(statuses[1:], logs, strict=True), 1):
        if status and status != -signal.SIGTERM:
            log.seek(0)
            said = log.read()[-4000:].decode(errors="replace").strip()
            print(f"tessera: rank {local} of this machine ended with {status}:\n{said}",
                  file=sys.stderr)  # fmt: skip
