"""A larger model laid from tiles of the demo's, against the same model from random weights.

    make demo && .venv/bin/python benchmarks/tiled_start.py

Trains both on the same rows with the same masks, and the published way of tiling beside ours.
Writes the validation loss at equal tokens and a plot to benchmarks/results/.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from hardware import named

HERE = Path(__file__).parent
LARGER = {
    "model.hidden_size": 288,
    "model.intermediate_size": 432,
    "model.num_hidden_layers": 6,
    "model.num_attention_heads": 9,
}
STARTS = {
    "random": {},
    "tiled": {"initial_weights.tile": "{small}"},
    "tiled as published": {
        "initial_weights.tile": "{small}",
        "initial_weights.mode": "published",
    },
}


def train(name: str, options: argparse.Namespace) -> list[dict]:
    """Train one larger model, or read what an earlier call trained; its evaluations."""
    folder = options.work / name.replace(" ", "-")
    settings = LARGER | STARTS[name]
    settings |= {
        "run_folder": folder,
        "duration": f"{options.tokens}tok",
        "schedule.warmup": f"{options.tokens // 8}tok",
        "batch.warmup": "null",
        "evaluation.interval": f"{options.tokens // 8}tok",
        "optimizer.lr": options.lr,
    }
    overrides = [f"{key}={value}".format(small=options.small) for key, value in settings.items()]
    main = [sys.executable, "main.py", "yamls/demo/phase1.yaml"]
    subprocess.run([*main, *overrides], cwd=HERE.parent, check=True)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "evaluation"]


def mean_loss(evaluation: dict) -> float:
    """Over all masked tokens of all sources."""
    sources = evaluation["sources"].values()
    masked = sum(source["masked_tokens"] for source in sources)
    return sum(source["loss"] * source["masked_tokens"] for source in sources) / masked


def draw(curves: dict[str, list[tuple[int, float]]], out: Path) -> None:
    """Validation loss over tokens, a line per start."""
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for (name, curve), colour in zip(
        curves.items(), ("#555555", "#0072b2", "#d55e00"), strict=True
    ):
        axes.plot(*zip(*curve, strict=True), marker="o", markersize=3, color=colour, label=name)
    axes.set_xlabel("real tokens trained on")
    axes.set_ylabel("validation loss, nats per masked token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(out, dpi=150)


def main() -> None:
    """Train, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", default="runs/demo/phase1", help="what tiles are laid from")
    parser.add_argument("--tokens", type=int, default=600_000, help="of each larger model")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--work", type=Path, default=Path("runs/demo/tiled-start"))
    options = parser.parse_args()
    evaluations = {name: train(name, options) for name in STARTS}
    curves = {
        name: [(record["tokens"], mean_loss(record)) for record in records]
        for name, records in evaluations.items()
    }
    result = {
        "what": "validation loss at equal tokens, larger model from tiles or from random weights",
        "larger": LARGER,
        "tokens": options.tokens,
        "lr": options.lr,
        "hardware": named(),
        "curves": curves,
    }
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "tiled_start.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(curves, results / "tiled_start.png")
    for name, curve in curves.items():
        print(f"{name:<20} {curve[-1][1]:.3f} after {curve[-1][0]:,} tokens")


if __name__ == "__main__":
    main()
