"""Going on from a checkpoint: the same phase exactly, or the next phase from weights and moments.

What was read as plain dictionaries is handed to Composer's state.
"""

from collections.abc import Mapping
from typing import Any

import torch
from composer.core import State
from composer.loggers import Logger
from torch import Tensor

from tessera.checkpoints.checkpoint import Checkpoint
from tessera.optim.optimizers import settings
from tessera.training.saved import Saved

PREFIX = "model."
"""What Composer's names have before ours."""


def resume(state: State, logger: Logger, saved: Saved) -> str:
    """Continue a phase: weights, moments and clock of its checkpoint, settings of its YAML.

    Args:
        state: Composer's, of a fresh Trainer.
        logger: Composer's.
        saved: the checkpoint.

    Returns:
        What was carried over, in words.
    """
    state.load_model_state(saved.state, logger, strict=True)
    state.timestamp.load_state_dict(saved.state["timestamp"]["Timestamp"])
    name, stored = next(iter(saved.state["optimizers"].items()))
    return load_moments(state, name, stored["state"], stored["param_groups"])


def start(
    state: State,
    logger: Logger,
    checkpoint: Checkpoint,
    *,
    optimizer: bool,
) -> str:
    """Begin a phase with the weights, and by choice the moments, of another's checkpoint.

    Returns:
        What was carried over, in words.
    """
    weights = {PREFIX + name: tensor for name, tensor in checkpoint.weights.items()}
    state.load_model_state({"model": weights}, logger, strict=True)
    if not optimizer:
        return "weights alone, as start_from.optimizer says"
    moments = {PREFIX + name: moment for name, moment in (checkpoint.optimizer or {}).items()}
    groups = [
        {**group, "params": [PREFIX + name for name in group["params"]]}
        for group in checkpoint.hyperparameters
    ]
    return load_moments(state, checkpoint.optimizer_name, moments, groups)


def load_moments(
    state: State,
    name: str | None,
    moments: dict[str, dict[str, Any]],
    groups: list[dict[str, Any]],
) -> str:
    """Give the optimizer another's moments and count of steps, and nothing else of it.

    Only what this optimizer would keep itself is taken, so that a checkpoint of a GPU serves on a
    CPU, and of an older version in a newer; the settings in force remain the YAML's.

    Args:
        state: Composer's.
        name: the class of the optimizer that left the moments; another class's are not used.
        moments: by parameter name; empty if there are none.
        groups: the parameter groups they belong to: `params` (names) and perhaps `step`.

    Returns:
        What was carried over, in words.
    """
    optimizer = state.optimizers[0]
    own = type(optimizer).__qualname__
    if name != own or not moments:
        return f"weights alone: it holds no state of {own} ({name})"
    chosen = settings(optimizer)
    state.get_optim_state_dict()  # fills an optimizer that has made no step
    names = {p: _plain(n) for n, p in state.model.named_parameters()}
    slots = {
        names[p]: {
            slot: _adopted(value, moments.get(names[p], {}).get(slot))
            for slot, value in kept.items()
        }
        for p, kept in optimizer.state.items()
    }
    steps = {p: group.get("step") for group in groups for p in group["params"]}
    continued = [_continued(group, names, steps) for group in optimizer.param_groups]
    state.load_optim_state({"optimizers": {own: {"state": slots, "param_groups": continued}}})
    assert settings(optimizer) == chosen, "the settings in force are to be the YAML's"
    return "weights and optimizer state"


def _plain(name: str) -> str:
    """A parameter's name without what DDP puts before it."""
    return name.removeprefix("module.")


def _continued(
    group: dict[str, Any], names: Mapping[Any, str], steps: dict[str, Any]
) -> dict[str, Any]:
    """A parameter group by names, its count of steps that of the checkpoint."""
    found = {**group, "params": [names[p] for p in group["params"]]}
    step = next((steps[p] for p in found["params"] if steps.get(p) is not None), None)
    if "step" in group and step is not None:
        found["step"] = torch.as_tensor(step).to(group["step"].dtype)
    return found


def _adopted(own: Any, theirs: Any) -> Any:
    if not isinstance(own, Tensor) or not isinstance(theirs, Tensor):
        return own
    # A copy: what was read is a view of the file.
    return theirs.to(own.dtype, copy=True) if theirs.shape == own.shape else own
