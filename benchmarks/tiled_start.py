"""A larger model laid from tiles of the demo's, against the same model from random weights.

    make demo && .venv/bin/python benchmarks/tiled_start.py

Trains both on the same rows with the same masks, and the published way of tiling beside ours.
Writes the validation loss at equal tokens and a plot to benchmarks/results/.
"""

import argparse
from pathlib import Path

from comparison import report, train

LARGER = {
    "model.hidden_size": 288,
    "model.intermediate_size": 432,
    "model.num_hidden_layers": 6,
    "model.num_attention_heads": 9,
}


def main() -> None:
    """Train, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", default="runs/demo/phase1", help="what tiles are laid from")
    parser.add_argument("--tokens", type=int, default=600_000, help="of each larger model")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--work", type=Path, default=Path("runs/demo/tiled-start"))
    options = parser.parse_args()
    tiled = {"initial_weights.tile": options.small}
    starts: dict[str, dict[str, str]] = {
        "random": {},
        "tiled": tiled,
        "tiled as published": tiled | {"initial_weights.mode": "published"},
    }
    settings = LARGER | {
        "duration": f"{options.tokens}tok",
        "schedule.warmup": f"{options.tokens // 8}tok",
        "batch.warmup": "null",
        "evaluation.interval": f"{options.tokens // 8}tok",
        "optimizer.lr": options.lr,
    }
    curves = {
        name: train(
            "yamls/demo/recipe.yaml", options.work / name.replace(" ", "-"), settings | start
        )
        for name, start in starts.items()
    }
    facts = {
        "what": "validation loss at equal tokens, larger model from tiles or from random weights",
        "larger": LARGER,
        "tokens": options.tokens,
        "lr": options.lr,
    }
    report("tiled_start", facts, curves)


if __name__ == "__main__":
    main()
