"""Floating-point operations that training needs, counted. Imports no torch."""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from tessera.model.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor


def training_flops(config: ModelConfig, lengths: "Tensor", masked_tokens: float) -> float:
    """Operations of a forward and a backward pass over these documents.

    Args:
        config: the shape.
        lengths: (n,) tokens of each document.
        masked_tokens: how many of them are to be predicted.
    """
    lengths = lengths.double()

    def pairs(most: int | None) -> float:
        return float(lengths @ (lengths if most is None else lengths.clamp(max=most)))

    return needed_flops(config, float(lengths.sum()), masked_tokens, pairs)


def needed_flops(
    config: ModelConfig,
    tokens: float,
    masked_tokens: float,
    pairs: Callable[[int | None], float],
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
            (None), or at most so many of its tokens.
    """
    hidden, depth = config.hidden_size, config.num_hidden_layers
    after_attention = hidden * hidden + 3 * hidden * config.intermediate_size
    multiply_adds = tokens * depth * 3 * hidden * hidden
    multiply_adds += ((depth - 1) * tokens + masked_tokens) * after_attention
    multiply_adds += masked_tokens * (hidden * hidden + hidden * config.vocab_size)
    for window, layers in Counter(map(config.window, range(depth))).items():
        multiply_adds += layers * 2 * hidden * pairs(None if window is None else 2 * window + 1)
    return 3 * 2 * multiply_adds
