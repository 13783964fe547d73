"""`tessera check`: what a YAML would run, at a glance, or everything that is wrong with it."""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tessera import fetch
from tessera.cli.arguments import add_config, at_least, load_config
from tessera.config import defined_in, refusal
from tessera.model.config import ModelConfig
from tessera.training.config import RunConfig
from tessera.training.remote.remote_run import has_begun

if TYPE_CHECKING:
    from tessera.checkpoints.checkpoint import Checkpoint
    from tessera.training.resume import Saved

HELP = "What a YAML would run, or everything that is wrong with it."
_BLOCKS = " .:-=+*#%@"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    add_config(parser)
    parser.add_argument("--world-size", type=int, default=1, metavar="N", help="GPUs in all")


def run(options: argparse.Namespace) -> None:
    """Print the run in a dozen lines."""
    world_size = at_least(1, "--world-size", options.world_size)
    config = load_config(options)
    print(describe(config, options.config, world_size, options.overrides))


def describe(config: RunConfig, origin: str, world_size: int, overrides: Sequence[str] = ()) -> str:
    """The run in a dozen lines.

    Raises:
        ConfigError: with every problem, if it would not run on `world_size` ranks.
    """
    from tessera.planning.mixture import mixture_lines
    from tessera.training.preflight import examine

    saved = _saved(config)
    findings = examine(config, world_size, resuming=saved is not None)
    found = findings.problems
    changes: list[str] = []
    if saved is not None:
        from tessera.training.rate_jump import describe_jump
        from tessera.training.resume import data_changes, resumable, skipped_too_late

        try:
            changes = resumable(config, saved)
            if not found and not saved.done(config.duration):
                changes += data_changes(config, saved)
            findings.doubts.extend(skipped_too_late(config, saved))
        except ValueError as error:
            found.append(str(error))
        jump = describe_jump(config, saved.run_config, saved.progress)
        findings.doubts.extend([jump] if jump and not saved.done(config.duration) else [])
    if found:
        raise refusal(origin, [_located(problem, origin, overrides) for problem in found])
    lines = {
        "run": f"{config.name}, in {config.run_folder}",
        "model": _model(config.model),
        "starts from": _start(config, findings.origin)
        if saved is None
        else _continuation(config, saved),
        "length": _length(config),
        "batch": _batch(config, world_size),
        "rows": (
            f"{config.train_data.row_tokens:,} token slots each, segments of up to "
            f"{config.train_data.max_seq_len:,}; {config.train_data.lanes} lanes"
        ),
        "data": "\n".join([_sources(config), *mixture_lines(findings.readings)]),
        "masking": _masking(config),
        "optimizer": (
            f"{config.optimizer.name}, lr {config.optimizer.lr:g}, "
            f"weight decay {config.optimizer.weight_decay:g}"
        ),
        "schedule": f"{config.schedule.name}  {_curve(config)}",
        "evaluation": f"every {config.evaluation.interval or 'phase'}",
        "checkpoints": f"every {config.checkpoints.interval or 'phase'}, "
        f"keep {config.checkpoints.keep}",
    }
    if changes:
        lines["changed"] = "\n".join(changes)
    if findings.doubts:
        lines["warning"] = "\n".join(findings.doubts)
    width = max(map(len, lines)) + 2
    margin = "\n" + " " * width  # what is several things stands one below the other
    return "\n".join(
        f"{name:<{width}}{text.replace(chr(10), margin)}" for name, text in lines.items()
    )


def _located(problem: str, origin: str, overrides: Sequence[str]) -> str:
    """The problem, with the file its key stands in if that is another one than `origin`."""
    key, colon, text = problem.partition(":")
    if not re.fullmatch(r"[\w.]+", key) or any(o.startswith(key) for o in overrides):
        return problem
    path = defined_in(Path(origin), key)
    if path is None or path == Path(origin):
        return problem
    return f"{key} (from {os.path.normpath(path)}){colon}{text}"


def parameters(config: ModelConfig) -> int:
    """Trainable numbers of the model, the tied decoder counted once."""
    hidden, inner = config.hidden_size, config.intermediate_size
    layer = 4 * hidden * hidden + 3 * hidden * inner + 2 * hidden
    ends = config.vocab_size * hidden + hidden + hidden + hidden * hidden + hidden
    return config.num_hidden_layers * layer - hidden + ends + config.vocab_size


def _model(config: ModelConfig) -> str:
    return (
        f"{parameters(config):,} parameters: {config.num_hidden_layers} layers of "
        f"{config.hidden_size}, {config.num_attention_heads} heads, window "
        f"{config.local_attention}, theta {config.global_rope_theta:g} / "
        f"{config.local_rope_theta:g}"
    )


def _saved(config: RunConfig) -> "Saved | None":
    """What the phase would resume from; nothing is renamed here, as training would."""
    from tessera.files import zip_damage
    from tessera.training.run_folder import checkpoints

    whole = (p for p in reversed(checkpoints(config.folder).values()) if not zip_damage(p))
    path = None if config.is_cached else next(whole, None)
    if path is None and config.remote is not None and has_begun(config):
        from tessera.checkpoints.reader import locate

        path = locate(fetch.local(config.remote))
    if path is None:
        return None
    from tessera.training.resume import read

    return read(path)


def _continuation(config: RunConfig, saved: "Saved") -> str:
    if saved.done(config.duration):
        return f"nothing: complete already, in {saved.path.name}"
    steps, tokens = saved.progress["steps"], saved.progress["tokens"]
    return f"{saved.path}: resumes after {steps:,} steps, {tokens:,} tokens"


def _start(config: RunConfig, origin: "Checkpoint | None") -> str:
    if config.initial_weights is not None:
        return f"tiles of {config.initial_weights.tile} ({config.initial_weights.mode})"
    if config.start_from is None or origin is None:
        return "random weights"
    both = config.start_from.optimizer and origin.optimizer is not None
    carried = "weights and optimizer" if both else "weights"
    rate = origin.learning_rate
    stopped = f"; it stopped at lr {rate:g}" if rate is not None else ""
    return f"{carried} of {config.start_from.checkpoint}{stopped}"


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
    return f"{config.duration.value:,} real tokens, about {steps:,.0f} steps"


def _batch(config: RunConfig, world_size: int) -> str:
    rows, tokens = config.batch.rows, config.train_data.row_tokens
    micro = config.batch.microbatch_rows
    per_rank = rows // world_size
    text = (
        f"{rows} rows, {rows * tokens:,} token slots; {per_rank} rows a rank in "
        f"{-(-per_rank // micro)} microbatches of up to {micro}"
    )
    warmup = config.batch.warmup
    if warmup is not None:
        text += (
            f"; grows from {warmup.initial_rows} rows in steps of {warmup.increment_rows} "
            f"over {warmup.over.value:,} tokens"
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
    return f"{text} in training, {config.evaluation.masking_rate:.0%} in evaluation"


def _curve(config: RunConfig, points: int = 48) -> str:
    """The learning rate over the phase as a line of characters, with its first and last value."""
    total = config.duration.value
    rates = [config.schedule.multiplier(total * i // (points - 1), total) for i in range(points)]
    drawn = "".join(_BLOCKS[round(rate * (len(_BLOCKS) - 1))] for rate in rates)
    peak = config.optimizer.lr
    return f"|{drawn}|  {rates[0] * peak:.2g} .. {max(rates) * peak:.2g} .. {rates[-1] * peak:.2g}"
