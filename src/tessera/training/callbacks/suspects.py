"""Which documents the loss of a step came from: asked only when the step was unusual."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tessera.batch import PackedBatch, RankBatch
from tessera.training.callbacks.progress import finite_or_none
from tessera.training.mlm import MaskedLanguageModel

MOST = 100
"""Documents to name, those of the highest loss first."""


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
def suspects(model: MaskedLanguageModel, batch: RankBatch) -> list[Suspect]:
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


def summary(found: Sequence[Suspect]) -> dict[str, Any]:
    """For the record of a spike: the loss of each source, and the first documents to look at."""
    parts: dict[str, list[Suspect]] = defaultdict(list)
    for suspect in found:
        parts[suspect.source].append(suspect)
    worst = sorted(found, key=lambda suspect: (math.isfinite(suspect.loss), -suspect.loss))
    return {
        "source_losses": {
            name: finite_or_none(_mean(part)) for name, part in sorted(parts.items())
        },
        "documents": [{**asdict(one), "loss": finite_or_none(one.loss)} for one in worst[:MOST]],
    }


def _mean(part: Sequence[Suspect]) -> float:
    masked = sum(suspect.masked_tokens for suspect in part)
    return sum(suspect.loss * suspect.masked_tokens for suspect in part) / max(1, masked)
