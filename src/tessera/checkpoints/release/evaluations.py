"""What `tessera evaluate` found out about a checkpoint, for its card: read from a results folder.

A result is a checkpoint's if the weights that were judged are its own, byte for byte: its file, the
run folder whose newest it was, or the folder exported from it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.checkpoints.checkpoint import CheckpointError
from tessera.checkpoints.safe_files import load_json
from tessera.files import JsonObject

RESULTS = "results.json"
_TASK_TYPES = {
    "classification": "text-classification",
    "regression": "text-classification",
    "token_classification": "token-classification",
    "retrieval": "text-retrieval",
    "masked_lm": "fill-mask",
    "recall": "fill-mask",
    "linear_probe": "text-classification",
    "similarity": "sentence-similarity",
}
"""The hub's names of kinds of tasks; of any other: `feature-extraction`."""
_HUB = re.compile(r"hf://datasets/([^/]+/[^/]+)/([^/]+)/([^/]+)")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One task that a model was judged by."""

    task: str
    kind: str
    metric: str
    mean: float
    spread: float | None
    """Standard deviation over seeds; None for a single one."""
    seeds: int
    split: str
    dataset: str | None
    """The file or data set that was scored, where there is one."""
    fingerprint: str
    """Of the weights that were judged."""


def read_results(folder: Path) -> list[Result]:
    """The numbers of a results folder.

    Raises:
        CheckpointError: it is none, or a record that it names is missing or damaged.
    """
    path = folder / RESULTS
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: holds no {RESULTS}; name the folder of `tessera evaluate ... --out DIR`"
        )
    content = load_json(path)
    if content.get("format") != "tessera-evaluation":
        raise CheckpointError(f"{path}: is no result of tessera evaluate")
    return list(_results(folder, content["entries"]))


def _results(folder: Path, entries: Sequence[JsonObject]) -> Iterator[Result]:
    for entry in entries:
        if not entry["runs"] or entry["mean"] is None:
            continue
        path = folder / entry["runs"][-1]["record"]
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing, and says which weights {RESULTS} is about")
        record = load_json(path)
        task = record["task_config"]
        scored = [task.get(key) for key in ("test", "validation", "texts", "queries")]
        yield Result(
            task=entry["task"],
            kind=entry["kind"],
            metric=entry["metric"],
            mean=entry["mean"],
            spread=entry["spread"],
            seeds=len(entry["runs"]),
            split=entry["split"],
            dataset=next((name for name in scored if isinstance(name, str)), None),
            fingerprint=record["model"]["fingerprint"],
        )


def model_index(name: str, results: Sequence[Result]) -> list[JsonObject]:
    """The results as the `model-index` of a card, in the hub's form.

    Speeds are left out: they are the machine's.
    """
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    found = [
        EvalResult(
            task_type=_TASK_TYPES.get(result.kind, "feature-extraction"),
            dataset_name=result.task,
            metric_type=result.metric,
            metric_name=f"{result.metric} of {result.task}",
            metric_value=round(result.mean, 6),
            **_dataset(result),
        )
        for result in results
        if result.kind != "efficiency"
    ]
    index: list[JsonObject] = eval_results_to_model_index(name, found) if found else []
    return index


def _dataset(result: Result) -> dict[str, Any]:
    match = _HUB.fullmatch(result.dataset or "")
    if match is None:
        return {"dataset_type": result.task, "dataset_split": result.split}
    name, config, split = match.groups()
    return {"dataset_type": name, "dataset_config": config, "dataset_split": split}
