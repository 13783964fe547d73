"""`tessera import`: FlexBERT's `.pt` or a Hugging Face folder to a checkpoint of ours."""

import argparse
from pathlib import Path

from tessera.cli.arguments import existing
from tessera.config import ConfigError, load

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

    target = load(ModelConfig, options.model) if options.model else None
    if Path(options.out).suffix != ".pt":
        raise ConfigError(f"--out {options.out}: give the checkpoint a name that ends in .pt")
    if options.source.count("/") != 1:  # an id on the Hub has one
        existing(options.source)

    from tessera.checkpoints.importer import import_checkpoint

    print(import_checkpoint(options.source, options.out, target, tile=options.tile))
