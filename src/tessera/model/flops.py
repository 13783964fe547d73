"""Floating-point operations: what training needs, and what a device can do at most."""

import time
from collections import Counter

import torch
from torch import Tensor

from tessera.model.config import ModelConfig


def training_flops(config: ModelConfig, lengths: Tensor, masked_tokens: float) -> float:
    """Operations of a forward and a backward pass over these documents.

    Counted is what is needed (https://arxiv.org/abs/2204.02311, appendix B): the multiply-adds of
    matrices twice, the backward pass twice the forward; nothing for norms and activations, nothing
    that is computed a second time, no attention beyond document or window, and, after the last
    attention, the tokens to be predicted alone.

    Args:
        config: the shape.
        lengths: (n,) tokens of each document.
        masked_tokens: how many of them are to be predicted.
    """
    hidden, depth = config.hidden_size, config.num_hidden_layers
    lengths = lengths.double()
    tokens = float(lengths.sum())
    after_attention = hidden * hidden + 3 * hidden * config.intermediate_size
    multiply_adds = tokens * depth * 3 * hidden * hidden
    multiply_adds += ((depth - 1) * tokens + masked_tokens) * after_attention
    multiply_adds += masked_tokens * (hidden * hidden + hidden * config.vocab_size)
    for window, layers in Counter(map(config.window, range(depth))).items():
        seen = lengths if window is None else lengths.clamp(max=2 * window + 1)
        multiply_adds += layers * 2 * hidden * float(lengths @ seen)
    return 3 * 2 * multiply_adds


@torch.no_grad()
def matmul_rate(device: torch.device, dtype: torch.dtype, *, seconds: float) -> float:
    """Operations per second of a large matrix product, the best of tries for `seconds`.

    The best, for other work on the machine only ever makes one slower.
    """
    size, products = (8192, 4) if device.type == "cuda" else (1024, 1)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in "ab")
    _seconds_of(a, b, products)
    took: list[float] = []
    while not took or sum(took) < seconds:
        took.append(_seconds_of(a, b, products))
    return products * 2.0 * size**3 / min(took)


def _seconds_of(a: Tensor, b: Tensor, products: int) -> float:
    _wait_for(a)
    begin = time.perf_counter()
    for _ in range(products):
        torch.mm(a, b)
    _wait_for(a)
    return time.perf_counter() - begin


def _wait_for(a: Tensor) -> None:
    if a.is_cuda:
        torch.cuda.synchronize(a.device)
