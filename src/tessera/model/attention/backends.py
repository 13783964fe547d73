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
        packing: where documents begin, and the backend to use.
        window: a token sees those at most this far away, on either side; None: all of them.

    Returns:
        (T, H, D).
    """
    return _BACKENDS[packing.backend].attend(q, k, v, packing, window)


@cache
def choose(name: str, device: torch.device, dtype: torch.dtype, head_size: int) -> str:
    """The backend to use for a model's attention, once for the whole run."""
    return "sdpa"


def prepare(cu_seqlens: Tensor, max_seqlen: int, backend: str, tokens: int, window: int) -> Packing:
    """What the layers share."""
    return Packing(cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, backend=backend)
