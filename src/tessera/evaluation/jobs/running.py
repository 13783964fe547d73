"""A suite's jobs, one stage after another, until nothing is left that can run.

Imports no torch, but to export a checkpoint of ours.
"""

import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tessera.config import ConfigError, mistake
from tessera.data.preparation.executors.executor import ExecutorConfig, Plan, log_folder, run
from tessera.data.preparation.executors.local import TasksLost
from tessera.evaluation.jobs.models import Model, served
from tessera.evaluation.jobs.plan import Cell, survey
from tessera.evaluation.jobs.records import Job, Records
from tessera.evaluation.jobs.work import JudgeWork, gpus
from tessera.evaluation.results import write_results
from tessera.evaluation.suites import SuiteConfig
from tessera.evaluation.tasks.config import (
    Finetuned,
    LinearProbe,
    Search,
    Similarity,
)
from tessera.evaluation.tasks.inputs.lookahead import check_labels, fingerprint
from tessera.files import JsonObject

log = logging.getLogger(__name__)

_PRELOADED = ("torch", "transformers.trainer")
_NEEDED: dict[str, Any] = {
    "sentence_transformers": Search,
    "mteb": Search,
    "sklearn": Finetuned | Search | LinearProbe | Similarity,
    "accelerate": Finetuned | Search,
}
"""Modules of the extra `eval`, with the kinds of tasks that need each."""
_WEIGHT = 1 << 30
"""In the executor's scale of bytes to tokenise: a job is always worth a process of its own."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a command asks for."""

    suite: SuiteConfig
    models: Sequence[Model]
    out: Path
    executor: ExecutorConfig
    command: str
    """As it was typed, for the records."""
    device: str | None = None
    keep: bool = False
    """Whether the best trained model of each cell is kept."""
    show: Callable[[list[JsonObject]], None]
    """Gets the entries of results.json whenever they were written."""


def judge(asked: Asked) -> list[Cell]:
    """Do every job that is not done, and write the results whenever one ends.

    Returns:
        What is known of each model and task.

    Raises:
        ConfigError: a package is missing.
    """
    records = Records(out=asked.out)
    _check_installed(asked.suite)
    shutil.rmtree(asked.out / "failed", ignore_errors=True)
    inputs, problems = _look_ahead(asked, records)
    for message, named in _grouped(problems).items():
        log.warning("%s: %s", named, message)

    def look() -> list[Cell]:
        cells = survey(asked.suite, asked.models, inputs, problems, records, asked.keep)
        asked.show(write_results(asked.out, cells))
        return cells

    while True:
        cells = look()
        waiting = [job for cell in cells for job in cell.waiting]
        if not waiting:
            return cells
        _run(asked, records, waiting, cells, look)


def _check_installed(suite: SuiteConfig) -> None:
    missing = [
        module
        for module, kinds in _NEEDED.items()
        if any(isinstance(task, kinds) for task in suite.tasks.values())
        and find_spec(module) is None
    ]
    if missing:
        raise ConfigError(
            f"these tasks need {', '.join(missing)}: pip install 'tessera[eval]' (the modern stack)"
        )


def _look_ahead(
    asked: Asked, records: Records
) -> tuple[dict[str, str], dict[tuple[str, str], str]]:
    """Fingerprints of what the tasks read, and what is wrong before any job begins."""
    inputs: dict[str, str] = {}
    problems: dict[tuple[str, str], str] = {}
    tasks = asked.suite.tasks

    def refuse(name: str, error: Exception) -> None:
        said = mistake(error) or str(error)
        problems.update({(model.name, name): said for model in asked.models})

    for name, task in tasks.items():
        try:
            inputs[name] = fingerprint(task)
        except (ValueError, OSError) as error:
            refuse(name, error)
    cells = survey(asked.suite, asked.models, inputs, problems, records, asked.keep)
    for name in dict.fromkeys(cell.task_name for cell in cells if not cell.is_complete):
        # Labels of a task that is done were good: its rows need not be read once more.
        try:
            check_labels(tasks[name])
        except (ValueError, OSError) as error:
            refuse(name, error)
    for model in asked.models:
        wanted = [name for name in tasks if (model.name, name) not in problems]
        if not wanted:
            continue
        try:
            served(model)
        except (ValueError, OSError) as error:
            said = mistake(error) or str(error)
            problems |= {(model.name, name): said for name in wanted}
    return inputs, problems


def _run(
    asked: Asked,
    records: Records,
    waiting: Sequence[Job],
    cells: Sequence[Cell],
    look: Callable[[], object],
) -> None:
    def finished() -> set[int]:
        return {
            place
            for place, job in enumerate(waiting)
            if (records.read(job) is not None and (not job.keep or _is_kept(job, records)))
            or records.read_failure(job) is not None
        }

    executor = asked.executor
    if executor.name == "local" and executor.workers is None:
        executor = replace(executor, workers=max(1, len(gpus())))
    cores = len(os.sched_getaffinity(0))
    threads = {
        "local": max(1, cores // min(executor.processes, len(waiting))),
        "slurm": None,  # what the node gives the job
        "ray": 1,  # what a task is counted as there
    }
    work = JudgeWork(
        out=str(asked.out.resolve()),
        threads=threads[executor.name],
        command=asked.command,
        device=asked.device,
    )
    about = sha256("\n".join(job.id for job in waiting).encode()).hexdigest()[:12]
    plan = Plan(
        items=list(waiting),
        work=work,
        finished=finished,
        logs=log_folder(str(asked.out), executor, about),
        weights=[_WEIGHT] * len(waiting),
        is_isolated=True,
        preload=_PRELOADED,
    )
    said: set[str] = set()  # ids of jobs, and notes
    _say_new(waiting, records, said, quiet=True)
    try:
        for _ in run(plan, executor):
            if _say_new(waiting, records, said):
                look()
            _prune(cells, records)
    except TasksLost as error:
        for job in waiting:
            if records.read(job) is None and records.read_failure(job) is None:
                records.fail(job, f"its process was lost twice ({error.how})")
        _say_new(waiting, records, said)


def _is_kept(job: Job, records: Records) -> bool:
    return records.trained(job).is_dir()


def _say_new(
    waiting: Sequence[Job], records: Records, said: set[str], *, quiet: bool = False
) -> bool:
    """One line for each job that ended since the last time; whether there was one."""
    before = ended = sum(job.id in said for job in waiting)
    for job in waiting:
        if job.id in said:
            continue
        record, failure = records.read(job), records.read_failure(job)
        if record is None and failure is None:
            continue
        said.add(job.id)
        ended += 1
        if quiet:
            continue
        if failure is not None:
            about = f"{job.model.name} {job.task_name} failed: {failure['message']}"
            known = about in said
            log.warning("%s: failed%s", job, " likewise" if known else f": {failure['message']}")
            said.add(about)
        elif record is not None:
            scores = ", ".join(f"{name} {value:.4g}" for name, value in record["scores"].items())
            log.info(
                "%s: %s (%s; %d of %d jobs of this stage)",
                *(job, scores, f"{record['seconds']:.0f} s", ended, len(waiting)),
            )
            for note in record["notes"]:
                # Of data and model alike for every seed and point: once is enough.
                if (about := f"{job.model.name} {job.task_name}: {note}") not in said:
                    said.add(about)
                    log.warning(about)
    return ended > before


def _prune(cells: Sequence[Cell], records: Records) -> None:
    """Of the models a cell trained, keep the best on validation alone."""
    for cell in cells:
        kept = [job for job in cell.jobs if job.keep and _is_kept(job, records)]
        if len(kept) < 2:
            continue
        cell.finished = {job.id: r for job in cell.jobs if (r := records.read(job)) is not None}
        best = cell.best(cell.jobs)
        for job in kept:
            if best is not None and job.id != best.id and job.id in cell.finished:
                shutil.rmtree(records.trained(job), ignore_errors=True)


def _grouped(problems: dict[tuple[str, str], str]) -> dict[str, str]:
    """Each message once, with the cells it is about."""
    found: dict[str, list[tuple[str, str]]] = {}
    for cell, message in problems.items():
        found.setdefault(message, []).append(cell)
    named = {}
    for message, cells in found.items():
        tasks = Counter(task for _, task in cells)
        models = Counter(model for model, _ in cells)
        named[message] = f"{', '.join(tasks)} for {', '.join(models)}" if tasks else ""
    return named
