"""Rows to PackedBatch: tensors of shapes that repeat from batch to batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np
import torch
from torch import Tensor

from tessera.batch import IGNORED, PackedBatch
from tessera.data.pipeline.rows import Row

_DEVIATIONS = 4
_SLOTS_MULTIPLE = 64


@dataclass(frozen=True)
class Shapes:
    """The padded lengths of a microbatch, so that a compiler sees few shapes."""

    row_tokens: int
    max_seq_len: int
    together: float = 1.0
    """Tokens that one draw chooses, as the average token sees it: the number of masked tokens
    varies by the square root of this more than if each had its own."""

    def predictions(self, rows: int, rate: float, needed: int) -> int:
        """Length of `masked_positions`: usual up to 4 standard deviations above the mean.

        A batch with more gets the next multiple.
        """
        slots = rows * self.row_tokens
        usual = rate * slots + _DEVIATIONS * sqrt(rate * (1 - rate) * slots * self.together)
        usual = ceil(usual / _SLOTS_MULTIPLE) * _SLOTS_MULTIPLE
        step = max(_SLOTS_MULTIPLE, usual // 8)
        return usual + step * max(0, ceil((needed - usual) / step))


def packed_batch(rows: Sequence[Row], shapes: Shapes, rate: float | None) -> PackedBatch:
    """Lay rows end to end.

    Args:
        rows: At least one.
        shapes: The padded lengths.
        rate: The masking rate that the number of prediction slots is made for; None: each token
            predicts the next, and there are as many as token slots.
    """
    starts = np.arange(len(rows), dtype=np.int64) * shapes.row_tokens
    ends = [row.ends + start for row, start in zip(rows, starts, strict=True)]

    masked_tokens = sum(len(row.positions) for row in rows)
    predictions = shapes.predictions(len(rows), 1.0 if rate is None else rate, masked_tokens)
    positions = np.zeros(predictions, np.int64)
    labels = np.full(predictions, IGNORED, np.int64)
    filled = 0
    for row, start in zip(rows, starts, strict=True):
        here = slice(filled, filled + len(row.positions))
        positions[here] = row.positions + start
        labels[here] = row.labels
        filled = here.stop
    return PackedBatch(
        input_ids=_tensor(np.concatenate([row.ids for row in rows])),
        cu_seqlens=torch.from_numpy(np.concatenate([[0], *ends], dtype=np.int32)),
        max_seqlen=shapes.max_seq_len,
        masked_positions=_tensor(positions),
        masked_labels=_tensor(labels),
        rows=torch.tensor([row.number for row in rows]),
        tokens=sum(row.tokens for row in rows),
        masked_tokens=masked_tokens,
        documents=sum(row.documents for row in rows),
    )


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.int64, copy=False))
