"""Rows made ahead by other processes, which import no torch and end with the trainer.

A worker is a fresh interpreter at the other end of a socket pair: no fork of a process that has
threads, no shared memory, no named semaphore, so nothing is left behind whatever ends either side.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import Queue

from tessera.data.pipeline.lanes import Recipe, lane_streams, make_rows, open_readers, own_lanes
from tessera.data.pipeline.rows import Row
from tessera.data.pipeline.state import LaneState
from tessera.data.sources.source import OpenSource

_Job = tuple[Recipe, OpenSource, dict[int, LaneState], int, int]


def worker_rows(
    recipe: Recipe,
    open_source: OpenSource,
    states: dict[int, LaneState],
    *,
    first_slot: int,
    stride: int,
) -> Iterator[Row]:
    """The rows of the slots `first_slot, first_slot + stride, ...`, made by `workers` processes.

    Each worker makes every W-th of them, and so always the same lanes.

    Raises:
        Exception: What a worker raised.
        RuntimeError: If a worker died.
    """
    workers = recipe.config.workers
    started = []
    try:
        for worker in range(workers):
            slots = first_slot + worker * stride, stride * workers
            own = {lane: states[lane] for lane in own_lanes(*slots, recipe.config.lanes)}
            started.append(_start((recipe, open_source, own, *slots)))
        for turn in count():
            process, connection = started[turn % workers]
            try:
                row = connection.recv()
            except (EOFError, OSError) as error:
                raise RuntimeError(_epitaph(turn % workers, process)) from error
            if isinstance(row, Exception):
                raise row
            yield row
    finally:
        for process, connection in started:
            connection.close()
            process.kill()
            process.wait()


def _start(job: _Job) -> tuple[subprocess.Popen, Connection]:
    here, there = Pipe()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", __spec__.name, str(there.fileno())]
    process = subprocess.Popen(command, pass_fds=[there.fileno()], env=environment)
    there.close()
    with contextlib.suppress(BrokenPipeError):  # it died at once: receiving will say so
        here.send(job)
    return process, here


def _epitaph(worker: int, process: subprocess.Popen) -> str:
    status = process.wait()
    cause = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    hint = "; the machine may be out of memory: lower train_data.workers" if status == -9 else ""
    return f"worker {worker} of the data loader ended unexpectedly ({cause}){hint}"


def _work(connection: Connection) -> None:
    """What a worker does: make rows ahead, and send them as fast as they are taken."""
    # A Ctrl-C or a scheduler's signal goes to the whole group; the trainer decides what it means.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    recipe, open_source, states, first_slot, stride = connection.recv()
    threading.Thread(target=_end_with_trainer, args=[connection], daemon=True).start()
    ahead: Queue[bytes] = Queue(recipe.config.prefetch_rows)
    threading.Thread(target=_send, args=[connection, ahead], daemon=True).start()
    try:
        readers = open_readers(recipe.config, recipe.form, open_source)
        streams = lane_streams(recipe.config, readers, recipe.seed)
        for row in make_rows(recipe, streams, states, first_slot=first_slot, stride=stride):
            ahead.put(pickle.dumps(row, pickle.HIGHEST_PROTOCOL))
    except Exception as error:  # raised again in the training process
        if not isinstance(error, ValueError):
            error.add_note("in a worker of the data loader:\n" + traceback.format_exc())
        ahead.put(pickle.dumps(error))
    threading.Event().wait()  # until the trainer has taken what there is, and ends


def _end_with_trainer(connection: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        connection.recv()  # nothing is sent: this returns when the other end is gone
    os._exit(0)


def _send(connection: Connection, ahead: "Queue[bytes]") -> None:
    with contextlib.suppress(OSError):
        while True:
            connection.send_bytes(ahead.get())
    os._exit(0)


if __name__ == "__main__":
    _work(Connection(int(sys.argv[1])))
