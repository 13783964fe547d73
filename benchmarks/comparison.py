"""Several trainings of the demo, told apart by the validation loss they reach at equal tokens."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from hardware import named

HERE = Path(__file__).parent
COLOURS = ("#555555", "#0072b2", "#d55e00", "#009e73")

Curve = list[tuple[int, float]]


def train(yaml: str, folder: Path, settings: Mapping[str, object]) -> Curve:
    """Train one variant, or read what an earlier call trained: (tokens, validation loss)."""
    overrides = [f"{key}={value}" for key, value in settings.items()]
    main = [sys.executable, "main.py", yaml, f"run_folder={folder}"]
    subprocess.run([*main, *overrides], cwd=HERE.parent, check=True)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if record["kind"] == "evaluation"]
    return [(record["tokens"], mean_loss(record)) for record in records]


def mean_loss(evaluation: dict[str, Any]) -> float:
    """In nats, over all masked tokens of all sources."""
    sources = evaluation["sources"].values()
    masked = sum(source["masked_tokens"] for source in sources)
    return sum(source["loss"] * source["masked_tokens"] for source in sources) / masked


def report(name: str, facts: dict[str, Any], curves: dict[str, Curve]) -> None:
    """Write the curves and their plot to `results/`, and print where each ends."""
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    record = {**facts, "hardware": named(), "curves": curves}
    (results / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(curves, results / f"{name}.png")
    for variant, curve in curves.items():
        print(f"{variant:<28} {curve[-1][1]:.3f} after {curve[-1][0]:,} tokens")


def draw(curves: dict[str, Curve], out: Path) -> None:
    """Validation loss over tokens, a line per variant."""
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for (name, curve), colour in zip(curves.items(), COLOURS, strict=False):
        axes.plot(*zip(*curve, strict=True), marker="o", markersize=3, color=colour, label=name)
    axes.set_xlabel("real tokens trained on")
    axes.set_ylabel("validation loss, nats per masked token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(out, dpi=150)
