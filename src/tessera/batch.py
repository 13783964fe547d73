"""The contract between the data engine and the model: packed rows laid end to end.

Legend: `R` rows, `T = R * row_tokens` token slots, `n` segments, `M` prediction slots.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""The label of a slot that nothing is predicted for."""


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """One microbatch: `R` whole rows, laid end to end as one flat sequence.

    Segments are documents (or pieces of one), each `[CLS] ... [SEP]`. The unfilled tail of a row
    is one more segment of padding tokens (several, if longer than `max_seqlen`), so every slot
    belongs to exactly one segment. `masked_positions` and `masked_labels` are padded to a length
    that repeats from batch to batch, so that a compiler sees static shapes: positions with 0, their
    labels with `IGNORED`. The number of segments is what it is.
    """

    input_ids: Tensor
    """(T,) int64, masks already applied; a causal phase has none."""
    cu_seqlens: Tensor
    """(n+1,) int32, from 0 to T, non-decreasing: where each segment begins."""
    max_seqlen: int
    """No segment is longer; the same for every batch of a run."""
    masked_positions: Tensor
    """(M,) int64: slots of the flat sequence whose original token is to be predicted, or, in a
    causal phase, whose next token is."""
    masked_labels: Tensor
    """(M,) int64: the token to predict at each of them; `IGNORED` in padding."""
    rows: Tensor
    """(R,) int64: the number of each row in the run's global stream of rows."""
    tokens: int
    """Real tokens: slots that are not padding."""
    masked_tokens: int
    """How many of the M prediction slots count."""
    documents: int
    """Segments that are not padding."""

    @property
    def row_tokens(self) -> int:
        """Token slots of one row."""
        return self.input_ids.numel() // self.rows.numel()

    def labels(self) -> Tensor:
        """(T,) int64: what each slot is to predict, `IGNORED` where that is nothing."""
        labels = torch.full_like(self.input_ids, IGNORED)
        counted = self.masked_labels != IGNORED
        labels[self.masked_positions[counted]] = self.masked_labels[counted]
        return labels

    def _map(self, change: Callable[[Tensor], Tensor]) -> "PackedBatch":
        tensors: dict[str, Any] = {
            k: change(v) for k, v in vars(self).items() if isinstance(v, Tensor)
        }
        return replace(self, **tensors)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackedBatch":
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "PackedBatch":
        """The same batch in page-locked host memory, from which copies to a GPU overlap."""
        return self._map(Tensor.pin_memory)


@dataclass(frozen=True, kw_only=True)
class RankBatch:
    """What one rank trains on in one step: its rows of one global batch, cut into microbatches."""

    step: int
    """Number of the global batch in this phase, from 0."""
    microbatches: Sequence[PackedBatch]
    global_rows: int
    """Rows of the global batch, over all ranks."""
    row_digests: Tensor
    """(rows of this rank, 4) int64: the sha256 of each row as words; see `tessera.data.digest`."""
    source_tokens: dict[str, int]
    """Real tokens of this rank's rows, per source."""
    source_epochs: dict[str, int]
    """The furthest epoch, from 0, that a lane of this rank has reached in each source."""
    finished_documents: dict[str, int] = field(default_factory=dict)
    """Documents of each source of which these lanes hold no piece back, over all epochs so far."""
    source_documents: dict[str, int] = field(default_factory=dict)
    """Documents that each source has."""
    names: Callable[[], list[list[tuple[str, str, int]]]]
    """Looks up (source, document id, number of the piece) of each document of each row."""
    wait_seconds: float
    """How long the step waited for this batch."""
    state: Any
    """This rank's share of the loader's state after this batch (`data.pipeline.state.LoaderState`):
    what a checkpoint must keep, once `merge_states` has joined the shares of all ranks."""

    @property
    def tokens(self) -> int:
        """Real tokens of this rank."""
        return sum(batch.tokens for batch in self.microbatches)

    @property
    def masked_tokens(self) -> int:
        """Tokens this rank predicts."""
        return sum(batch.masked_tokens for batch in self.microbatches)

    @property
    def documents(self) -> int:
        """Documents, or pieces of them, of this rank."""
        return sum(batch.documents for batch in self.microbatches)
