"""FlexAttention (https://arxiv.org/abs/2412.05496): kernels that torch compiles for our mask.

Legend: `T` token slots, `H` heads, `D` channels of a head, `N` blocks of tokens.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from tessera.model.attention.packing import Packing, documents_of

_BLOCK = 128


def prepare(cu_seqlens: Tensor, tokens: int, window: int | None, causal: bool = False) -> BlockMask:
    """The mask of one kind of layers: which blocks to visit, and which to mask inside.

    Computed from the documents at either end of each block, without ever holding a (T, T) mask,
    and without a host sync.
    """
    documents = documents_of(cu_seqlens, tokens)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = documents[query] == documents[key]
        if causal:
            seen = seen & (query >= key)
        return seen if window is None else seen & ((query - key).abs() <= window)

    some, all_of = visible_blocks(documents, window, causal)
    return BlockMask.from_kv_blocks(
        *_listed(some & ~all_of),
        *_listed(all_of),
        BLOCK_SIZE=_BLOCK,
        mask_mod=visible,
        seq_lengths=(tokens, tokens),
    )


def visible_blocks(
    documents: Tensor, window: int | None, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """(N, N) bool: does the block of queries see some token of the block of keys; does it see all?

    Args:
        documents: (T,) the number of each token's document, non-decreasing.
        window: how far a token sees; None: through its document.
        causal: whether it sees none after it.
    """
    tokens = documents.numel()
    count = -(-tokens // _BLOCK)
    starts = torch.arange(count, device=documents.device) * _BLOCK
    ends = (starts + _BLOCK - 1).clamp(max=tokens - 1)
    first, last = documents[starts], documents[ends]

    some = (first[:, None] <= last) & (first <= last[:, None])
    alone = first == last
    all_of = alone[:, None] & alone & (first[:, None] == first)
    all_of &= ((starts + _BLOCK) <= tokens) & ((starts + _BLOCK) <= tokens)[:, None]
    ahead = starts[:, None] - starts  # of the queries, before the keys
    if causal:
        some = some & (ahead >= 0)
        all_of = all_of & (ahead > 0)
    if window is not None:
        apart = ahead.abs()
        some = some & (apart - _BLOCK + 1 <= window)
        all_of = all_of & (apart + _BLOCK - 1 <= window)
    return some, all_of


def attend(q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int | None) -> Tensor:
    """See `tessera.model.attention.backends.attend`."""
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))  # (T, H, D) -> (1, H, T, D)
    traced = torch.compiler.is_compiling() or q.device.type == "cpu"
    function: Any = flex_attention if traced else _compiled()
    out: Tensor = function(q, k, v, block_mask=packing.prepared[window])
    return out.squeeze(0).transpose(0, 1)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=False)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries visits, and which: those come first."""
    counts = blocks.sum(-1, dtype=torch.int32)
    order = blocks.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return counts[None, None], order[None, None]
