"""`tessera merge`: the average of checkpoints of one architecture."""

import argparse

from tessera.cli.arguments import existing, written

HELP = "The average of checkpoints of one architecture."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT")
    parser.add_argument(
        "--weights", type=float, nargs="+", help="one per checkpoint; uniform if absent"
    )
    parser.add_argument("--out", required=True, metavar="FILE.pt")


def run(options: argparse.Namespace) -> None:
    """Merge, and print where to."""
    out = written("--out", options.out)
    checkpoints = [existing(checkpoint) for checkpoint in options.checkpoints]

    from tessera.checkpoints.merge import merge

    print(merge(checkpoints, out, weights=options.weights))
