"""Masked-LM loss where it matters: by source, position, context, masking rate and frequency.

On the packed model, over the validation documents of a run, with masks that depend on the seed
alone: models of one tokenizer are asked the same tokens.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tessera.evaluation.documents import Material, material
from tessera.evaluation.jobs.records import Job, Outcome, Table
from tessera.evaluation.masked_lm import entropy, original_ids
from tessera.evaluation.predictions import Predictions, position_buckets, predictions, question
from tessera.evaluation.tasks.config import MaskedLm
from tessera.model.modernbert import ModernBertForMaskedLM
from tessera.model.scoring import answers, token_losses

_RANKS = (10, 100, 1000, 10_000)
_SENTENCE = 128
"""Tokens of a document that are masked one at a time: what is before the first so many."""
_COPIES_AT_ONCE = 16_384


def run(job: Job, device: str, scratch: Path, kept: Path | None) -> Outcome:
    """Score one model.

    Raises:
        ValueError: it is no model of ours or has another tokenizer than the documents, or there are
            no validation documents.
    """
    task = job.task
    assert isinstance(task, MaskedLm)
    asked = material(job.model, task, device)
    model, sources = asked.model, asked.sources
    counts = np.zeros(model.config.vocab_size, dtype=np.int64)
    found: dict[str, Predictions] = {}
    by_source = []
    for source in sources:
        own = np.zeros_like(counts)
        found[source] = _predict(asked, task, source, task.rates[0], own, short=True)
        own[asked.tokenizer.special_ids.tolist()] = 0
        counts += own
        by_source.append([source, *_line(found[source]), entropy(torch.from_numpy(own))])
    everything = Predictions.joined(list(found.values()))
    rates: list[list[Any]] = [[f"{task.rates[0]:.0%}", *_line(everything)]]
    for rate in task.rates[1:]:
        parts = [_predict(asked, task, source, rate, None) for source in sources]
        rates.append([f"{rate:.0%}", *_line(Predictions.joined(parts))])
    scores = {"loss": _mean(everything.losses), "accuracy": _mean(everything.right)}
    if task.pseudo_perplexity_tokens:
        scores["pseudo_perplexity"] = _pseudo_perplexity(asked, task)
    columns = ["loss", "right", "tokens"]
    tables = [
        Table(title="By source", columns=["source", *columns, "unigram entropy"], rows=by_source),
        Table(
            title="By position in the document",
            columns=["position", *columns],
            rows=_by_position(everything, asked.data.max_seq_len),
            plot=["loss"],
        ),
        *_context(everything, task.short),
        Table(title="By masking rate", columns=["masked", *columns], rows=rates),
        Table(
            title="By frequency of the masked token",
            columns=["rank", *columns],
            rows=_by_frequency(everything, counts),
        ),
    ]
    beyond = ~np.isnan(everything.short)
    if beyond.any():
        # How much better the same targets are predicted with the whole document in view.
        gain = _mean(everything.short[beyond]) - _mean(everything.losses[beyond])
        scores[f"gain_over_{task.short}_tokens"] = gain
    return Outcome(
        scores=scores,
        validation=scores,
        split=asked.split,
        tables=tables,
        notes=[*asked.notes, *_no_context(task, asked, beyond)],
    )


@torch.inference_mode()
def _predict(
    asked: Material,
    task: MaskedLm,
    source: str,
    rate: float,
    counts: np.ndarray | None,
    *,
    short: bool = False,
) -> Predictions:
    """Predict the masked tokens of a source; counts its tokens, if it is given where."""
    device = next(asked.model.parameters()).device
    parts = []
    for batch in asked.batches(source, rate=rate, max_tokens=task.max_tokens, seed=task.seed):
        if counts is not None:
            counts += np.bincount(original_ids(batch).numpy(), minlength=counts.size)
        each = question(batch, task.short if short else None, asked.tokenizer.pad_id)
        found = [answers(asked.model, one.to(device)) for one in each.batches]
        parts.append(predictions(each, found))
    parts = [part for part in parts if part.losses.size]
    if not parts:
        raise ValueError(f"source '{source}': its validation documents hold no token to predict")
    return Predictions.joined(parts)


@torch.inference_mode()
def _pseudo_perplexity(asked: Material, task: MaskedLm) -> float:
    """Exponential of the mean loss of tokens masked one at a time (arXiv:1910.14659).

    Of the first tokens of documents, sources in turn, until there are enough.
    """
    model = asked.model
    device = next(model.parameters()).device
    mask, special = asked.tokenizer.mask_id, set(asked.tokenizer.special_ids.tolist())
    wanted = math.ceil(task.pseudo_perplexity_tokens / len(asked.sources))
    losses: list[Tensor] = []
    for source in asked.sources:
        left = wanted
        for batch in asked.batches(
            source, rate=task.rates[0], max_tokens=task.max_tokens, seed=task.seed
        ):
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
    places = found.positions
    return _rows(
        found,
        [
            (f"{low} to {high}", (places >= low) & (places <= high))
            for low, high in position_buckets(max_seq_len)
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
        [f"pieces of {short} tokens", _mean(found.short[chosen]), count],
    ]
    title = f"Does context help? Targets beyond the first {short} tokens"
    return [Table(title=title, columns=["seen", "loss", "tokens"], rows=rows)]


def _no_context(task: MaskedLm, asked: Material, beyond: np.ndarray) -> list[str]:
    if beyond.any():
        return []
    return [
        f"whether context helps is not known: no target is beyond the first {task.short} tokens of "
        f"a document (they are cut at {asked.data.max_seq_len}, `max_seq_len`); see `short`"
    ]


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
