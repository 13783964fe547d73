"""Checkpoints in and out: reading anyone's safely, exporting, merging and releasing ours."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tessera.checkpoints.checkpoint import Checkpoint, CheckpointError
    from tessera.checkpoints.exporter import export
    from tessera.checkpoints.reader import load_model, read_checkpoint

_HOMES = {
    "Checkpoint": "checkpoint",
    "CheckpointError": "checkpoint",
    "export": "exporter",
    "load_model": "reader",
    "read_checkpoint": "reader",
}

__all__ = ["Checkpoint", "CheckpointError", "export", "load_model", "read_checkpoint"]


def __getattr__(name: str) -> Any:
    # Torch is imported by whoever uses one of these, not by whoever imports the package.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
