"""Loss and accuracy per source, masked or causal: fixed documents and masks, a vote per token."""

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from composer.core import Callback, State
from composer.core.precision import get_precision_context
from composer.loggers import Logger
from torch import Tensor

from tessera.batch import PackedBatch
from tessera.files import JsonObject
from tessera.model.modernbert import ModernBertForMaskedLM
from tessera.model.scoring import scores
from tessera.quantities import Duration
from tessera.training import distributed
from tessera.training.callbacks.progress import Marks, counted_as, finite_or_none
from tessera.training.callbacks.train_step import TrainStep
from tessera.training.loggers import Sinks
from tessera.training.mlm import MaskedLanguageModel

Batches = Callable[[], Iterable[PackedBatch]]
"""This rank's part of a source's validation documents, the same at every call."""
AskModel = Callable[[ModernBertForMaskedLM, PackedBatch], Tensor]
"""What is asked of a model about a batch, both on its device."""


@dataclass(eq=False, kw_only=True)
class Measurement(Callback):
    """Measures the model after a step when it is time to, and at the end of the phase."""

    interval: Duration | None
    """None: never, but at the end."""
    at_end: bool
    train_step: TrainStep
    model: MaskedLanguageModel
    sinks: Sinks
    owed: bool = False
    """Whether the measurement after the newest step was put off, to obey a signal sooner."""

    def __post_init__(self) -> None:
        self._marks = Marks(self.train_step.clock)

    @abstractmethod
    def measure(self, state: State) -> JsonObject:
        """A record for `metrics.jsonl`, over all ranks; the model is in eval mode."""

    def batch_end(self, state: State, logger: Logger) -> None:
        """Measure if an interval, or the phase, ended with this step."""
        due = self._marks.crossed(self.interval)
        done = self.train_step.clock.has_reached(self.train_step.config.duration)
        self._marks.look()
        if not (due or (done and self.at_end)):
            return
        step = self.train_step.step
        self.owed = not done and step is not None and step.stop_signal is not None
        if not self.owed:
            self._report(state)

    def fit_start(self, state: State, logger: Logger) -> None:
        """Measure now what a signal had put off."""
        if self.owed:
            self._report(state)
            self.owed = False

    @torch.no_grad()
    def _report(self, state: State) -> None:
        with self.train_step.pause():
            was_training = self.model.training
            self.model.eval()
            record = self.measure(state)
            self.model.train(was_training)
        if distributed.rank() == 0:
            self.sinks(record)

    def ask(
        self, state: State, own: Sequence[PackedBatch], question: AskModel = scores
    ) -> list[Tensor]:
        """The answers to a question about this rank's batches. Every rank asks at once."""
        extra = _idle_turns(own) if state.fsdp_enabled else []
        found = [self._forward(state, batch, question) for batch in [*own, *extra]]
        return found[: len(own)]

    def _forward(self, state: State, batch: PackedBatch, question: AskModel) -> Tensor:
        with get_precision_context(state.precision, state.precision_config):
            return self.model(batch, question)


@dataclass(eq=False, kw_only=True)
class Evaluator(Measurement):
    """Loss and accuracy of every source."""

    masking_rate: float | None
    """Of the batches of `sources`; None where each token is predicted from those before it."""
    sources: dict[str, Batches]

    def batch_end(self, state: State, logger: Logger) -> None:
        """Evaluate if it is time to, and there is something to evaluate on."""
        if self.sources:
            super().batch_end(state, logger)

    def measure(self, state: State) -> JsonObject:
        """A record of every source's loss and accuracy, and of the seconds it took."""
        begin = time.monotonic()
        scores = {name: self._score(state, b()) for name, b in self.sources.items()}
        return {
            "kind": "evaluation",
            "step": self.train_step.clock.steps,
            "tokens": self.train_step.clock.tokens,
            **({"objective": "causal"} if self.causal else {"masking_rate": self.masking_rate}),
            "sources": scores,
            "seconds": time.monotonic() - begin,
        }

    @property
    def causal(self) -> bool:
        """Whether the next token is predicted."""
        return self.masking_rate is None

    def _score(self, state: State, batches: Iterable[PackedBatch]) -> JsonObject:
        own = list(batches)
        sums = self.ask(state, own)
        loss, right = torch.stack(sums).sum(0).tolist() if sums else (0.0, 0.0)
        masked, tokens = sum(b.masked_tokens for b in own), sum(b.tokens for b in own)
        parts = distributed.gather((loss, right, masked, tokens))
        losses, rights, maskeds, counts = zip(*parts, strict=True)
        every = max(1, sum(maskeds))
        mean = math.fsum(losses) / every
        return {
            "loss": finite_or_none(mean),
            "accuracy": math.fsum(rights) / every,
            counted_as(self.causal): sum(maskeds),
            "tokens": sum(counts),
        }


def _idle_turns(own: Sequence[PackedBatch]) -> list[PackedBatch]:
    """Batches to compute besides, and throw away, where weights are sharded over the ranks.

    A layer's weights are then put together by all ranks at once, so every rank must do as many
    forward passes as the one with most batches. A rank repeats a batch of its own. A rank without
    any takes one from the first that has the most. Asked before the first forward pass, so that all
    ranks exchange the same things in the same order.
    """
    counts = distributed.gather(len(own))
    spares = list(own[:1])
    if 0 in counts:
        lends = distributed.rank() == counts.index(max(counts))
        spares += filter(None, distributed.gather(spares[0] if lends and spares else None))
    return spares[:1] * (max(counts) - len(own))
