"""What the jobs found, as one entry for each model and task: results.json and results.csv.

A folder of results collects: a command replaces the entries of the models and tasks it was asked
for, and leaves the others that were there, marked `earlier`, unless a task of the same name now
asks something else. Imports no torch.
"""

import csv
import io
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from tessera.evaluation.jobs.plan import Cell
from tessera.evaluation.jobs.records import Job, task_key, write_json
from tessera.evaluation.tasks.config import LOWER_IS_BETTER, main_metric
from tessera.files import JsonObject, write_whole

_VERSION = 1
_COLUMNS = (
    "model", "task", "metric", "mean", "spread", "seeds", "split", "lr", "weight_decay", "epochs",
    "state", "message", "earlier",
)  # fmt: skip


def write_results(out: Path, cells: Sequence[Cell]) -> list[JsonObject]:
    """Write results.json and results.csv; returns their entries, this command's models first.

    Raises:
        ValueError: an earlier results.json is none of ours.
    """
    entries = [_entry(cell) for cell in cells]
    ours = {(entry["model"], entry["task"]) for entry in entries}
    # Where the data cannot be read, nobody knows whether the question is another one.
    keys = {cell.task_name: task_key(cell.task, cell.inputs) for cell in cells if cell.inputs}
    for entry in _earlier(out / "results.json"):
        same_question = keys.get(entry["task"], entry["task_key"]) == entry["task_key"]
        if (entry["model"], entry["task"]) not in ours and same_question:
            # This command began with taking away what was said of failed jobs.
            kept = [
                job for job in entry["failed_jobs"] if (out / "failed" / f"{job}.json").exists()
            ]
            entries.append({**entry, "failed_jobs": kept, "earlier": True})
    write_json(
        out / "results.json",
        {"format": "tessera-evaluation", "version": _VERSION, "entries": entries},
    )
    text = io.StringIO()
    table = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for entry in entries:
        seeds = " ".join(str(run["seed"]) for run in entry["runs"])
        table.writerow({**entry, **entry["point"], "seeds": seeds})
    write_whole(out / "results.csv", text.getvalue().encode())
    return entries


def _entry(cell: Cell) -> JsonObject:
    metric = main_metric(cell.task)
    runs = [_run(cell, job, metric) for job in cell.reported]
    values = [run["value"] for run in runs]
    failures = {record["message"]: None for record in cell.failed.values()}
    if cell.problem is not None:
        failures = {cell.problem: None}
    left = len(cell.waiting) + cell.is_blocked
    state = "waiting" if left else "failed" if not values else "part" if failures else "done"
    last = cell.finished[cell.reported[-1].id] if cell.reported else {}
    return {
        "model": cell.model.name,
        "task": cell.task_name,
        "kind": cell.task.name,
        "task_key": task_key(cell.task, cell.inputs),
        "metric": metric,
        "lower_is_better": metric in LOWER_IS_BETTER,
        "mean": statistics.fmean(values) if values else None,
        "spread": statistics.stdev(values) if len(values) > 1 else None,
        "split": last.get("split", ""),
        "point": cell.reported[0].point if cell.reported else {},
        "points_tried": len({str(job.point) for job in cell.jobs}),
        "runs": runs,
        "scores": _means([cell.finished[job.id]["scores"] for job in cell.reported]),
        "tables": last.get("tables", []),
        "notes": list(
            dict.fromkeys(note for job in cell.reported for note in cell.finished[job.id]["notes"])
        ),
        "state": state,
        "message": "; ".join(failures),
        "failed_jobs": sorted(cell.failed),
        "earlier": False,
        "device": last.get("device", ""),
        "versions": last.get("versions", {}),
    }


def _run(cell: Cell, job: Job, metric: str) -> JsonObject:
    record = cell.finished[job.id]
    return {
        "seed": job.seed,
        "value": record["scores"][metric],
        "validation": record["validation"][metric],
        "record": f"records/{job.id}.json",
        "command": record["command"],
        "seconds": record["seconds"],
        "finished": record["finished"],
    }


def _means(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    names = list(dict.fromkeys(name for one in scores for name in one))
    means = {name: statistics.fmean(one[name] for one in scores if name in one) for name in names}
    return {name: value for name, value in means.items() if math.isfinite(value)}


def _earlier(path: Path) -> list[JsonObject]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise ValueError(f"{path}: is damaged ({error}); delete it") from None
    known = isinstance(content, dict) and content.get("version") == _VERSION
    if not known or content.get("format") != "tessera-evaluation":
        raise ValueError(f"{path}: is not ours; name another folder by --out")
    entries: list[JsonObject] = content["entries"]
    return entries
