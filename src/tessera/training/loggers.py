"""Where a run's records go: `metrics.jsonl`, and Weights & Biases and TensorBoard beside it.

`metrics.jsonl` holds a line per step and per evaluation, whole, in order, none twice. Trouble with
the other two never stops a run.
"""

import errno
import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tessera.config import to_plain
from tessera.files import JsonObject, write_whole
from tessera.training.config import RunConfig
from tessera.training.console import ProgressLines, say, warn
from tessera.training.shutdown import TrainingStopped

METRICS_FILE = "metrics.jsonl"
WANDB_ID_FILE = "wandb_id"
_WANDB_VARIABLES = {
    "project": "WANDB_PROJECT",
    "entity": "WANDB_ENTITY",
    "group": "WANDB_RUN_GROUP",
    "tags": "WANDB_TAGS",
    "name": "WANDB_NAME",
    "id": "WANDB_RUN_ID",
    "dir": "WANDB_DIR",
}
_WANDB_MODES: dict[str, Literal["online", "offline", "disabled"]] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}

Record = JsonObject
"""A line of `metrics.jsonl`."""


@dataclass(frozen=True)
class Sinks:
    """Everybody who is told what was measured. Only rank 0 has any."""

    takers: Sequence[Callable[[Record], None]] = ()
    sync: Callable[[], None] = lambda: None
    """Bring what was written so far to the disk."""

    def __call__(self, record: Record) -> None:
        """Tell everybody, in the same order each time."""
        for take in self.takers:
            take(record)


def open_sinks(config: RunConfig, *, step: int, done: int, closing: ExitStack) -> Sinks:
    """Open what takes the records of a phase; call on rank 0 alone.

    Args:
        config: which ones, and where.
        step: of the checkpoint that training continues from, 0 for none: later records are cut off.
        done: of the duration, in its unit.
        closing: closes them in the end.
    """
    metrics = MetricsFile(config.folder, after_step=step)
    closing.callback(metrics.close)
    lines = ProgressLines(
        config.name,
        config.duration,
        every_seconds=config.logging.console_seconds,
        done=done,
    )
    loggers = open_loggers(config, after_step=step)
    for logger in loggers:
        closing.callback(logger.close)
    return Sinks([metrics.write, lines, *loggers], metrics.sync)


class MetricsFile:
    """Appends records; each line reaches the file in one write."""

    def __init__(self, folder: Path, *, after_step: int) -> None:
        """Open, and cut off what a resumed run will write again.

        Args:
            folder: the run folder.
            after_step: the step of the checkpoint that training continues from, 0 for none.
        """
        self._path = path = folder / METRICS_FILE
        end, lacking = _kept(path, after_step) if path.exists() else (0, after_step)
        if lacking:
            warn(
                f"{path} has no whole record of {lacking} of the {after_step} steps before this "
                "start; they are not made again, and the report will lack them"
            )
        if path.exists():
            os.truncate(path, end)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, record: Record) -> None:
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
        """Bring everything written to the disk.

        A cache may have been cleared away under the run: the file is then written there again.
        """
        if not self._path.exists() and self._path.parent.is_dir():
            with open(f"/proc/self/fd/{self._file}", "rb") as gone:
                write_whole(self._path, gone.read())
            os.close(self._file)
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file; nothing can be written after this."""
        os.close(self._file)


def _kept(path: Path, step: int) -> tuple[int, int]:
    """What stays of a file when training continues after a step.

    A damaged line among others stays, for whoever can mend it; what a killed run left at the end
    goes.

    Returns:
        The length in bytes up to the last whole record that is no later; how many of the steps up
        to there have no record.
    """
    end = at = 0
    steps = set()
    with path.open("rb") as file:
        for line in file:
            at += len(line)
            try:
                record = json.loads(line)
                earlier = line.endswith(b"\n") and record["step"] <= step
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            if earlier:
                end = at
                if record.get("kind") == "step":
                    steps.add(record["step"])
    return end, step - len(steps)


class Logger:
    """A sink that gives up, with one warning, at the first trouble."""

    def __init__(self, name: str, log: Callable[[Record], None], close: Callable[[], None]) -> None:
        self._name = name
        self._log = log
        self._close = close
        self._working = True

    def __call__(self, record: Record) -> None:
        """Log a record, unless this logger has given up."""
        self._try(lambda: self._log(record))

    def close(self) -> None:
        """Send what is left, and end."""
        self._try(self._close)

    def _try(self, work: Callable[[], None]) -> None:
        if not self._working:
            return
        try:
            work()
        except Exception as error:  # whatever a network or a service may raise
            self._working = False
            warn(f"{self._name} failed ({error}); metrics.jsonl goes on without it")


def open_loggers(config: RunConfig, *, after_step: int) -> list[Logger]:
    """The loggers that the configuration asks for; call on rank 0 alone."""
    found = []
    openers: list[tuple[str, Callable[[], Logger]]] = []
    if config.logging.wandb is not None and _wandb_mode(config) == "disabled":
        say(f"{config.name}: W&B is disabled; metrics.jsonl is written all the same")
    elif config.logging.wandb is not None:
        openers.append(("W&B", lambda: _wandb(config)))
    if config.logging.tensorboard:
        openers.append(("TensorBoard", lambda: _tensorboard(config, after_step)))
    for name, opener in openers:
        try:
            found.append(opener())
        except Exception as error:  # whatever a network or a service may raise
            warn(f"{name} cannot be used ({error}); metrics.jsonl is written all the same")
    return found


def _wandb(config: RunConfig) -> Logger:
    import wandb

    chosen = config.logging.wandb
    assert chosen is not None
    # At the end of a run, a service out of reach would be waited for without end; as a variable,
    # because older versions refuse a setting that they do not know.
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", "60")
    settings: dict[str, Any] = {
        "project": chosen.project,
        "entity": chosen.entity,
        "group": chosen.group,
        "tags": chosen.tags or None,
        "name": config.name,
        "id": _wandb_id(config.folder),
        "dir": str(config.folder),
    }
    for name, variable in _WANDB_VARIABLES.items():
        if os.environ.get(variable):
            del settings[name]  # wandb reads it
    if os.environ.get("WANDB_DIR"):  # else wandb would go to a temporary folder, and say nothing
        os.makedirs(os.environ["WANDB_DIR"], exist_ok=True)
    run = wandb.init(
        **settings,
        mode=_wandb_mode(config),
        resume="allow",
        config=to_plain(config),
        allow_val_change=True,
        settings=wandb.Settings(silent=True, init_timeout=60, console="off"),
    )
    # Steps are an axis, not the log's own counter: a requeued run repeats a few of them.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return Logger(
        "W&B",
        lambda record: run.log({**dict(flat(record)), "step": record["step"]}),
        lambda: run.finish(),
    )


def _wandb_mode(config: RunConfig) -> Literal["online", "offline", "disabled"]:
    """What the environment says, by W&B's names of old and now; else the YAML."""
    chosen = config.logging.wandb
    assert chosen is not None
    if os.environ.get("WANDB_DISABLED", "").lower() in {"true", "1", "yes"}:
        return "disabled"
    named = os.environ.get("WANDB_MODE", "").lower()
    return _WANDB_MODES.get(named, chosen.mode)


def _wandb_id(folder: Path) -> str:
    """The run's id, kept in the run folder so that a requeued run continues it."""
    path = folder / WANDB_ID_FILE
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:12])
    return path.read_text().strip()


def _tensorboard(config: RunConfig, after_step: int) -> Logger:
    from torch.utils.tensorboard import SummaryWriter

    named = os.environ.get("TENSORBOARD_LOGGING_DIR")
    folder = Path(named) / config.name if named else config.folder / "tensorboard"
    writer = SummaryWriter(str(folder), purge_step=after_step + 1)

    def log(record: Record) -> None:
        for name, value in flat(record):
            writer.add_scalar(name, value, record["step"])

    return Logger("TensorBoard", log, writer.close)


def flat(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The numbers of a record by path: 'train/loss', 'evaluation/web/loss'."""
    top = "train" if record["kind"] == "step" else record["kind"]
    found: list[tuple[str, float]] = []

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                visit(f"{prefix}/{name}" if name != "sources" else prefix, inner)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((prefix, float(value)))

    for name, value in record.items():
        visit(top if name == "sources" else f"{top}/{name}", value)
    return found
