"""What happens on a loss spike, and on a step that is not finite.

A step's loss is held against the median of the steps before it. What is unusual is written to
`spikes.jsonl` with the documents it came from, and then recorded, skipped, or made the end of the
run. Every rank decides alike, from numbers all of them have. The window of usual losses is part of
the checkpoint, so that a resumed run decides as the undisturbed one would.
"""

import json
import math
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tessera.batch import PackedBatch, RankBatch
from tessera.files import JsonObject
from tessera.training.callbacks.progress import Step, counted_as, finite_or_none
from tessera.training.config import SpikeConfig
from tessera.training.mlm import MaskedLanguageModel
from tessera.training.shutdown import TrainingStopped

SPIKES_FILE = "spikes.jsonl"
MOST_DOCUMENTS = 100
"""Documents that the record of a spike names, those of the highest loss first."""
_NORMAL = 1.4826  # a normal distribution's standard deviation in median absolute deviations
_FLOOR = 0.01
"""A calm run's deviation is not taken to be less than this share of its median."""


class SpikeError(TrainingStopped):
    """Training was stopped because of a loss or a gradient; the text says how to go on."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is unusual about a step, and what is done about it."""

    why: Literal["non-finite", "spike"]
    action: Literal["record", "skip", "stop"]
    usual: float
    """The median of the window."""
    limit: float
    """What would still have been usual."""


@dataclass
class SpikeGuard:
    """Judges each step by those before it."""

    config: SpikeConfig
    losses: deque[float] = field(default_factory=deque)
    """Losses of the last `window_steps` steps that were not skipped, oldest first."""
    skipped_in_row: int = 0

    def judge(self, step: Step) -> Verdict | None:
        """The verdict on a step; None for a usual one."""
        verdict = self._verdict(step)
        if verdict is not None and verdict.action == "skip":
            self.skipped_in_row += 1
            if self.skipped_in_row >= self.config.patience_steps:
                return Verdict(**{**vars(verdict), "action": "stop"})
            return verdict
        self.skipped_in_row = 0
        if math.isfinite(step.loss):
            self.losses.append(step.loss)
            while len(self.losses) > self.config.window_steps:
                self.losses.popleft()
        return verdict

    def _verdict(self, step: Step) -> Verdict | None:
        full = len(self.losses) >= max(8, self.config.window_steps // 4)
        usual = median(self.losses) if self.losses else math.nan
        deviation = _NORMAL * median(abs(loss - usual) for loss in self.losses) if full else 0.0
        limit = usual + self.config.threshold * max(deviation, _FLOOR * abs(usual))
        if not step.finite:
            return Verdict(
                why="non-finite", action=self.config.non_finite, usual=usual, limit=limit
            )
        if full and step.loss > limit:
            return Verdict(why="spike", action=self.config.action, usual=usual, limit=limit)
        return None

    def state(self) -> JsonObject:
        """For the checkpoint: JSON-able, exact."""
        return {"losses": list(self.losses), "skipped_in_row": self.skipped_in_row}

    @classmethod
    def from_progress(cls, config: SpikeConfig, progress: JsonObject) -> "SpikeGuard":
        """Continue from the `state()` that a checkpoint's `progress` holds, if it holds one."""
        state = progress.get("spikes", {})
        return cls(config, deque(state.get("losses", ())), state.get("skipped_in_row", 0))


# ---- which documents it came from


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A document, or a piece of one, and what it added to the loss."""

    row: int
    source: str
    id: str
    piece: int
    masked_tokens: int
    loss: float
    """Mean over its masked tokens; 0 if it has none."""


@torch.no_grad()
def suspects_of(model: MaskedLanguageModel, batch: RankBatch) -> list[Suspect]:
    """Every document of this rank's rows; costs one more forward pass.

    Call it within the precision context of training, before the weights change: losses are then
    those of the step, dropout included.
    """
    names = iter(batch.names())
    found = []
    for microbatch in batch.microbatches:
        losses, counts = _by_segment(model, microbatch)
        begins = microbatch.cu_seqlens[:-1] // microbatch.row_tokens
        for row, number in enumerate(microbatch.rows.tolist()):
            first = int(torch.searchsorted(begins, row))
            for segment, (source, identity, piece) in enumerate(next(names), first):
                masked = int(counts[segment])
                found.append(
                    Suspect(
                        row=number,
                        source=source,
                        id=identity,
                        piece=piece,
                        masked_tokens=masked,
                        loss=float(losses[segment]) / max(1, masked),
                    )
                )
    return found


def _by_segment(model: MaskedLanguageModel, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """(n,) float64 sum of the loss and (n,) int64 masked tokens of each segment."""
    bounds = batch.cu_seqlens.long()
    losses = model.token_losses(batch).double().cpu()[: batch.masked_tokens]
    positions = batch.masked_positions[: batch.masked_tokens]
    owner = torch.searchsorted(bounds, positions, right=True) - 1
    sums = torch.zeros(bounds.numel() - 1, dtype=torch.float64).index_add(0, owner, losses)
    return sums, torch.bincount(owner, minlength=sums.numel())


def summary(found: Sequence[Suspect], *, causal: bool = False) -> JsonObject:
    """For the record of a spike: the loss of each source, and the first documents to look at."""
    names = {"masked_tokens": counted_as(causal)}
    parts: dict[str, list[Suspect]] = defaultdict(list)
    for suspect in found:
        parts[suspect.source].append(suspect)
    worst = sorted(found, key=lambda suspect: (math.isfinite(suspect.loss), -suspect.loss))
    worst = worst[:MOST_DOCUMENTS]
    return {
        "source_losses": {
            name: finite_or_none(_mean(part)) for name, part in sorted(parts.items())
        },
        "documents": [
            {
                names.get(key, key): finite_or_none(value) if key == "loss" else value
                for key, value in asdict(one).items()
            }
            for one in worst
        ],
    }


def _mean(part: Sequence[Suspect]) -> float:
    masked = sum(suspect.masked_tokens for suspect in part)
    return sum(suspect.loss * suspect.masked_tokens for suspect in part) / max(1, masked)


# ---- the record, and what to do


def ranges(rows: Sequence[int] | np.ndarray) -> list[str]:
    """Row numbers as `train_data.skip_rows` takes them: '1200-1247'."""
    numbers = sorted(int(row) for row in rows)
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return [f"{first}-{last}" for first, last in found]


def record_spike(
    folder: Path,
    number: int,
    step: Step,
    verdict: Verdict,
    microbatch_losses: Sequence[tuple[Sequence[int], float]],
    found: Sequence[Suspect],
    *,
    causal: bool = False,
) -> JsonObject:
    """Write down what was seen: a line of `spikes.jsonl`.

    Args:
        folder: the run folder.
        number: of the step, from 1.
        step: what it was.
        verdict: what was unusual.
        microbatch_losses: rows and mean loss of each microbatch of every rank, as they were.
        found: the documents of every rank, whose losses come from a second forward pass.
        causal: whether what was predicted are next tokens.
    """
    line = {
        "step": number,
        "why": verdict.why,
        **({"objective": "causal"} if causal else {}),
        "action": verdict.action,
        "loss": finite_or_none(step.loss),
        "usual_loss": finite_or_none(verdict.usual),
        "limit": finite_or_none(verdict.limit),
        "grad_norm": finite_or_none(step.grad_norm),
        "digest": step.digest,
        "rows": ranges(step.rows),
        "source_tokens": step.source_tokens,
        "microbatches": [
            {"rows": ranges(rows), "loss": finite_or_none(loss)} for rows, loss in microbatch_losses
        ],
        **summary(found, causal=causal),
    }
    with (folder / SPIKES_FILE).open("a") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")
    return line


def summary_line(number: int, step: Step, verdict: Verdict) -> str:
    """One line for whoever watches: what was seen, and what was done about it."""
    done = {"record": "trained on all the same", "skip": "skipped", "stop": "training stops"}
    return (
        f"step {number}: {verdict.why}, loss {step.loss:.4g} where {verdict.limit:.4g} would still "
        f"be usual; {done[verdict.action]}. {SPIKES_FILE} names the documents"
    )


def instructions(
    folder: Path, number: int, step: Step, verdict: Verdict, skipped: Sequence[str] = ()
) -> str:
    """What to do about a run that was stopped; `skipped` are the `skip_rows` so far."""
    skip = ", ".join(f"'{part}'" for part in [*skipped, *ranges(step.rows)])
    value = "nan" if not math.isfinite(step.loss) else f"{step.loss:.4g}"
    return (
        f"stopped before step {number} changed the weights: {verdict.why} (loss {value}, usually "
        f"{verdict.usual:.4g}; gradient norm {step.grad_norm:.4g}). {folder / SPIKES_FILE} says "
        f"in which documents. To leave their rows out and go on from the newest checkpoint, "
        "start again with\n"
        f'  "train_data.skip_rows=[{skip}]"'
    )
