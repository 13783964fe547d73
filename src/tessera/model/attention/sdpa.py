"""torch's own fused attention, document by document: the backend that runs everywhere.

A long document in a windowed layer is cut into blocks of queries, each with the keys within reach,
so that the cost grows with T * window. The loop over documents is one opaque operator, which a
compiler neither unrolls nor breaks at.

Legend: `T` token slots, `H` heads, `D` channels of a head, `L` tokens of a document.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tessera.model.attention.packing import Packing, any_number

_BLOCK = 64
"""Queries of a windowed block, at least: fewer compute less in vain, more make fuller kernels."""

_GLOBAL_BLOCK = 1024
"""Queries of a global block where no kernel hides the scores, lest they fill the memory."""

_flash_on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_on_cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def missing(device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    """Why this backend cannot serve here: it always can."""
    return None


def prepare(cu_seqlens: Tensor, tokens: int, window: int | None, causal: bool = False) -> Tensor:
    """The documents' boundaries on the host: the one sync this backend needs on a GPU."""
    return any_number(cu_seqlens.cpu())


def attend(q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int | None) -> Tensor:
    """See `tessera.model.attention.backends.attend`."""
    reach = -1 if window is None else window
    out, _ = _attend(q, k, v, packing.prepared[window], reach, packing.causal)
    return out


@dataclass(frozen=True)
class _Tile:
    """`count` blocks of queries, one behind the other, each with the keys that it may see."""

    query: int
    queries: int
    key: int
    keys: int
    count: int = 1

    def of_queries(self, x: Tensor) -> Tensor:
        """(count, H, queries, D) view of (T, H, D)."""
        return self._blocks(x, self.query, self.queries)

    def of_keys(self, x: Tensor) -> Tensor:
        """(count, H, keys, D) view of (T, H, D), overlapping if count > 1."""
        return self._blocks(x, self.key, self.keys)

    def _blocks(self, x: Tensor, start: int, length: int) -> Tensor:
        token, head, channel = x.stride()
        return x.as_strided(
            (self.count, x.size(1), length, x.size(2)),
            (self.queries * token, head, token, channel),
            x.storage_offset() + start * token,
        )

    def add_keys(self, total: Tensor, part: Tensor) -> None:
        """Add (count, H, keys, D) to the keys' places in (T, H, D), where blocks overlap."""
        for start in range(0, self.keys, self.queries):
            piece = part[:, :, start : start + self.queries]
            self._blocks(total, self.key + start, piece.size(2)).add_(piece)


def _tiles(
    boundaries: list[int], window: int, causal: bool, longest: int | None = None
) -> Iterator[_Tile]:
    """Cut documents into blocks if the window or the `longest` global block is much shorter."""
    after = 0 if causal else window
    for start, end in pairwise(boundaries):
        length = end - start
        if window < 0:
            step = longest or max(length, 1)
            for first in range(start, end, step):
                queries = min(step, end - first)
                yield _Tile(first, queries, start, first + queries - start if causal else length)
        elif length <= 4 * max(window, _BLOCK):
            if length:
                yield _Tile(start, length, start, length)
        else:
            block = max(window, _BLOCK)
            inner = (length - max(after, 1)) // block - 1  # a query at least is left for the last
            yield _Tile(start, block, start, block + after)
            keys = window + block + after
            yield _Tile(start + block, block, start + block - window, keys, inner)
            last = start + (inner + 1) * block
            yield _Tile(last, end - last, last - window, end - last + window)


@dataclass(frozen=True)
class _Plan:
    """How the documents are cut, and what each tile hides of its keys."""

    tiles: list[_Tile]
    window: int
    causal: bool
    device: torch.device
    band: Tensor | None
    """Added to the scores of query i and key j - window: 0 within reach, else -inf."""

    def hides(self, tile: _Tile) -> tuple[Tensor | None, bool]:
        """What is added to a tile's scores, or None; and whether they are causal from its corner.

        The latter kernels know by themselves, and do not compute what they would hide.
        """
        whole = self.band is None or tile.keys <= self.window + 1
        if self.causal and whole:
            square = (tile.query, tile.queries) == (tile.key, tile.keys)
            return (None, True) if square else (self._lower_right(tile), False)
        if whole:
            return None, False
        assert self.band is not None
        first = self.window - (tile.query - tile.key)
        return self.band[: tile.queries, first : first + tile.keys], False

    def _lower_right(self, tile: _Tile) -> Tensor:
        """For queries that are the last of a longer run of keys."""
        hidden = torch.full((tile.queries, tile.keys), float("-inf"), device=self.device)
        return hidden.triu_(tile.query - tile.key + 1)


def _plan(q: Tensor, boundaries: Tensor, window: int, causal: bool) -> _Plan:
    longest = None if q.device.type == "cpu" else _GLOBAL_BLOCK
    tiles = list(_tiles(boundaries.tolist(), window, causal, longest))
    return _Plan(tiles, window, causal, q.device, _band(tiles, window, causal, q))


def _band(tiles: list[_Tile], window: int, causal: bool, like: Tensor) -> Tensor | None:
    if window < 0:
        return None
    queries = torch.arange(max(tile.queries for tile in tiles), device=like.device)
    keys = torch.arange(len(queries) + 2 * window, device=like.device)
    ahead = keys - queries[:, None]
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    band = torch.zeros(ahead.shape, dtype=dtype, device=like.device)
    furthest = window if causal else 2 * window
    return band.masked_fill_((ahead < 0) | (ahead > furthest), float("-inf"))


@torch.library.custom_op("tessera::attend_by_document", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor, window: int, causal: bool
) -> tuple[Tensor, Tensor]:
    plan = _plan(q, boundaries, window, causal)
    out, log_sums = _outputs(q)
    for tile in plan.tiles:
        queries, keys, values = tile.of_queries(q), tile.of_keys(k), tile.of_keys(v)
        mask, after = plan.hides(tile)
        if q.device.type == "cpu":
            part, sums = _flash_on_cpu(queries, keys, values, 0.0, after, attn_mask=mask)
            tile.of_queries(log_sums[..., None]).copy_(sums[..., None])
        else:
            part = _anywhere(queries, keys, values, mask, after)
        tile.of_queries(out).copy_(part)
    return out, log_sums


@torch.library.custom_op("tessera::attend_by_document_backward", mutates_args=())
def _attend_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sums: Tensor,
    boundaries: Tensor,
    window: int,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    plan = _plan(q, boundaries, window, causal)
    d_q = torch.empty_like(q, memory_format=torch.contiguous_format)
    d_k, d_v = torch.zeros_like(d_q), torch.zeros_like(d_q)
    for tile in plan.tiles:
        queries, keys, values = tile.of_queries(q), tile.of_keys(k), tile.of_keys(v)
        mask, after = plan.hides(tile)
        upstream = tile.of_queries(d_out)
        if q.device.type == "cpu":
            sums = tile.of_queries(log_sums[..., None])[..., 0]
            parts = _flash_on_cpu_backward(
                upstream,
                queries,
                keys,
                values,
                tile.of_queries(out),
                sums,
                0.0,
                after,
                attn_mask=mask,
            )
        else:
            parts = _anywhere_backward(upstream, queries, keys, values, mask, after)
        tile.of_queries(d_q).copy_(parts[0])
        tile.add_keys(d_k, parts[1])
        tile.add_keys(d_v, parts[2])
    return d_q, d_k, d_v


def _anywhere(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, after: bool) -> Tensor:
    mask = None if mask is None else mask.to(q.dtype)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=after)


def _anywhere_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, after: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """By the chain rule: autograd does not reach into an opaque operator."""
    scale = q.size(-1) ** -0.5
    scores = (q @ k.transpose(-2, -1)).float() * scale
    if after:
        scores += torch.full_like(scores, float("-inf")).triu_(1)
    shares = (scores if mask is None else scores + mask).softmax(-1)
    d_shares = (d_out @ v.transpose(-2, -1)).float()
    d_scores = shares * (d_shares - (d_shares * shares).sum(-1, keepdim=True)) * scale
    d_scores = d_scores.to(q.dtype)
    d_v = shares.to(q.dtype).transpose(-2, -1) @ d_out
    return d_scores @ k, d_scores.transpose(-2, -1) @ q, d_v


def _outputs(q: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=wide)


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor, window: int, causal: bool) -> Any:
    return _outputs(q)


@_attend_backward.register_fake
def _(d_out: Tensor, q: Tensor, *rest: Any) -> Any:
    return tuple(q.new_empty(q.shape) for _ in range(3))


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.window, ctx.causal = inputs
    ctx.save_for_backward(*tensors[:3], *output, tensors[3])


def _backward(ctx: Any, d_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    gradients = _attend_backward(d_out.contiguous(), *ctx.saved_tensors, ctx.window, ctx.causal)
    return *gradients, None, None, None


_attend.register_autograd(_backward, setup_context=_save)
