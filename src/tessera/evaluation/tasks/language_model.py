"""Masked-LM loss where it matters: by source, position, context, masking rate and frequency.

On the packed model, over the validation documents of a run, with masks that depend on the seed
alone: models of one tokenizer are asked the same tokens.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tessera.batch import IGNORED, PackedBatch
from tessera.checkpoints.checkpoint import build_model
from tessera.checkpoints.reader import read_checkpoint
from tessera.data.validation import validation_batches
from tessera.evaluation.jobs.models import Model
from tessera.evaluation.jobs.records import Job, Outcome, Table
from tessera.evaluation.masked_lm import entropy, original_ids
from tessera.evaluation.tasks.config import MaskedLm
from tessera.evaluation.tasks.loading import check_finite
from tessera.model.modernbert import ModernBertForMaskedLM
from tessera.model.scoring import token_losses
from tessera.tokenizer import Tokenizer, load_tokenizer, tokenizer_of

_FIRST_EDGE = 128
_RANKS = (10, 100, 1000, 10_000)
_SENTENCE = 128
"""Tokens of a document that are masked one at a time: what is before the first so many."""
_COPIES_AT_ONCE = 16_384


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Masked tokens, in the order of the batches."""

    losses: np.ndarray
    """(M,) float64, nats."""
    right: np.ndarray
    """(M,) bool."""
    positions: np.ndarray
    """(M,) places in their documents, from 0."""
    tokens: np.ndarray
    """(M,) the ids that were masked."""
    short: np.ndarray
    """(M,) float64: the loss with `short` tokens of context alone; NaN where nothing is beyond."""

    @staticmethod
    def joined(parts: Sequence["Predictions"]) -> "Predictions":
        """All of them."""
        names = ("losses", "right", "positions", "tokens", "short")
        found: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in names
        }
        return Predictions(**found)


def run(job: Job, device: str, scratch: Path, kept: Path | None) -> Outcome:
    """Score one model.

    Raises:
        ValueError: it is no model of ours or has another tokenizer than the documents, or there are
            no validation documents.
    """
    task = job.task
    assert isinstance(task, MaskedLm) and task.data is not None and task.tokenizer is not None
    tokenizer = load_tokenizer(task.tokenizer)
    model = _load(job.model, tokenizer).to(device).eval()
    sources = [n for n, source in task.data.sources.items() if source.validation_split is not None]
    if not sources:
        raise ValueError("no source of data has a validation_split: there is nothing to predict")
    counts = np.zeros(model.config.vocab_size, dtype=np.int64)
    found: dict[str, Predictions] = {}
    by_source = []
    for source in sources:
        own = np.zeros_like(counts)
        found[source] = _predict(model, task, source, tokenizer, task.rates[0], own, short=True)
        own[tokenizer.special_ids.tolist()] = 0
        counts += own
        by_source.append([source, *_line(found[source]), entropy(torch.from_numpy(own))])
    everything = Predictions.joined(list(found.values()))
    rates: list[list[Any]] = [[f"{task.rates[0]:.0%}", *_line(everything)]]
    for rate in task.rates[1:]:
        parts = [_predict(model, task, source, tokenizer, rate, None) for source in sources]
        rates.append([f"{rate:.0%}", *_line(Predictions.joined(parts))])
    scores = {"loss": _mean(everything.losses), "accuracy": _mean(everything.right)}
    if task.pseudo_perplexity_tokens:
        scores["pseudo_perplexity"] = _pseudo_perplexity(model, task, sources, tokenizer)
    columns = ["loss", "right", "tokens"]
    tables = [
        Table(title="By source", columns=["source", *columns, "unigram entropy"], rows=by_source),
        Table(
            title="By position in the document",
            columns=["position", *columns],
            rows=_by_position(everything, task.data.max_seq_len),
        ),
        *_context(everything, task.short),
        Table(title="By masking rate", columns=["masked", *columns], rows=rates),
        Table(
            title="By frequency of the masked token",
            columns=["rank", *columns],
            rows=_by_frequency(everything, counts),
        ),
    ]
    return Outcome(scores=scores, validation=scores, split="validation", tables=tables)


def _load(asked: Model, tokenizer: Tokenizer) -> ModernBertForMaskedLM:
    checkpoint = read_checkpoint(asked.source)
    if checkpoint.tokenizer_files is not None:
        own = tokenizer_of(checkpoint.tokenizer_files, "in it")
        if own.fingerprint != tokenizer.fingerprint:
            raise ValueError(
                f"{asked.source}: was trained with another tokenizer than the documents were made "
                "with; losses of different tokens cannot be compared"
            )
    model = build_model(checkpoint)
    check_finite(asked, model)
    return model


def _batches(
    model: ModernBertForMaskedLM, task: MaskedLm, source: str, tokenizer: Tokenizer, rate: float
) -> Iterator[PackedBatch]:
    assert task.data is not None
    return validation_batches(
        task.data,
        source,
        tokenizer,
        vocab_size=model.config.vocab_size,
        masking_rate=rate,
        max_tokens=task.max_tokens,
        seed=task.seed,
    )


@torch.inference_mode()
def _predict(
    model: ModernBertForMaskedLM,
    task: MaskedLm,
    source: str,
    tokenizer: Tokenizer,
    rate: float,
    counts: np.ndarray | None,
    *,
    short: bool = False,
) -> Predictions:
    """Predict the masked tokens of a source; counts its tokens, if it is given where."""
    device = next(model.parameters()).device
    parts = []
    for batch in _batches(model, task, source, tokenizer, rate):
        if counts is not None:
            counts += np.bincount(original_ids(batch).numpy(), minlength=counts.size)
        parts.append(_of_batch(model, batch.to(device), task.short if short else None))
    parts = [part for part in parts if part.losses.size]
    if not parts:
        raise ValueError(f"source '{source}': its validation documents hold no token to predict")
    return Predictions.joined(parts)


def _of_batch(model: ModernBertForMaskedLM, batch: PackedBatch, short: int | None) -> Predictions:
    asked = batch.masked_labels != IGNORED
    slots, labels = batch.masked_positions[asked], batch.masked_labels[asked]
    segment = torch.searchsorted(batch.cu_seqlens, slots.int(), right=True) - 1
    positions = slots - batch.cu_seqlens[segment]
    losses, right = _losses(model, batch, slots, labels)
    seen_short = torch.full_like(losses, math.nan)
    if short is not None:
        beyond = positions >= short
        if bool(beyond.any()):
            cut = replace(batch, cu_seqlens=cut_into(batch.cu_seqlens, short))
            seen_short[beyond] = _losses(model, cut, slots[beyond], labels[beyond])[0]
    return Predictions(
        losses=losses.double().cpu().numpy(),
        right=right.cpu().numpy(),
        positions=positions.cpu().numpy(),
        tokens=labels.cpu().numpy(),
        short=seen_short.double().cpu().numpy(),
    )


def _losses(
    model: ModernBertForMaskedLM, batch: PackedBatch, slots: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    logits = model(
        batch.input_ids,
        cu_seqlens=batch.cu_seqlens,
        max_seqlen=batch.max_seqlen,
        masked_positions=slots,
    ).logits
    return token_losses(logits, labels), logits.argmax(-1) == labels


def cut_into(cu_seqlens: Tensor, length: int) -> Tensor:
    """(n+1,) boundaries of documents to those of their windows of at most `length` tokens."""
    edges = [
        edge
        for start, end in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True)
        for edge in range(start, end, length)
    ]
    edges.append(int(cu_seqlens[-1]))
    return torch.tensor(edges, dtype=torch.int32, device=cu_seqlens.device)


@torch.inference_mode()
def _pseudo_perplexity(
    model: ModernBertForMaskedLM, task: MaskedLm, sources: Sequence[str], tokenizer: Tokenizer
) -> float:
    """Exponential of the mean loss of tokens masked one at a time (arXiv:1910.14659).

    Of the first tokens of documents, sources in turn, until there are enough.
    """
    device = next(model.parameters()).device
    mask, special = tokenizer.mask_id, set(tokenizer.special_ids.tolist())
    wanted = math.ceil(task.pseudo_perplexity_tokens / len(sources))
    losses: list[Tensor] = []
    for source in sources:
        left = wanted
        for batch in _batches(model, task, source, tokenizer, task.rates[0]):
            ids, edges = original_ids(batch), batch.cu_seqlens.tolist()
            for start, end in zip(edges[:-1], edges[1:], strict=True):
                text = ids[start : min(end, start + _SENTENCE)]
                places = [i for i, token in enumerate(text.tolist()) if token not in special]
                places = places[:left]
                left -= len(places)
                losses += _one_by_one(model, text.to(device), places, mask)
                if not left:
                    break
            if not left:
                break
    if not losses:
        raise ValueError("the validation documents hold no token to predict")
    return float(torch.cat(losses).double().mean().exp())


def _one_by_one(
    model: ModernBertForMaskedLM, text: Tensor, places: Sequence[int], mask: int
) -> Iterator[Tensor]:
    """Losses of the tokens at some places, each masked alone in a copy of the text."""
    length = text.numel()
    at_once = max(1, _COPIES_AT_ONCE // max(1, length))
    for first in range(0, len(places), at_once):
        some = torch.tensor(places[first : first + at_once], device=text.device)
        copies = text.repeat(len(some), 1)
        rows = torch.arange(len(some), device=text.device)
        copies[rows, some] = mask
        logits = model(
            copies.flatten(),
            cu_seqlens=torch.arange(
                0, copies.numel() + 1, length, dtype=torch.int32, device=text.device
            ),
            max_seqlen=length,
            masked_positions=rows * length + some,
        ).logits
        yield token_losses(logits, text[some])


# ---- tables


def _line(found: Predictions) -> list[Any]:
    return [_mean(found.losses), _mean(found.right), int(found.losses.size)]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan


def _rows(found: Predictions, named: Sequence[tuple[str, np.ndarray]]) -> list[list[Any]]:
    return [
        [name, _mean(found.losses[chosen]), _mean(found.right[chosen]), int(chosen.sum())]
        for name, chosen in named
        if chosen.any()
    ]


def _by_position(found: Predictions, max_seq_len: int) -> list[list[Any]]:
    edges = [0, _FIRST_EDGE]
    while edges[-1] < max_seq_len:
        edges.append(2 * edges[-1])
    places = found.positions
    return _rows(
        found,
        [
            (f"{low} to {min(high, max_seq_len) - 1}", (places >= low) & (places < high))
            for low, high in zip(edges[:-1], edges[1:], strict=True)
        ],
    )


def _context(found: Predictions, short: int) -> list[Table]:
    """The same targets, beyond the first `short` tokens, with all of the context and little."""
    chosen = ~np.isnan(found.short)
    if not chosen.any():
        return []
    count = int(chosen.sum())
    rows: list[list[Any]] = [
        ["the whole document", _mean(found.losses[chosen]), count],
        [f"windows of {short} tokens", _mean(found.short[chosen]), count],
    ]
    title = f"Does context help? Targets beyond the first {short} tokens"
    return [Table(title=title, columns=["seen", "loss", "tokens"], rows=rows)]


def _by_frequency(found: Predictions, counts: np.ndarray) -> list[list[Any]]:
    """By the rank of the masked token among all tokens of these documents, the commonest first."""
    rank = np.empty(counts.size, dtype=np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(counts.size)
    own = rank[found.tokens]
    edges = [0, *(edge for edge in _RANKS if edge < counts.size), counts.size]
    return _rows(
        found,
        [
            (f"{low + 1} to {high}", (own >= low) & (own < high))
            for low, high in zip(edges[:-1], edges[1:], strict=True)
        ],
    )
