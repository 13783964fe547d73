"""Floating-point operations that training needs, counted. Imports no torch."""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tessera.model.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor


def training_flops(
    config: ModelConfig, lengths: "Tensor", masked_tokens: float, *, causal: bool = False
) -> float:
    """Operations of a forward and a backward pass over these documents.

    Args:
        config: the shape.
        lengths: (n,) tokens of each document.
        masked_tokens: how many of them are to be predicted.
        causal: whether a token sees itself and those before it alone.
    """
    lengths = lengths.double()

    def pairs(most: int | None) -> float:
        seen = lengths if most is None else lengths.clamp(max=most)
        return float(pairs_of(lengths, seen, causal).sum())

    return needed_flops(config, float(lengths.sum()), masked_tokens, pairs, causal=causal)


def most_keys(window: int | None, causal: bool) -> int | None:
    """The most tokens that one sees in a layer of this window; None: all of its document."""
    return None if window is None else (1 if causal else 2) * window + 1


def pairs_of(lengths: Any, seen: Any, causal: bool) -> Any:
    """Pairs of a query and a key in documents, as numbers, arrays or tensors.

    Args:
        lengths: tokens of each.
        seen: the same, but no more than `most_keys`.
        causal: whether the first tokens of a document see fewer: one, two, three and so on.
    """
    return lengths * seen - (seen * (seen - 1) / 2 if causal else 0)


def needed_flops(
    config: ModelConfig,
    tokens: float,
    masked_tokens: float,
    pairs: Callable[[int | None], float],
    *,
    causal: bool = False,
) -> float:
    """Operations of a forward and a backward pass over documents known by these sums.

    Counted is what is needed (https://arxiv.org/abs/2204.02311, appendix B): the multiply-adds of
    matrices twice, the backward pass twice the forward; nothing for norms and activations, nothing
    that is computed a second time, no attention beyond document or window, and, after the last
    attention, the tokens to be predicted alone.

    Args:
        config: the shape.
        tokens: of the documents together.
        masked_tokens: how many of them are to be predicted.
        pairs: how many pairs of a query and a key there are if each token sees its whole document
            (None), or at most so many of its tokens: what `pairs_of` adds up to.
        causal: whether a token sees itself and those before it alone.
    """
    hidden, depth = config.hidden_size, config.num_hidden_layers
    after_attention = hidden * hidden + 3 * hidden * config.intermediate_size
    multiply_adds = tokens * depth * 3 * hidden * hidden
    multiply_adds += ((depth - 1) * tokens + masked_tokens) * after_attention
    multiply_adds += masked_tokens * (hidden * hidden + hidden * config.vocab_size)
    for window, layers in Counter(map(config.window, range(depth))).items():
        multiply_adds += layers * 2 * hidden * pairs(most_keys(window, causal))
    return 3 * 2 * multiply_adds
