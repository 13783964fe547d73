"""Read run folders into plain tables: `metrics.jsonl` line by line, `config.yaml` beside it.

A chain is run folders in order, each a phase that starts where the one before it ended.
"""

import json
import math
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tessera.files import JsonObject, json_lines
from tessera.reporting.phase import Evaluation, Phase, Probe

METRICS_FILE = "metrics.jsonl"
SPIKES_FILE = "spikes.jsonl"
MACHINE_FILE = "machine.json"
CONFIG_FILE = "config.yaml"
_MISSING = math.nan


def read_chain(run_folders: Sequence[str | Path]) -> list[Phase]:
    """Read the run folders of one chain of phases, in their order.

    Raises:
        ValueError: naming the folder, file or line that cannot be read.
    """
    folders = [Path(folder) for folder in run_folders]
    if not folders:
        raise ValueError("no run folder named: a report needs at least one")
    resolved = [folder.resolve() for folder in folders]
    for folder, real in zip(folders, resolved, strict=True):
        if resolved.count(real) > 1:
            raise ValueError(f"{folder}: named more than once; name each phase once, in order")
    phases: list[Phase] = []
    names = _distinct_names(resolved)
    for folder, name in zip(folders, names, strict=True):
        before = phases[-1].tokens_before + phases[-1].tokens if phases else 0.0
        phases.append(_read_phase(folder, name, before))
    return phases


def _read_phase(folder: Path, name: str, tokens_before: float) -> Phase:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; name the run folder of a phase")
    path = folder / METRICS_FILE
    if not path.is_file():
        raise ValueError(f"{folder}: no {METRICS_FILE} here, so no run to report{_inner(folder)}")
    record = _Record()
    for number, content in json_lines(path, record.notes):
        try:
            record.add(content)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path}, line {number}: not a record of training ({why})") from None
    if not record.columns or not record.columns["step"]:
        raise ValueError(f"{path}: no step recorded yet; report once the run has trained a step")
    if (folder / SPIKES_FILE).is_file():
        record.notes += _spikes(folder / SPIKES_FILE, record.columns["step"][-1])
    text, config = _read_config(folder / CONFIG_FILE, record.notes)
    return Phase(
        name=name,
        tokens_before=tokens_before,
        columns={key: np.array(values) for key, values in record.columns.items()},
        evaluations=[record.evaluations[step] for step in sorted(record.evaluations)],
        config=config,
        config_text=text,
        machines=_read_machines(folder / MACHINE_FILE, record.notes),
        notes=record.notes,
        probes=[record.probes[step] for step in sorted(record.probes)],
    )


@dataclass
class _Record:
    """The records so far. Steps only ever grow: a step seen again takes back what followed it."""

    columns: dict[str, array] = field(default_factory=dict)
    evaluations: dict[int, Evaluation] = field(default_factory=dict)
    probes: dict[int, Probe] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, content: Any) -> None:
        kind = content["kind"]
        if kind == "step":
            self._add_step(content)
        elif kind == "evaluation":
            sources = content["sources"].items()
            self.evaluations[int(content["step"])] = Evaluation(
                tokens=float(content["tokens"]),
                loss={name: _score(scores, "loss") for name, scores in sources},
                accuracy={name: _score(scores, "accuracy") for name, scores in sources},
                seconds=_number(content, "seconds") if "seconds" in content else math.nan,
            )
        elif kind == "probes":
            self.probes[int(content["step"])] = Probe(
                tokens=float(content["tokens"]), values=dict(_numbers(content, ""))
            )

    def _add_step(self, content: Mapping[str, Any]) -> None:
        step, tokens, _ = (_number(content, name) for name in ("step", "tokens", "loss"))
        if not math.isfinite(step + tokens):
            raise ValueError("'step' and 'tokens' are numbers of every step")
        steps = self.columns.setdefault("step", array("d"))
        if steps and step <= steps[-1]:
            self._take_back(step)
        count = len(steps)
        values = dict(_numbers(content, ""))
        for name in values.keys() - self.columns.keys():
            self.columns[name] = array("d", [_MISSING]) * count
        for name, column in self.columns.items():
            column.append(values.get(name, _MISSING))

    def _take_back(self, step: float) -> None:
        first = bisect_left(self.columns["step"], step)
        last = self.columns["step"][-1]
        for column in self.columns.values():
            del column[first:]
        trained = self.columns["tokens"][-1] if first else 0.0
        kept = {k: e for k, e in self.evaluations.items() if e.tokens <= trained}
        self.evaluations = kept
        self.probes = {k: p for k, p in self.probes.items() if p.tokens <= trained}
        self.notes.append(f"steps {step:.0f} to {last:.0f} were trained again after a restart")


def _spikes(path: Path, last_step: float) -> list[str]:
    """What the guard saw. A line may be cut off wherever a run was killed; such are counted."""
    found: dict[str, set[int]] = {}
    cut_off = 0
    with path.open("rb") as file:
        for line in file:
            try:
                spike = json.loads(line)
                if spike["step"] <= last_step:
                    what = "skipped" if spike["action"] == "skip" else "trained on all the same"
                    found.setdefault(f"{spike['why']}, {what}", set()).add(int(spike["step"]))
            except (ValueError, KeyError, TypeError):
                cut_off += 1
    notes = [f"lines of {path.name} cut off and left out: {cut_off}"] if cut_off else []
    return notes + [
        f"unusual steps ({what}): "
        + ", ".join([str(step) for step in sorted(steps)[:5]] + ["..."] * (len(steps) > 5))
        for what, steps in found.items()
    ]


def _read_config(path: Path, notes: list[str]) -> tuple[str, JsonObject]:
    if not path.is_file():
        notes.append(f"there is no {CONFIG_FILE}, so settings and wanted shares are not shown")
        return "", {}
    try:
        text = path.read_text(encoding="utf-8")
        config = yaml.safe_load(text)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected keys with values, found a {type(config).__name__}")
    return text, config


def _read_machines(path: Path, notes: list[str]) -> list[JsonObject]:
    if not path.is_file():
        return []
    try:
        starts = json.loads(path.read_bytes())["starts"]
        return [start for start in starts if isinstance(start, dict)]
    except (ValueError, LookupError, TypeError, RecursionError):
        notes.append(f"{path.name} is damaged, so hardware and versions are not shown")
        return []


def _inner(folder: Path) -> str:
    runs = sorted(file.parent for file in folder.glob(f"*/{METRICS_FILE}"))
    return f"; name its phases in order: {' '.join(str(run) for run in runs)}" if runs else ""


def _distinct_names(folders: Sequence[Path]) -> list[str]:
    """The shortest endings of the paths that tell them apart."""
    depth = 1
    while True:
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
        depth += 1


def _numbers(content: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, float(value)


def _number(content: Mapping[str, Any], name: str) -> float:
    value = content[name]
    if value is None:
        return _MISSING
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"'{name}' is {value!r}, not a number")
    return float(value)


def _score(scores: Mapping[str, Any], name: str) -> float:
    counted = scores.get("predicted_tokens", scores.get("masked_tokens"))
    nothing = name not in scores or counted == 0
    return _MISSING if nothing else _number(scores, name)
