"""What can be known to be wrong before a process group starts: files, tokenizer, phase chain.

`tessera check` and `main.py` ask the same questions; none of them writes anything. Torch is
imported only to read a checkpoint that exists.
"""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tessera import fetch
from tessera.data.config import SourceConfig
from tessera.data.sources.source import Documents, open_source
from tessera.data.supply import Reading, readings
from tessera.files import JsonObject
from tessera.model.config import ModelConfig
from tessera.paths import is_remote
from tessera.quantities import Duration, short_number
from tessera.tokenizer import Tokenizer, load_tokenizer, tokenizer_of
from tessera.tokenizer.extension import not_an_extension
from tessera.training.config import RunConfig
from tessera.training.remote import remote_run

if TYPE_CHECKING:
    from tessera.checkpoints.checkpoint import Checkpoint

MOST_EPOCHS = 4
"""Readings of a source that are about as good as new text (https://arxiv.org/abs/2305.16264)."""


@dataclass(frozen=True)
class Findings:
    """What is wrong with a phase, or may be."""

    problems: list[str] = field(default_factory=list)
    """Each would keep it from running."""
    doubts: list[str] = field(default_factory=list)
    """Each may be meant: it is said, and the phase runs."""
    readings: list[Reading] = field(default_factory=list)
    """What the phase reads of each source, as far as that is known."""
    origin: "Checkpoint | None" = None
    """What `start_from` or `initial_weights` names, read: whoever goes on need not read again."""


def examine(config: RunConfig, world_size: int, *, resuming: bool) -> Findings:
    """Everything that can be known before the phase runs.

    Args:
        config: of the phase.
        world_size: ranks it is to run on.
        resuming: whether the phase has begun: what it once started from has then done its part,
            may be gone, and is not looked at.
    """
    found = [
        *_folder_problems(config.folder),
        *remote_run.problems(config),
        *config.world_problems(world_size),
    ]
    doubts: list[str] = []
    tokenizer = None
    try:
        tokenizer = load_tokenizer(config.tokenizer, quiet=True)
        doubts += [f"tokenizer: {doubt}" for doubt in tokenizer.doubts]
    except ValueError as error:
        found.append(f"tokenizer: {error}")
    if tokenizer is not None and tokenizer.size > config.model.vocab_size:
        found.append(
            f"model.vocab_size: {config.model.vocab_size} rows cannot hold the {tokenizer.size} "
            f"tokens of {config.tokenizer}; use {-(-tokenizer.size // 64) * 64}"
        )
    whole_words = config.train_data.masking.whole_words
    if whole_words and tokenizer is not None and tokenizer.word_starts is None:
        found.append(
            f"train_data.masking.whole_words: the tokens of {config.tokenizer} do not show where a "
            "word begins; set it to false"
        )
    elsewhere = config.evaluation.sources
    whole = config.train_data.on_bad_shard == "stop"
    opened: dict[str, Documents] = {}
    for name, source in config.train_data.sources.items():
        if source.weight > 0:
            splits = [source.split, source.validation_split if elsewhere is None else None]
            key = f"train_data.sources.{name}"
            found += source_problems(key, name, source, splits, tokenizer, opened, whole=whole)
    frame = None if tokenizer is None else (tokenizer.cls_id, tokenizer.sep_id)
    read = readings(config.train_data, config.batch, config.duration, frame, opened)
    doubts += filter(None, map(repeated_too_often, read))
    for name, source in (elsewhere or {}).items():
        key = f"evaluation.sources.{name}"
        splits = [source.validation_split]
        found += source_problems(key, name, source, splits, tokenizer, whole=whole)
    origin = None
    if not resuming and (named := origin_of(config)) is not None:
        about = _examine_origin(*named, config, tokenizer)
        found += about.problems
        doubts += about.doubts
        origin = about.origin
    return Findings(found, doubts, read, origin)


def repeated_too_often(reading: Reading) -> str | None:
    """A doubt if a phase reads a source again and again; none if that is not known."""
    epochs, tokens, wanted = reading.epochs, reading.supply.tokens, reading.wanted
    if tokens == 0:
        return (
            f"train_data.sources.{reading.name}: no document has a length between its "
            "min_document_tokens and max_document_tokens"
        )
    if epochs is None or epochs <= MOST_EPOCHS or wanted is None:
        return None
    return (
        f"train_data.sources.{reading.name}: its {short_number(tokens or 0)} tokens would be read "
        f"{short_number(epochs)} times to make {short_number(wanted)}. Up to {MOST_EPOCHS} "
        "readings teach about as much as new text, more teach less and less "
        "(https://arxiv.org/abs/2305.16264): add text, lower its weight, or shorten duration"
    )


def _folder_problems(folder: Path) -> list[str]:
    """What keeps a run folder from being made or written to."""
    every = (folder / "checkpoints", folder, *folder.absolute().parents)
    there = [path for path in every if path.exists() or path.is_symlink()]
    if not there[0].is_dir():
        kind = "a file" if there[0].exists() else "a link to nothing"
        return [
            f"run_folder: {there[0]} is {kind}, not a folder; move it away, or name another folder"
        ]
    written = [path for path in every[:2] if path in there] or there[:1]
    return [
        f"run_folder: {path} may not be written to (permissions, or a file system that is "
        "read-only); mend it, or name another folder"
        for path in written
        if not os.access(path, os.W_OK | os.X_OK)
    ]


def source_problems(
    key: str,
    name: str,
    source: SourceConfig,
    splits: list[str | None],
    tokenizer: Tokenizer | None,
    opened: "dict[str, Documents] | None" = None,
    *,
    whole: bool,
) -> list[str]:
    """What keeps a source from being read.

    Args:
        key: of the source in the YAML.
        name: of the source.
        source: where it is.
        splits: its splits that are read.
        tokenizer: what training reads it with, if known.
        opened: the training split is put here under its name, for whoever looks into it next.
        whole: whether no shard may be passed over.
    """
    if source.remote is not None:
        return []
    found = []
    for split in filter(lambda split: split is not None, splits):
        try:
            documents = open_source(name, source, split or "", None)
        except ValueError as error:
            found.append(f"{key}: {error}")
            if not Path(source.local).exists():
                break  # the other split is missing with the whole folder
            continue
        if opened is not None and split == source.split:
            opened[name] = documents
        made_by = documents.tokenizer_fingerprint
        folder = Path(source.local) / (split or "")
        if tokenizer is not None and made_by not in (None, tokenizer.fingerprint):
            found.append(
                f"{key}: the shards in {folder} were made with another tokenizer than "
                f"{tokenizer.name}; name the tokenizer they were made with, or prepare them again"
            )
            break  # the other split's would say it again
        if whole and (lacking := documents.lacking()):
            found.append(f"{key}: {lacking}; copy them again, or name the remote they are at")
    return found


def origin_of(config: RunConfig) -> tuple[str, str] | None:
    """The key that names what a phase begins with, and its path; None for random weights."""
    if config.start_from is not None:
        return "start_from", config.start_from.checkpoint
    if config.initial_weights is not None:
        return "initial_weights.tile", config.initial_weights.tile
    return None


def _examine_origin(
    key: str, path: str, config: RunConfig, tokenizer: Tokenizer | None
) -> Findings:
    if not is_remote(path) and not Path(path).exists():
        text = f"{key}: '{path}' does not exist; run the phase before this one, or correct it"
        return Findings([text])
    try:
        found_at = fetch.local(path)
        from tessera.checkpoints.reader import read_checkpoint

        checkpoint = read_checkpoint(found_at)
    except ValueError as error:
        return Findings([f"{key}: {error}"])
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
        trained_with = tokenizer_of(checkpoint.tokenizer_files, f"in {path}")
        if trained_with.fingerprint != tokenizer.fingerprint:
            found.append(_other_tokenizer(key, path, trained_with, tokenizer))
    if key != "start_from":
        return Findings(found, origin=checkpoint)
    doubts = [*_unfinished(path, checkpoint), *_read_again(path, checkpoint, config)]
    return Findings(found, doubts, origin=checkpoint)


def _other_tokenizer(key: str, path: str, trained_with: Tokenizer, ours: Tokenizer) -> str:
    if not_an_extension(trained_with, ours) is None:
        added = ours.size - trained_with.size
        return (
            f"tokenizer: {ours.name} adds {added} tokens to the one that {path} ({key}) was "
            "trained with, whose model has no rows for them; make them with `tessera import "
            f"{path} --out FILE.pt --extend-tokenizer {ours.name}`, and start from that file"
        )
    return (
        f"tokenizer: {ours.name} is not the one that {path} ({key}) was trained with; its token "
        "ids would mean other words"
    )


def _unfinished(path: str, checkpoint: "Checkpoint") -> list[str]:
    """A doubt if the newest checkpoint of a phase is asked for, and is not its last."""
    newest = (Path(path) / "checkpoints").is_dir() or Path(path).name == "latest"
    progress, duration = checkpoint.progress, checkpoint.run_config.get("duration")
    if not newest or duration is None or not {"tokens", "steps", "documents"} <= progress.keys():
        return []
    total = Duration.parse(duration)
    key = total.counted
    if progress[key] >= total.value:
        return []
    return [
        f"start_from: the phase in {path} is at {progress[key]:,} of {total.value:,} {key}. "
        "This one starts from there all the same; finish the other first if that is not meant"
    ]


def _read_again(path: str, checkpoint: "Checkpoint", config: RunConfig) -> list[str]:
    """A doubt if sources would be shuffled as they were in the phase before."""
    before = checkpoint.run_config.get("train_data")
    data = config.train_data
    if not before or not (before.get("shuffle", True) and data.shuffle):
        return []
    old_seed = before.get("seed")
    old_seed = checkpoint.run_config.get("seed") if old_seed is None else old_seed
    seed = config.seed if data.seed is None else data.seed
    shared = [
        name
        for name, source in data.sources.items()
        if source.weight > 0 and _same_documents(source, before.get("sources", {}).get(name))
    ]
    if not shared or old_seed != seed:
        return []
    return [
        f"train_data.seed: {path} read {', '.join(shared)} with the same seed, {seed}; this phase "
        "would begin with the same documents again. Give it another seed"
    ]


def _same_documents(source: SourceConfig, before: JsonObject | None) -> bool:
    if before is None or not before.get("weight", 1.0):
        return False
    return all(before.get(key) == getattr(source, key) for key in ("local", "remote", "split"))


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
