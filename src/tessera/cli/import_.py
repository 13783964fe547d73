"""`tessera import`: FlexBERT's `.pt` or a Hugging Face folder to a checkpoint of ours."""

import argparse

from tessera.cli.arguments import existing, written
from tessera.config import load
from tessera.paths import SOURCE, is_remote

HELP = "FlexBERT's .pt or a Hugging Face folder to a checkpoint."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("source", help="a .pt file, a Hugging Face folder or id")
    parser.add_argument("--out", required=True, metavar="FILE.pt")
    parser.add_argument("--model", metavar="YAML", help="the model section to expect or to tile to")
    parser.add_argument(
        "--tile",
        choices=["default", "published"],
        help="lay the larger --model from tiles of the source",
    )


def run(options: argparse.Namespace) -> None:
    """Import, and print where to."""
    from tessera.model.config import ModelConfig

    out = written("--out", options.out)
    source = existing(options.source) if is_remote(options.source) else SOURCE.parse(options.source)
    target = load(ModelConfig, options.model) if options.model else None

    from tessera.checkpoints.importer import import_checkpoint

    print(import_checkpoint(source, out, target, tile=options.tile))
