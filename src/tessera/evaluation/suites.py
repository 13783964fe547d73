"""Suites: which tasks, with which seeds. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from tessera.config import ConfigError, load
from tessera.data.preparation.executors.executor import ExecutorConfig
from tessera.evaluation.tasks.config import (
    Finetuned,
    LateInteraction,
    Retrieval,
    Task,
    TokenClassification,
)

FOLDER = Path(__file__).parents[3] / "yamls" / "evaluation"
"""The suites that come with the project; each file is one, by its name."""


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """The YAML of a suite."""

    NAMED: ClassVar[tuple[str, ...]] = ("tasks",)
    tasks: dict[str, Task] = field(default_factory=dict)
    """By a name of yours."""
    seeds: list[int] = field(default_factory=lambda: [1618, 42, 6033])
    """The first chooses the point of the grid; the best point runs with all."""
    executor: ExecutorConfig = ExecutorConfig()
    """What runs the jobs; `--executor` and `--workers` win over it."""

    def __post_init__(self) -> None:
        problems = []
        if not self.tasks:
            problems.append("tasks: none; name at least one")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            problems.append(f"seeds: must be different, and at least one; got {self.seeds}")
        for name, task in self.tasks.items():
            if not name or "/" in name or "=" in name:
                problems.append(f"tasks: '{name}' cannot name a task; use letters, digits and -")
            start = start_of(task)
            if start is None:
                continue
            other = self.tasks.get(start)
            if other is None:
                problems.append(f"tasks.{name}.start: there is no task '{start}' in this suite")
            elif _starts(task) != _starts(other):
                problems.append(f"tasks.{name}.start: '{start}' trains no {_starts(task)}")
            elif start_of(other) is not None:
                problems.append(f"tasks.{name}.start: '{start}' starts from another task itself")
        if problems:
            raise ValueError("\n".join(problems))


def start_of(task: Task) -> str | None:
    """The task whose model another starts from."""
    return getattr(task, "start", None)


def _starts(task: Task) -> str | None:
    """What a task trains that another may start from."""
    if isinstance(task, Retrieval | LateInteraction):
        kind = "retrieval" if isinstance(task, Retrieval) else "late interaction"
        return f"model for {kind}" if task.train or task.start else None
    return "classifier of texts" if _is_of_texts(task) else None


def _is_of_texts(task: Task) -> bool:
    return isinstance(task, Finetuned) and not isinstance(task, TokenClassification)


def load_suite(name: str, overrides: Sequence[str] = ()) -> SuiteConfig:
    """The suite of a name, or of a YAML file.

    Raises:
        ConfigError: there is none, or its keys are wrong.
    """
    return load(SuiteConfig, _file_of(name), overrides)


def _file_of(name: str) -> Path | str:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return name
    ours = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if name in ours:
        return FOLDER / f"{name}.yaml"
    known = f"there are {', '.join(ours)}, and any YAML of yours, such as {FOLDER.name}/mine.yaml"
    raise ConfigError(f"--suite {name}: there is no such suite; {known}")
