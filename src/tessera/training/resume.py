"""Where a phase continues: the newest whole checkpoint of its own, or another phase's.

Reading comes first: checkpoints are read without unpickling anything, into plain dictionaries, and
what is damaged is set aside. Handing over comes second: `resume` and `start` give Composer's state
what was read. Composer is not imported here, so that `tessera check` can read without it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tessera.checkpoints.checkpoint import Checkpoint
from tessera.checkpoints.formats.composer import read_record
from tessera.checkpoints.safe_files import load_pickled_tensors
from tessera.config import to_plain, with_defaults
from tessera.data.config import row_ranges
from tessera.data.pipeline.continuation import examine_changes
from tessera.data.pipeline.state import LoaderState
from tessera.files import JsonObject, zip_damage
from tessera.optim.optimizers import settings
from tessera.quantities import Duration
from tessera.tokenizer import load_tokenizer
from tessera.training import run_folder
from tessera.training.config import RunConfig
from tessera.training.next_step import configuration_of, describe_change

if TYPE_CHECKING:
    from composer.core import State
    from composer.loggers import Logger

PREFIX = "model."
"""What Composer's names have before ours."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A whole checkpoint of this phase, read."""

    path: Path
    state: JsonObject
    """Composer's state: weights, moments, timestamp."""
    run_config: JsonObject
    progress: JsonObject
    data: JsonObject

    def done(self, duration: Duration) -> bool:
        """Whether the phase was complete."""
        return self.progress[duration.counted] >= duration.value


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
        problem = zip_damage(path)
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
    contents = load_pickled_tensors(path, checked=True)  # by `newest`, once for all ranks
    try:
        state = contents["state"]
        record = read_record(path, state)
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

    And, last, what that makes of the next step.

    Raises:
        ValueError: something has changed that a phase must keep.
    """
    known = configuration_of(saved.run_config)
    # As this version reads it, options that are newer with their defaults.
    before = to_plain(known) if known else with_defaults(RunConfig, saved.run_config)
    changes = list(_differences(before, to_plain(config), ""))
    fixed = [(k, old, new) for k, old, new in changes if k == "seed" or k.startswith("model.")]
    if fixed:
        listed = "\n  ".join(f"{key}: was {old}, is {new}" for key, old, new in fixed)
        raise ValueError(
            f"{saved.path} was trained with another configuration; put it back, or give a new "
            f"phase a run_folder of its own with start_from\n  {listed}"
        )
    lines = [f"{key}: {old} -> {new}" for key, old, new in changes]
    if not saved.done(config.duration):
        step = describe_change(config, saved.run_config, saved.progress, saved.data["rows"])
        lines += [step] if step is not None else []
    return lines


def data_changes(config: RunConfig, saved: Saved) -> list[str]:
    """What becomes of the mixture, in words; empty if it is the checkpoint's.

    Raises:
        ValueError: the data have changed in a way that nobody allowed.
    """
    tokenizer = load_tokenizer(config.tokenizer, quiet=True)
    state = LoaderState.from_json(saved.data)
    return examine_changes(state, config.train_data, tokenizer, config.seed)


def skipped_too_late(config: RunConfig, saved: Saved) -> list[str]:
    """Warnings about `skip_rows` that were added after the checkpoint had passed them."""
    lanes = config.train_data.lanes
    ranges = row_ranges(config.train_data.skip_rows)
    known = saved.run_config.get("train_data", {}).get("skip_rows", ())

    def passed(row: int) -> bool:
        return row // lanes < saved.data["lanes"][str(row % lanes)]["rows"]

    late = [
        text
        for text, rows in zip(config.train_data.skip_rows, ranges, strict=True)
        if text not in known and any(map(passed, rows[:lanes]))
    ]
    if not late:
        return []
    return [
        f"train_data.skip_rows: {', '.join(late)} had been trained on when {saved.path.name} was "
        "saved, and cannot be left out any more. To go back, move this checkpoint and all others "
        "after those rows out of the run folder, and start again"
    ]


def _differences(old: Any, new: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            inner = f"{key}.{name}" if key else str(name)
            yield from _differences(old.get(name), new.get(name), inner)
    elif old != new:
        yield key, old, new


# ---- handing over to Composer


def resume(state: "State", logger: "Logger", saved: Saved) -> str:
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
    state: "State",
    logger: "Logger",
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
    state: "State",
    name: str | None,
    moments: dict[str, JsonObject],
    groups: list[JsonObject],
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
    for group, named in zip(optimizer.param_groups, chosen, strict=True):
        # Sharded, a tuple of settings comes back as a list.
        group.update({k: tuple(group[k]) for k, value in named.items() if isinstance(value, tuple)})
    assert settings(optimizer) == chosen, "the settings in force are to be the YAML's"
    return "weights and optimizer state"


def _plain(name: str) -> str:
    """A parameter's name without what DDP puts before it."""
    return name.removeprefix("module.")


def _continued(group: JsonObject, names: Mapping[Any, str], steps: JsonObject) -> JsonObject:
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
