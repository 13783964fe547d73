"""Floating-point operations that the model needs, and what this device can do at most.

Counted as in https://arxiv.org/abs/2204.02311, appendix B: multiply-adds of matrices twice, the
backward pass twice the forward; nothing for norms, activations or recomputation.
"""

import time
from collections.abc import Iterable

import torch

from tessera.batch import PackedBatch
from tessera.model.config import ModelConfig


def training_flops(config: ModelConfig, batches: Iterable[PackedBatch]) -> float:
    """Forward and backward pass of these microbatches, padding not counted."""
    hidden, layers = config.hidden_size, config.num_hidden_layers
    per_token = layers * (4 * hidden * hidden + 3 * hidden * config.intermediate_size)
    per_prediction = hidden * hidden + hidden * config.vocab_size
    global_layers = sum(config.is_global(layer) for layer in range(layers))
    multiply_adds = 0.0
    for batch in batches:
        lengths = batch.cu_seqlens.diff().double()
        seen = torch.minimum(lengths, torch.full_like(lengths, config.local_attention + 1))
        pairs = (
            global_layers * (lengths * lengths).sum()
            + (layers - global_layers) * (lengths * seen).sum()
        )
        multiply_adds += batch.tokens * per_token + batch.masked_tokens * per_prediction
        multiply_adds += 2 * hidden * float(pairs) * batch.tokens / max(1, batch.input_ids.numel())
    return 3 * 2 * multiply_adds


@torch.no_grad()
def measured_peak(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.1) -> float:
    """Operations per second of a large matrix product, the best of a few moments' tries."""
    size = 8192 if device.type == "cuda" else 768
    a = torch.randn(size, size, device=device, dtype=dtype)
    b = torch.randn(size, size, device=device, dtype=dtype)
    best, end = 0.0, time.perf_counter() + seconds
    _product_seconds(a, b)
    while time.perf_counter() < end:
        best = max(best, 2.0 * size**3 / _product_seconds(a, b))
    return best


def _product_seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.is_cuda:
        torch.cuda.synchronize(a.device)
    begin = time.perf_counter()
    torch.mm(a, b)
    if a.is_cuda:
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - begin
