"""Where the time of a few steps goes: a timeline, and a table of what took longest."""

from contextlib import ExitStack
from pathlib import Path

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from torch.profiler import ProfilerActivity, profile, schedule

from tessera.files import write_whole
from tessera.training.config import TraceConfig

WARM_UP_STEPS = 1
"""The profiler's own first step is slower than the others, and not kept."""
ROWS = 40
"""Of the table."""


class Trace(Callback):
    """Watches some steps of this process, once, by torch's profiler.

    Writes `trace.json.gz`, which https://ui.perfetto.dev shows, and `trace.txt`, operations by the
    time that they took on the device.
    """

    def __init__(self, config: TraceConfig, folder: Path, closing: ExitStack) -> None:
        self._folder = folder
        activities = [ProfilerActivity.CPU]
        self._order = "self_cpu_time_total"
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
            self._order = "self_cuda_time_total"
        self._profile = profile(
            activities=activities,
            schedule=schedule(
                wait=config.after_steps, warmup=WARM_UP_STEPS, active=config.steps, repeat=1
            ),
            on_trace_ready=self._write,
            record_shapes=True,
        )
        self._closing = closing

    def fit_start(self, state: State, logger: Logger) -> None:
        """Begin to count steps."""
        self._profile.start()
        self._closing.callback(self._profile.stop)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Count a step."""
        self._profile.step()

    def _write(self, made: profile) -> None:
        made.export_chrome_trace(str(self._folder / "trace.json.gz"))
        table = made.key_averages().table(sort_by=self._order, row_limit=ROWS)
        write_whole(self._folder / "trace.txt", table.encode())
