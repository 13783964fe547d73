"""The checkpoints of an interrupted phase, read without unpickling anything; no Composer here."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.checkpoints.safe_files import load_pickled_tensors
from tessera.config import to_plain
from tessera.quantities import Duration
from tessera.training import run_folder
from tessera.training.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A whole checkpoint of this phase, read."""

    path: Path
    state: dict[str, Any]
    """Composer's."""
    run_config: dict[str, Any]
    progress: dict[str, Any]
    data: dict[str, Any]

    def done(self, duration: Duration) -> bool:
        """Whether the phase was complete."""
        key = {"tok": "tokens", "ba": "steps", "sp": "documents"}[duration.unit]
        return self.progress[key] >= duration.value


def newest(folder: Path, say: Callable[[str], None]) -> Saved | None:
    """The newest checkpoint that is whole; None if the folder has none at all.

    What is not whole is reported and, once an older one is found to be, renamed, so that it is
    neither used nor overwritten.

    Raises:
        ValueError: there are checkpoints, but none can be read.
    """
    found = run_folder.checkpoints(folder)
    damaged: list[Path] = []
    for path in reversed(found.values()):
        problem = run_folder.damage(path)
        if problem is None:
            try:
                whole = read(path)
            except ValueError as error:
                problem = f"cannot be used: {error}"
            else:
                for other in damaged:
                    _set_aside(other)
                return whole
        say(f"{path} {problem}; going back to the one before it")
        damaged.append(path)
    if found:
        raise ValueError(
            f"{folder / 'checkpoints'}: none of its {len(found)} checkpoints can be read. To begin "
            "this phase again from its start, move the run folder away"
        )
    return None


def _set_aside(path: Path) -> None:
    try:
        path.rename(path.with_name(path.name + ".damaged"))
    except OSError:
        return  # a folder that may not be written to says so at the first checkpoint


def read(path: Path) -> Saved:
    """Read a checkpoint of ours.

    Raises:
        ValueError: it is not one, or is damaged.
    """
    contents = load_pickled_tensors(path)
    try:
        state = contents["state"]
        record = {name: json.loads(text) for name, text in state["callbacks"]["RunRecord"].items()}
        return Saved(
            path=path,
            state=state,
            run_config=record["run_config"],
            progress=record["progress"],
            data=record["data"],
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: not a checkpoint of a training run ({error!r})") from error


def resumable(config: RunConfig, saved: Saved) -> list[str]:
    """What of the configuration has changed since the checkpoint, and may: 'key: old -> new'.

    Raises:
        ValueError: something has changed that a phase must keep.
    """
    changes = list(_differences(saved.run_config, to_plain(config), ""))
    fixed = [(k, old, new) for k, old, new in changes if k == "seed" or k.startswith("model.")]
    if fixed:
        listed = "\n  ".join(f"{key}: was {old}, is {new}" for key, old, new in fixed)
        raise ValueError(
            f"{saved.path} was trained with another configuration; put it back, or give a new "
            f"phase a run_folder of its own with start_from\n  {listed}"
        )
    return [f"{key}: {old} -> {new}" for key, old, new in changes]


def _differences(old: Any, new: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            inner = f"{key}.{name}" if key else str(name)
            yield from _differences(old.get(name), new.get(name), inner)
    elif old != new:
        yield key, old, new
