"""One call for attention within packed documents, and the choice of what serves it."""

from functools import cache

import torch
from torch import Tensor

from tessera.model.attention import sdpa
from tessera.model.attention.packing import Packing

_BACKENDS = {"sdpa": sdpa}


def attend(q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int | None) -> Tensor:
    """Softmax attention of every token over the tokens of its own document.

    Args:
        q: (T, H, D) queries, positions already applied; the softmax scale is 1/sqrt(D).
        k: (T, H, D) keys.
        v: (T, H, D) values.
        packing: where documents begin, and the backend to use; see `prepare`.
        window: a token sees those at most this far away, on either side; None: all of them.

    Returns:
        (T, H, D).
    """
    return _BACKENDS[packing.backend].attend(q, k, v, packing, window)


def prepare(
    cu_seqlens: Tensor, max_seqlen: int, backend: str, tokens: int, windows: set[int | None]
) -> Packing:
    """Compute what all layers share.

    Args:
        cu_seqlens: (n+1,) int32, from 0 to `tokens`.
        max_seqlen: no document is longer.
        backend: what `choose` returned.
        tokens: T.
        windows: those that `attend` will be called with.
    """
    prepared = {w: _BACKENDS[backend].prepare(cu_seqlens, tokens, w) for w in windows}
    return Packing(cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, backend=backend, prepared=prepared)


@cache
def choose(name: str, device: torch.device, dtype: torch.dtype, head_size: int) -> str:
    """The backend to use for a model's attention, once for the whole run."""
    return "sdpa"
