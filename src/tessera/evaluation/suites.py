"""Suites: which tasks, with which seeds. Imports no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tessera.config import ConfigError, decode, load, load_plain, refusal
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
                problems.append(_no_start(name, start))
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


def load_suite(name: str, overrides: Sequence[str] = (), *, looks: bool = False) -> SuiteConfig:
    """The suite of a name, or of a YAML file.

    Args:
        name: of the suite or file.
        overrides: of its keys.
        looks: whether, beside wrong keys, files that are not there are told too.

    Raises:
        ConfigError: there is none, or its keys are wrong.
    """
    path = _file_of(name)
    try:
        return load(SuiteConfig, path, overrides)
    except ConfigError as error:
        if not error.problems:
            raise
        more = _beside_wrong_keys(load_plain(path, overrides), looks)
        raise refusal(str(path), list(dict.fromkeys([*error.problems, *more]))) from None


def _beside_wrong_keys(plain: Any, looks: bool) -> Iterator[str]:
    """What is wrong beside keys that leave no suite to ask: starts, and what is not there."""
    tasks = plain.get("tasks")
    for name, task in tasks.items() if isinstance(tasks, dict) else ():
        if not isinstance(task, dict):
            continue
        start = task.get("start")
        if isinstance(start, str) and start not in tasks:
            yield _no_start(name, start)
        if looks and (known := _without_wrong_keys(name, task)) is not None:
            from tessera.evaluation.tasks.inputs.lookahead import missing

            yield from (f"tasks.{name}.{said}" for said in missing(known))


def _without_wrong_keys(name: str, plain: dict[str, Any]) -> Task | None:
    """A task as it is without the keys that are wrong; None where these are not all that is."""
    kept = {key: value for key, value in plain.items() if key != "start"}
    for _ in range(2):
        try:
            return decode(SuiteConfig, {"tasks": {"t": kept}}, name).tasks["t"]
        except ConfigError as error:
            keys = [said.partition(":")[0].split(".") for said in error.problems]
            wrong = {key[2] for key in keys if len(key) > 2}
            kept = {key: value for key, value in kept.items() if key not in wrong}
    return None


def _no_start(name: str, start: str) -> str:
    return f"tasks.{name}.start: there is no task '{start}' in this suite"


def _file_of(name: str) -> Path | str:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return name
    ours = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if name in ours:
        return FOLDER / f"{name}.yaml"
    known = f"there are {', '.join(ours)}, and any YAML of yours, such as {FOLDER.name}/mine.yaml"
    raise ConfigError(f"--suite {name}: there is no such suite; {known}")
