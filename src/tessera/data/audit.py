"""What a run reads, without a model: one line for each global batch."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from tessera.data.config import BatchConfig, DataConfig
from tessera.data.digest import batch_digest, digest_sum
from tessera.data.loader import Loader
from tessera.data.pipeline.state import LoaderState, merge_states
from tessera.data.sources.opening import OpenSource, open_source
from tessera.tokenizer import Tokenizer


def batch_lines(
    config: DataConfig,
    batch: BatchConfig,
    tokenizer: Tokenizer,
    *,
    vocab_size: int,
    seed: int,
    world_size: int = 1,
    steps: int | None = None,
    with_ids: bool = False,
    state: LoaderState | None = None,
    open_source: OpenSource = open_source,
) -> Iterator[dict[str, Any]]:
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
        open_source: How sources are opened.

    Raises:
        ValueError: As `Loader` does.
    """
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
            open_source=open_source,
        )
        for rank in range(world_size)
    ]
    sources = loaders[0].sources
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
            "masked_tokens": sum(len(row.positions) for row in rows),
            "documents": sum(row.documents for row in rows),
            "fill": round(tokens / (global_rows * config.row_tokens), 6),
            "source_tokens": dict(zip(sources, counts, strict=True)),
            "source_epochs": dict(zip(sources, epochs.tolist(), strict=True)),
            "passed_over": so_far.passed_over(),
            "digest": batch_digest(digest_sum(np.stack([row.digest for row in rows]))),
        }
        if with_ids:
            line["ids"] = {row.number: loaders[0].piece_names(row) for row in rows}
        yield line
