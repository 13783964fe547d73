"""The random weights a model starts from. Legend: `L` layers."""

import hashlib
import math

import torch
from torch import Tensor, nn

from tessera.model.config import ModelConfig


@torch.no_grad()
def initialize(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fill every parameter in place, as a function of seed, config and parameter name alone.

    Matrices are normal with standard deviation `initializer_range`, cut at
    `initializer_cutoff_factor` of them; the output projections of attention and feed-forward layer
    have it divided by sqrt(2L), so that the residual stream does not grow with depth
    (https://arxiv.org/abs/1909.08053). Norms are one. Draws happen on the CPU, so that every device
    and every rank gets the same.
    """
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(_seed_of(name, seed))
        parameter.copy_(_initial(name, parameter.shape, config, generator))


def _initial(
    name: str, shape: torch.Size, config: ModelConfig, generator: torch.Generator
) -> Tensor:
    if name == "decoder.bias":
        if config.decoder_bias_init == "zero":
            return torch.zeros(shape)
        bound = config.hidden_size**-0.5
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    std = config.initializer_range
    if name.endswith("Wo.weight"):
        std /= math.sqrt(2 * config.num_hidden_layers)
    cut = config.initializer_cutoff_factor * std
    return nn.init.trunc_normal_(torch.empty(shape), 0.0, std, -cut, cut, generator=generator)


def _seed_of(name: str, seed: int) -> int:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
