"""Masked tokens one by one: where each stands, and how it is predicted with more or less context.

The same for a model that is judged and for one that is being trained: whoever asks brings the way
to ask (`Ask`), so that weights may be spread over ranks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from tessera.batch import IGNORED, PackedBatch
from tessera.evaluation.segments import Segment, batches_of

_FIRST_EDGE = 128

Ask = Callable[[PackedBatch], Tensor]
"""A batch to (2, M) float32, on any device: what `answers` gives."""


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


@dataclass(frozen=True, kw_only=True)
class Question:
    """A batch, and the same targets in batches of shorter documents."""

    batch: PackedBatch
    cut: list[PackedBatch]
    """Documents of at most `short` tokens; empty where no target is beyond the first so many."""
    beyond: np.ndarray
    """(m,) which of the batch's targets those of `cut` are, in order."""

    @property
    def batches(self) -> list[PackedBatch]:
        """All that has to be asked, in the order in which `predictions` takes the answers."""
        return [self.batch, *self.cut]


def question(batch: PackedBatch, short: int | None, pad_id: int) -> Question:
    """What to ask to know a batch's targets, and with `short` those beyond its first tokens again.

    The second time a document is cut as training at length `short` would have cut it: into pieces
    with [CLS] and [SEP] of their own, so that context is all that differs.

    Args:
        batch: on the CPU.
        short: tokens of a piece, at least 3; None asks once.
        pad_id: of the tokenizer.
    """
    nothing = Question(batch=batch, cut=[], beyond=np.empty(0, np.int64))
    if short is None:
        return nothing
    slots, positions, labels = _targets(batch)
    far = np.flatnonzero(positions >= short)
    if not far.size:
        return nothing
    pieces = _cut(batch, short, slots[far], positions[far], labels[far])
    cut = batches_of(
        pieces,
        row_tokens=max(short, batch.input_ids.numel()),
        max_seq_len=batch.max_seqlen,
        pad_id=pad_id,
        slots=batch.masked_positions.numel(),
    )
    return Question(batch=batch, cut=cut, beyond=far)


def predictions(asked: Question, found: Sequence[Tensor]) -> Predictions:
    """Put answers together.

    Args:
        asked: the question.
        found: (2, M) of each of its batches.
    """
    _, positions, labels = _targets(asked.batch)
    losses, right = counted(asked.batch, found[0])
    short = np.full(len(losses), np.nan)
    if asked.cut:
        pairs = zip(asked.cut, found[1:], strict=True)
        short[asked.beyond] = np.concatenate([counted(batch, f)[0] for batch, f in pairs])
    return Predictions(
        losses=losses, right=right > 0, positions=positions, tokens=labels, short=short
    )


def counted(batch: PackedBatch, found: Tensor) -> np.ndarray:
    """(2, m) float64: the answers at slots that count."""
    asked = (batch.masked_labels != IGNORED).numpy()
    return found.double().cpu().numpy()[:, asked]


def position_buckets(max_seq_len: int) -> list[tuple[int, int]]:
    """Ranges of positions, each twice as far as the one before: 0 to 127, 128 to 255, 256 ..."""
    edges = [0, _FIRST_EDGE]
    while edges[-1] < max_seq_len:
        edges.append(2 * edges[-1])
    return [
        (low, min(high, max_seq_len) - 1) for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]


def _targets(batch: PackedBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(m,) each: slots of the flat sequence, places in their documents, the tokens there."""
    asked = (batch.masked_labels != IGNORED).numpy()
    slots = batch.masked_positions.numpy()[asked]
    edges = batch.cu_seqlens.numpy()
    starts = edges[np.searchsorted(edges, slots, side="right") - 1]
    return slots, slots - starts, batch.masked_labels.numpy()[asked]


def _cut(
    batch: PackedBatch, short: int, slots: np.ndarray, positions: np.ndarray, labels: np.ndarray
) -> Iterator[Segment]:
    """The pieces, of `short` tokens each, that hold targets; slots ascend."""
    ids, edges = batch.input_ids.numpy(), batch.cu_seqlens.numpy()
    room = short - 2
    starts = slots - positions
    places = positions - 1  # in the document's content, which begins after its [CLS]
    numbers = places // room
    changes = np.flatnonzero(np.diff(starts) | np.diff(numbers)) + 1
    for chosen in np.split(np.arange(len(slots)), changes):
        start = int(starts[chosen[0]])
        end = int(edges[np.searchsorted(edges, start, side="right")])
        content = ids[start + 1 : end - 1][int(numbers[chosen[0]]) * room :][:room]
        piece = Segment.of(content, int(ids[start]), int(ids[end - 1]))
        yield Segment(ids=piece.ids, positions=places[chosen] % room + 1, labels=labels[chosen])
