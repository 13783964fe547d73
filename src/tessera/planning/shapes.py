"""Shapes of a model that a GPU multiplies without waste, by formula (arXiv 2401.14489).

A matrix product is cut into tiles; a GPU works on as many tiles at a time as it has
multiprocessors: a wave. What a product pads out, to whole tiles and to whole waves, is lost. Widths
that 64 does not divide leave tensor cores idle besides, and are not listed. Good shapes differ by a
few percent, which only a measurement can rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tessera.model.config import ModelConfig
from tessera.model.flops import needed_flops
from tessera.planning.gpus import Gpu
from tessera.planning.memory import activation_bytes, parameters

TILE = (128, 256)
"""Rows (tokens) and columns (channels) of a tile."""
ALIGNED = 64
HEAD_SIZE = 64
_LEAST_USEFUL = 0.93
"""A shape is rejected if it does less useful work than this share of what the best one does."""
_NEAR = 0.03
"""How far from the budget a shape may be."""
_INNER_TO_WIDTH = (1.25, 3.0)
"""GeGLU's inner width beside the hidden size: 1.5 and 2.56 in the published models."""

PUBLISHED = {
    "ModernBERT-base": ModelConfig(),
    "ModernBERT-large": ModelConfig(
        hidden_size=1024, intermediate_size=2624, num_hidden_layers=28, num_attention_heads=16
    ),
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A shape, and what the formula says of it."""

    config: ModelConfig
    useful: dict[str, float]
    """By GPU, the share of its work that is not padding of tiles and waves."""
    flops_per_token: float
    activation_bytes: float
    """Of a token slot, compiled and in bfloat16."""
    name: str = ""
    """Of a published model."""

    @property
    def parameters(self) -> int:
        """Trainable numbers."""
        return parameters(self.config)

    @property
    def worst(self) -> float:
        """The useful share on the GPU where it is smallest."""
        return min(self.useful.values())


def shapes(
    budget: float,
    widths: Sequence[int],
    *,
    vocab_size: int,
    length: int,
    gpus: dict[str, Gpu],
    slots: int,
) -> tuple[list[Shape], int]:
    """Aligned shapes near a budget of parameters, the deepest first, and the published ones.

    Args:
        budget: parameters.
        widths: hidden sizes to consider.
        vocab_size: rows of the embedding, rounded up to 64.
        length: tokens of a document, for attention.
        gpus: to be good on.
        slots: token slots of a microbatch.

    Returns:
        The shapes; how many more waste so much on one of the GPUs that they were rejected.
    """
    vocab_size = -(-vocab_size // ALIGNED) * ALIGNED
    found = []
    for wide in widths:
        if wide % ALIGNED:
            continue
        low, high = (int(wide * ratio) for ratio in _INNER_TO_WIDTH)
        for inner in range(-(-low // ALIGNED) * ALIGNED, high + 1, ALIGNED):
            config = ModelConfig(
                vocab_size=vocab_size,
                hidden_size=wide,
                intermediate_size=inner,
                num_attention_heads=wide // HEAD_SIZE,
                num_hidden_layers=1,
            )
            layer = parameters(replace(config, num_hidden_layers=2)) - parameters(config)
            layers = round((budget - parameters(config)) / layer) + 1
            if layers < 2:
                continue
            config = replace(config, num_hidden_layers=layers)
            if abs(parameters(config) / budget - 1) <= _NEAR:
                found.append(shape_of(config, length, gpus, slots))
    best = max((shape.worst for shape in found), default=0.0)
    good = [shape for shape in found if shape.worst >= _LEAST_USEFUL * best]
    rejected = len(found) - len(good)
    good += [
        shape_of(replace(config, vocab_size=vocab_size), length, gpus, slots, name)
        for name, config in PUBLISHED.items()
        if budget / 3 < parameters(config) < 3 * budget
    ]
    good.sort(key=lambda s: (-s.config.num_hidden_layers, -s.worst, not s.name))
    return good, rejected


def shape_of(
    config: ModelConfig, length: int, gpus: dict[str, Gpu], slots: int, name: str = ""
) -> Shape:
    """What the formula says of a shape."""
    masked = 0.3
    return Shape(
        config=config,
        useful={short: useful_share(config, slots, gpu) for short, gpu in gpus.items()},
        flops_per_token=needed_flops(
            config, 1.0, masked, lambda most: float(length if most is None else min(most, length))
        ),
        activation_bytes=activation_bytes(
            config, slots, int(masked * slots), halved=True, compiled=True
        )
        / slots,
        name=name,
    )


def useful_share(config: ModelConfig, slots: int, gpu: Gpu) -> float:
    """Of the work of a layer's four products on `slots` tokens, what is not padding."""
    wide, inner = config.hidden_size, config.intermediate_size
    needed = paid = 0.0
    for outputs, inputs in ((3 * wide, wide), (wide, wide), (2 * inner, wide), (wide, inner)):
        needed += float(slots) * outputs * inputs
        paid += _paid(slots, outputs, gpu) * inputs
    return needed / paid


def _paid(rows: int, columns: int, gpu: Gpu) -> float:
    """Outputs that a product takes the time of."""
    tiles = -(-rows // TILE[0]) * -(-columns // TILE[1])
    waves = -(-tiles // gpu.multiprocessors)
    return float(waves * gpu.multiprocessors * TILE[0] * TILE[1])
