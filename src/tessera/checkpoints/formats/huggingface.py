"""Reading models that transformers saved, versions 4.48 to 5: a folder of config and tensors."""

from pathlib import Path
from typing import Any

from torch import Tensor

from tessera.checkpoints.checkpoint import Checkpoint, CheckpointError, check_weights
from tessera.checkpoints.formats.huggingface_config import build_config, read_config
from tessera.checkpoints.safe_files import (
    load_json,
    load_pickled_tensors,
    load_safetensors,
    load_text,
)
from tessera.files import JsonObject
from tessera.model.config import ModelConfig
from tessera.tokenizer import TOKENIZER_FILES

OWN_FILE = "tessera.json"
"""Beside config.json in our exports: what config.json has no room for."""


def read_folder(folder: Path) -> Checkpoint:
    """Read a Hugging Face folder: config.json, safetensors (whole or sharded), tokenizer.

    Raises:
        CheckpointError: it is no ModernBERT with a masked-language-model head, or is damaged.
    """
    config_path = folder / "config.json"
    config = load_json(config_path)
    model_config = read_config(config_path, config)
    own = load_json(folder / OWN_FILE) if (folder / OWN_FILE).is_file() else {}
    model_config = _with_own_fields(folder / OWN_FILE, model_config, own)
    tokenizer_files = {
        name: load_text(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()
    }
    max_seq_len = config.get("max_position_embeddings")
    progress = own.get("progress")
    return Checkpoint(
        path=folder,
        kind="huggingface",
        model_config=model_config,
        weights=check_weights(folder, model_config, read_tensors(folder)),
        max_seq_len=max_seq_len if isinstance(max_seq_len, int) else None,
        tokenizer_files=tokenizer_files or None,
        progress=progress if isinstance(progress, dict) else {},
    )


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder's safetensors files, or of `.bin` files read without unpickling.

    Raises:
        CheckpointError: there are none, or an index names files outside the folder.
    """
    for whole, load in (
        ("model.safetensors", load_safetensors),
        ("pytorch_model.bin", load_pickled_tensors),
    ):
        if (folder / whole).is_file():
            return load(folder / whole)
        index_path = folder / f"{whole}.index.json"
        if index_path.is_file():
            return _read_shards(index_path, load)
    raise CheckpointError(
        f"{folder}: has a config.json but no weights (model.safetensors); was the download whole?"
    )


def _read_shards(index_path: Path, load: Any) -> dict[str, Tensor]:
    weight_map = load_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index_path}: has no weight_map")
    tensors: dict[str, Tensor] = {}
    for name in sorted({str(name) for name in weight_map.values()}):
        if Path(name).name != name or not name.endswith((".safetensors", ".bin")):
            raise CheckpointError(f"{index_path}: names '{name}', which is no file of its folder")
        if not (index_path.parent / name).is_file():
            raise CheckpointError(f"{index_path}: {name} is missing; was the download whole?")
        shard = load(index_path.parent / name)
        tensors |= {key: shard[key] for key in shard if weight_map.get(key) == name}
    return tensors


def _with_own_fields(where: Path, config: ModelConfig, own: JsonObject) -> ModelConfig:
    extra = own.get("model_config")
    if not isinstance(extra, dict):
        return config
    names = ("attention_output_dropout", "decoder_bias_init")
    fields = {**vars(config), **{name: extra[name] for name in names if name in extra}}
    return build_config(where, fields)
