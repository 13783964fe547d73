"""The state to continue training from, beside an exported model, without a pickle.

A released revision is a Hugging Face folder with `restart/state.json` (groups and settings of the
optimizer, progress, position in the data) and `restart/optimizer.safetensors` (its moments, as
`parameter/moment`). The weights are the export's own `model.safetensors`.
"""

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from tessera.checkpoints.checkpoint import Checkpoint, CheckpointError
from tessera.checkpoints.formats.composer import optimizer_state
from tessera.checkpoints.formats.huggingface import read_folder
from tessera.checkpoints.formats.huggingface_config import build_config
from tessera.checkpoints.safe_files import load_json, load_safetensors, sha256
from tessera.files import JsonObject, as_json

FORMAT = "tessera-restart"
FOLDER = "restart"
STATE = f"{FOLDER}/state.json"
MOMENTS = f"{FOLDER}/optimizer.safetensors"

_PRIVATE = {
    "local",
    "remote",
    "run_folder",
    "start_from",
    "initial_weights",
    "logging",
    "tokenizer",
}
"""Keys of a YAML that say where things lie on the machines of whoever trained."""


def is_release(folder: Path) -> bool:
    """Whether a Hugging Face folder also holds the state to continue from."""
    return (folder / STATE).is_file()


def write(checkpoint: Checkpoint, folder: Path, *, source: JsonObject) -> None:
    """Add the restart state to a folder that already holds the exported model.

    Args:
        checkpoint: whose state it is.
        folder: with its `model.safetensors`.
        source: of which file it was made, for the record.
    """
    (folder / FOLDER).mkdir()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, JsonObject] = {}
    for name, moment in (checkpoint.optimizer or {}).items():
        for kind, value in moment.items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{kind}"] = value.contiguous()
            else:
                plain.setdefault(name, {})[kind] = value
    if tensors:
        safetensors.torch.save_file(tensors, folder / MOMENTS, metadata={"format": "pt"})
        shutil.copymode(folder / "model.safetensors", folder / MOMENTS)
    state = {
        "format": FORMAT,
        "weights_sha256": sha256(folder / "model.safetensors"),
        "source": source,
        "model_config": asdict(checkpoint.model_config),
        "optimizer": checkpoint.optimizer_name,
        "parameter_groups": checkpoint.hyperparameters,
        "parameter_settings": plain,
        "run_config": without_places(checkpoint.run_config),
        "progress": checkpoint.progress,
        "data": checkpoint.data,
    }
    (folder / STATE).write_text(as_json(state), encoding="utf-8")


def read(folder: Path) -> Checkpoint:
    """Read a released revision: model and restart state.

    Raises:
        CheckpointError: it is damaged, or the state does not belong to the weights beside it.
    """
    model = read_folder(folder)
    path = folder / STATE
    state = load_json(path)
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: was not written by tessera release")
    weights_file = folder / "model.safetensors"
    if not weights_file.is_file() or state.get("weights_sha256") != sha256(weights_file):
        raise CheckpointError(
            f"{path}: belongs to other weights than the model.safetensors beside it; download the "
            "revision again, or remove its restart folder to use the weights alone"
        )
    config = build_config(path, _object(path, state, "model_config"))
    if config != model.model_config:
        raise CheckpointError(f"{path}: its model_config contradicts the config.json beside it")
    optimizers = {}
    if state.get("optimizer") is not None:
        optimizers[str(state["optimizer"])] = {
            "state": _moments(folder, state),
            "param_groups": state.get("parameter_groups"),
        }
    name, moments, groups = optimizer_state(folder, {"optimizers": optimizers}, model.weights, str)
    return replace(
        model,
        kind="release",
        optimizer_name=name,
        optimizer=moments,
        hyperparameters=groups,
        run_config=_object(path, state, "run_config"),
        progress=_object(path, state, "progress"),
        data=state["data"] if isinstance(state.get("data"), dict) else None,
    )


def _moments(folder: Path, state: JsonObject) -> dict[str, JsonObject]:
    moments: dict[str, JsonObject] = {}
    for name, values in _object(folder / STATE, state, "parameter_settings").items():
        if not isinstance(values, dict):
            raise CheckpointError(f"{folder / STATE}: parameter_settings of {name} is damaged")
        moments[name] = dict(values)
    for key, tensor in load_safetensors(folder / MOMENTS).items():
        name, _, kind = key.rpartition("/")
        moments.setdefault(name, {})[kind] = tensor
    return moments


def _object(path: Path, state: JsonObject, key: str) -> JsonObject:
    value = state.get(key)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: {key} is missing or damaged")
    return value


def without_places(value: Any) -> Any:
    """A configuration without the paths, buckets and accounts in it, fit for publication."""
    if isinstance(value, dict):
        return {k: without_places(v) for k, v in value.items() if k not in _PRIVATE}
    if isinstance(value, list):
        return [without_places(item) for item in value]
    return value
