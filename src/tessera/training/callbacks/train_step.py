"""Around each optimizer step: its learning rate, its measure, its record in `metrics.jsonl`.

To log another number at each step, add it to `TrainStep._record`; one that only the ranks together
know goes into `Share` and `Step` of `callbacks.progress` first.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from composer.core import Callback, State
from composer.core.precision import get_precision_context
from composer.loggers import Logger
from torch import Tensor
from torch.optim import Optimizer

from tessera.batch import PackedBatch, RankBatch
from tessera.model.compilation import graphs_compiled
from tessera.model.flops import training_flops
from tessera.optim.optimizers import decay_of_step, leading_group, make_skippable, set_rate
from tessera.training import distributed
from tessera.training.callbacks.progress import (
    Clock,
    Step,
    counted_as,
    finite_or_none,
    share_of,
    whole,
)
from tessera.training.callbacks.spikes import (
    SpikeError,
    SpikeGuard,
    instructions,
    record_spike,
    summary_line,
    suspects_of,
)
from tessera.training.config import RunConfig
from tessera.training.console import warn
from tessera.training.loggers import Record, Sinks
from tessera.training.mlm import MaskedLanguageModel


@dataclass(eq=False)
class TrainStep(Callback):
    """Sets the rate before a step, judges it before the weights change, records it after."""

    config: RunConfig
    model: MaskedLanguageModel
    optimizer: Optimizer
    clock: Clock
    guard: SpikeGuard
    stop_signal: Callable[[], int | None]
    sinks: Sinks
    peak_flops: float = 0.0
    """Of one device, the most that was seen of it in this run; 0 if unknown."""
    on_peak: Callable[[float], None] = lambda peak: None
    """Told when a step shows that the device can do more."""
    step: Step | None = None
    """The one that is being done, or was done last."""
    batch: RankBatch | None = None
    """What this rank trains on in it."""
    skipped: str | None = None
    """Why this step is not to change the weights; None if it is to."""

    def __post_init__(self) -> None:
        make_skippable(self.optimizer, self.is_skipped)
        self._begin = time.perf_counter()

    def fit_start(self, state: State, logger: Logger) -> None:
        """Start the clock of the first step."""
        self._begin = time.perf_counter()

    def is_skipped(self) -> bool:
        """Whether this step is to leave the weights as they were."""
        return self.skipped is not None

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave what is done inside out of the steps' time."""
        begin = time.perf_counter()
        yield
        self._begin += time.perf_counter() - begin

    def batch_start(self, state: State, logger: Logger) -> None:
        """Set the rate for the progress so far, exactly; Composer's schedulers lag a batch."""
        unit, total = self.config.duration.unit, self.config.duration.value
        set_rate(self.optimizer, self.config.schedule.multiplier(self.clock.done(unit), total))
        self.batch = state.batch
        self.skipped = None
        self.model.losses.clear()

    def after_train_batch(self, state: State, logger: Logger) -> None:
        """Agree with the other ranks on what this step was, and whether it may happen."""
        assert self.batch is not None
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        losses = torch.stack(self.model.losses).double()
        # One transfer from the device for all the numbers. The decision whether this step may touch
        # the weights needs them, so the host has to wait for the device here.
        *each, norm = torch.cat([losses, _norm(gradients).double().reshape(1)]).tolist()
        share = share_of(
            self.batch,
            loss_sum=sum(each),
            grad_norm=norm,
            flops=sum(_flops(self.config, m) for m in self.batch.microbatches),
            stop_signal=self.stop_signal(),
        )
        self.step = whole(distributed.gather_in_step(share))
        self._judge(state, self.step, each)
        clip = self.config.optimizer.clip_norm
        if clip is not None and norm > clip and self.skipped is None:
            torch._foreach_mul_(gradients, clip / norm)

    def _judge(self, state: State, step: Step, losses: list[float]) -> None:
        verdict = self.guard.judge(step)
        if verdict is None:
            return
        assert self.batch is not None
        means = [
            (m.rows.tolist(), loss / max(1, m.masked_tokens))
            for m, loss in zip(self.batch.microbatches, losses, strict=True)
        ]
        with self.pause(), get_precision_context(state.precision, state.precision_config):
            parts = distributed.gather((means, suspects_of(self.model, self.batch)))
        folder, coming = self.config.folder, self.clock.steps + 1
        if distributed.rank() == 0:
            everywhere, found = (
                list(chain.from_iterable(part)) for part in zip(*parts, strict=True)
            )
            causal = self.config.train_data.causal
            record_spike(folder, coming, step, verdict, everywhere, found, causal=causal)
            warn(summary_line(coming, step, verdict))
        if verdict.action == "stop":
            skipped = self.config.train_data.skip_rows
            raise SpikeError(instructions(folder, coming, step, verdict, skipped))
        self.skipped = verdict.why if verdict.action == "skip" else None

    def batch_end(self, state: State, logger: Logger) -> None:
        """Count the step, and hand its record on."""
        assert self.step is not None
        self.clock.steps = int(state.timestamp.batch)
        self.clock.tokens = int(state.timestamp.token)
        self.clock.documents = int(state.timestamp.sample)
        self.clock.rows += len(self.step.rows)
        for source, tokens in self.step.source_tokens.items():
            read = self.clock.source_tokens
            read[source] = read.get(source, 0) + tokens
        now = time.perf_counter()
        seconds, self._begin = now - self._begin, now
        if distributed.rank() == 0:
            self.sinks(self._record(self.step, seconds))

    def _record(self, step: Step, seconds: float) -> Record:
        group = leading_group(self.optimizer)
        # A device that did more than it was measured to be able to was measured in a bad moment.
        world_size = distributed.world_size()
        done = step.flops / seconds / world_size
        if 0 < self.peak_flops < done:
            self.peak_flops = done
            self.on_peak(done)
        peak = self.peak_flops * world_size
        causal = self.config.train_data.causal
        masked = {"mask_rate": step.masked_tokens / max(1, step.tokens)}
        return {
            "kind": "step",
            "step": self.clock.steps,
            "tokens": self.clock.tokens,
            "total_documents": self.clock.documents,
            "loss": finite_or_none(step.loss),
            "step_tokens": step.tokens,
            counted_as(causal): step.masked_tokens,
            **({"objective": "causal"} if causal else masked),
            "rows": len(step.rows),
            "first_row": int(step.rows[0]),
            "documents": step.documents,
            "digest": step.digest,
            "lr": group["lr"],
            "max_lr": group.get("max_lr", group["initial_lr"]),
            "weight_decay": group["weight_decay"],
            "decay_of_step": decay_of_step(self.optimizer),
            "grad_norm": finite_or_none(step.grad_norm),
            "skipped": self.skipped,
            "packing_fill": step.tokens / step.slots,
            "source_tokens": step.source_tokens,
            "source_epochs": step.source_epochs,
            "epochs_read": step.epochs_read,
            "step_seconds": seconds,
            "tokens_per_second": step.tokens / seconds,
            "mfu": step.flops / seconds / peak if peak else None,
            "loader_wait_seconds": step.wait_seconds,
            "graphs_compiled": graphs_compiled(),
        }


def _flops(config: RunConfig, batch: PackedBatch) -> float:
    real, lengths = batch.tokens / batch.input_ids.numel(), batch.cu_seqlens.diff()
    causal = config.train_data.causal
    return real * training_flops(config.model, lengths, batch.masked_tokens / real, causal=causal)


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """Euclidean norm over all gradients, wherever their parts are."""
    norm = torch.nn.utils.get_total_norm(gradients)
    full = getattr(norm, "full_tensor", None)
    return norm if full is None else full()
