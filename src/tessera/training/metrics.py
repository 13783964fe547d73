"""`metrics.jsonl`: a line per step and per evaluation, whole, in order, none twice."""

import errno
import json
import os
from pathlib import Path
from typing import Any

from tessera.training.leaving import TrainingStopped

METRICS_FILE = "metrics.jsonl"


class MetricsFile:
    """Appends records; each line reaches the file in one write."""

    def __init__(self, folder: Path, *, after_step: int) -> None:
        """Open, and cut off what a resumed run will write again.

        Args:
            folder: the run folder.
            after_step: the step of the checkpoint that training continues from, 0 for none.
        """
        self._path = path = folder / METRICS_FILE
        if path.exists():
            os.truncate(path, _end_of(path, after_step))
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, record: dict[str, Any]) -> None:
        """Append a record.

        Raises:
            TrainingStopped: the disk did not take it; no part of the line stays.
        """
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        end = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
            if written != len(line):
                os.ftruncate(self._file, end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise TrainingStopped(
                f"{self._path} cannot be written ({error.strerror}). The last checkpoint stands: "
                "make room, and start again"
            ) from error

    def sync(self) -> None:
        """Bring everything written to the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Write no more."""
        os.close(self._file)


def _end_of(path: Path, step: int) -> int:
    """The length in bytes of the records up to and including a step."""
    end = 0
    with path.open("rb") as file:
        for line in file:
            try:
                beyond = json.loads(line)["step"] > step
            except (ValueError, KeyError, TypeError):
                beyond = True
            if beyond or not line.endswith(b"\n"):
                break
            end += len(line)
    return end
