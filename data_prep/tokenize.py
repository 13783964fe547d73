"""Tokenize text into MDS shards, one folder per source and split.

Each input is a source: NAME=ADDRESS, or an ADDRESS whose last part is the name. An address is a
file, a folder or a glob: local, s3://, gs:// or hf://datasets/ORG/NAME/...; JSON lines, JSON,
Parquet, Arrow, CSV, TSV or text, compressed or not, or a folder that `datasets` saved. Files or
folders called train, validation (valid, val, dev) or test at any depth are those splits, and test
is left out; otherwise a share of the documents, chosen by a hash of the text, is kept for
validation.

A YAML says the same: --config data_prep/recipes/pretrain.yaml [key=value ...].

Killed at any moment, it goes on where it was when started again. The result depends neither on the
executor nor on the number of tasks and workers.
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # this file must not hide the standard library's tokenize
    sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).parent]
    os.environ["PYTHONSAFEPATH"] = "1"  # nor in the processes it starts

import argparse
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tessera.data.preparation.config import TokenizeConfig

EXECUTOR_OPTIONS = ("tasks", "workers", "logs", "partition", "time", "qos", "environment")


def main() -> int:
    """Tokenize what is missing; returns the exit status."""
    arguments = parse_arguments()
    from tessera.config import ConfigError  # after --help, which must not wait for them
    from tessera.data.preparation.shards_from_text import make_shards

    try:
        return make_shards(config_of(arguments))
    except (ConfigError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"{place}{error.strerror or error}; finished work is kept", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def parse_arguments() -> argparse.Namespace:
    """Read the command line. What is not given is decided by the YAML, or by the defaults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "input",
        nargs="*",
        help="[NAME=]ADDRESS of a source (default: the folders in OUT/text); with --config, "
        "key=value over what it says",
    )
    add("--config", metavar="YAML", help="what to do, such as data_prep/recipes/pretrain.yaml")
    add("--out", help="folder for NAME/{train,validation}, local or in a store (data/demo)")
    add("--tokenizer", help="folder or Hugging Face id (default: OUT/tokenizer)")
    add(
        "--text-column",
        action="append",
        default=[],
        metavar="COLUMN",
        help="column that holds the text, dotted if nested, of all inputs or NAME=COLUMN; "
        "repeatable (text)",
    )
    add("--id-column", help="column that holds ids (default: 'id', or the place in the file)")
    add(
        "--encoding",
        action="append",
        default=[],
        help="encoding of text files, of all inputs or NAME=ENCODING; repeatable (utf-8)",
    )
    add(
        "--quoting",
        choices=["strict", "none", "trust"],
        help="quotes in tables: strict refuses what looks like a stray one (CSV), none takes a "
        "quote for a character (TSV), trust believes every quote",
    )
    add("--validation-share", help="where inputs name no splits (0.01)")
    add("--ignore-split-names", action="store_true", default=None, help="take all files together")
    add("--shard-size", help="size of a shard, at most (64mb)")
    add("--part-size", help="input that a worker takes at a time (64mb)")
    add("--compression", help="such as zstd or zstd:7; needs decompressing when read")
    add("--overwrite", action="store_true", default=None, help="replace what other options made")
    add("--executor", choices=["local", "slurm", "ray"], help="where it runs (local)")
    add("--tasks", type=int, help="jobs for a cluster, each a share of the parts (64)")
    add("--workers", type=int, help="processes here (one a core), or jobs at a time on a cluster")
    add("--logs", help="folder for what the jobs of a cluster say (OUT/logs)")
    add("--partition", help="of Slurm (cpu)")
    add("--time", help="Slurm's limit for a job (24:00:00)")
    add("--qos", help="of Slurm")
    add("--memory-gb", type=int, help="of a Slurm job (4)")
    add("--environment", help="what a Slurm job runs first, such as 'source .venv/bin/activate'")
    return parser.parse_args()


def config_of(arguments: argparse.Namespace) -> "TokenizeConfig":
    """What the command line asks for, over what its YAML says.

    Raises:
        ConfigError: naming every mistake.
    """
    from tessera.config import decode, load, to_plain
    from tessera.data.preparation.config import TokenizeConfig

    given = options(arguments)
    if not arguments.config:
        out = given.get("out", TokenizeConfig.out)
        return decode(TokenizeConfig, {**given, "sources": sources(arguments, out)}, "command line")
    if refused := [
        name
        for name in ("text_column", "id_column", "encoding", "quoting")
        if getattr(arguments, name)
    ]:
        raise ValueError(
            f"--{refused[0].replace('_', '-')} is of one source: with --config, write "
            f"sources.NAME.{refused[0]}=..."
        )
    config = load(TokenizeConfig, arguments.config, arguments.input)
    if not given:
        return config
    plain = to_plain(config)
    executor = {**plain["executor"], **given.pop("executor", {})}
    return decode(TokenizeConfig, {**plain, **given, "executor": executor}, "command line")


def options(arguments: argparse.Namespace) -> dict:
    """What was given of the options that a YAML has too."""
    names = ("out", "tokenizer", "validation_share", "ignore_split_names", "shard_size")
    names += ("part_size", "compression", "overwrite")  # type: ignore[assignment]
    found = {n: getattr(arguments, n) for n in names if getattr(arguments, n) not in (None, "")}
    if "validation_share" in found:
        with contextlib.suppress(ValueError):  # the decoder says what is wrong with it
            found["validation_share"] = float(found["validation_share"])
    executor = {n: getattr(arguments, n) for n in (*EXECUTOR_OPTIONS, "memory_gb")}
    executor = {name: value for name, value in executor.items() if value is not None}
    if arguments.executor:
        executor["name"] = arguments.executor
    return {**found, "executor": executor} if executor else found


def sources(arguments: argparse.Namespace, out: str) -> dict[str, dict]:
    """The inputs by name, as a YAML would list them."""
    from tessera.data.preparation.text_files import parse_inputs

    inputs = arguments.input or [str(path) for path in sorted((Path(out) / "text").glob("*/"))]
    found: dict[str, dict] = {}
    for source in parse_inputs(
        inputs, arguments.text_column, arguments.id_column, arguments.encoding
    ):
        if source.name in found or not source.name:
            raise ValueError(
                f"{source.path}: '{source.name}' cannot name a source: it is taken, or no folder's "
                "name; write NAME=PATH"
            )
        found[source.name] = {
            "path": source.path,
            "text_column": source.reading.text,
            "id_column": source.reading.id,
            "encoding": source.reading.encoding,
            "quoting": arguments.quoting,
        }
    return found


if __name__ == "__main__":
    sys.exit(main())
