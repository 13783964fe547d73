"""One phase of training as tables, and what they come to."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tessera.files import JsonObject


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation on the validation splits."""

    tokens: float
    """Real tokens the phase had been trained on."""
    loss: dict[str, float]
    """Per source, in nats per token that is predicted."""
    accuracy: dict[str, float]
    """Per source, the share of them that is guessed."""
    seconds: float = math.nan
    """That it took; NaN in records from before it was noted."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What the probes found at one time."""

    tokens: float
    """Real tokens the phase had been trained on."""
    values: dict[str, float]
    """Every number of the record by path, such as `position.0-127.loss`."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What one run folder recorded."""

    name: str
    tokens_before: float
    """Real tokens of the phases before this one in the chain."""
    columns: dict[str, np.ndarray]
    """Per number of a step record one value a step; a number in a section is `section.name`."""
    evaluations: list[Evaluation]
    config: JsonObject
    config_text: str
    machines: list[JsonObject] = field(default_factory=list)
    """What it ran on, as `machine.json` says; none where an older version did not write it."""
    notes: list[str]
    """What a reader should know about the record itself, one sentence each."""
    probes: list[Probe] = field(default_factory=list)

    def column(self, name: str) -> np.ndarray:
        """(steps,) values, NaN where a step did not record one."""
        return self.columns.get(name, np.full(self.steps, math.nan))

    @property
    def steps(self) -> int:
        """Optimizer steps recorded."""
        return len(self.columns["tokens"])

    @property
    def tokens(self) -> float:
        """Real tokens trained on."""
        return float(self.columns["tokens"][-1])

    @property
    def documents(self) -> float:
        """Documents, or pieces of them, trained on; NaN if not recorded."""
        return _sum(self.column("documents"))

    @property
    def seconds(self) -> float:
        """Time spent in steps; NaN if not recorded."""
        return _sum(self.column("step_seconds"))

    @property
    def tokens_per_second(self) -> float:
        """Real tokens per second of step time."""
        return _mean(self.column("tokens_per_second"), self.column("step_seconds"))

    @property
    def fill(self) -> float:
        """Share of token slots that are not padding."""
        return _mean(self.column("packing_fill"), self.column("rows"))

    @property
    def wait_share(self) -> float:
        """Share of step time spent waiting for the loader."""
        seconds = self.seconds
        return _sum(self.column("loader_wait_seconds")) / seconds if seconds > 0 else math.nan

    @property
    def flop_utilisation(self) -> float:
        """Mean model FLOP utilisation; NaN where the device's peak is unknown."""
        return _mean(self.column("mfu"), self.column("step_seconds"))

    @property
    def evaluation_share(self) -> float:
        """Share of the time in steps and evaluations that the latter took; NaN if not recorded."""
        spent = math.fsum(e.seconds for e in self.evaluations if e.seconds > 0)
        return spent / (spent + self.seconds) if spent > 0 else math.nan

    @property
    def probe_share(self) -> float:
        """Share of the time in steps and probes that the probes took; NaN if there were none."""
        spent = math.fsum(probe.values.get("seconds", 0.0) for probe in self.probes)
        return spent / (spent + self.seconds) if spent > 0 else math.nan

    def setting(self, *path: str) -> Any:
        """A value of the resolved configuration by its keys; None if it is not there."""
        value: Any = self.config
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def source_tokens(self) -> dict[str, float]:
        """Real tokens trained on, per source."""
        prefix = "source_tokens."
        return {
            name.removeprefix(prefix): _sum(column)
            for name, column in self.columns.items()
            if name.startswith(prefix)
        }

    def source_epochs(self) -> dict[str, int]:
        """The furthest epoch of each source, from 0."""
        prefix = "source_epochs."
        furthest = {
            name.removeprefix(prefix): column[np.isfinite(column)]
            for name, column in self.columns.items()
            if name.startswith(prefix)
        }
        return {name: int(epochs.max()) for name, epochs in furthest.items() if epochs.size}

    def epochs_read(self) -> dict[str, float]:
        """How often each source was read in all, 0.74 being most of it once.

        NaN where an older version recorded the furthest epoch alone.
        """
        read = {
            name.removeprefix("epochs_read."): column[np.isfinite(column)]
            for name, column in self.columns.items()
            if name.startswith("epochs_read.")
        }
        known = {name: float(values[-1]) for name, values in read.items() if values.size}
        return dict.fromkeys(self.source_epochs(), math.nan) | known

    def wanted_shares(self) -> dict[str, float]:
        """Share of the tokens each source should have, from the weights of the configuration."""
        sources = self.setting("train_data", "sources") or {}
        weights = {
            str(name): float(source.get("weight", 1.0))
            for name, source in sources.items()
            if isinstance(source, Mapping)
        }
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()} if total > 0 else {}

    @property
    def causal(self) -> bool:
        """Whether each token was predicted from those before it, and nothing was masked."""
        return self.setting("train_data", "objective") == "causal"

    def masking_rates(self) -> list[float]:
        """The configured share of ordinary tokens that training masks, at first and at last."""
        if self.causal:
            return []
        rates = [self.setting("train_data", "masking", key) for key in ("rate", "final_rate")]
        return [float(rate) for rate in rates if isinstance(rate, int | float)]

    def final_evaluation(self) -> Evaluation | None:
        """The newest loss and accuracy of each source."""
        if not self.evaluations:
            return None
        loss: dict[str, float] = {}
        accuracy: dict[str, float] = {}
        for evaluation in self.evaluations:
            loss |= evaluation.loss
            accuracy |= evaluation.accuracy
        return Evaluation(tokens=self.evaluations[-1].tokens, loss=loss, accuracy=accuracy)


def predicted_tokens(phases: Sequence[Phase]) -> str:
    """What kind of tokens these phases predict, in a word: masked, next, or of both kinds."""
    kinds = {phase.causal for phase in phases}
    return "predicted" if len(kinds) > 1 else "next" if True in kinds else "masked"


def source_names(phases: Sequence[Phase]) -> list[str]:
    """Every source trained or evaluated on, the configured ones first, in their order."""
    names: dict[str, None] = {}
    for phase in phases:
        names |= dict.fromkeys(phase.wanted_shares())
    for phase in phases:
        found = set(phase.source_tokens())
        for evaluation in phase.evaluations:
            found |= set(evaluation.loss)
        names |= dict.fromkeys(sorted(found - names.keys()))
    return list(names)


def _sum(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return math.fsum(finite) if finite.size else math.nan


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Weighted by `weights` where they are known for any step, else the plain mean."""
    known = np.isfinite(values)
    weighted = known & np.isfinite(weights) & (weights > 0)
    if weighted.any():
        return float(np.average(values[weighted], weights=weights[weighted]))
    return float(values[known].mean()) if known.any() else math.nan
