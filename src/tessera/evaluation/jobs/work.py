"""Doing one job, in whatever process or machine an executor chose."""

import contextlib
import fcntl
import glob
import logging
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tessera.config import mistake
from tessera.evaluation.jobs.records import Job, Outcome, Records

_RUNNERS = {
    "classification": "finetuning",
    "regression": "finetuning",
    "token_classification": "finetuning",
    "retrieval": "retrieval",
    "late_interaction": "late_interaction",
    "masked_lm": "language_model",
    "recall": "recall",
    "linear_probe": "frozen",
    "similarity": "frozen",
    "efficiency": "efficiency",
}
_VERSIONS = ("torch", "transformers", "sentence-transformers", "mteb", "scikit-learn", "datasets")

_held: list[Any] = []
"""Open files whose lock says which GPU is this process's, until it ends."""


@dataclass(frozen=True, kw_only=True)
class JudgeWork:
    """Does jobs and writes their records; a failed job is written down, and the next one begins."""

    out: str
    threads: int | None
    """Of a job; None for all cores of the machine it finds itself on."""
    command: str
    device: str | None
    """`cpu`, `cuda`, or None for what there is."""

    def start(self) -> None:
        """Take a share of the machine, before torch counts what there is."""
        os.environ["OMP_NUM_THREADS"] = str(self._threads)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        if self.device != "cpu":
            _take_a_gpu()

    @property
    def _threads(self) -> int:
        return self.threads or len(os.sched_getaffinity(0))

    def do(self, job: Job) -> None:
        """Do a job, or find it done."""
        records = Records(out=Path(self.out))
        with _alone(records.out / ".running" / f"{job.id}.lock"):
            if records.read(job) is None or (job.keep and not records.trained(job).is_dir()):
                self._do(job, records)

    def _do(self, job: Job, records: Records) -> None:
        began = time.monotonic()
        scratch = Path(tempfile.mkdtemp(prefix="tessera-job-"))
        try:
            outcome = self._outcome(job, records, scratch)
        except Exception as error:  # of whatever kind: the other jobs are to go on
            said = mistake(error)
            if said is None:
                said = f"{type(error).__name__}: {error}"
                records.fail(job, said, traceback.format_exc())
            else:
                records.fail(job, said)
        else:
            about = {
                "seconds": round(time.monotonic() - began, 1),
                "command": self.command,
                "versions": versions(),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            records.finish(job, outcome, about)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _outcome(self, job: Job, records: Records, scratch: Path) -> Outcome:
        import torch
        from transformers.utils import logging as theirs

        from tessera.evaluation.jobs.models import random_start

        # Of bars, and of heads that a folder has and a task has not.
        theirs.set_verbosity_error()
        theirs.disable_progress_bar()
        logging.getLogger("accelerate").setLevel(logging.ERROR)
        torch.set_num_threads(self._threads)
        cuda = torch.cuda.is_available() and self.device != "cpu"
        if self.device == "cuda" and not cuda:
            raise ValueError("--device cuda: torch sees no GPU here")
        if job.model.random:
            folder = random_start(job.model, job.seed, scratch / "random")
            job = replace(job, model=replace(job.model, folder=str(folder), source=str(folder)))
        if job.start is not None:
            folder = records.out / "trained" / job.start
            job = replace(job, model=replace(job.model, folder=str(folder)))
        runner = import_module(f"tessera.evaluation.tasks.{_RUNNERS[job.task.name]}")
        kept = scratch / "trained" if job.keep else None
        outcome: Outcome = runner.run(job, "cuda" if cuda else "cpu", scratch, kept)
        if kept is not None and kept.is_dir():
            place = records.trained(job)
            shutil.rmtree(place, ignore_errors=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(str(kept), place)
        name = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
        return replace(outcome, device=outcome.device or name)


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait until no other process does the same job.

    Where a command was killed, the job it was at may still be running, and will be finished.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def versions() -> dict[str, str]:
    """The versions of what computes the scores."""
    found = {"python": sys.version.split()[0]}
    for name in _VERSIONS:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def gpus() -> list[str]:
    """The GPUs of this machine that may be used, by what CUDA_VISIBLE_DEVICES calls them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    return [str(number) for number in range(len(glob.glob("/dev/nvidia[0-9]*")))]


def _take_a_gpu() -> None:
    """Make one GPU the only one of this process: the first that no other job of ours holds.

    A lock on a file is let go by the kernel however its process ends. Under Slurm and Ray the
    cluster gives out GPUs, and each job sees its own.
    """
    if "SLURM_JOB_ID" in os.environ or "RAY_JOB_ID" in os.environ or _held:
        return
    for name in gpus():
        file = (Path(tempfile.gettempdir()) / f"tessera-gpu-{os.getuid()}-{name}.lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            continue
        _held.append(file)
        os.environ["CUDA_VISIBLE_DEVICES"] = name
        return
