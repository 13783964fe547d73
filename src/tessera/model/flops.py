"""Floating-point operations that training needs for a token: what utilisation is measured by."""

from tessera.model.config import ModelConfig


def flops_per_token(
    config: ModelConfig, *, attended_tokens: float, masked_share: float, training: bool = True
) -> float:
    """Operations of matrix products, a multiply-add being two, a backward pass two forward ones.

    Counted is what is needed (https://arxiv.org/abs/2204.02311, appendix B): nothing for norms and
    activations, nothing that is computed a second time, no attention beyond document or window,
    and, after the last attention, the tokens to be predicted alone.

    Args:
        config: the shape.
        attended_tokens: tokens in the document of a token, averaged over tokens.
        masked_share: predicted tokens as a share of all.
        training: forward and backward pass, else forward alone.
    """
    hidden, depth = config.hidden_size, config.num_hidden_layers
    qkv = 3 * hidden * hidden
    rest = hidden * hidden + 3 * hidden * config.intermediate_size
    multiply_adds = depth * qkv + (depth - 1 + masked_share) * rest
    multiply_adds += masked_share * (hidden * hidden + hidden * config.vocab_size)
    for layer in range(depth):
        window = config.window(layer)
        seen = attended_tokens if window is None else min(attended_tokens, 2 * window + 1)
        multiply_adds += 2 * hidden * seen
    return (6.0 if training else 2.0) * multiply_adds
