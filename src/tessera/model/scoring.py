"""How well masked tokens are predicted, where no gradient is asked for.

Legend: `M` prediction slots, `V` vocabulary.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tessera.batch import IGNORED, PackedBatch
from tessera.model.modernbert import ModernBertForMaskedLM

_LOGIT_ROWS = 2048
"""Tokens whose logits are in memory as float32 at once."""


def scores(encoder: ModernBertForMaskedLM, batch: PackedBatch) -> Tensor:
    """(2,) float64: sum of the loss in nats, and right guesses, over the masked tokens.

    Args:
        encoder: in eval mode.
        batch: on the encoder's device.
    """
    losses, right = answers(encoder, batch)
    return torch.stack([losses.sum(), right.sum()]).double()


def answers(encoder: ModernBertForMaskedLM, batch: PackedBatch) -> Tensor:
    """(2, M) float32: loss in nats of each prediction slot, and 1 where it is right.

    Args:
        encoder: in eval mode.
        batch: on the encoder's device.
    """
    logits = encoder(
        batch.input_ids,
        cu_seqlens=batch.cu_seqlens,
        max_seqlen=batch.max_seqlen,
        masked_positions=batch.masked_positions,
    ).logits
    right = logits.argmax(-1) == batch.masked_labels
    return torch.stack([token_losses(logits, batch.masked_labels), right.float()])


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(M,) float32: the cross-entropy of each prediction in nats, 0 where nothing is predicted.

    Args:
        logits: (M, V).
        labels: (M,) int64, `IGNORED` where nothing is predicted.
    """
    parts = zip(logits.split(_LOGIT_ROWS), labels.split(_LOGIT_ROWS), strict=True)
    return torch.cat(
        [
            cross_entropy(part.float(), target, ignore_index=IGNORED, reduction="none")
            for part, target in parts
        ]
    )
