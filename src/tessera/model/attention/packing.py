"""Where the documents of a flat sequence begin and end, as attention needs to know it.

Legend: `T` token slots, `n` documents, `H` heads, `D` channels of a head.
"""

import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


def any_number(cu_seqlens: Tensor) -> Tensor:
    """The same boundaries, their number marked as dynamic for torch.compile.

    Rows differ in their number of documents. Padding it to a common one would cost: kernels start
    a block for every document and every tile of the longest, those of empty documents in vain.
    """
    if "torch._dynamo" in sys.modules:  # whoever compiled a layer has imported it
        torch._dynamo.maybe_mark_dynamic(cu_seqlens, 0)
    return cu_seqlens


@dataclass(frozen=True, kw_only=True)
class Packing:
    """The documents of one flat sequence, and how and by which backend they are attended within."""

    cu_seqlens: Tensor
    """(n+1,) int32, from 0 to T, non-decreasing; empty documents are allowed."""
    max_seqlen: int
    """No document is longer. A constant of the run, lest compiled code be specialised anew."""
    backend: str
    causal: bool = False
    """Whether a token sees none after it."""
    prepared: dict[int | None, Any] = field(default_factory=dict)
    """What the backend computed ahead for all layers, by window (None: global)."""


def documents_of(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """(T,) int64: the number of the document that each token belongs to. No host sync."""
    slots = torch.arange(tokens, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    return torch.bucketize(slots, cu_seqlens[1:], right=True)


def positions_in_documents(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """(T,) int64: how far each token is from the first of its document. No host sync."""
    starts = cu_seqlens.index_select(0, documents_of(cu_seqlens, tokens))
    return torch.arange(tokens, device=cu_seqlens.device) - starts
