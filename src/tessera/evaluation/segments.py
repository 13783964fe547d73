"""Segments made for a question, laid into batches of the shape that validation batches have."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch

from tessera.batch import IGNORED, PackedBatch

_SLOTS_MULTIPLE = 64


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A document as a model sees it, and what is asked about it."""

    ids: np.ndarray
    """(n,) token ids, [CLS] and [SEP] around them, masks applied."""
    positions: np.ndarray
    """(m,) places in it whose token is to be predicted, ascending."""
    labels: np.ndarray
    """(m,) the tokens that belong there."""

    @staticmethod
    def of(content: np.ndarray, cls_id: int, sep_id: int) -> "Segment":
        """A document that nothing is asked about; `content` is without [CLS] and [SEP]."""
        nothing = np.empty(0, np.int64)
        ids = np.concatenate([[cls_id], content.astype(np.int64), [sep_id]])
        return Segment(ids=ids, positions=nothing, labels=nothing)


def batches_of(
    segments: Iterable[Segment],
    *,
    row_tokens: int,
    max_seq_len: int,
    pad_id: int,
    slots: int | None = None,
) -> list[PackedBatch]:
    """Lay segments end to end in their order, one row a batch, all batches of one shape.

    Args:
        segments: each of at most `max_seq_len` tokens.
        row_tokens: token slots of a batch.
        max_seq_len: longest segment, padding included.
        pad_id: fills the slots that are left.
        slots: predictions that a batch has room for; None makes as much as the fullest needs.
    """
    rows = list(_rows(segments, row_tokens))
    most = max((sum(len(s.positions) for s in row) for row in rows), default=0)
    if slots is None:
        slots = ceil(max(1, most) / _SLOTS_MULTIPLE) * _SLOTS_MULTIPLE
    assert most <= slots
    return [
        _batch(number, row, row_tokens, max_seq_len, pad_id, slots)
        for number, row in enumerate(rows)
    ]


def _rows(segments: Iterable[Segment], row_tokens: int) -> Iterator[list[Segment]]:
    row: list[Segment] = []
    used = 0
    for segment in segments:
        if row and used + len(segment.ids) > row_tokens:
            yield row
            row, used = [], 0
        row.append(segment)
        used += len(segment.ids)
    if row:
        yield row


def _batch(
    number: int,
    row: Sequence[Segment],
    row_tokens: int,
    max_seq_len: int,
    pad_id: int,
    slots: int,
) -> PackedBatch:
    ends = np.cumsum([len(segment.ids) for segment in row])
    used = int(ends[-1])
    ids = np.full(row_tokens, pad_id, np.int64)
    ids[:used] = np.concatenate([segment.ids for segment in row])
    tail = np.arange(used + max_seq_len, row_tokens, max_seq_len)
    last = np.array([row_tokens] if used < row_tokens else [], np.int64)
    edges = np.concatenate([[0], ends, tail, last]).astype(np.int32)
    positions, labels = np.zeros(slots, np.int64), np.full(slots, IGNORED, np.int64)
    asked = np.concatenate(
        [s.positions + end - len(s.ids) for s, end in zip(row, ends, strict=True)]
    )
    positions[: len(asked)] = asked
    labels[: len(asked)] = np.concatenate([segment.labels for segment in row])
    return PackedBatch(
        input_ids=torch.from_numpy(ids),
        cu_seqlens=torch.from_numpy(edges),
        max_seqlen=max_seq_len,
        masked_positions=torch.from_numpy(positions),
        masked_labels=torch.from_numpy(labels),
        rows=torch.tensor([number]),
        tokens=used,
        masked_tokens=len(asked),
        documents=len(row),
    )
