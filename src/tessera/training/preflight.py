"""What can be known to be wrong before a process group starts: files, tokenizer, phase chain.

`tessera check` and `main.py` ask the same questions; none of them writes anything.
"""

from dataclasses import replace
from pathlib import Path

from tessera.data.config import SourceConfig
from tessera.data.tokenizer import Tokenizer, load_tokenizer
from tessera.model.config import ModelConfig
from tessera.training.config import RunConfig


def problems(config: RunConfig, world_size: int) -> list[str]:
    """Everything that would keep this phase from running; empty if nothing would."""
    found = list(config.world_problems(world_size))
    tokenizer = None
    try:
        tokenizer = load_tokenizer(config.tokenizer)
    except ValueError as error:
        found.append(f"tokenizer: {error}")
    if tokenizer is not None and tokenizer.size > config.model.vocab_size:
        found.append(
            f"model.vocab_size: {config.model.vocab_size} rows cannot hold the {tokenizer.size} "
            f"tokens of {config.tokenizer}; use {-(-tokenizer.size // 64) * 64}"
        )
    elsewhere = config.evaluation.sources
    for name, source in config.train_data.sources.items():
        if source.weight > 0:
            splits = [source.split, source.validation_split if elsewhere is None else None]
            key = f"train_data.sources.{name}"
            found += _source_problems(key, name, source, splits, tokenizer)
    for name, source in (elsewhere or {}).items():
        key = f"evaluation.sources.{name}"
        found += _source_problems(key, name, source, [source.validation_split], tokenizer)
    for key, path in _origins(config).items():
        found += _origin_problems(key, path, config, tokenizer)
    return found


def _source_problems(
    key: str,
    name: str,
    source: SourceConfig,
    splits: list[str | None],
    tokenizer: Tokenizer | None,
) -> list[str]:
    from tessera.data.source import Source

    if source.remote is not None:
        return []
    found = []
    for split in filter(lambda split: split is not None, splits):
        try:
            opened = Source(name, source.local, split=split or "")
        except ValueError as error:
            found.append(f"{key}: {error}")
            continue
        made_by = opened.tokenizer_fingerprint
        if not opened.samples.sum():
            found.append(f"{key}: {opened.folder} holds no documents; prepare the data again")
        elif tokenizer is not None and made_by not in (None, tokenizer.fingerprint):
            found.append(
                f"{key}: the shards in {opened.folder} were made with another tokenizer than "
                f"{tokenizer.name}; name the tokenizer they were made with, or prepare them again"
            )
    return found


def _origins(config: RunConfig) -> dict[str, str]:
    origins = {}
    if config.start_from is not None:
        origins["start_from"] = config.start_from.checkpoint
    if config.initial_weights is not None:
        origins["initial_weights.tile"] = config.initial_weights.tile
    return origins


def _origin_problems(
    key: str, path: str, config: RunConfig, tokenizer: Tokenizer | None
) -> list[str]:
    from tessera.checkpoints.reader import read_checkpoint

    if not Path(path).exists():
        return [f"{key}: '{path}' does not exist; run the phase before this one, or correct it"]
    try:
        checkpoint = read_checkpoint(path)
    except ValueError as error:
        return [f"{key}: {error}"]
    found = []
    if key == "start_from":
        theirs, ours = _shape(checkpoint.model_config), _shape(config.model)
        for name, value in vars(ours).items():
            if vars(theirs)[name] != value:
                found.append(
                    f"model.{name}: {value} here, {vars(theirs)[name]} in {path} ({key}); a phase "
                    "continues the architecture of the one before"
                )
    if checkpoint.tokenizer_files is not None and tokenizer is not None:
        theirs_print = _fingerprint(checkpoint.tokenizer_files)
        if theirs_print not in (None, tokenizer.fingerprint):
            found.append(
                f"tokenizer: {config.tokenizer} is not the one that {path} ({key}) was trained "
                "with; its token ids would mean other words"
            )
    return found


def _shape(config: ModelConfig) -> ModelConfig:
    """The architecture without what a phase may change: thetas, dropout, how weights begin."""
    free = ModelConfig()
    return replace(
        config,
        global_rope_theta=free.global_rope_theta,
        local_rope_theta=free.local_rope_theta,
        attention_output_dropout=free.attention_output_dropout,
        initializer_range=free.initializer_range,
        initializer_cutoff_factor=free.initializer_cutoff_factor,
        decoder_bias_init=free.decoder_bias_init,
    )


def _fingerprint(files: dict[str, str]) -> str | None:
    import tempfile

    if "tokenizer.json" not in files:
        return None
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text)
        return load_tokenizer(folder).fingerprint
