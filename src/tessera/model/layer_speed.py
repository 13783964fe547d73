"""How long layers of a shape take on the device at hand, measured."""

import time
from dataclasses import replace

import torch

from tessera.model.config import ModelConfig
from tessera.model.modernbert import ModernBertForMaskedLM

_LAYERS = 3
"""One that attends to the whole document, two that see a window."""


def layers_seconds(config: ModelConfig, *, slots: int, length: int, tries: int = 3) -> float:
    """Seconds of a forward and a backward pass through all layers, without embeddings and head.

    Three layers are timed, the best of some tries, and counted as often as there are layers: in
    bfloat16 and compiled on a GPU, in float32 on a CPU.

    Args:
        config: the shape.
        slots: tokens of a microbatch.
        length: of each document.
        tries: after one to warm up.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cuda = device.type == "cuda"
    few = replace(config, num_hidden_layers=_LAYERS, vocab_size=64)
    model = ModernBertForMaskedLM(few).to(device)
    model.initialize(0)
    if cuda:
        model.compile_layers()
    ids = torch.randint(0, 64, (slots,), device=device)
    ends = [*range(0, slots, length), slots]
    cu_seqlens = torch.tensor(ends, dtype=torch.int32, device=device)
    took = []
    for _ in range(1 + tries):
        if cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            model.model(ids, cu_seqlens=cu_seqlens, max_seqlen=min(length, slots)).sum().backward()
        if cuda:
            torch.cuda.synchronize()
        took.append(time.perf_counter() - begin)
        model.zero_grad(set_to_none=True)
    return min(took[1:]) * config.num_hidden_layers / _LAYERS
