"""Masked-LM loss and accuracy per source: fixed documents, fixed masks, one vote per token."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from composer.core import Callback, State
from composer.core.precision import get_precision_context
from composer.loggers import Logger
from torch import Tensor

from tessera.batch import PackedBatch
from tessera.files import JsonObject
from tessera.training import distributed
from tessera.training.callbacks.progress import Marks, finite_or_none
from tessera.training.callbacks.train_step import TrainStep
from tessera.training.config import EvaluationConfig
from tessera.training.loggers import Sinks
from tessera.training.mlm import MaskedLanguageModel

Batches = Callable[[], Iterable[PackedBatch]]
"""This rank's part of a source's validation documents, the same at every call."""


@dataclass(eq=False)
class Evaluator(Callback):
    """Evaluates after a step when it is time to, and at the end of the phase."""

    config: EvaluationConfig
    train_step: TrainStep
    model: MaskedLanguageModel
    sources: dict[str, Batches]
    sinks: Sinks
    owed: bool = False
    """Whether the evaluation after the newest step was put off, to obey a signal sooner."""

    def __post_init__(self) -> None:
        self._marks = Marks(self.train_step.clock)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Evaluate if an interval, or the phase, ended with this step."""
        due = self._marks.crossed(self.config.interval)
        done = self.train_step.clock.has_reached(self.train_step.config.duration)
        self._marks.look()
        if not self.sources or not (due or (done and self.config.at_end)):
            return
        step = self.train_step.step
        self.owed = not done and step is not None and step.stop_signal is not None
        if not self.owed:
            self._report(state)

    def fit_start(self, state: State, logger: Logger) -> None:
        """Evaluate now what a signal had put off."""
        if self.owed:
            self._report(state)
            self.owed = False

    def _report(self, state: State) -> None:
        with self.train_step.pause():
            record = self.evaluate(state)
        if distributed.rank() == 0:
            self.sinks(record)

    @torch.no_grad()
    def evaluate(self, state: State) -> JsonObject:
        """A record of every source's loss and accuracy, over all ranks."""
        was_training = self.model.training
        self.model.eval()
        found = {name: self._score(state, batches()) for name, batches in self.sources.items()}
        self.model.train(was_training)
        return {
            "kind": "evaluation",
            "step": self.train_step.clock.steps,
            "tokens": self.train_step.clock.tokens,
            "masking_rate": self.config.masking_rate,
            "sources": found,
        }

    def _score(self, state: State, batches: Iterable[PackedBatch]) -> JsonObject:
        own = list(batches)
        extra = _idle_turns(own) if state.fsdp_enabled else []
        sums = [self._forward(state, batch) for batch in [*own, *extra]][: len(own)]
        loss, right = torch.stack(sums).sum(0).tolist() if sums else (0.0, 0.0)
        masked, tokens = sum(b.masked_tokens for b in own), sum(b.tokens for b in own)
        parts = distributed.gather((loss, right, masked, tokens))
        losses, rights, maskeds, counts = zip(*parts, strict=True)
        every = max(1, sum(maskeds))
        mean = math.fsum(losses) / every
        return {
            "loss": finite_or_none(mean),
            "accuracy": math.fsum(rights) / every,
            "masked_tokens": sum(maskeds),
            "tokens": sum(counts),
        }

    def _forward(self, state: State, batch: PackedBatch) -> Tensor:
        with get_precision_context(state.precision, state.precision_config):
            return self.model(batch)


def _idle_turns(own: Sequence[PackedBatch]) -> list[PackedBatch]:
    """Batches to compute besides, and throw away, where weights are sharded over the ranks.

    A layer's weights are then put together by all ranks at once, so every rank must do as many
    forward passes as the one with most batches. A rank repeats a batch of its own. A rank without
    any takes one from a rank that has exactly one: rows are dealt out in turn, so if a rank has
    none, none has more than one. Asked before the first forward pass, so that all ranks exchange
    the same things in the same order.
    """
    others = distributed.gather((len(own), own[0] if len(own) == 1 else None))
    spares = [*own, *(batch for _, batch in others if batch is not None)]
    return spares[:1] * (max(count for count, _ in others) - len(own))
