"""Saves the state of training: whole or not at all, and enough of it to go on exactly.

Composer's own saving is not used: it can leave a torn file under the final name, and keeps no
milestones. What is saved is Composer's `state`, in which `RunRecord` is our entry.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from composer.core import Callback, State
from composer.loggers import Logger

from tessera.config import to_plain
from tessera.data.loader import Loader, merge_states
from tessera.files import JsonObject, write_whole
from tessera.optim.optimizers import leading_group
from tessera.optim.schedules import decay_begins
from tessera.tokenizer import Tokenizer
from tessera.training import distributed, run_folder
from tessera.training.callbacks.evaluator import Evaluator
from tessera.training.callbacks.probes import Probes
from tessera.training.callbacks.progress import Marks
from tessera.training.callbacks.train_step import TrainStep
from tessera.training.config import RunConfig
from tessera.training.console import warn
from tessera.training.shutdown import StopRequest, TrainingStopped

FAILED_SAVES = 3
"""So many checkpoints in a row that cannot be written stop the run."""


class RunRecord(Callback):
    """Our entry in a Composer checkpoint, under this class's name: all that weights do not say."""

    def __init__(
        self,
        config: RunConfig,
        tokenizer: Tokenizer,
        loader: Loader,
        train_step: TrainStep,
        evaluator: Evaluator,
        phases_before: Sequence[JsonObject] = (),
        probes: Probes | None = None,
    ) -> None:
        self.config = config
        self.phases_before = list(phases_before)
        self.probes = probes
        self.evaluator = evaluator
        self.tokenizer = tokenizer
        self.loader = loader
        self.train_step = train_step

    def state_dict(self) -> JsonObject:
        """JSON texts by name. Every rank calls this: each knows its own lanes alone."""
        batch = self.train_step.batch
        data: JsonObject = {}
        if batch is not None:
            data = merge_states(distributed.gather(self.loader.state_after(batch))).to_json()
        group = leading_group(self.train_step.optimizer)
        progress = {
            **asdict(self.train_step.clock),
            "duration": str(self.config.duration),
            "schedule": to_plain(self.config.schedule),
            "lr": group["lr"],
            "max_lr": group.get("max_lr", group["initial_lr"]),
            "spikes": self.train_step.guard.state(),
            "evaluation_owed": self.evaluator.owed,
            "phases_before": self.phases_before,
            "probes_owed": self.probes is not None and self.probes.owed,
        }
        if self.config.train_data.causal:
            progress["objective"] = "causal"
        record = {
            "model_config": to_plain(self.config.model),
            "tokenizer_files": self.tokenizer.files,
            "run_config": to_plain(self.config),
            "progress": progress,
            "data": data,
        }
        return {name: json.dumps(value) for name, value in record.items()}


@dataclass(eq=False)
class Checkpointer(Callback):
    """Saves after a step when it is time to, and when the run is about to end."""

    config: RunConfig
    train_step: TrainStep
    stop: StopRequest
    before_save: Callable[[], None]
    """Called on rank 0: what must be on the disk before a checkpoint that comes after it."""
    after_save: Callable[[int], None] = lambda step: None
    """Called on rank 0 with the step of a checkpoint that is on the disk."""
    failed_saves: int = 0

    def __post_init__(self) -> None:
        self._marks = Marks(self.train_step.clock)
        begin = decay_begins(self.config.schedule, self.config.duration)
        self._pins = [*self.config.checkpoints.milestones, *([begin] if begin else [])]

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Save if an interval, a milestone or the phase ended with this step, or a signal came."""
        clock, step = self.train_step.clock, self.train_step.step
        assert step is not None
        due = self._marks.crossed(self.config.checkpoints.interval)
        pin = any(map(self._marks.passed, self._pins))
        self._marks.look()
        done = clock.has_reached(self.config.duration)
        stopping = step.stop_signal is not None and not done
        if due or pin or done or stopping:
            self.save(state, pin=pin, must=pin or done or stopping)
        if stopping:
            self.stop.obeyed = True
            state.stop_training()

    def save(self, state: State, *, pin: bool, must: bool) -> None:
        """Write a checkpoint, then let `latest` mean it, then delete what `keep` leaves out.

        Raises:
            TrainingStopped: it cannot be written, and `must`, or for the third time in a row.
        """
        with self.train_step.pause():
            self._save(state, pin=pin, must=must)

    def _save(self, state: State, *, pin: bool, must: bool) -> None:
        # "rng" is empty on purpose: nothing here draws from torch's generators; masks and dropout
        # are functions of row numbers. Every rank takes part in making the state, since each knows
        # its own lanes alone, and rank 0 writes it.
        contents = {"state": state.state_dict(), "rng": []}
        problem = None
        if distributed.rank() == 0:
            try:
                if self.config.is_cached:  # which may have been cleared away
                    (self.config.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
                self.before_save()
                self._write(contents, pin)
                self.after_save(self.train_step.clock.steps)
            except (OSError, RuntimeError) as error:
                problem = _first_cause(error)
        problem = distributed.from_first(problem)
        self.failed_saves = 0 if problem is None else self.failed_saves + 1
        if problem is None:
            return
        if must or self.failed_saves >= FAILED_SAVES:
            raise TrainingStopped(
                f"the checkpoint could not be written ({problem}). The last one stands: make room "
                f"or mend {self.config.run_folder}, and start again"
            )
        warn(f"CHECKPOINT NOT WRITTEN ({problem}); training goes on, the last one stands")

    def _write(self, contents: JsonObject, pin: bool) -> None:
        folder, step = self.config.folder, self.train_step.clock.steps
        path = run_folder.checkpoint_path(folder, step)
        if pin:  # first: a run killed after the next line would not come here again
            run_folder.pin(folder, step)
        write_whole(path, lambda file: torch.save(contents, file))
        run_folder.point_latest(path)
        keep = self.config.checkpoints.keep
        if keep != "all":
            run_folder.prune(folder, keep)


def _first_cause(error: BaseException) -> str:
    """What the disk said: torch answers it with an error of its own about a zip file."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {error}".splitlines()[0]
