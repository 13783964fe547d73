"""The layout of a training checkpoint: the zip that Composer writes, and that `import` writes too.

`state.model` holds the weights and `state.optimizers` the moments, both named `model.` + Hugging
Face's name; `state.callbacks.RunRecord` holds, as JSON texts, what the weights alone do not say:
`model_config`, `tokenizer_files`, `run_config`, `progress` and `data` (the loader's state).
"""

import json
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tessera.checkpoints.checkpoint import (
    DECODER,
    EMBEDDING,
    Checkpoint,
    CheckpointError,
    check_tensor,
    check_weights,
)
from tessera.checkpoints.formats.huggingface_config import build_config
from tessera.checkpoints.safe_files import parse_json
from tessera.files import write_whole

RECORD = "RunRecord"
"""The callback under which our own entry is kept."""


def own_record(state: dict[str, Any]) -> dict[str, Any] | None:
    """Our entry in a Composer checkpoint's `state`; None if it was not written by this project."""
    callbacks = state.get("callbacks")
    record = callbacks.get(RECORD) if isinstance(callbacks, dict) else None
    return record if isinstance(record, dict) else None


def read_record(path: Path, state: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What our entry in a checkpoint says, by the names of the module's docstring.

    Raises:
        CheckpointError: a part of it is damaged; names it.
    """
    record = own_record(state) or {}
    return {
        str(key): parse_json(f"{path}: {RECORD}.{key}", text or "{}")
        for key, text in record.items()
    }


def read_state(path: Path, state: dict[str, Any]) -> Checkpoint:
    """Read the `state` of one of our own checkpoints.

    Raises:
        CheckpointError: it is damaged.
    """
    record = read_record(path, state)
    config = build_config(f"{path}: {RECORD}.model_config", record.get("model_config", {}))
    found = {name.removeprefix("model."): value for name, value in state["model"].items()}
    weights = check_weights(path, config, found)
    name, moments, groups = optimizer_state(path, state, weights, _without_prefix)
    run_config, progress = record.get("run_config", {}), record.get("progress", {})
    return Checkpoint(
        path=path,
        kind="tessera",
        model_config=config,
        weights=weights,
        max_seq_len=_max_seq_len(run_config, progress),
        tokenizer_files=record.get("tokenizer_files") or None,
        optimizer_name=name,
        optimizer=moments,
        hyperparameters=groups,
        run_config=run_config,
        progress={**progress_of(state, groups), **progress},
        data=record.get("data") or None,
    )


def write(checkpoint: Checkpoint, out: str | Path) -> Path:
    """Write a checkpoint that `start_from` accepts: whole or not at all.

    Returns:
        The file.

    Raises:
        CheckpointError: `out` exists.
    """
    out = Path(out)
    if out.exists():
        raise CheckpointError(f"{out}: exists already; choose another name, or remove it")
    weights = {
        f"model.{name}": tensor.contiguous().clone(memory_format=torch.contiguous_format)
        for name, tensor in checkpoint.weights.items()
        if name != DECODER
    }
    weights[f"model.{DECODER}"] = weights[f"model.{EMBEDDING}"]
    record = {
        "model_config": asdict(checkpoint.model_config),
        "tokenizer_files": checkpoint.tokenizer_files or {},
        "run_config": checkpoint.run_config,
        "progress": {**checkpoint.progress, "max_seq_len": checkpoint.max_seq_len},
        "data": checkpoint.data or {},
    }
    state: dict[str, Any] = {
        "model": OrderedDict(weights),
        "optimizers": _as_composer(checkpoint),
        "callbacks": {RECORD: {key: json.dumps(value) for key, value in record.items()}},
        "integrations": {},
        "metadata": {},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, lambda file: torch.save({"state": state, "rng": []}, file))
    return out


def _as_composer(checkpoint: Checkpoint) -> dict[str, Any]:
    if checkpoint.optimizer is None or checkpoint.optimizer_name is None:
        return {}
    moments = {
        f"model.{name}": {
            key: value.contiguous().clone() if isinstance(value, Tensor) else value
            for key, value in moment.items()
        }
        for name, moment in checkpoint.optimizer.items()
    }
    groups = [
        {**group, "params": [f"model.{name}" for name in group["params"]]}
        for group in checkpoint.hyperparameters
    ]
    for group in groups:
        if "step" in group:  # torch-optimi counts in a tensor
            group["step"] = torch.tensor(group["step"], dtype=torch.int32)
    return {checkpoint.optimizer_name: {"state": moments, "param_groups": groups}}


def optimizer_state(
    path: Path,
    state: dict[str, Any],
    weights: dict[str, Tensor],
    rename: Callable[[str], str],
) -> tuple[str | None, dict[str, dict[str, Any]] | None, list[dict[str, Any]]]:
    """The optimizer's class, state by parameter name, and groups, from a Composer `state`.

    Args:
        path: the file, for messages.
        state: a Composer checkpoint's `state`.
        weights: the model's tensors, whose names and shapes the moments must have.
        rename: from the file's parameter names to Hugging Face's.

    Raises:
        CheckpointError: a moment is of no parameter, of another shape, or not finite.
    """
    optimizers = state.get("optimizers")
    if not isinstance(optimizers, dict) or not optimizers:
        return None, None, []
    name, stored = next(iter(optimizers.items()))
    moments_stored = stored.get("state") if isinstance(stored, dict) else None
    groups_stored = stored.get("param_groups") if isinstance(stored, dict) else None
    if not isinstance(moments_stored, dict) or not isinstance(groups_stored, list):
        raise CheckpointError(f"{path}: its optimizer state is damaged")
    if any(not isinstance(key, str) for key in moments_stored):
        raise CheckpointError(
            f"{path}: its optimizer state is by number, not by parameter name (written by torch "
            "before 2.4?); it cannot be matched to parameters safely"
        )
    moments: dict[str, dict[str, Any]] = {}
    for key, stored_moment in moments_stored.items():
        parameter = rename(key)
        if parameter not in weights or not isinstance(stored_moment, dict):
            raise CheckpointError(f"{path}: optimizer state of '{key}', which the model has not")
        moment = {str(kind): value for kind, value in stored_moment.items()}
        for kind, value in moment.items():
            if isinstance(value, Tensor):
                shape = weights[parameter].shape if value.dim() else None
                if value.is_floating_point():
                    check_tensor(path, f"{kind} of {parameter}", value, shape)
            elif value is not None:
                _check_plain(path, f"{kind} of {parameter}", value)
        moments[parameter] = moment
    groups = [_read_group(path, group, weights, rename) for group in groups_stored]
    return str(name), moments, groups


def _read_group(
    path: Path, stored: object, weights: dict[str, Tensor], rename: Callable[[str], str]
) -> dict[str, Any]:
    if not isinstance(stored, dict) or not isinstance(stored.get("params"), list):
        raise CheckpointError(f"{path}: a parameter group of its optimizer is damaged")
    params = [rename(str(name)) for name in stored["params"]]
    strangers = [name for name in params if name not in weights]
    if strangers:
        raise CheckpointError(
            f"{path}: its optimizer has '{strangers[0]}', which the model has not"
        )
    group: dict[str, Any] = {"params": params}
    for key, value in stored.items():
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise CheckpointError(f"{path}: its optimizer's {key} should be one number")
            value = value.item()
        if key != "params":
            _check_plain(path, str(key), value)
            group[str(key)] = value
    return group


def _check_plain(path: Path, key: str, value: object) -> None:
    """Raise CheckpointError unless a setting is a finite number, a text, or a few of them."""
    parts = value if isinstance(value, (list, tuple)) and len(value) <= 16 else [value]
    for part in parts:
        plain = part is None or isinstance(part, (bool, int, float, str))
        if not plain or (isinstance(part, float) and not math.isfinite(part)):
            raise CheckpointError(f"{path}: its optimizer's {key} is {str(value)[:40]!r}")


def progress_of(state: dict[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Steps, tokens and rates that Composer itself recorded."""
    stamps = state.get("timestamp")
    stamp = stamps.get("Timestamp") if isinstance(stamps, dict) else None
    progress: dict[str, Any] = {}
    for ours, theirs in (("steps", "batch"), ("tokens", "token"), ("samples", "sample")):
        value = stamp.get(theirs) if isinstance(stamp, dict) else None
        if isinstance(value, int):
            progress[ours] = value
    for key in ("lr", "max_lr"):
        if groups and isinstance(groups[-1].get(key), float):
            progress[key] = groups[-1][key]
    name = state.get("run_name")
    if isinstance(name, str):
        progress["run_name"] = name
    versions = _versions(state.get("metadata"))
    return {**progress, "trained_with": versions} if versions else progress


def _versions(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict):
        return {}
    environment = metadata.get("composer_env_info")
    found = {
        "torch": metadata.get("torch_version"),
        "composer": environment.get("composer_version") if isinstance(environment, dict) else None,
    }
    return {name: str(value) for name, value in found.items() if isinstance(value, str)}


def _without_prefix(name: str) -> str:
    return name.removeprefix("model.")


def _max_seq_len(run_config: dict[str, Any], progress: dict[str, Any]) -> int | None:
    data = run_config.get("train_data")
    found = data.get("max_seq_len") if isinstance(data, dict) else progress.get("max_seq_len")
    return found if isinstance(found, int) and found > 0 else None
