"""What a job leaves: one JSON file, whole or not at all. Imports no torch.

`records/ID.json` is a finished job, never done again; `failed/ID.json` says why one failed, and is
gone when the command is started again.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from tessera.config import to_plain
from tessera.evaluation.jobs.models import Model
from tessera.evaluation.tasks.config import ADDED, LOWER_IS_BETTER, Point, Task, main_metric
from tessera.files import JsonObject, as_json, write_whole

_VERSION = 1
_GRID = ("lr", "weight_decay", "epochs", "points")


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a task's details: the page shows those of all models together."""

    title: str
    columns: list[str]
    rows: list[list[Any]]
    """Text, numbers, or None; the first cell names the row."""
    plot: list[str] = field(default_factory=list)
    """Columns that the page draws over the rows: the first in full, a second one dashed."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a task found out about a model."""

    scores: dict[str, float]
    """By metric, on what is reported."""
    validation: dict[str, float]
    """By metric, on what chooses; the same as `scores` if there is nothing to choose by."""
    split: str
    """What `scores` are of: test, validation."""
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a reader should know, such as a batch that was halved."""
    device: str = ""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A model, a task, a seed and a point of the grid."""

    model: Model
    task_name: str
    task: Task
    seed: int
    point: Point
    inputs: str
    """Fingerprint of what the task reads."""
    start: str | None = None
    """Id of the job whose trained model this one starts from."""
    keep: bool = False
    """Whether the trained model is kept, in `trained/ID`."""

    @property
    def task_key(self) -> str:
        """Fingerprint of the question: scores of another one are not to be compared."""
        return task_key(self.task, self.inputs)

    @property
    def id(self) -> str:
        """Its name on disk; the same as long as everything that decides the result is the same."""
        decides = [self.model.fingerprint, self.task_key, self.seed, self.point, self.start]
        slug = re.sub(r"[^\w.-]+", "-", f"{self.model.name}--{self.task_name}").strip("-.")[-80:]
        return f"{slug}--{self.seed}--{_digest(decides)}"

    def __str__(self) -> str:
        point = "".join(f" {name}={value:g}" for name, value in self.point.items())
        return f"{self.model.name} {self.task_name} seed {self.seed}{point}"


def task_key(task: Task, inputs: str) -> str:
    """Fingerprint of a task and its data; not of the grid, whose points the jobs name."""
    plain = to_plain(task)
    for name, nothing in ADDED.get(task.name, {}).items():
        if plain[name] == nothing:
            del plain[name]
    if "training" in plain:
        kept = {name: value for name, value in plain["training"].items() if name not in _GRID}
        plain = {**plain, "training": kept}
    return _digest([plain, inputs])


def _digest(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Records:
    """The folder of a command's results."""

    out: Path

    def path(self, job: Job) -> Path:
        """The record of a finished job."""
        return self.out / "records" / f"{job.id}.json"

    def failure(self, job: Job) -> Path:
        """What is said of a job that failed."""
        return self.out / "failed" / f"{job.id}.json"

    def trained(self, job: Job) -> Path:
        """The folder of the model that a job trained, if it is kept."""
        return self.out / "trained" / job.id

    def read(self, job: Job) -> JsonObject | None:
        """The record of a job, if it is finished.

        Raises:
            ValueError: the record is damaged, which no kill can do.
        """
        return _read(self.path(job))

    def read_failure(self, job: Job) -> JsonObject | None:
        """What is said of a job that failed, if it did."""
        return _read(self.failure(job))

    def finish(self, job: Job, outcome: Outcome, about: Mapping[str, Any]) -> None:
        """Write the record of a finished job."""
        content = {**_named(job), **asdict(outcome), **about}
        self.failure(job).unlink(missing_ok=True)
        write_json(self.path(job), content)

    def fail(self, job: Job, message: str, traceback: str | None = None) -> None:
        """Write why a job failed; `traceback` for a failure of ours."""
        content = {**_named(job), "message": message, "traceback": traceback}
        write_json(self.failure(job), content)


def _named(job: Job) -> JsonObject:
    return {
        "format": "tessera-evaluation-job",
        "version": _VERSION,
        "model": asdict(job.model),
        "task": job.task_name,
        "task_config": to_plain(job.task),
        "metric": main_metric(job.task),
        "seed": job.seed,
        "point": job.point,
        "inputs": job.inputs,
        "start": job.start,
    }


def _read(path: Path) -> JsonObject | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(
            f"{path}: is damaged ({error}); delete it, and the job runs again"
        ) from None
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        raise ValueError(f"{path}: is no record of a job that this version reads")
    return content


def write_json(path: Path, content: JsonObject) -> None:
    """A JSON file, whole or not at all, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, as_json(content).encode())


def better(metric: str, one: float, other: float) -> bool:
    """Whether one value of a metric is better than another."""
    return one < other if metric in LOWER_IS_BETTER else one > other
