"""A run from its configuration: take the run folder, build, fit, and let go of everything.

Torch and Composer are imported only once everything that can be known to be wrong has been checked.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tessera.config import refusal, to_yaml
from tessera.training import distributed, run_folder, shutdown
from tessera.training.config import RunConfig
from tessera.training.console import say, say_complete, warn
from tessera.training.preflight import examine
from tessera.training.shutdown import PREEMPTED, StopRequest

if TYPE_CHECKING:
    from composer import Trainer

    from tessera.checkpoints.checkpoint import Checkpoint
    from tessera.training.resume import Saved


@dataclass
class Run:
    """A phase, ready to train, or complete already."""

    config: RunConfig
    trainer: "Trainer | None" = None
    """Composer's; None if there is nothing left to do."""
    stop: StopRequest = field(default_factory=StopRequest)
    closing: ExitStack = field(default_factory=ExitStack)
    """What to do at the end, however it comes."""

    def fit(self) -> int:
        """Train to the end of the phase, or until told to stop.

        Returns:
            The exit status: 0, or `PREEMPTED` if stopped by a signal with everything saved.
        """
        folder = Path(self.config.run_folder)
        if self.trainer is None:
            run_folder.mark_complete(folder, to_yaml(self.config))
            say_complete(self.config)
            return 0
        self.stop.training = True
        try:
            self.trainer.fit()
        except Exception as error:
            self._note_end(f"{type(error).__name__}: {error}")
            self.close(failed=True)
            shutdown.report_first_failure(folder, error)
            raise
        self._note_end(
            "stopped by a signal, with everything saved" if self.stop.obeyed else "complete"
        )
        self.close()
        if self.stop.obeyed:
            say(f"{self.config.name}: stopped by a signal, with everything saved; start it again")
            return PREEMPTED
        if distributed.rank() == 0:
            run_folder.mark_complete(folder, to_yaml(self.config))
        say(f"{self.config.name}: complete, in {folder}")
        return 0

    def _note_end(self, how: str) -> None:
        if distributed.rank() == 0 and self.trainer is not None:
            folder, step = Path(self.config.run_folder), int(self.trainer.state.timestamp.batch)
            run_folder.note_end(folder, how, step)

    def close(self, *, failed: bool = False) -> None:
        """Let go of the folder, the loggers and the loader.

        Args:
            failed: other ranks may be gone; Composer would wait for them.
        """
        if self.trainer is not None and not (failed and distributed.world_size() > 1):
            self.trainer.close()
        self.closing.close()


@dataclass(frozen=True)
class Held:
    """A run folder that this process alone may write to."""

    lock: run_folder.Lock
    saved: "Saved | None"
    """The checkpoint to resume from."""
    origin: "Checkpoint | None"
    """What the phase begins with, if it does not resume and its configuration names something."""


def build_run(config: RunConfig) -> Run:
    """Assemble a phase, or its continuation. Nothing trains yet.

    Raises:
        ConfigError: with everything that is wrong, where it can be known before training.
    """
    shutdown.forget_failure(Path(config.run_folder))
    held = hold(config) if distributed.rank() == 0 else None
    with ExitStack() as closing:
        if held is not None:
            closing.callback(held.lock.release)
            if distributed.world_size() == 1 and held.saved and held.saved.done(config.duration):
                return Run(config)

        from tessera.training.trainer import build_trainer, prepare_process

        stop = StopRequest(Path(config.run_folder))
        stop.install()
        closing.callback(stop.uninstall)
        if held is not None:
            stop.on_request = held.lock.say_stopping
        prepare_process(config)
        saved = _same_everywhere(held)
        if saved is not None and saved.done(config.duration):
            return Run(config)
        origin = held.origin if held is not None else None
        trainer = build_trainer(config, saved, origin, stop=stop, closing=closing)
        return Run(config, trainer, stop, closing.pop_all())


def hold(config: RunConfig) -> Held:
    """Check the configuration against the machine, and take the run folder if it can run.

    Raises:
        ConfigError: it cannot; nothing was written.
        ValueError: another run is using the folder, or none of its checkpoints can be read.
    """
    folder = Path(config.run_folder)
    resuming = bool(run_folder.checkpoints(folder))
    findings = examine(config, distributed.world_size(), resuming=resuming)
    if findings.problems:
        raise refusal(f"{config.name} cannot run", findings.problems)
    for doubt in findings.doubts:
        warn(doubt)

    from tessera.training.resume import newest  # torch, only once all that can be checked is right

    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    lock = run_folder.lock(folder)
    try:
        run_folder.clear_unfinished(folder, distributed.began())
        return Held(lock, newest(folder, warn), findings.origin)
    except BaseException:
        lock.release()
        raise


def _same_everywhere(held: Held | None) -> "Saved | None":
    """What rank 0 found to resume from, read by every rank."""
    from tessera.training.resume import read

    own = held.saved if held is not None else None
    path = distributed.from_first(own.path if own is not None else None)
    return own if own is not None or path is None else read(path)
