"""The models that are judged: what their arguments mean, and the folder each is served from.

Imports no torch, but to export a checkpoint of ours.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from tessera import fetch
from tessera.config import ConfigError
from tessera.evaluation.tasks.inputs.tables import hub_folder
from tessera.object_store import sha256_of
from tessera.paths import is_remote

_RANDOM = "random:"
_TOKENIZERS = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spm.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model, as the jobs need it; goes to other processes and machines."""

    name: str
    """What it is called in the table."""
    source: str
    """The checkpoint, run folder or Hugging Face folder that was given."""
    folder: str
    """A Hugging Face folder: `source`, or what is exported from it."""
    random: bool
    """Whether it starts from random weights of the same shape."""
    fingerprint: str
    """Of its weights."""

    @property
    def is_exported(self) -> bool:
        """Whether the folder is an export of ours."""
        return self.folder != self.source


def resolve(arguments: Sequence[str], out: Path) -> list[Model]:
    """The models of the command's arguments: `PATH`, `NAME=PATH`, a hub id, or `random:` one.

    Raises:
        ConfigError: there is no such model, or two have one name.
    """
    models = [_resolve(argument, out) for argument in arguments]
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two models are called '{name}'; name them: one=PATH other=PATH")
    return models


def _resolve(argument: str, out: Path) -> Model:
    name, _, place = argument.rpartition("=") if "=" in argument else ("", "", argument)
    name = name or argument.rstrip("/")
    random = place.startswith(_RANDOM)
    source = _find(place.removeprefix(_RANDOM).rstrip("/"))
    weights = _weights_of(source)
    content = "".join(sha256_of(file) for file in weights)
    fingerprint = sha256(f"{random} {content}".encode()).hexdigest()[:16]
    folder = source
    if not (source / "config.json").is_file():
        slug = re.sub(r"[^\w.-]+", "-", str(source)).strip("-.")[-60:]
        folder = out / "models" / f"{slug}-{sha256(content.encode()).hexdigest()[:12]}"
    return Model(
        name=name, source=str(source), folder=str(folder), random=random, fingerprint=fingerprint
    )


def _find(place: str) -> Path:
    found = fetch.local(place)
    if found.exists():
        return found
    if is_remote(place) or place.startswith((".", "/", "~")) or place.count("/") != 1:
        raise ConfigError(f"{place}: there is no such file or folder")
    try:
        return hub_folder(place, "model")
    except ValueError as error:
        raise ConfigError(f"{place}: there is no such file or folder; {error}") from None


def _weights_of(source: Path) -> list[Path]:
    """The files that hold the weights."""
    if source.is_file():
        return [source]
    if (source / "config.json").is_file():
        files = sorted([*source.glob("*.safetensors"), *source.glob("pytorch_model*.bin")])
        return [source / "config.json", *files]
    for folder in (source / "checkpoints", source):
        if (folder / "latest").is_file():
            return [(folder / "latest").resolve()]
        numbered = sorted(folder.glob("step*.pt")) if folder.is_dir() else []
        if numbered:
            return numbered[-1:]
    raise ConfigError(
        f"{source}: a folder with neither a Hugging Face model (config.json) nor checkpoints "
        "(checkpoints/latest)"
    )


def served(model: Model) -> None:
    """Make sure that the folder of a model is there and holds an encoder with its tokenizer.

    Raises:
        ValueError: it does not, or its checkpoint cannot be exported.
    """
    folder = Path(model.folder)
    if model.is_exported and not (folder / "config.json").is_file():
        from tessera.checkpoints import export

        export(model.source, folder)
    config = _json(folder / "config.json")
    architectures = config.get("architectures") or []
    causal = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures)
    if causal or config.get("is_decoder") or config.get("is_encoder_decoder"):
        kind = ", ".join(architectures) or config.get("model_type", "unknown")
        raise ValueError(f"{model.source}: is a decoder ({kind}); what is judged here are encoders")
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise ValueError(
            f"{model.source}: holds no tokenizer; copy tokenizer.json and tokenizer_config.json of "
            "the one it was trained with into the folder"
        )


def random_start(model: Model, seed: int, folder: Path) -> Path:
    """A copy of a model's folder whose weights are drawn anew, for a task that loads a folder."""
    import shutil

    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM

    folder.mkdir(parents=True)
    for file in Path(model.folder).iterdir():
        if file.suffix in (".json", ".txt", ".model"):
            shutil.copyfile(file, folder / file.name)
    torch.manual_seed(seed)
    config: Any = AutoConfig.from_pretrained(model.folder)
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    return folder


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: is no JSON object")
    return content
