"""`tessera batches`: the order of a run's data, one JSON line per global batch."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tessera.cli.arguments import add_config, at_least, existing, load_config
from tessera.config import ConfigError
from tessera.data.config import BatchConfig, DataConfig
from tessera.files import JsonObject

if TYPE_CHECKING:
    from tessera.data.pipeline.state import LoaderState
    from tessera.data.sources.source import OpenSource
    from tessera.tokenizer import Tokenizer

HELP = "What a run reads: one JSON line per global batch."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    add_config(parser)
    parser.add_argument("--start-from", metavar="CKPT", help="continue from this checkpoint's data")
    parser.add_argument("--steps", type=int, default=10, metavar="N")
    parser.add_argument("--world-size", type=int, default=1, metavar="W")
    parser.add_argument("--ids", action="store_true", help="with the documents of each batch")


def run(options: argparse.Namespace) -> None:
    """Print the lines.

    Raises:
        ConfigError: the YAML is wrong, or the checkpoint does not say where its data was.
    """
    world_size = at_least(1, "--world-size", options.world_size)
    steps = at_least(1, "--steps", options.steps)
    if options.start_from is not None:
        existing(options.start_from)
    config = load_config(options)
    config.check_world(world_size)
    state = None if options.start_from is None else _state_of(existing(options.start_from))

    from tessera.tokenizer import load_tokenizer

    for line in batch_lines(
        config.train_data,
        config.batch,
        load_tokenizer(config.tokenizer),
        vocab_size=config.model.vocab_size,
        seed=config.seed,
        world_size=world_size,
        steps=steps,
        with_ids=options.ids,
        state=state,
    ):
        print(json.dumps(line), flush=True)


def _state_of(checkpoint: Path) -> "LoaderState":
    from tessera.checkpoints.reader import read_checkpoint
    from tessera.data.pipeline.state import LoaderState

    data = read_checkpoint(checkpoint).data
    if data is None:
        raise ConfigError(f"{checkpoint}: holds no data position; only our checkpoints do")
    return LoaderState.from_json(data)


def batch_lines(
    config: DataConfig,
    batch: BatchConfig,
    tokenizer: "Tokenizer",
    *,
    vocab_size: int,
    seed: int,
    world_size: int = 1,
    steps: int | None = None,
    with_ids: bool = False,
    state: "LoaderState | None" = None,
    open_source: "OpenSource | None" = None,
) -> Iterator[JsonObject]:
    """Describe global batches in plain values; the lines do not depend on `world_size`.

    Args:
        config: What to read.
        batch: How many rows a step takes.
        tokenizer: The one that made the shards.
        vocab_size: Rows of the model's embedding.
        seed: The run's.
        world_size: As how many ranks to read, all in this process.
        steps: How many batches; without end if None.
        with_ids: Also list the rows' pieces as (source, document id, number of the piece).
        state: Where to begin; at the beginning if None.
        open_source: How sources are opened, if not as usual.

    Raises:
        ValueError: As `Loader` does.
    """
    import numpy as np

    from tessera.data.digest import batch_digest, digest_sum
    from tessera.data.loader import Loader, merge_states
    from tessera.data.sources import source as sources

    loaders = [
        Loader(
            replace(config, workers=0),
            batch,
            tokenizer,
            vocab_size=vocab_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            state=state,
            open_source=open_source or sources.open_source,
        )
        for rank in range(world_size)
    ]
    names, predicted = loaders[0].sources, f"{'predicted' if config.causal else 'masked'}_tokens"
    so_far = merge_states(loader.start for loader in loaders)
    for shares in islice(zip(*(loader.steps() for loader in loaders), strict=True), steps):
        step, rows_before, global_rows, _ = shares[0]
        rows = sorted((row for *_, mine in shares for row in mine), key=lambda row: row.number)
        counts = np.sum([row.source_tokens for row in rows], axis=0).tolist()
        tokens = sum(row.tokens for row in rows)
        so_far = replace(so_far, lanes=so_far.lanes | {row.lane: row.state for row in rows})
        epochs = np.max([loaders[0].epochs(*lane) for lane in so_far.lanes.items()], axis=0)
        line = {
            "step": step,
            "rows": global_rows,
            "rows_before": rows_before,
            "tokens": tokens,
            predicted: sum(len(row.positions) for row in rows),
            "documents": sum(row.documents for row in rows),
            "fill": round(tokens / (global_rows * config.row_tokens), 6),
            "source_tokens": dict(zip(names, counts, strict=True)),
            "source_epochs": dict(zip(names, epochs.tolist(), strict=True)),
            "passed_over": so_far.passed_over(),
            "digest": batch_digest(digest_sum(np.stack([row.digest for row in rows]))),
        }
        if with_ids:
            line["ids"] = {row.number: loaders[0].piece_names(row) for row in rows}
        yield line
