"""What a phase takes from what it starts from, where its YAML says nothing.

The model, the tokenizer, how rows are laid out and how many make a batch. Of a run of ours that is
read from its `config.yaml`, without torch. A phase that has begun takes it from its own, for what
it started from may be gone by then.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from tessera import fetch
from tessera.files import JsonObject
from tessera.model.config import ModelConfig
from tessera.paths import LOCAL, RUN, SOURCE, cached, is_remote
from tessera.training import run_folder

PUBLISHED: JsonObject = {
    "model": {},
    "tokenizer": "answerdotai/ModernBERT-base",
    "train_data": {"max_seq_len": 8192, "row_tokens": 98_304},
    "batch": {"rows": 48},
}
"""What holds where the checkpoint does not say, or is not there yet: the recipe's after phase 1."""

RECIPE = "the published recipe"
_BATCH_SLOTS = 48 * 98_304
_SEGMENTS_OF_A_ROW = 12
_LENGTHS = ("max_seq_len", "row_tokens")
_LAYOUT = (*_LENGTHS, "long_documents", "lanes", "waiting_pieces")
_BATCH = ("rows", "microbatch_rows")
_MAY_CHANGE = (
    *("global_rope_theta", "local_rope_theta", "attention_output_dropout"),
    *("initializer_range", "initializer_cutoff_factor", "decoder_bias_init"),
)
"""Keys of `model` that change a model; one that names any other describes it by itself."""


@dataclass(frozen=True)
class Taken:
    """Which keys were filled in, and from where."""

    keys: tuple[str, ...] = ()
    place: str = ""


def fill(plain: Any, planned: Sequence[JsonObject] = ()) -> tuple[Any, Taken]:
    """The same configuration with what it leaves to `start_from`.

    Nothing is wrong here: whatever cannot be read is said by who examines the phase.

    Args:
        plain: the resolved YAML.
        planned: phases, as plain values, that will have run before and may be started from.
    """
    if not isinstance(plain, dict):
        return plain, Taken()
    wanted = dict(_wanted(plain))
    path = plain.get("start_from")
    path = path.get("checkpoint") if isinstance(path, dict) else path
    if not wanted or not isinstance(path, str) or not path:
        return plain, Taken()
    place, theirs = _settings_before(plain, path, planned)
    theirs = _whole(theirs)
    filled, keys = dict(plain), []
    for section, names in wanted.items():
        own = plain.get(section) or {}
        if names is None:
            filled[section] = theirs[section] if section == "tokenizer" else theirs[section] | own
            keys.append(f"{section} but {', '.join(own)}" if own else section)
            continue
        found = {name: theirs[section][name] for name in names if name in theirs[section]}
        filled[section] = found | own
        keys += [f"{section}.{name}" for name in found if name not in own]
    return filled, Taken(tuple(keys), place)


def _wanted(plain: JsonObject) -> Iterator[tuple[str, tuple[str, ...] | None]]:
    """Sections of which something is missing, and which keys; None for everything."""
    model, data, batch = (plain.get(key) for key in ("model", "train_data", "batch"))
    if model is None or (isinstance(model, dict) and set(model) <= set(_MAY_CHANGE)):
        yield "model", None
    if plain.get("tokenizer") is None:
        yield "tokenizer", None
    if data is None or (isinstance(data, dict) and not any(key in data for key in _LENGTHS)):
        yield "train_data", _LAYOUT
    if batch is None or (isinstance(batch, dict) and "rows" not in batch):
        yield "batch", _BATCH


def _settings_before(
    plain: JsonObject, path: str, planned: Sequence[JsonObject]
) -> tuple[str, JsonObject]:
    own = _own_settings(plain)
    if own is not None:
        return str(plain["run_folder"]), own
    try:
        origin = SOURCE.parse(path)
    except ValueError:
        return path, {}
    for phase in planned:
        if f"{origin}/".startswith(f"{str(phase.get('run_folder')).rstrip('/')}/"):
            return origin, phase
    if not is_remote(origin) and not Path(origin).exists():
        return RECIPE, {}
    try:
        here = fetch.local(origin)
        recorded = _recorded(here)
        return (origin, recorded) if recorded else _read(origin, here)
    except (ValueError, OSError):
        return RECIPE, {}


def _own_settings(plain: JsonObject) -> JsonObject | None:
    """What a phase that has begun began with."""
    try:
        place = RUN.parse(plain.get("run_folder"))
        section = plain.get("checkpoints")
        remote = section.get("remote") if isinstance(section, dict) else None
        remote = place if is_remote(place) else remote
        folder = cached("runs", place) if is_remote(place) else Path(LOCAL.parse(place))
        if run_folder.checkpoints(folder):
            return _config(folder)
        if isinstance(remote, str) and is_remote(remote):
            return _config(fetch.local(remote, "records"))
    except (ValueError, OSError):
        pass
    return None


def _recorded(path: Path) -> JsonObject | None:
    """What the run says that a path is of: the run folder, its checkpoints, or one of these."""
    if (path / "config.json").is_file():
        return None
    return next(filter(None, map(_config, (path, path.parent, path.parent.parent))), None)


def _config(folder: Path) -> JsonObject | None:
    if not (folder / "checkpoints").is_dir() or not (folder / "config.yaml").is_file():
        return None
    try:
        found = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder}/config.yaml: not valid YAML") from error
    return found if isinstance(found, dict) else None


def _read(origin: str, path: Path) -> tuple[str, JsonObject]:
    """The same of a checkpoint by itself, which takes torch to read, and where it is from.

    A folder of Hugging Face knows a length and no batch: one as large as the recipe's is chosen.
    """
    from tessera.checkpoints.reader import read_checkpoint

    checkpoint = read_checkpoint(path)
    found = dict(checkpoint.run_config)
    found["model"] = asdict(checkpoint.model_config)
    if path.is_dir() and checkpoint.tokenizer_files:
        found["tokenizer"] = origin
    if not found.get("train_data") and checkpoint.max_seq_len:
        row_tokens = _SEGMENTS_OF_A_ROW * checkpoint.max_seq_len
        found["train_data"] = {"max_seq_len": checkpoint.max_seq_len, "row_tokens": row_tokens}
        found["batch"] = {"rows": max(1, _BATCH_SLOTS // row_tokens)}
        origin += ", which says nothing of rows and batch: the recipe's, for its length"
    return origin, found


def _whole(theirs: Mapping[str, Any]) -> JsonObject:
    """With what holds otherwise for whatever is not there, or is no section."""
    found = dict(PUBLISHED)
    for key, otherwise in PUBLISHED.items():
        if isinstance(theirs.get(key), type(otherwise)) and theirs[key]:
            found[key] = theirs[key]
    found["model"] = {**asdict(ModelConfig()), **found["model"]}
    return found
