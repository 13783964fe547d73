"""Which jobs there are, and which can run now: a function of what is finished. Imports no torch.

A task with a grid runs every point with the first seed; the best on validation, with the others. A
task that starts from another waits for it, and takes its best model on validation.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tessera.evaluation.jobs.models import Model
from tessera.evaluation.jobs.records import Job, Records, better
from tessera.evaluation.suites import SuiteConfig, start_of
from tessera.evaluation.tasks.config import Point, Task, is_seeded, main_metric, points_of
from tessera.files import JsonObject

Failures = Mapping[tuple[str, str], str]
"""Why a model cannot be asked a task, by their names."""


@dataclass(kw_only=True)
class Cell:
    """A model and a task: what is known of it."""

    model: Model
    task_name: str
    task: Task
    inputs: str = ""
    jobs: list[Job] = field(default_factory=list)
    """All that were needed so far."""
    waiting: list[Job] = field(default_factory=list)
    """Those of them that can run now."""
    finished: dict[str, JsonObject] = field(default_factory=dict)
    """Records by id."""
    failed: dict[str, JsonObject] = field(default_factory=dict)
    """Failures by id."""
    reported: list[Job] = field(default_factory=list)
    """The finished jobs of the chosen point: their scores are the cell's."""
    problem: str | None = None
    """Why there is no job at all."""
    is_blocked: bool = False
    """Whether it waits for the task it starts from."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to do."""
        return not (self.waiting or self.is_blocked)

    def best(self, jobs: Sequence[Job]) -> Job | None:
        """The finished job with the best score on validation; the first of equal ones."""
        metric = main_metric(self.task)
        chosen: Job | None = None
        value = 0.0
        for job in jobs:
            record = self.finished.get(job.id)
            if record is None:
                continue
            score = record["validation"][metric]
            if chosen is None or better(metric, score, value):
                chosen, value = job, score
        return chosen


def survey(
    suite: SuiteConfig,
    models: Sequence[Model],
    inputs: Mapping[str, str],
    problems: Failures,
    records: Records,
    keep: bool = False,
) -> list[Cell]:
    """What is known of each model and task, and which jobs can run now.

    Args:
        suite: the tasks and seeds.
        models: in the order of the table.
        inputs: fingerprint of the data of each task, by name; none of one that cannot be read.
        problems: cells that cannot run.
        records: where finished jobs are.
        keep: whether the best trained model of each cell is kept.
    """
    cells: dict[tuple[str, str], Cell] = {}
    first = [name for name, task in suite.tasks.items() if start_of(task) is None]
    kept = {start for task in suite.tasks.values() if (start := start_of(task)) is not None}
    for name in [*first, *(name for name in suite.tasks if name not in first)]:
        for model in models:
            cell = Cell(model=model, task_name=name, task=suite.tasks[name])
            cells[model.name, name] = cell
            cell.problem = problems.get((model.name, name))
            cell.inputs = inputs.get(name, "")
            if cell.problem is None:
                _fill(cell, suite.seeds, records, cells, keep or name in kept)
    return [cells[model.name, name] for model in models for name in suite.tasks]


def _fill(
    cell: Cell,
    seeds: Sequence[int],
    records: Records,
    cells: Mapping[tuple[str, str], Cell],
    keep: bool,
) -> None:
    started: str | None = None
    if (start := start_of(cell.task)) is not None:
        before = cells[cell.model.name, start]
        parent = before.best(before.jobs)
        if not before.is_complete:
            cell.is_blocked = True
            return
        if parent is None:
            cell.problem = f"starts from {start}, which failed"
            return
        started = parent.id

    def jobs(points: Sequence[Point], some_seeds: Sequence[int]) -> Iterator[Job]:
        for seed in some_seeds:
            for point in points:
                yield Job(
                    model=cell.model,
                    task_name=cell.task_name,
                    task=cell.task,
                    seed=seed,
                    point=point,
                    inputs=cell.inputs,
                    start=started,
                    keep=keep,
                )

    points = points_of(cell.task, seeds[0])
    if len(points) == 1:
        differ = is_seeded(cell.task) or cell.model.random  # whose weights are drawn by the seed
        _look(cell, list(jobs(points, seeds if differ else seeds[:1])), records)
        cell.reported = [job for job in cell.jobs if job.id in cell.finished]
    else:
        _look(cell, list(jobs(points, seeds[:1])), records)
        best = cell.best(cell.jobs)
        if cell.waiting or best is None:
            return
        _look(cell, list(jobs([best.point], seeds[1:])), records)
        cell.reported = [
            job for job in cell.jobs if job.id in cell.finished and job.point == best.point
        ]
    best = cell.best(cell.jobs)
    if keep and not cell.waiting and best is not None and not records.trained(best).is_dir():
        # Somebody deleted it, or it was trained when nothing had to be kept.
        cell.waiting.append(best)


def _look(cell: Cell, jobs: Sequence[Job], records: Records) -> None:
    """Take jobs into a cell, each as finished, failed or waiting."""
    for job in jobs:
        cell.jobs.append(job)
        record, failure = records.read(job), records.read_failure(job)
        if record is not None:
            cell.finished[job.id] = record
        elif failure is not None:
            cell.failed[job.id] = failure
        else:
            cell.waiting.append(job)
