"""Tokenize text into MDS shards, one folder per source and split.

Each input is a source: NAME=ADDRESS, or an ADDRESS whose last part is the name; without any, the
folders in OUT/text are. An address is a file, a folder or a glob: local, s3://, gs:// or
hf://datasets/ORG/NAME/...; JSON lines, JSON, Parquet, Arrow, CSV, TSV or text, compressed or not;
or a folder that `datasets` saved. Files or folders called train, validation (valid, val, dev) or
test at any depth are those splits, and test is left out; otherwise a share of the documents, chosen
by a hash of the text, is kept for validation.

A YAML says the same: --config data_prep/recipes/pretrain.yaml [key=value ...].

Killed at any moment, it goes on where it was when started again. The result depends neither on the
executor nor on the number of tasks and workers.
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # this file must not hide the standard library's tokenize
    sys.path = [
        entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent
    ]
    os.environ["PYTHONSAFEPATH"] = "1"  # nor in the processes it starts

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tessera.data.preparation.config import TokenizeConfig


def main() -> int:
    """Tokenize what is missing; returns the exit status."""
    arguments = parse_arguments()
    from tessera.data.preparation.command_line import exit_status  # after --help

    def work() -> int:
        from tessera.data.preparation.shards_from_text import make_shards

        return make_shards(config_of(arguments))

    return exit_status(work)


def parse_arguments() -> argparse.Namespace:
    """Read the command line. What is not given is decided by the YAML, or by the defaults."""
    from tessera.data.preparation.command_line import add_executor_options, add_input_options

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add_input_options(parser, "data_prep/recipes/pretrain.yaml")
    add("--out", help="folder for NAME/{train,validation}, local or in a store (data/demo)")
    add("--tokenizer", help="folder or Hugging Face id (default: OUT/tokenizer)")
    add("--validation-share", help="where inputs name no splits (0.01)")
    add("--shard-size", help="size of a shard, at most (64mb)")
    add("--part-size", help="input that a worker takes at a time (64mb)")
    add("--compression", help="such as zstd or zstd:7; needs decompressing when read")
    add("--overwrite", action="store_true", default=None, help="replace what other options made")
    add_executor_options(parser)
    return parser.parse_args()


def config_of(arguments: argparse.Namespace) -> "TokenizeConfig":
    """What the command line asks for, over what its YAML says.

    Raises:
        ConfigError: naming every mistake.
    """
    from tessera.data.preparation.command_line import (
        as_number,
        configured,
        given,
        named_sources,
        refuse_beside_yaml,
    )
    from tessera.data.preparation.config import TokenizeConfig

    names = ("out", "tokenizer", "validation_share", "ignore_split_names", "shard_size")
    options = given(arguments, (*names, "part_size", "compression", "overwrite"))
    as_number(options, "validation_share")
    if arguments.config:
        refuse_beside_yaml(arguments)
    else:
        text = Path(options.get("out", TokenizeConfig.out)) / "text"
        inputs = arguments.input or [str(path) for path in sorted(text.glob("*/"))]
        options["sources"] = named_sources(arguments, inputs)
    return configured(TokenizeConfig, arguments, options)


if __name__ == "__main__":
    sys.exit(main())
