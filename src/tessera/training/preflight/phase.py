"""What can be known to be wrong before a process group starts: files, tokenizer, phase chain.

`tessera check` and `main.py` ask the same questions; none of them writes anything. Torch is
imported only to read a checkpoint that exists.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tessera import fetch
from tessera.config import ConfigError, decode
from tessera.data.config import MaskingConfig, SourceConfig
from tessera.data.sources.source import Documents
from tessera.data.supply import Reading, readings
from tessera.files import JsonObject
from tessera.model.config import ModelConfig
from tessera.optim.config import Muon, OptimizerConfig, StableAdamW
from tessera.paths import CACHE_VARIABLE, SOURCE, cache_folder, is_remote
from tessera.quantities import Duration, short_number
from tessera.schema import Section
from tessera.tokenizer import Tokenizer, load_tokenizer, tokenizer_of
from tessera.tokenizer.extension import not_an_extension
from tessera.training.config import EvaluationConfig, LinearProbeConfig, RunConfig
from tessera.training.preflight.sources import (
    linear_probe_problems,
    one_document_is_all,
    probe_problems,
    repeated_too_often,
    source_problems,
)
from tessera.training.remote import remote_run

if TYPE_CHECKING:
    from tessera.checkpoints.checkpoint import Checkpoint


MOST_RATE = 0.05
"""A peak learning rate above this is said to be hardly meant."""
MOST_DECAY = 0.01
"""So is a larger share of a weight that a step takes away."""


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


def examine(
    config: RunConfig,
    world_size: int,
    *,
    resuming: bool,
    planned: Sequence[RunConfig] = (),
) -> Findings:
    """Everything that can be known before the phase runs.

    Args:
        config: of the phase.
        world_size: ranks it is to run on.
        resuming: whether the phase has begun: what it once started from has then done its part,
            may be gone, and is not looked at.
        planned: phases that will have run before, whose checkpoints need not be there yet.
    """
    found = [
        *_folder_problems(config.folder),
        *_cache_problems(config),
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
    whole_words = config.train_data.masking.whole_words and not config.train_data.causal
    if whole_words and tokenizer is not None and tokenizer.word_starts is None:
        found.append(
            f"train_data.masking.whole_words: the tokens of {config.tokenizer} do not show where a "
            "word begins; set it to false"
        )
    elsewhere = config.evaluation.sources
    whole = config.train_data.on_bad_shard == "stop"
    doubts += _values_in_doubt(config, tokenizer)
    opened: dict[tuple[str, str], Documents] = {}
    for name, source in config.train_data.sources.items():
        if source.weight > 0:
            splits = [source.split, source.validation_split if elsewhere is None else None]
            key = f"train_data.sources.{name}"
            found += source_problems(key, name, source, splits, tokenizer, opened, whole=whole)
    found += probe_problems(config)
    frame = None if tokenizer is None else (tokenizer.cls_id, tokenizer.sep_id)
    train = {
        name: opened[name, source.split]
        for name, source in config.train_data.sources.items()
        if (name, source.split) in opened
    }
    read = readings(config.train_data, config.batch, config.duration, frame, train)
    doubts += filter(None, map(repeated_too_often, read))
    for name, source in (elsewhere or {}).items():
        key = f"evaluation.sources.{name}"
        splits = [source.validation_split]
        found += source_problems(key, name, source, splits, tokenizer, opened, whole=whole)
    for name, source in (config.train_data.sources if elsewhere is None else elsewhere).items():
        documents = opened.get((name, source.validation_split or ""))
        if documents is not None and source.validation_split not in (None, source.split):
            doubts += filter(None, [one_document_is_all(name, documents)])
    origin = None
    if not resuming and (named := origin_of(config)) is not None:
        coming = _planned_origin(named[1], planned)
        about = (
            _examine_origin(*named, config, tokenizer)
            if coming is None
            else Findings(_other_shape(*named, coming.model, config.model))
        )
        found += about.problems
        doubts += about.doubts
        origin = about.origin
    return Findings(found, doubts, read, origin)


def missing_files(plain: JsonObject) -> list[str]:
    """What a configuration names that is not there, where its values are too wrong to be examined.

    Args:
        plain: the resolved YAML; sections that are wrong themselves are passed over.
    """
    found = []
    tokenizer = _place(plain.get("tokenizer"))
    if tokenizer is not None:
        try:
            load_tokenizer(tokenizer, quiet=True)
        except ValueError as error:
            found.append(f"tokenizer: {error}")
    for section, read in (("train_data", True), ("evaluation", False)):
        for name, own in _sections(_section(plain, section), "sources"):
            source = _as_far_as_known(SourceConfig, own)
            if source is None or (read and not source.weight > 0):
                continue
            splits = [source.split if read else None, source.validation_split]
            key = f"{section}.sources.{name}"
            found += source_problems(key, name, source, splits, None, whole=False)
    probes = _section(_section(plain, "evaluation"), "probes")
    labelled = _as_far_as_known(LinearProbeConfig, probes.get("linear_probe"))
    found += [] if labelled is None else linear_probe_problems(labelled)
    origin = plain.get("start_from")
    origin = origin.get("checkpoint") if isinstance(origin, dict) else origin
    tile = _section(plain, "initial_weights").get("tile")
    for key, named in (("start_from", origin), ("initial_weights.tile", tile)):
        place = _place(named)
        if place is not None and not is_remote(place) and not Path(place).exists():
            found.append(_no_origin(key, place))
    return found


def _section(plain: JsonObject, name: str) -> JsonObject:
    """A section of a configuration; empty where there is none, or something else."""
    found = plain.get(name)
    return found if isinstance(found, dict) else {}


def _sections(plain: JsonObject, name: str) -> Iterator[tuple[str, JsonObject]]:
    return ((str(key), own) for key, own in _section(plain, name).items() if isinstance(own, dict))


def _as_far_as_known(cls: type[Section], plain: object) -> Section | None:
    """What a section says by those of its keys that there are; None if that is wrong."""
    if not isinstance(plain, dict):
        return None
    known = {one.name for one in fields(cls)}  # type: ignore[arg-type]
    with suppress(ConfigError):
        return decode(cls, {key: item for key, item in plain.items() if key in known}, "")
    return None


def _place(named: object) -> str | None:
    """The place that a value names; None if it is none, which is said where it is decoded."""
    with suppress(ValueError):
        return SOURCE.parse(named)
    return None


def _optimizers(config: OptimizerConfig) -> list[tuple[str, OptimizerConfig]]:
    """The optimizer, and the one beside it, each with its key."""
    found: list[tuple[str, OptimizerConfig]] = [("optimizer", config)]
    return [*found, ("optimizer.rest", config.rest)] if isinstance(config, Muon) else found


def _values_in_doubt(config: RunConfig, tokenizer: Tokenizer | None) -> list[str]:
    """Values that are allowed, and hardly meant."""
    found = _without_masks(config) if config.train_data.causal else []
    for key, each in _optimizers(config.optimizer):
        if each.lr > MOST_RATE:
            found.append(
                f"{key}.lr: {each.lr:g} is far above what trains (the recipe's peak is 8e-4; small "
                "models take up to some 1e-2)"
            )
        taken = each.lr * each.weight_decay
        if not isinstance(each, StableAdamW) and taken > MOST_DECAY:
            found.append(
                f"{key}.weight_decay: {each.weight_decay:g} takes {taken:.1%} of a weight away at "
                "every step, and would erase it; 0.01 to 0.1 is usual"
            )
    slots = config.batch.rows * config.train_data.row_tokens
    if config.duration.unit == "tok" and config.duration.value < slots:
        found.append(
            f"duration: {config.duration.value:,} tokens are less than one batch of {slots:,} "
            f"slots ({config.batch.rows:,} rows of train_data.row_tokens); lower batch.rows, or "
            "train longer"
        )
    if config.batch.microbatch_rows > config.batch.rows:
        found.append(
            f"batch.microbatch_rows: {config.batch.microbatch_rows} at a time, of the "
            f"{config.batch.rows} of batch.rows"
        )
    for key, interval in (
        ("evaluation.interval", config.evaluation.interval),
        ("checkpoints.interval", config.checkpoints.interval),
    ):
        same = interval is not None and interval.unit == config.duration.unit
        if interval is not None and same and interval.value > config.duration.value:
            found.append(f"{key}: '{interval}' is longer than duration '{config.duration}'")
    probes, longest = config.evaluation.probes, config.train_data.max_seq_len
    if probes is not None and probes.short >= longest:
        found.append(
            f"evaluation.probes.short: {probes.short} tokens are no less than "
            f"train_data.max_seq_len, {longest}: nothing lies beyond them to compare"
        )
    if (why := config.model.not_in_transformers) is not None:
        found.append(
            f"{why}: such a model cannot be exported to transformers. It trains, and `tessera "
            "evaluate` gives its masked-LM loss; `export`, `release`, graphs, fine-tuning and "
            "suites refuse it. Set it to false if they are wanted"
        )
    rows = config.model.vocab_size
    if tokenizer is not None and rows >= 1.5 * tokenizer.size:
        idle = (rows - tokenizer.size) * config.model.hidden_size
        found.append(
            f"model.vocab_size: {rows:,} rows for the {tokenizer.size:,} tokens of "
            f"{config.tokenizer}: {short_number(idle)} parameters that no token uses; "
            f"{-(-tokenizer.size // 64) * 64} would do"
        )
    return found


def _without_masks(config: RunConfig) -> list[str]:
    """What is set, and says nothing in a phase that masks nothing."""
    masking, plain = config.train_data.masking, MaskingConfig()
    keys = [
        f"train_data.masking.{one.name}"
        for one in fields(masking)
        if getattr(masking, one.name) != getattr(plain, one.name)
    ]
    if config.evaluation.masking_rate != EvaluationConfig.masking_rate:
        keys.append("evaluation.masking_rate")
    if not keys:
        return []
    says = "says" if len(keys) == 1 else "say"
    return [
        f"{', '.join(keys)}: {says} nothing here, where train_data.objective is causal and nothing "
        "is masked; leave out of this phase, or at the default"
    ]


def _cache_problems(config: RunConfig) -> list[str]:
    """What keeps caches of what is elsewhere from being made or written to."""
    found = []
    for name, source in config.train_data.sources.items():
        if source.remote is not None and source.weight > 0:
            key = f"train_data.sources.{name}.local"
            found += _folder_problems(Path(source.local), key)
    named = origin_of(config)
    places = [config.run_folder, config.tokenizer, *([named[1]] if named else [])]
    if any(map(is_remote, places)):
        try:
            found += _folder_problems(cache_folder(), CACHE_VARIABLE)
        except (ValueError, OSError) as error:
            found.append(f"{CACHE_VARIABLE}: {error}")
    return found


def _folder_problems(folder: Path, key: str = "run_folder") -> list[str]:
    """What keeps a run folder, or a cache, from being made or written to."""
    every = (folder / "checkpoints", folder, *folder.absolute().parents)
    there = [path for path in every if path.exists() or path.is_symlink()]
    if not there[0].is_dir():
        kind = "a file" if there[0].exists() else "a link to nothing"
        return [f"{key}: {there[0]} is {kind}, not a folder; move it away, or name another folder"]
    written = [path for path in every[:2] if path in there] or there[:1]
    return [
        f"{key}: {path} may not be written to (permissions, or a file system that is "
        "read-only); mend it, or name another folder"
        for path in written
        if not os.access(path, os.W_OK | os.X_OK)
    ]


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
        return Findings([_no_origin(key, path)])
    try:
        found_at = fetch.local(path)
        from tessera.checkpoints.reader import read_checkpoint

        checkpoint = read_checkpoint(found_at)
    except ValueError as error:
        return Findings([f"{key}: {error}"])
    found = _other_shape(key, path, checkpoint.model_config, config.model)
    if checkpoint.tokenizer_files is not None and tokenizer is not None:
        trained_with = tokenizer_of(checkpoint.tokenizer_files, f"in {path}")
        if trained_with.fingerprint != tokenizer.fingerprint:
            found.append(_other_tokenizer(key, path, trained_with, tokenizer))
    if key != "start_from":
        from tessera.model.tiling import check_tileable

        assert config.initial_weights is not None
        try:
            check_tileable(checkpoint.model_config, config.model, config.initial_weights.mode)
        except ValueError as error:
            found.append(f"{key}: {path}: {error}")
        return Findings(found, origin=checkpoint)
    doubts = [
        *_unfinished(path, checkpoint),
        *_read_again(path, checkpoint, config),
        *_weights_alone(path, checkpoint, config),
    ]
    return Findings(found, doubts, origin=checkpoint)


def _no_origin(key: str, path: str) -> str:
    said = f"{key}: '{path}' does not exist; run the phase before this one, or correct it"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", path) and not Path(path).parent.exists():
        said += (
            f". If it is a model of the Hugging Face Hub, bring it first (hf download {path} "
            f"--local-dir {Path(path).name}) and name its folder ({key}={Path(path).name})"
        )
    return said


def _planned_origin(path: str, planned: Sequence[RunConfig]) -> RunConfig | None:
    """The phase that is to write what does not exist yet."""
    if not is_remote(path) and Path(path).exists():
        return None
    writes = (p for p in planned if f"{path}/".startswith(f"{p.run_folder.rstrip('/')}/"))
    return next(writes, None)


def _other_shape(key: str, path: str, theirs: ModelConfig, ours: ModelConfig) -> list[str]:
    if key != "start_from":
        return []
    theirs, ours = _shape(theirs), _shape(ours)
    return [
        f"model.{name}: {value} here, {vars(theirs)[name]} in {path} ({key}); a phase continues "
        "the architecture of the one before"
        for name, value in vars(ours).items()
        if vars(theirs)[name] != value
    ]


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


def _weights_alone(path: str, checkpoint: "Checkpoint", config: RunConfig) -> list[str]:
    """A doubt if the optimizer's state is wanted and cannot be had."""
    assert config.start_from is not None
    if not config.start_from.optimizer:
        return []
    before = (checkpoint.run_config.get("optimizer") or {}).get("name")
    if before in (None, config.optimizer.name):
        return []
    return [
        f"start_from: {path} was trained with {before}, this phase with {config.optimizer.name}: "
        "it begins with the weights alone, so that its rate needs a warmup. Write "
        "start_from.optimizer=false if that is meant"
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
