"""Bytes of GPU memory that a training step holds, by part.

Legend: `T` token slots of a microbatch, `M` of them predicted, `D` hidden size, `I` intermediate
size, `H` heads, `V` vocabulary, `P` parameters.

What a layer keeps for its backward pass was counted tensor by tensor: exactly without compilation
(a test holds it against what autograd saves); with it, norms, gates and dropout masks are computed
again, and the rest is held against the peaks that benchmarks/README.md reports of an H100.
"""

from dataclasses import dataclass

from tessera.model.config import ModelConfig
from tessera.planning.gpus import Gpu
from tessera.training.config import RunConfig

_CHUNK_LOGITS = 2**28
_CHUNK_ROWS = 256
"""As `tessera.model.loss` has them on a GPU."""
_CONTEXT = 600 * 2**20
"""CUDA's own: kernels, libraries' workspaces."""
_COMMUNICATION = 1200 * 2**20
"""NCCL's buffers on a node of eight, where there are several ranks."""
_FRAGMENTS = 0.04
"""Of what the allocator holds, space between tensors that fits none."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes at the fullest moment of a step: the beginning of its backward pass."""

    weights: int
    """In float32, and in bfloat16 for the products."""
    gradients: int
    """And the buckets in which ranks average them."""
    optimizer: int
    activations: int
    """Of one microbatch."""
    head: int
    """A chunk of logits with its gradient, and the gradient of the decoder."""
    overhead: int
    """CUDA, communication, fragments."""

    @property
    def total(self) -> int:
        """All parts."""
        return sum(vars(self).values())


def parameters(config: ModelConfig) -> int:
    """Trainable numbers of the model, the tied decoder counted once."""
    hidden, inner = config.hidden_size, config.intermediate_size
    layer = 4 * hidden * hidden + 3 * hidden * inner + 2 * hidden
    layer += 2 * config.head_size if config.qk_norm else 0
    ends = config.vocab_size * hidden + hidden + hidden + hidden * hidden + hidden
    return config.num_hidden_layers * layer - hidden + ends + config.vocab_size


def memory_of(config: RunConfig, world_size: int, *, microbatch_rows: int | None = None) -> Memory:
    """What a step of a phase holds on each GPU.

    Args:
        config: of the phase.
        world_size: GPUs in all.
        microbatch_rows: instead of the configuration's.
    """
    model, compute = config.model, config.compute
    numbers = parameters(model)
    shards = world_size if compute.sharding == "fsdp" else 1
    halved = compute.precision != "fp32"
    rows = config.batch.microbatch_rows if microbatch_rows is None else microbatch_rows
    rows = min(rows, max(1, config.batch.rows // world_size))
    slots = rows * config.train_data.row_tokens
    masked = int(slots * max(config.train_data.predicted_shares))
    matrices = numbers - model.vocab_size * model.hidden_size
    moments = 8 * numbers if config.optimizer.name != "muon" else 8 * numbers - 4 * matrices
    buckets = 4 * numbers if world_size > 1 and shards == 1 else 0
    checkpointed = compute.activation_checkpointing
    if isinstance(checkpointed, bool):
        checkpointed = tuple(range(model.num_hidden_layers)) if checkpointed else ()
    compiled = compute.compile is not False
    parts = {
        "weights": 4 * numbers // shards + (2 * numbers if halved else 0),
        "gradients": 4 * numbers // shards + buckets,
        "optimizer": moments // shards,
        "activations": activation_bytes(
            model, slots, masked, halved=halved, compiled=compiled, checkpointed=len(checkpointed)
        )
        + backward_bytes(model, slots, halved=halved),
        "head": head_bytes(model, masked, halved=halved, compiled=compiled),
    }
    overhead = _CONTEXT + (_COMMUNICATION if world_size > 1 else 0)
    overhead += int(_FRAGMENTS * sum(parts.values()))
    return Memory(**parts, overhead=overhead)


def activation_bytes(
    config: ModelConfig,
    slots: int,
    masked: int,
    *,
    halved: bool,
    compiled: bool,
    checkpointed: int = 0,
) -> int:
    """What the forward pass keeps for the backward pass.

    Args:
        config: the shape.
        slots: T.
        masked: M; after the last attention, nothing is kept of the others.
        halved: whether products are in bfloat16.
        compiled: whether layers are compiled.
        checkpointed: layers of which only the input is kept.
    """
    wide, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    layers, number = config.num_hidden_layers, 2 if halved else 4
    norm = 4 * wide + 8  # its input, mean and deviation
    # Normed input, queries, keys and values as they left the product, queries and keys turned,
    # what attention gives, and its log-sums.
    attention = number * (wide + 3 * wide + 2 * wide + wide) + 4 * heads
    if config.qk_norm:  # means and deviations; queries, keys and values laid side by side again
        attention += 16 * heads + (0 if compiled else number * 3 * wide)
    # Mask of the dropout, norm, normed; gate and value, the gate's GELU, their product.
    rest = 4 * wide + norm + number * wide + number * 4 * inner
    if compiled:  # masks, GELUs and one of the two normed inputs are computed again
        rest -= 4 * wide + number * wide + number * inner
    layer = norm + attention + rest
    ends = norm + 8 + 4 * config.head_size * len({config.rope_theta(i) for i in range(layers)})
    head = 8 + number * wide * 3 + norm * 2
    kept = max(0, layers - checkpointed)
    saved = slots * ends + masked * head + checkpointed * slots * 4 * wide
    if kept == layers:  # the last layer goes on with M of T
        return saved + slots * ((layers - 1) * layer + attention) + masked * rest
    return saved + (kept + 1) * slots * layer  # one more while it is computed again


def backward_bytes(config: ModelConfig, slots: int, *, halved: bool) -> int:
    """Gradients of one layer's activations: of the stream, and of the products' results."""
    wide, inner, number = config.hidden_size, config.intermediate_size, 2 if halved else 4
    return slots * (8 * wide + number * (2 * wide + 3 * inner))


def head_bytes(config: ModelConfig, masked: int, *, halved: bool, compiled: bool) -> int:
    """What the loss holds: see `tessera.model.loss`."""
    number, wide, words = 2 if halved else 4, config.hidden_size, config.vocab_size
    chunk = min(masked * words, max(_CHUNK_LOGITS, _CHUNK_ROWS * words))
    each = 2 * number if compiled else 2 * number + 8
    return chunk * each + (4 + number) * words * wide + number * masked * wide


def largest_microbatch(config: RunConfig, world_size: int, gpu: Gpu) -> int | None:
    """The most `microbatch_rows` of which a GPU holds a step; None if not even one fits.

    Of those that take as few microbatches as the most, the fewest: equal parts.
    """
    most = max(1, config.batch.rows // world_size)
    limit = gpu.memory_mib * 2**20
    fits = 0
    low, high = 1, most
    while low <= high:
        middle = (low + high) // 2
        if memory_of(config, world_size, microbatch_rows=middle).total <= limit:
            fits, low = middle, middle + 1
        else:
            high = middle - 1
    return -(-most // -(-most // fits)) if fits else None
