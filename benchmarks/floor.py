"""Count what a training step cannot do without, and the ceilings that gives: the README's table.

    python benchmarks/floor.py

Operations are `tessera.model.flops`. Bytes are those that pass between the GPU's memory and its
kernels if every run of element-wise work between two matrix products is one kernel, which reads its
inputs and writes its outputs once: residual stream in float32, all else in bfloat16. Weights and
optimizer are left out: a step of half a million tokens shares them.
"""

from models import MASKED_SHARE, MODELS

from tessera.model.config import ModelConfig
from tessera.model.flops import needed_flops
from tessera.planning.gpus import GPUS, Gpu

PUBLISHED = {("base", 1024): 312, ("base", 8192): 239, ("large", 1024): 142, ("large", 8192): 116}
"""Thousands of tokens per second and H100 in the published runs."""


def bytes_per_token(config: ModelConfig) -> float:
    """Forward and backward pass, per token.

    Legend: `D` hidden size, `I` intermediate size; numbers are bytes of a channel.
    """
    wide, inner = config.hidden_size, config.intermediate_size
    forward = {
        "norm: stream in, normed out": (4 + 2) * wide,
        "Wqkv": (2 + 3 * 2) * wide,
        "rotation of queries and keys": (2 * 2 + 2 * 2) * wide,
        "attention": (3 * 2 + 2) * wide,
        "attention's Wo": (2 + 2) * wide,
        "dropout, stream, norm": (2 + 4 + 4 + 2) * wide,
        "Wi": 2 * wide + 2 * 2 * inner,
        "gated GELU": (2 * 2 + 2) * inner,
        "Wo": 2 * inner + 2 * wide,
        "stream": (2 + 4 + 4) * wide,
    }
    # On the way back every product reads its output's gradient twice and its input once, and
    # writes the input's gradient; element-wise work reads what it read before, and a gradient.
    backward = {
        "stream": (4 + 2) * wide,
        "Wo": 2 * 2 * wide + (2 + 2) * inner,
        "gated GELU": (2 + 2 * 2 + 2 * 2 + 2) * inner,
        "Wi": 2 * 2 * 2 * inner + (2 + 2) * wide,
        "norm, stream, dropout": (4 + 2 + 4 + 4 + 2) * wide,
        "attention's Wo": (2 * 2 + 2 + 2) * wide,
        "attention": (3 * 2 + 2 + 2 + 3 * 2) * wide,
        "rotation of queries and keys": (3 * 2 + 3 * 2) * wide,
        "Wqkv": (2 * 3 * 2 + 2 + 2) * wide,
        "norm": (4 + 2 + 4 + 4) * wide,
    }
    per_layer = sum(forward.values()) + sum(backward.values())
    embedding = (4 + 4 + 4 + 4 + 4) * wide
    # A chunk of logits: out of the product, through the loss in place, into two products.
    head = MASKED_SHARE * (2 + 2 + 2 + 2 * 2) * config.vocab_size
    return config.num_hidden_layers * per_layer + embedding + head


def seconds_per_token(config: ModelConfig, flops: float, gpu: Gpu) -> float:
    """The time of products and, one after the other, of memory."""
    return flops / gpu.bf16_flops + bytes_per_token(config) / gpu.memory_bandwidth


def row(name: str, length: int, gpu: Gpu) -> str:
    """One line of the table, for documents that are all of this length."""
    config = MODELS[name]
    flops = needed_flops(config, 1.0, MASKED_SHARE, lambda most: float(min(length, most or length)))
    moved = bytes_per_token(config)
    h100 = gpu is GPUS["h100"]
    return (
        f"| {name} | {length:,} | {gpu.title} | {flops / 1e6:,.0f} | {moved / 1e3:,.0f} | "
        f"{gpu.bf16_flops / flops / 1e3:,.0f} | {gpu.memory_bandwidth / moved / 1e3:,.0f} | "
        f"{1e-3 / seconds_per_token(config, flops, gpu):,.0f} | "
        f"{PUBLISHED[name, length] if h100 else ''} |  |"
    )


def main() -> None:
    """Print the table as Markdown."""
    print(
        "| model | length | GPU | MFLOP/token | kB/token | ktok/s if only products counted | "
        "ktok/s if only memory did | ktok/s one after the other | published | ours |\n"
        "|---|---|---|---|---|---|---|---|---|---|"
    )
    for gpu in (GPUS["h100"], GPUS["h200"]):
        for name in ("base", "large"):
            for length in (1024, 8192):
                print(row(name, length, gpu))


if __name__ == "__main__":
    main()
