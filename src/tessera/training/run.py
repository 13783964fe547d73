"""A run from its configuration: who may write, where it continues, and how it ends.

Composer is imported only once everything that can be known to be wrong has been checked.
"""

import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tessera.config import ConfigError, to_yaml
from tessera.training import blame, distributed, run_folder
from tessera.training.config import RunConfig
from tessera.training.console import say, say_complete, warn
from tessera.training.preflight import examine
from tessera.training.saved import Saved, newest
from tessera.training.shutdown import PREEMPTED, StopRequest


@dataclass
class Run:
    """A phase, ready to train, or complete already."""

    config: RunConfig
    trainer: Any = None
    """Composer's; None if there is nothing left to do."""
    stop: StopRequest = field(default_factory=StopRequest)
    preempted: Callable[[], bool] = lambda: False
    closing: list[Callable[[], None]] = field(default_factory=list)
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
            self.close(failed=True)
            blame.settle(folder, error)
            raise
        self.close()
        if self.preempted():
            say(f"{self.config.name}: stopped by a signal, with everything saved; start it again")
            return PREEMPTED
        if distributed.rank() == 0:
            run_folder.mark_complete(folder, to_yaml(self.config))
        say(f"{self.config.name}: complete, in {folder}")
        return 0

    def asked_to_stop(self) -> int | None:
        """The signal that asked for it; SIGUSR1 stands for the file `stop` in the run folder."""
        if self.stop.signal is None and distributed.rank() == 0:
            wish = Path(self.config.run_folder) / run_folder.STOP_FILE
            if wish.exists():
                wish.unlink()
                self.stop.signal = signal.SIGUSR1
        return self.stop.signal

    def close(self, *, failed: bool = False) -> None:
        """Let go of the folder, the loggers and the loader.

        Args:
            failed: other ranks may be gone; Composer would wait for them.
        """
        if self.trainer is not None and not (failed and distributed.world_size() > 1):
            self.trainer.close()
        while self.closing:
            self.closing.pop()()


@dataclass(frozen=True)
class Held:
    """A run folder that this process alone may write to."""

    lock: run_folder.Lock
    saved: Saved | None
    """The checkpoint to resume from."""


def build_run(config: RunConfig) -> Run:
    """Assemble a phase, or its continuation. Nothing trains yet.

    Raises:
        ConfigError: with everything that is wrong, where it can be known before training.
    """
    blame.forget(Path(config.run_folder))
    held = take(config) if distributed.rank() == 0 else None
    if distributed.world_size() == 1 and held and held.saved and held.saved.done(config.duration):
        held.lock.release()
        return Run(config)

    from tessera.training.trainer import build

    return build(config, held)


def take(config: RunConfig) -> Held:
    """Check the configuration against the machine, and take the run folder if it can run.

    Raises:
        ConfigError: it cannot; nothing was written.
        ValueError: another run is using the folder, or none of its checkpoints can be read.
    """
    folder = Path(config.run_folder)
    resuming = bool(run_folder.checkpoints(folder))
    # What a phase once started from has done its part, and may be gone.
    asked = replace(config, start_from=None, initial_weights=None) if resuming else config
    findings = examine(asked, distributed.world_size())
    if found := findings.problems:
        count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
        raise ConfigError("\n  ".join([f"{config.name} cannot run: {count}", *found]))
    for doubt in findings.doubts:
        warn(doubt)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    lock = run_folder.lock(folder)
    try:
        run_folder.clear_unfinished(folder, distributed.began())
        return Held(lock, newest(folder, warn))
    except BaseException:
        lock.release()
        raise
