"""The encoder as Composer trains it: what a microbatch is, and what its loss counts for."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from composer.core import DataSpec
from composer.models import ComposerModel
from torch import Tensor
from torch.nn.functional import cross_entropy

from tessera.batch import IGNORED, PackedBatch, RankBatch
from tessera.model.dropout import dropout_keys
from tessera.model.modernbert import ModernBertForMaskedLM

_LOGIT_ROWS = 2048
"""Tokens whose logits are in memory as float32 at once, where no gradient is asked for."""


class MaskedLanguageModel(ComposerModel):
    """Masked-language modelling with one vote per masked token of the global batch.

    Composer multiplies a microbatch's loss by its share of what `train_data_spec` reports as
    loss-generating tokens, averaged over ranks; DDP then averages over ranks. With the mean over
    the microbatch's masked tokens here, that makes the gradient of sum / count over all of them.
    """

    def __init__(self, encoder: ModernBertForMaskedLM, seed: int) -> None:
        super().__init__()
        self.model = encoder
        self.seed = seed
        self.losses: list[Tensor] = []
        """Sum of the loss of each microbatch since `losses` was last emptied."""

    def forward(self, batch: PackedBatch) -> Any:
        """The loss of a microbatch in training; in eval mode its `scores`."""
        batch = batch.to(self.model.decoder.weight.device, non_blocking=True)
        if not self.training:
            return scores(self.model, batch)
        return self.model(
            batch.input_ids,
            cu_seqlens=batch.cu_seqlens,
            max_seqlen=batch.max_seqlen,
            masked_positions=batch.masked_positions,
            masked_labels=batch.masked_labels,
            dropout_keys=self._dropout_keys(batch),
        )

    def token_losses(self, batch: PackedBatch) -> Tensor:
        """(M,) float32: what each prediction adds to the loss of a training microbatch."""
        batch = batch.to(self.model.decoder.weight.device)
        logits = self.model(
            batch.input_ids,
            cu_seqlens=batch.cu_seqlens,
            max_seqlen=batch.max_seqlen,
            masked_positions=batch.masked_positions,
            dropout_keys=self._dropout_keys(batch),
        ).logits
        return torch.cat(list(_losses(logits, batch.masked_labels)))

    def _dropout_keys(self, batch: PackedBatch) -> Tensor | None:
        if not self.model.config.attention_output_dropout:
            return None
        return dropout_keys(self.seed, batch.rows, batch.row_tokens)

    def loss(self, outputs: Any, batch: PackedBatch) -> Tensor:
        """Mean over the microbatch's masked tokens; 0 if it has none."""
        self.losses.append(outputs.loss_sum.detach())
        return outputs.loss_sum / max(1, batch.masked_tokens)


def scores(encoder: ModernBertForMaskedLM, batch: PackedBatch) -> Tensor:
    """(2,) float64: sum of the loss and number of right guesses over the masked tokens."""
    labels = batch.masked_labels
    logits = encoder(
        batch.input_ids,
        cu_seqlens=batch.cu_seqlens,
        max_seqlen=batch.max_seqlen,
        masked_positions=batch.masked_positions,
    ).logits
    loss_sum = sum((part.sum() for part in _losses(logits, labels)), logits.new_zeros(()).float())
    right = (logits.argmax(-1) == labels).sum()
    return torch.stack([loss_sum, right]).double()


def _losses(logits: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """Of each token, 0 where nothing is predicted, in parts."""
    for part, target in zip(logits.split(_LOGIT_ROWS), labels.split(_LOGIT_ROWS), strict=True):
        yield cross_entropy(part.float(), target, ignore_index=IGNORED, reduction="none")


def train_data_spec(loader: Iterable[RankBatch], *, pin: bool) -> DataSpec:
    """How Composer takes batches apart and counts them: in real tokens.

    Args:
        loader: yields this rank's share of each global batch, for ever.
        pin: whether copies to the device are to overlap with work on it.
    """

    def split(batch: RankBatch, size: int | float) -> list[PackedBatch]:
        microbatches = list(batch.microbatches)
        return [m.pin_memory() for m in microbatches] if pin else microbatches

    return DataSpec(
        loader,
        split_batch=split,
        get_num_samples_in_batch=lambda batch: batch.documents,
        get_num_tokens_in_batch=lambda batch: {
            "total": batch.tokens,
            "loss_generating": _votes(batch.masked_tokens),
        },
    )


def _votes(masked_tokens: int) -> int:
    """Composer's weight of a microbatch, of which only ratios matter.

    Proportional to the masked tokens far within float32's precision, yet never 0: Composer divides
    by the sum, which a global batch without a single masked token would make 0. The sum is an
    int64, which holds the votes of 134 million masked tokens.
    """
    return masked_tokens << 36 or 1
