"""Weights & Biases and TensorBoard beside `metrics.jsonl`. Trouble with them never stops a run."""

import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tessera.config import to_plain
from tessera.training.config import RunConfig
from tessera.training.console import warn

WANDB_ID_FILE = "wandb_id"


class Logger:
    """A sink that gives up, with one warning, at the first trouble."""

    def __init__(
        self, name: str, log: Callable[[dict[str, Any]], None], close: Callable[[], None]
    ) -> None:
        self._name = name
        self._log = log
        self._close = close
        self._working = True

    def __call__(self, record: dict[str, Any]) -> None:
        """Log a record."""
        self._try(lambda: self._log(record))

    def close(self) -> None:
        """Finish."""
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
    if config.logging.wandb is not None:
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
    run = wandb.init(
        project=chosen.project,
        entity=chosen.entity,
        group=chosen.group,
        tags=chosen.tags or None,
        name=config.name,
        id=_wandb_id(Path(config.run_folder)),
        resume="allow",
        mode=chosen.mode,
        dir=config.run_folder,
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


def _wandb_id(folder: Path) -> str:
    """The run's id, kept in the run folder so that a requeued run continues it."""
    path = folder / WANDB_ID_FILE
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:12])
    return path.read_text().strip()


def _tensorboard(config: RunConfig, after_step: int) -> Logger:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(Path(config.run_folder) / "tensorboard"), purge_step=after_step + 1)

    def log(record: dict[str, Any]) -> None:
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
