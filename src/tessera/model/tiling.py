"""The weights of a larger model, laid from tiles of a smaller one's.

Legend: `D` hidden size, `H` heads, `L` layers; of the larger model with a prime.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from tessera.model.config import ModelConfig

TilingMode = Literal["default", "published"]


@torch.no_grad()
def tile_weights(
    weights: Mapping[str, Tensor],
    source: ModelConfig,
    target: ModelConfig,
    mode: TilingMode = "default",
) -> dict[str, Tensor]:
    """Weights of a larger model, laid from copies of a smaller one's (Gopher, arXiv 2112.11446).

    Along each axis the small tensor sits in the middle of the large one and is continued
    periodically on both sides; fused matrices are laid part by part. No noise, no scaling.

    Args:
        weights: of the small model, by parameter name.
        source: the small model.
        target: the large model: nowhere narrower, same vocabulary; of any depth.
        mode: `default` keeps whole heads, whole rotary pairs, and the kinds of layers apart: a
            global layer comes from a global one, a local from a local one. `published` does what
            made ModernBERT-large, bit for bit: channels whatever the heads, layer i from layer
            round(i * L / L'), `final_norm` left at one.

    Returns:
        Every parameter of the large model, by name.

    Raises:
        ValueError: see `check_tileable`.
    """
    check_tileable(source, target, mode)
    residual = _tile_index(source.hidden_size, target.hidden_size)
    inner = _tile_index(source.intermediate_size, target.intermediate_size)
    heads = residual if mode == "published" else _tile_head_index(source, target)
    within = _within_head(source, target)

    def norm(name: str) -> Tensor:
        return weights[name][residual]

    def linear(name: str, rows: Tensor, columns: Tensor, parts: int = 1) -> Tensor:
        tiled = [part[rows][:, columns] for part in weights[name].chunk(parts)]
        return torch.cat(tiled)

    embedding = weights["model.embeddings.tok_embeddings.weight"][:, residual]
    tiled = {
        "model.embeddings.tok_embeddings.weight": embedding,
        "model.embeddings.norm.weight": norm("model.embeddings.norm.weight"),
        "model.final_norm.weight": norm("model.final_norm.weight"),
        "head.dense.weight": linear("head.dense.weight", residual, residual),
        "head.norm.weight": norm("head.norm.weight"),
        "decoder.weight": embedding,
        "decoder.bias": weights["decoder.bias"].clone(),
    }
    if mode == "published":
        tiled["model.final_norm.weight"] = torch.ones_like(tiled["model.final_norm.weight"])

    for i, j in enumerate(layer_sources(source, target, mode)):
        large, small = f"model.layers.{i}.", f"model.layers.{j}."
        if i > 0:
            # Layer 0 has no norm of its own: what it reads was normed by the embeddings.
            first = "model.embeddings.norm.weight"
            tiled[f"{large}attn_norm.weight"] = norm(f"{small}attn_norm.weight" if j else first)
        tiled[f"{large}attn.Wqkv.weight"] = linear(f"{small}attn.Wqkv.weight", heads, residual, 3)
        if target.qk_norm:
            for one in ("attn.q_norm.weight", "attn.k_norm.weight"):
                tiled[f"{large}{one}"] = weights[f"{small}{one}"][within]
        tiled[f"{large}attn.Wo.weight"] = linear(f"{small}attn.Wo.weight", residual, heads)
        tiled[f"{large}mlp_norm.weight"] = norm(f"{small}mlp_norm.weight")
        tiled[f"{large}mlp.Wi.weight"] = linear(f"{small}mlp.Wi.weight", inner, residual, 2)
        tiled[f"{large}mlp.Wo.weight"] = linear(f"{small}mlp.Wo.weight", residual, inner)
    return tiled


def layer_sources(
    source: ModelConfig, target: ModelConfig, mode: TilingMode = "default"
) -> list[int]:
    """For each layer of the target, the layer of the source that it is tiled from."""
    depth, target_depth = source.num_hidden_layers, target.num_hidden_layers
    if mode == "published":
        nearest = (round(depth * i / target_depth) for i in range(target_depth))
        return [min(layer, depth - 1) for layer in nearest]

    chosen = [0] * target_depth
    for is_global in (True, False):
        to = [i for i in range(target_depth) if target.is_global(i) == is_global]
        of = [j for j in range(depth) if source.is_global(j) == is_global] or list(range(depth))
        for rank, i in enumerate(to):
            chosen[i] = of[(2 * rank + 1) * len(of) // (2 * len(to))]
    chosen[0] = 0
    return chosen


def _tile_index(size: int, target_size: int) -> Tensor:
    """(target_size,) which channel of the small axis each channel of the large one repeats."""
    offset = (target_size - size) // 2
    return (torch.arange(target_size) - offset) % size


def _tile_head_index(source: ModelConfig, target: ModelConfig) -> Tensor:
    """(D',) like `_tile_index`, over whole heads, and within a head over each rotary half."""
    head = _tile_index(source.num_attention_heads, target.num_attention_heads)
    return (head[:, None] * source.head_size + _within_head(source, target)).flatten()


def _within_head(source: ModelConfig, target: ModelConfig) -> Tensor:
    """(channels of a head',) which channel of a small head each channel of a large one repeats."""
    half = source.head_size // 2
    # Pair i of n turns by theta ** (-i / n): the same share of the pairs turns about as fast.
    channel = torch.arange(target.head_size // 2) * half // (target.head_size // 2)
    return torch.cat([channel, channel + half])


def check_tileable(source: ModelConfig, target: ModelConfig, mode: TilingMode = "default") -> None:
    """Refuse what `tile_weights` cannot lay.

    Raises:
        ValueError: the target is narrower or of another vocabulary, only one of the two norms its
            queries and keys, or both do and `published`, which knows no heads, is asked for.
    """
    if source.vocab_size != target.vocab_size:
        raise ValueError(
            f"cannot tile a vocabulary: the source has vocab_size {source.vocab_size}, the target "
            f"{target.vocab_size}. Give both the same"
        )
    if source.qk_norm != target.qk_norm:
        raise ValueError(
            f"cannot tile norms that are not there: qk_norm is {str(source.qk_norm).lower()} in "
            f"the source and {str(target.qk_norm).lower()} in the target. Give both the same"
        )
    if target.qk_norm and mode == "published":
        raise ValueError(
            "mode published lays channels whatever the heads, and qk_norm has a weight for each "
            "channel of a head; use mode default"
        )
    names = ["hidden_size", "intermediate_size", "num_attention_heads"]
    for name in names:
        small, large = getattr(source, name), getattr(target, name)
        if large < small:
            raise ValueError(
                f"tiles can only enlarge: {name} is {small} in the source and {large} in the "
                f"target. Choose a target at least as wide, or a smaller source"
            )
