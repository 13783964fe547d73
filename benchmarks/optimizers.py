"""Muon against StableAdamW at equal tokens: the demo's text, on the same rows and masks.

    make demo && .venv/bin/python benchmarks/optimizers.py

Trains each at several peak rates (those of embeddings, norms and biases stay, with Muon). Writes
the validation loss at equal tokens and a plot of each optimizer at its best to benchmarks/results/.
"""

import argparse
from pathlib import Path

from comparison import report, train

RECIPE = "yamls/demo/recipe.yaml"
OPTIMIZERS: dict[str, dict[str, object]] = {
    "StableAdamW": {},
    "Muon": {
        "optimizer.name": "muon",
        "optimizer.weight_decay": 0.01,
        "optimizer.rest.lr": 3e-3,
        "optimizer.rest.weight_decay": 0.01,
    },
}


def main() -> None:
    """Train, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lr", type=float, nargs="+", default=[1.5e-3, 3e-3, 6e-3])
    parser.add_argument("--tokens", type=int, default=2_400_000, help="of each training")
    parser.add_argument("--work", type=Path, default=Path("runs/demo/optimizers"))
    options = parser.parse_args()
    settings = {"duration": f"{options.tokens}tok"}
    runs = {(name, lr): options.work / f"{name}-{lr:g}" for name in OPTIMIZERS for lr in options.lr}
    trained = {
        (name, lr): train(RECIPE, folder, settings | OPTIMIZERS[name] | {"optimizer.lr": lr})
        for (name, lr), folder in runs.items()
    }
    best = {
        name: min(options.lr, key=lambda lr: trained[name, lr][-1][1])  # noqa: B023
        for name in OPTIMIZERS
    }
    facts = {
        "what": "validation loss at equal tokens, phase 1 of the demo without a decay",
        "last_loss": {f"{name} {lr:g}": curve[-1][1] for (name, lr), curve in trained.items()},
    }
    curves = {f"{name}, lr {best[name]:g}": trained[name, best[name]] for name in OPTIMIZERS}
    report("optimizers", facts, curves)


if __name__ == "__main__":
    main()
