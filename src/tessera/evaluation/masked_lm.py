"""Masked-language-modelling loss of a model, per source, on fixed documents and fixed masks."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tessera.batch import IGNORED, PackedBatch
from tessera.model.modernbert import ModernBertForMaskedLM
from tessera.model.scoring import scores


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
    sums = torch.zeros(2, dtype=torch.float64)
    masked, tokens = 0, 0
    counts = torch.zeros(model.config.vocab_size, dtype=torch.int64)
    device = next(model.parameters()).device
    for cpu_batch in batches:
        sums += scores(model, cpu_batch.to(device)).cpu()
        masked += cpu_batch.masked_tokens
        tokens += cpu_batch.tokens
        counts += torch.bincount(original_ids(cpu_batch), minlength=counts.numel())
    model.train(was_training)
    if not masked:
        raise ValueError("the validation documents hold no token to predict: add documents")
    counts[list(special_ids)] = 0
    return Score(
        loss=float(sums[0]) / masked,
        accuracy=float(sums[1]) / masked,
        masked_tokens=masked,
        tokens=tokens,
        unigram_entropy=entropy(counts),
    )


def original_ids(batch: PackedBatch) -> Tensor:
    """(T,) int64: the batch's tokens before masking."""
    labels = batch.labels()
    return torch.where(labels == IGNORED, batch.input_ids, labels)


def contents_of(batches: Iterable[PackedBatch]) -> Iterator[np.ndarray]:
    """The documents of batches one by one, before masking, without their [CLS] and [SEP]."""
    for batch in batches:
        ids, edges = original_ids(batch).numpy(), batch.cu_seqlens.tolist()[: batch.documents + 1]
        for start, end in zip(edges[:-1], edges[1:], strict=True):
            yield ids[start + 1 : end - 1]


def entropy(counts: Tensor) -> float:
    """Entropy in nats of the distribution that these counts are."""
    share = counts[counts > 0].double() / counts.sum()
    return float(-(share * share.log()).sum())
