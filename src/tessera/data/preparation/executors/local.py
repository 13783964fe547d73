"""Processes of this machine that share tasks, watched: one that is killed is noticed at once.

The standard library's pool waits for ever for a task whose process the kernel killed for want of
memory, and its executor gives up on all tasks without saying which was to blame. Here a process
works on one task at a time and everybody knows which.
"""

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol


class Work(Protocol):
    """What is to be done with each item; a value that other processes and machines understand."""

    def start(self) -> None:
        """Load what every item needs, once for each process."""

    def do(self, item: Any) -> None:
        """Do it, or find it done; raises ValueError for what the user has to mend."""


class TasksLost(ValueError):
    """Tasks whose process was killed, twice: names them; everything else is done.

    Attributes:
        how: what became of the processes.
    """

    def __init__(self, message: str, how: str) -> None:
        super().__init__(message)
        self.how = how


class WorkerFailed(RuntimeError):
    """An error of ours in another process, with its traceback."""


def lost(items: Sequence[Any], how: str) -> TasksLost:
    """The error that names tasks which were lost twice."""
    named = "; ".join(map(str, items[:3])) + ("; ..." if len(items) > 3 else "")
    return TasksLost(
        f"{len(items)} tasks were lost twice ({how}): {named}. Finished work is kept; give each "
        "process more memory (fewer --workers, a smaller --part-size), and start the same command "
        "again",
        how,
    )


def one_by_one(items: Sequence[Any], work: Work) -> Iterator[int]:
    """Do the items in this process, which may use every core for each; yields their places."""
    work.start()
    for index, item in enumerate(items):
        work.do(item)
        yield index


def in_processes(
    items: Sequence[Any], work: Work, workers: int, preload: Sequence[str] = ()
) -> Iterator[int]:
    """Do the items in processes of one core each; yields the place of each when it is done.

    Raises:
        ValueError: what the first item that failed raised. Finished items stay finished.
        TasksLost: processes were killed at the same items twice; all others are done.
    """
    # Children of a clean server process: quick to start, and no thread of ours is forked.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    waiting = deque(range(len(items)))
    deaths: dict[int, int] = {}
    abandoned: list[int] = []
    exits: set[int] = set()
    crew: dict[Connection, _Worker] = {}
    try:
        while waiting or crew:
            while waiting and len(crew) < workers:
                worker = _Worker(context, work)
                crew[worker.connection] = worker
                worker.give(waiting.popleft(), items)
            for ready in wait([worker.connection for worker in crew.values()]):
                worker = crew[ready]  # type: ignore[index]
                index = worker.task
                try:
                    outcome = worker.connection.recv()
                except (EOFError, ConnectionError):
                    exits.add(worker.end())
                    del crew[worker.connection]
                    deaths[index] = deaths.get(index, 0) + 1
                    if deaths[index] > 1:
                        abandoned.append(index)
                    else:
                        waiting.append(index)
                    continue
                if outcome is not None:
                    raise outcome
                yield index
                if waiting:
                    worker.give(waiting.popleft(), items)
                else:
                    worker.end()
                    del crew[worker.connection]
    finally:
        for worker in crew.values():
            worker.process.kill()
        for worker in crew.values():
            worker.end()
    if abandoned:
        raise lost([items[index] for index in sorted(abandoned)], _cause(exits))


def _cause(exits: set[int]) -> str:
    if -signal.SIGKILL in exits:
        return "their process was killed, as the kernel does when memory is short"
    return f"their process ended with {', '.join(map(str, sorted(exits)))}"


class _Worker:
    """A process and the task it is at."""

    def __init__(self, context: Any, work: Work) -> None:
        self.connection, other = context.Pipe()
        self.task = -1
        self.process = context.Process(target=_serve, args=(other, work), daemon=True)
        self.process.start()
        other.close()  # ours alone would keep the pipe open when the process is gone

    def give(self, task: int, items: Sequence[Any]) -> None:
        self.task = task
        with contextlib.suppress(ConnectionError):  # if it died, the reader finds the pipe's end
            self.connection.send(items[task])

    def end(self) -> int:
        """Close, wait, and say how it ended."""
        self.connection.close()
        self.process.join()
        return int(self.process.exitcode or 0)


def _serve(connection: Connection, work: Work) -> None:
    """Do what comes through the pipe until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent alone answers Ctrl-C
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    started = False
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        try:
            if not started:
                work.start()
                started = True
            work.do(item)
            outcome: Exception | None = None
        except ValueError as error:  # of any kind: some cannot be sent
            outcome = ValueError(str(error))
        except MemoryError:
            outcome = ValueError(f"{item}: not enough memory; use fewer --workers")
        except OSError as error:
            outcome = error
        except Exception:
            outcome = WorkerFailed(traceback.format_exc())
        try:
            connection.send(outcome)
        except ConnectionError:
            return
