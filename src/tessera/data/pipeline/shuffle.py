"""The order of documents as a function: position -> (shard, sample), without a list of documents.

Shards are shuffled anew each epoch. Consecutive shards form blocks of about `block_documents`, and
documents are shuffled inside a block, so that reading stays near a moving front. Positions count
through all epochs: `position // documents` is the epoch. Memory grows with shards alone.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tessera.data.randomness import permuted, words

_KEEP_LAYOUTS_BELOW = 4096
"""Spans of shards below which many epochs' layouts are kept; above, only the newest few."""


@dataclass(frozen=True)
class Spans:
    """Runs of consecutive documents of shards, laid end to end. Arrays of one length."""

    shards: np.ndarray
    firsts: np.ndarray
    """The first sample of each run within its shard."""
    counts: np.ndarray

    @classmethod
    def whole(cls, samples: np.ndarray) -> "Spans":
        """All documents of shards with so many each."""
        return cls(np.arange(len(samples)), np.zeros_like(samples), samples)

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, rows: np.ndarray | slice) -> "Spans":
        return Spans(self.shards[rows], self.firsts[rows], self.counts[rows])


def group_spans(
    samples: np.ndarray, *, group: int, groups: int, shuffle: bool, key: tuple[object, ...]
) -> Spans:
    """The share of a corpus that one group of lanes reads, fixed for all epochs.

    Groups are equal to within one document: a shard on a border is shared by two groups.

    Args:
        samples: Documents of each shard; together at least as many as groups.
        group: Which share, of `groups`.
        groups: How many shares.
        shuffle: Deal the shards out at random rather than as they come.
        key: Names the random draw.
    """
    order = np.arange(len(samples))
    if shuffle and groups > 1:
        order = np.argsort(words(len(samples), *key, "groups"), kind="stable")
    ends = np.cumsum(samples[order])
    total = int(ends[-1]) if len(ends) else 0
    begin, end = total * group // groups, total * (group + 1) // groups
    firsts = np.maximum(begin - (ends - samples[order]), 0)
    counts = np.minimum(samples[order], end - (ends - samples[order])) - firsts
    chosen = counts > 0
    return Spans(order[chosen], firsts[chosen], counts[chosen])


@dataclass(frozen=True)
class Layout:
    """One epoch: its spans in their order, and which of them begin a block."""

    spans: Spans
    starts: np.ndarray
    """Position of each span's first document in the epoch; the last entry is the total."""
    blocks: np.ndarray
    """Index of each block's first span; the last entry is the number of spans."""


@dataclass(frozen=True)
class Front:
    """The block that a position lies in."""

    epoch: int
    block: int
    end: int
    """The first position after the block."""
    shards: np.ndarray


class Order:
    """The documents of some spans, in a new order each epoch, for ever."""

    def __init__(
        self, spans: Spans, *, block_documents: int, shuffle: bool, key: tuple[object, ...]
    ) -> None:
        self.documents = int(spans.counts.sum())
        self._spans, self._key = spans, key
        self._block_documents, self._shuffle = block_documents, shuffle
        keep = 64 if len(spans) < _KEEP_LAYOUTS_BELOW else 3
        self._layout = lru_cache(maxsize=keep)(self._lay_out)

    def epoch(self, position: int) -> int:
        """How often all documents came before this position."""
        return position // self.documents

    def front(self, position: int) -> Front:
        """The block of this position: until its end, no other shards are read."""
        epoch, within = divmod(position, self.documents)
        layout = self._layout(epoch)
        block = int(np.searchsorted(layout.starts[layout.blocks], within, "right")) - 1
        first, last = layout.blocks[block], layout.blocks[block + 1]
        end = epoch * self.documents + int(layout.starts[last])
        return Front(epoch, block, end, layout.spans.shards[first:last])

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The shard and the sample at each position; int64 arrays of the same length."""
        shards, samples = np.empty_like(positions), np.empty_like(positions)
        epochs = positions // self.documents
        for epoch in np.unique(epochs):
            asked = np.flatnonzero(epochs == epoch)
            within = positions[asked] - epoch * self.documents
            shards[asked], samples[asked] = self._locate_in_epoch(int(epoch), within)
        return shards, samples

    def _lay_out(self, epoch: int) -> Layout:
        spans = self._spans
        if self._shuffle:
            draws = words(len(spans), *self._key, epoch)
            spans = spans[np.argsort(draws, kind="stable")]
        starts = np.concatenate(([0], np.cumsum(spans.counts)))
        numbers = starts[:-1] // self._block_documents
        begins = np.flatnonzero(np.diff(numbers, prepend=-1))
        return Layout(spans, starts, np.append(begins, len(spans)))

    def _locate_in_epoch(self, epoch: int, within: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        layout = self._layout(epoch)
        if self._shuffle:
            within = self._shuffled(layout, epoch, within)
        span = np.searchsorted(layout.starts, within, "right") - 1
        spans = layout.spans[span]
        return spans.shards, spans.firsts + within - layout.starts[span]

    # A block's documents are not shuffled as a list: each position is sent through a permutation
    # that is computed for it alone (`randomness.permuted`), so that any position can be looked up
    # at once after a restart, and two billion documents cost no memory.
    def _shuffled(self, layout: Layout, epoch: int, within: np.ndarray) -> np.ndarray:
        edges = layout.starts[layout.blocks]
        blocks = np.searchsorted(edges, within, "right") - 1
        moved = np.empty_like(within)
        for block in np.unique(blocks):
            asked = blocks == block
            first, size = int(edges[block]), int(edges[block + 1] - edges[block])
            moved[asked] = first + permuted(
                within[asked] - first, size, *self._key, epoch, int(block)
            )
        return moved
