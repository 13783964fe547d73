"""`tessera import`: FlexBERT's `.pt` or a Hugging Face folder to a checkpoint of ours."""

import argparse
from pathlib import Path

from tessera.cli.arguments import existing, placed, written
from tessera.config import ConfigError, load
from tessera.paths import LOCAL, SOURCE, is_remote

HELP = "FlexBERT's .pt or a Hugging Face folder to a checkpoint."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("source", help="a .pt file, a Hugging Face folder or id")
    parser.add_argument("--out", required=True, metavar="FILE.pt")
    parser.add_argument(
        "--model",
        metavar="YAML",
        help="the model section to expect or to tile to",
    )
    parser.add_argument(
        "--tile",
        choices=["default", "published"],
        help="lay the larger --model from tiles of the source",
    )
    parser.add_argument(
        "--extend-tokenizer",
        metavar="FOLDER_OR_FILE",
        help="add its tokens, and rows for them: a tokenizer that extends the source's, or a "
        "file of tokens, one a line",
    )


def run(options: argparse.Namespace) -> None:
    """Import, and print where to."""
    from tessera.model.config import ModelConfig

    out = written("--out", options.out)
    named = options.source  # an id on the Hub has one "/", and is no file's name
    is_id = not is_remote(named) and named.count("/") == 1 and not named.endswith(".pt")
    source = SOURCE.parse(named) if is_id else existing(named)
    more = options.extend_tokenizer and placed(
        "--extend-tokenizer", options.extend_tokenizer, LOCAL
    )
    target = load(ModelConfig, options.model) if options.model else None
    if Path(options.out).suffix != ".pt":
        raise ConfigError(f"--out {options.out}: give the checkpoint a name that ends in .pt")

    from tessera.tokenizer.extension import read_addition

    addition = read_addition(more) if more else None

    from tessera.checkpoints.importer import import_checkpoint

    made = import_checkpoint(source, out, target, tile=options.tile, extend_tokenizer=addition)
    print(made)
    if addition is not None:
        beside = made.with_name(f"{made.stem}-tokenizer")
        folder = beside if isinstance(addition, tuple) else more
        print(f"tokenizer: {folder}; prepare text with it, and name it in the YAML")
