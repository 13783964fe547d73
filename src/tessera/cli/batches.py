"""`tessera batches`: the order of a run's data, one JSON line per global batch."""

import json
from collections.abc import Iterator, Sequence

from tessera.config import ConfigError, load
from tessera.training.config import RunConfig


def lines(
    config_path: str,
    overrides: Sequence[str],
    *,
    start_from: str | None,
    steps: int,
    world_size: int,
    with_ids: bool,
) -> Iterator[str]:
    """The lines to print.

    Raises:
        ConfigError: the YAML is wrong, or the checkpoint does not say where its data was.
    """
    config = load(RunConfig, config_path, overrides)

    from tessera.checkpoints.reader import read_checkpoint
    from tessera.data.audit import batch_lines
    from tessera.data.pipeline.state import LoaderState
    from tessera.tokenizer import load_tokenizer

    state = None
    if start_from is not None:
        data = read_checkpoint(start_from).data
        if data is None:
            raise ConfigError(f"{start_from}: holds no data position; only our checkpoints do")
        state = LoaderState.from_json(data)
    for line in batch_lines(
        config.train_data,
        config.batch,
        load_tokenizer(config.tokenizer),
        vocab_size=config.model.vocab_size,
        seed=config.seed,
        world_size=world_size,
        steps=steps,
        with_ids=with_ids,
        state=state,
    ):
        yield json.dumps(line)
