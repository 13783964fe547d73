"""Masked-language-modelling loss of a model, per source, on fixed documents and fixed masks."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from tessera.batch import IGNORED, PackedBatch
from tessera.model.modernbert import ModernBertForMaskedLM


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well the masked tokens of one source are predicted."""

    loss: float
    """Mean over the masked tokens, in nats."""
    accuracy: float
    """Share of the masked tokens whose likeliest prediction is right."""
    masked_tokens: int
    tokens: int
    """Real tokens read."""
    unigram_entropy: float
    """In nats: the loss of a model that knows how often each token occurs, and nothing else."""


@torch.inference_mode()
def score(
    model: ModernBertForMaskedLM, batches: Iterable[PackedBatch], special_ids: Iterable[int]
) -> Score:
    """Score a model on batches of one source; every masked token has one vote.

    Raises:
        ValueError: if the batches hold no masked token.
    """
    was_training = model.training
    model.eval()
    loss_sum, right, masked, tokens = 0.0, 0, 0, 0
    counts = torch.zeros(model.config.vocab_size, dtype=torch.int64)
    device = next(model.parameters()).device
    for cpu_batch in batches:
        batch = cpu_batch.to(device)
        logits = model(
            batch.input_ids, cu_seqlens=batch.cu_seqlens, max_seqlen=batch.max_seqlen
        ).logits
        counted = batch.masked_labels != IGNORED
        labels = batch.masked_labels[counted]
        predicted = logits[batch.masked_positions[counted]].float()
        loss_sum += torch.nn.functional.cross_entropy(predicted, labels, reduction="sum").item()
        right += int((predicted.argmax(-1) == labels).sum())
        masked += batch.masked_tokens
        tokens += batch.tokens
        counts += torch.bincount(original_ids(cpu_batch), minlength=counts.numel())
    model.train(was_training)
    if not masked:
        raise ValueError("the validation documents hold no token to predict: add documents")
    counts[list(special_ids)] = 0
    return Score(
        loss=loss_sum / masked,
        accuracy=right / masked,
        masked_tokens=masked,
        tokens=tokens,
        unigram_entropy=entropy(counts),
    )


def original_ids(batch: PackedBatch) -> Tensor:
    """(T,) int64: the batch's tokens before masking."""
    labels = batch.labels()
    return torch.where(labels == IGNORED, batch.input_ids, labels)


def entropy(counts: Tensor) -> float:
    """Entropy in nats of the distribution that these counts are."""
    share = counts[counts > 0].double() / counts.sum()
    return float(-(share * share.log()).sum())
