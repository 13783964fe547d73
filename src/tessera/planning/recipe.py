"""A phase's settings at a glance: what somebody who knows the recipe looks for."""

from tessera.model.config import ModelConfig
from tessera.optim.config import Muon, OptimizerConfig
from tessera.optim.schedules import FIRST
from tessera.planning.drawing import bars
from tessera.planning.memory import parameters
from tessera.quantities import so_many
from tessera.training.config import RunConfig

_CAUSAL = (
    "causal: each ordinary token is predicted from those before it in its document; nothing is "
    "masked,\nin training or in evaluation. A masked phase has to follow, with start_from"
)


def recipe_lines(config: RunConfig, world_size: int, begins: str) -> dict[str, str]:
    """A line for each part of the configuration, by its name.

    Args:
        config: of the phase.
        world_size: GPUs in all.
        begins: what it starts from.
    """
    return {
        "run": f"{config.name}, in {config.run_folder}",
        "model": _model(config.model),
        "starts from": begins,
        "length": _length(config),
        "batch": _batch(config, world_size),
        "rows": (
            f"{config.train_data.row_tokens:,} token slots each, segments of up to "
            f"{config.train_data.max_seq_len:,}; {config.train_data.lanes} lanes"
        ),
        "data": _sources(config),
        **({"objective": _CAUSAL} if config.train_data.causal else {"masking": _masking(config)}),
        "optimizer": _optimizer(config.optimizer),
        "schedule": f"{config.schedule.name}  {_curve(config)}",
        "evaluation": f"every {config.evaluation.interval or 'phase'}"
        + ", by the causal loss" * config.train_data.causal,
        "checkpoints": f"every {config.checkpoints.interval or 'phase'}, "
        f"keep {config.checkpoints.keep}",
    }


def _model(config: ModelConfig) -> str:
    return (
        f"{parameters(config):,} parameters: {config.num_hidden_layers} layers of "
        f"{config.hidden_size}, {config.num_attention_heads} heads, window "
        f"{config.local_attention}, theta {config.global_rope_theta:g} / "
        f"{config.local_rope_theta:g}" + (", queries and keys normed" if config.qk_norm else "")
    )


def _optimizer(config: OptimizerConfig) -> str:
    own = f"{config.name}, lr {config.lr:g}, weight decay {config.weight_decay:g}"
    return own + (f"; the rest by {_optimizer(config.rest)}" if isinstance(config, Muon) else "")


def _length(config: RunConfig) -> str:
    if config.duration.unit != "tok":
        return str(config.duration)
    full = config.batch.rows * config.train_data.row_tokens
    steps = config.duration.value / full
    warmup = config.batch.warmup
    if warmup is not None:
        sizes = range(warmup.initial_rows, config.batch.rows, warmup.increment_rows)
        each = warmup.over.value / config.train_data.row_tokens / max(1, sum(sizes))
        steps += len(sizes) * each - warmup.over.value / full
    return f"{config.duration.value:,} real tokens, about {so_many(steps, 'step')}"


def _batch(config: RunConfig, world_size: int) -> str:
    rows, tokens = config.batch.rows, config.train_data.row_tokens
    micro = config.batch.microbatch_rows
    per_rank = rows // world_size
    text = (
        f"{so_many(rows, 'row')}, {rows * tokens:,} token slots; {so_many(per_rank, 'row')} a rank "
        f"in {so_many(-(-per_rank // micro), 'microbatch')} of up to {micro}"
    )
    warmup = config.batch.warmup
    if warmup is not None:
        text += (
            f"; grows from {so_many(warmup.initial_rows, 'row')} "
            f"in steps of {warmup.increment_rows} over {warmup.over.value:,} tokens"
        )
    return text


def _sources(config: RunConfig) -> str:
    sources = config.train_data.sources
    total = sum(source.weight for source in sources.values())
    shares = [f"{name} {s.weight / total:.0%}" for name, s in sources.items() if s.weight]
    return ", ".join(shares)


def _masking(config: RunConfig) -> str:
    masking = config.train_data.masking
    text = f"{masking.rate:.0%}"
    if masking.final_rate is not None:
        text += f" to {masking.final_rate:.0%} over {masking.over}"
    kinds = [name for name in ("whole_words", "spans") if getattr(masking, name)]
    text += f" by {' and '.join(kinds)}" if kinds else ""
    return f"{text} in training, {config.evaluation.masking_rate:.0%} in evaluation"


def _curve(config: RunConfig, points: int = 48) -> str:
    """The learning rate over the phase as a line of characters, with its first and last value."""
    total = config.duration.value
    rates = [config.schedule.multiplier(total * i // (points - 1), total) for i in range(points)]
    (drawn,) = bars(rates)
    peak = config.optimizer.lr
    shown = (0.0 if rate <= FIRST else rate * peak for rate in (rates[0], max(rates), rates[-1]))
    return f"|{drawn}|  {' .. '.join(f'{rate:.2g}' for rate in shown)}"
