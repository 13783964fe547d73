"""Averaging the weights of several checkpoints, as the released base model was made."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tessera.checkpoints.checkpoint import (
    DECODER,
    EMBEDDING,
    Checkpoint,
    CheckpointError,
    expected_shapes,
)
from tessera.checkpoints.formats import composer
from tessera.checkpoints.reader import locate, read_checkpoint
from tessera.files import JsonObject

_FREE = {
    *("attention_output_dropout", "initializer_range", "initializer_cutoff_factor"),
    "decoder_bias_init",
}
"""What two checkpoints of one architecture may differ in: nothing of it changes a prediction."""


def merge(
    checkpoints: Sequence[str | Path], out: str | Path, *, weights: Sequence[float] | None = None
) -> Path:
    """Average checkpoints of one architecture, in float64, and write the result as one of ours.

    Args:
        checkpoints: two or more, each whatever `read_checkpoint` reads.
        out: the `.pt` file to write. It has no optimizer state.
        weights: share of each checkpoint, scaled to sum to one; uniform if None.

    Returns:
        The file.

    Raises:
        CheckpointError: fewer than two, one named twice, weights that make no average, or
            checkpoints of different models or tokenizers; the message names what differs.
    """
    if Path(out).exists():
        raise CheckpointError(f"{out}: exists already; choose another name, or remove it")
    shares = _shares(checkpoints, weights)
    first: Checkpoint | None = None
    sums: dict[str, Tensor] = {}
    parts: list[JsonObject] = []
    for path, share in zip(checkpoints, shares, strict=True):
        checkpoint = read_checkpoint(path)
        if first is None:
            first = checkpoint
            sums = {
                name: torch.zeros(tensor.shape, dtype=torch.float64)
                for name, tensor in checkpoint.weights.items()
                if name != DECODER
            }
        _check_same(first, checkpoint)
        for name, total in sums.items():
            total.add_(checkpoint.weights[name].double(), alpha=share)
        parts.append({"checkpoint": checkpoint.path.name, "share": share, **_place(checkpoint)})
    assert first is not None
    merged = {name: total.float() for name, total in sums.items()}
    merged[DECODER] = merged[EMBEDDING]
    furthest = max(parts, key=lambda part: part.get("tokens", 0))
    result = replace(
        first,
        kind="tessera",
        weights=merged,
        optimizer_name=None,
        optimizer=None,
        hyperparameters=[],
        progress={
            **{k: furthest[k] for k in ("steps", "tokens") if k in furthest},
            "merged": parts,
        },
        data=None,
    )
    return composer.write(result, out)


def _shares(checkpoints: Sequence[str | Path], weights: Sequence[float] | None) -> list[float]:
    if len(checkpoints) < 2:
        raise CheckpointError(f"merging needs two checkpoints or more; got {len(checkpoints)}")
    files: dict[Path, str | Path] = {}
    for path in checkpoints:
        file = locate(Path(path)).resolve()
        if file in files:
            raise CheckpointError(
                f"{path} is the same checkpoint as {files[file]}; it would count twice. Name it "
                "once; --weights can give it a larger share"
            )
        files[file] = path
    if weights is None:
        return [1 / len(checkpoints)] * len(checkpoints)
    if len(weights) != len(checkpoints):
        raise CheckpointError(f"{len(weights)} weights for {len(checkpoints)} checkpoints")
    if any(not math.isfinite(weight) or weight < 0 for weight in weights) or sum(weights) <= 0:
        raise CheckpointError(f"weights must not be negative, nor all zero: {list(weights)}")
    return [weight / sum(weights) for weight in weights]


def _check_same(first: Checkpoint, other: Checkpoint) -> None:
    shapes, others = expected_shapes(first.model_config), expected_shapes(other.model_config)
    differing = [
        f"{name} ({_shape(shapes.get(name))} and {_shape(others.get(name))})"
        for name in {**shapes, **others}
        if shapes.get(name) != others.get(name)
    ]
    if differing:
        more = f" and {len(differing) - 4} more tensors" if len(differing) > 4 else ""
        raise CheckpointError(
            f"{first.path} and {other.path} are of different models and have no average: "
            f"{', '.join(differing[:4])}{more}"
        )
    for key, value in vars(first.model_config).items():
        theirs = getattr(other.model_config, key)
        if value != theirs and key not in _FREE:
            raise CheckpointError(
                f"{first.path} and {other.path} are of different models and have no average: "
                f"{key} is {value} and {theirs}"
            )
    if first.causal != other.causal:
        raise CheckpointError(
            f"{first.path} and {other.path} have different objectives (train_data.objective): "
            "only one of them is of a causal phase"
        )
    if _vocabulary(first) != _vocabulary(other):
        raise CheckpointError(f"{first.path} and {other.path} have different tokenizers")


def _vocabulary(checkpoint: Checkpoint) -> Any:
    text = (checkpoint.tokenizer_files or {}).get("tokenizer.json")
    return json.loads(text) if text else None


def _shape(shape: torch.Size | None) -> str:
    return "absent" if shape is None else str(list(shape))


def _place(checkpoint: Checkpoint) -> JsonObject:
    return {
        key: checkpoint.progress[key] for key in ("steps", "tokens") if key in checkpoint.progress
    }
