"""torch's own fused attention, document by document: the one that runs everywhere.

Legend: `T` token slots, `H` heads, `D` channels of a head.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tessera.model.attention.packing import Packing


def attend(q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int | None) -> Tensor:
    """See `tessera.model.attention.backends.attend`. Copies `cu_seqlens` to the host."""
    lengths = [length for length in packing.cu_seqlens.diff().tolist() if length]
    documents = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
    return torch.cat([_attend_document(*document, window) for document in documents])


def _attend_document(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))  # (L, H, D) -> (H, L, D)
    tokens = q.size(1)
    mask = None
    if window is not None and tokens > window + 1:
        slots = torch.arange(tokens, device=q.device)
        mask = (slots[:, None] - slots[None, :]).abs() <= window
    out = scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask)[0]
    return out.transpose(0, 1)
