"""`tessera export`: a checkpoint to a Hugging Face folder, verified before it is left there."""

import argparse

from tessera.cli.arguments import existing, written

HELP = "A checkpoint to a Hugging Face folder, verified."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("checkpoint", help="a .pt file or a run folder")
    parser.add_argument("--out", required=True, metavar="DIR")


def run(options: argparse.Namespace) -> None:
    """Export, and print where to."""
    out, checkpoint = written("--out", options.out), existing(options.checkpoint)

    from tessera.checkpoints.exporter import export
    from tessera.checkpoints.reader import read_checkpoint

    folder = export(read_checkpoint(checkpoint), out)
    print(f"{folder}: a Hugging Face folder; transformers gives the logits of the checkpoint")
