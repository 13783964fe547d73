"""A run from its configuration: take the run folder, build, fit, and let go of everything.

Torch and Composer are imported only once everything that can be known to be wrong has been checked.
"""

import os
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tessera.config import refusal, to_yaml
from tessera.object_store import S3Store
from tessera.training import distributed, run_folder, shutdown
from tessera.training.config import RunConfig
from tessera.training.console import say, say_complete, warn
from tessera.training.preflight import examine
from tessera.training.rate_jump import cut_short
from tessera.training.remote.remote_run import RemoteRun, has_begun, open_remote
from tessera.training.remote.restore import bring_checkpoint
from tessera.training.shutdown import PREEMPTED, StopRequest, TrainingStopped

if TYPE_CHECKING:
    from composer import Trainer

    from tessera.checkpoints.checkpoint import Checkpoint
    from tessera.training.resume import Saved

_TELLING_SECONDS = 3.0
"""How long the other ranks leave rank 0 to say why they all end."""


@dataclass
class Run:
    """A phase, ready to train, or complete already."""

    config: RunConfig
    trainer: "Trainer | None" = None
    """Composer's; None if there is nothing left to do."""
    stop: StopRequest = field(default_factory=StopRequest)
    remote: RemoteRun | None = None
    """The object store that the run folder lives in; on rank 0."""
    closing: ExitStack = field(default_factory=ExitStack)
    """What to do at the end, however it comes."""
    changed_in_vain: bool = False
    """Whether another configuration than this one is complete, and nothing is done for this."""

    def fit(self) -> int:
        """Train to the end of the phase, or until told to stop.

        Returns:
            The exit status: 0, or `PREEMPTED` if stopped by a signal with everything saved.
        """
        folder = self.config.folder
        if self.trainer is None:
            self._settle(complete=not self.changed_in_vain)
            self.closing.close()
            say_complete(self.config)
            return 0
        if distributed.rank() == 0:
            run_folder.forget_end(folder)
        self.stop.training = True
        try:
            self.trainer.fit()
        except Exception as error:
            self._note_end(f"{type(error).__name__}: {error}")
            self.close(failed=True)
            shutdown.report_first_failure(folder, error)
            raise
        self._settle(complete=not self.stop.obeyed)
        self._note_end(
            "stopped by a signal, with everything saved" if self.stop.obeyed else "complete"
        )
        self.close()
        if self.stop.obeyed:
            say(f"{self.config.name}: stopped by a signal, with everything saved; start it again")
            return PREEMPTED
        say(f"{self.config.name}: complete, in {self.config.run_folder}")
        return 0

    def _note_end(self, how: str) -> None:
        if distributed.rank() == 0 and self.trainer is not None:
            folder, step = self.config.folder, int(self.trainer.state.timestamp.batch)
            run_folder.note_end(folder, how, step)

    def _settle(self, *, complete: bool) -> None:
        """See that everything is where it is to stay, and only then call the phase complete.

        Raises:
            TrainingStopped: the object store does not have the last checkpoint.
        """
        problem: str | None = "" if self.config.remote is None else None
        while problem is None:  # every rank waits: one that left would have the others ended
            told = self.remote.settled() if self.remote is not None else None
            problem = distributed.from_first(told)
        if problem:
            self._note_end(problem)
            self.close(failed=True)
            if distributed.rank() != 0:
                time.sleep(_TELLING_SECONDS)
                sys.exit(1)
            raise TrainingStopped(problem)
        if complete and distributed.rank() == 0:
            run_folder.mark_complete(self.config.folder, to_yaml(self.config))

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
    remote: RemoteRun | None
    """The object store, if the folder lives in one."""
    origin: "Checkpoint | None"
    """What the phase begins with, if it does not resume and its configuration names something."""

    def release(self) -> None:
        """Let another run write."""
        if self.remote is not None:
            self.remote.close()
        self.lock.release()


def build_run(config: RunConfig) -> Run:
    """Assemble a phase, or its continuation. Nothing trains yet.

    Raises:
        ConfigError: with everything that is wrong, where it can be known before training.
    """
    # Read once, when torch is loaded. Threads that spin while they wait for one another take the
    # core from the one they wait for wherever another process wants it too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    shutdown.forget_failure(config.folder)
    held = hold(config) if distributed.rank() == 0 else None
    with ExitStack() as closing:
        if held is not None:
            closing.callback(held.release)
            complete = _complete(config, held.saved) if distributed.world_size() == 1 else None
            if complete is not None:
                complete.remote, complete.closing = held.remote, closing.pop_all()
                return complete

        from tessera.training.trainer import build_trainer, prepare_process

        stop = StopRequest(config.folder)
        stop.install()
        closing.callback(stop.uninstall)
        if held is not None:
            stop.on_request = held.lock.say_stopping
        prepare_process(config)
        saved = _same_everywhere(config, held)
        remote = held.remote if held is not None else None
        complete = _complete(config, saved)
        if complete is not None:
            complete.remote, complete.closing = remote, closing.pop_all()
            return complete
        origin = held.origin if held is not None else None
        after_save = remote.saved if remote is not None else (lambda step: None)
        trainer = build_trainer(
            config, saved, origin, stop=stop, closing=closing, after_save=after_save
        )
        return Run(config, trainer, stop, remote, closing.pop_all())


def _complete(config: RunConfig, saved: "Saved | None") -> Run | None:
    """A run that has nothing left to do, if that is so; warns of what has been changed in vain.

    Raises:
        ValueError: the phase was trained with another seed or model than is asked for.
    """
    if saved is None or not saved.done(config.duration):
        return None
    from tessera.training.resume import resumable

    changes = resumable(config, saved)
    short = cut_short(config, saved.run_config, saved.progress)
    if short is not None:
        warn(short)
    told = [change for change in changes if short is None or not change.startswith("duration: ")]
    if told:
        warn(
            f"{config.name}: complete in {config.run_folder} since before these were changed, and "
            "not trained again; give what is to be another run a run_folder of its own\n  "
            + "\n  ".join(told)
        )
    return Run(config, changed_in_vain=bool(changes))


def hold(config: RunConfig) -> Held:
    """Check the configuration against the machine, and take the run folder if it can run.

    Raises:
        ConfigError: it cannot; nothing was written.
        ValueError: another run is using the folder, or none of its checkpoints can be read.
    """
    folder = config.folder
    resuming = has_begun(config)
    findings = examine(config, distributed.world_size(), resuming=resuming)
    if findings.problems:
        raise refusal(f"{config.name} cannot run", findings.problems)
    for doubt in findings.doubts:
        warn(doubt)

    from tessera.training.resume import newest  # torch, only once all that can be checked is right

    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    lock = run_folder.lock(folder)
    remote = None
    try:
        remote = open_remote(config, warn)
        run_folder.clear_unfinished(folder, distributed.began())
        run_folder.pinned(folder)  # a damaged list is said now, not at the first checkpoint
        return Held(lock, newest(folder, warn), remote, findings.origin)
    except BaseException:
        if remote is not None:
            remote.close()
        lock.release()
        raise


def _same_everywhere(config: RunConfig, held: Held | None) -> "Saved | None":
    """What rank 0 found to resume from, read by every rank."""
    from tessera.training.resume import read

    own = held.saved if held is not None else None
    path = distributed.from_first(own.path if own is not None else None)
    if config.remote is not None and distributed.world_size() > 1:
        # Another node's disk may have nothing, and its cache another place.
        path = None if path is None else config.folder / "checkpoints" / path.name
        if distributed.local_rank() == 0 and own is None:
            (config.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            if path is not None:
                store = S3Store(config.remote)
                bring_checkpoint(store, f"checkpoints/{path.name}", config.folder, warn)
        distributed.barrier()
    return own if own is not None or path is None else read(path)
