"""Filter text and remove copies, before it is tokenised.

Each input is a source, as for tokenize.py: NAME=ADDRESS, local or in a store, of any format. What
passes is written to OUT/NAME as JSON lines, which tokenize.py reads; what does not is listed with
the reason in OUT/removed/NAME; cleaning.json counts both.

  --filters web=gopher_repetition,gopher_quality,c4,fineweb    rules, in this order
  --duplicates minhash        near copies and exact ones, within and across the sources
  --against glue=hf://datasets/nyu-mll/glue --against-column glue=sentence1,sentence2
                              documents that share 13 words in a row with these are removed

A YAML says the same, with the options of each rule: --config data_prep/recipes/clean.yaml.

Killed at any moment, it goes on where it was when started again. The result depends neither on the
executor nor on the number of tasks and workers. Needs pip install 'tessera[data]'.
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # tokenize.py, beside this file, must not hide the standard library's
    sys.path = [
        entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent
    ]
    os.environ["PYTHONSAFEPATH"] = "1"  # nor in the processes it starts

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tessera.data.preparation.config import CleanConfig


def main() -> int:
    """Clean what is not cleaned; returns the exit status."""
    arguments = parse_arguments()
    from tessera.data.preparation.command_line import exit_status  # after --help

    def work() -> int:
        from tessera.data.preparation.cleaning.run import clean

        return clean(config_of(arguments))

    return exit_status(work)


def parse_arguments() -> argparse.Namespace:
    """Read the command line. What is not given is decided by the YAML, or by the defaults."""
    from tessera.data.preparation.command_line import add_executor_options, add_input_options

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add_input_options(parser, "data_prep/recipes/clean.yaml")
    add("--out", help="folder for NAME/ and removed/NAME/, local or in a store (data/clean)")
    add(
        "--filters",
        action="append",
        default=[],
        metavar="RULES",
        help="rules that documents of all sources, or of one as NAME=RULES, have to pass, with "
        "commas between: language, gopher_repetition, gopher_quality, c4, fineweb (none)",
    )
    add("--duplicates", choices=["minhash", "exact", "none"], help="what is a copy (minhash)")
    add(
        "--against",
        action="append",
        default=[],
        metavar="NAME=ADDRESS",
        help="evaluation texts that must not be trained on; repeatable",
    )
    add(
        "--against-column",
        action="append",
        default=[],
        metavar="COLUMNS",
        help="columns of their text, of all or NAME=COLUMN,COLUMN; repeatable (text)",
    )
    add("--against-words", type=int, help="how many words in a row are too many (13)")
    add("--columns", help="columns to keep beside id and text, with commas between")
    add("--part-size", help="input that a worker takes at a time (64mb)")
    add("--work", help="folder for what passes between stages, that all machines share (OUT/work)")
    add("--overwrite", action="store_true", default=None, help="replace what other options made")
    add_executor_options(parser)
    return parser.parse_args()


def config_of(arguments: argparse.Namespace) -> "CleanConfig":
    """What the command line asks for, over what its YAML says.

    Raises:
        ConfigError: naming every mistake.
    """
    from tessera.data.preparation.command_line import configured, given, refuse_beside_yaml
    from tessera.data.preparation.config import CleanConfig

    names = ("out", "against_words", "part_size", "work", "overwrite", "ignore_split_names")
    options = given(arguments, names)
    if arguments.duplicates:
        options["duplicates"] = {"method": arguments.duplicates}
    if arguments.config:
        refuse_beside_yaml(arguments, ("filters", "columns", "against", "against_column"))
        return configured(CleanConfig, arguments, options)
    options["sources"] = sources(arguments)
    options["against"] = evaluation_texts(arguments)
    return configured(CleanConfig, arguments, options)


def sources(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The inputs by name, as a YAML would list them."""
    from tessera.data.preparation.command_line import named_sources
    from tessera.data.preparation.inputs import by_name

    found = named_sources(arguments, arguments.input)
    rules = by_name("--filters", arguments.filters, list(found), "")
    for asked in rules.values():
        if twice := [rule for rule in asked.split(",") if asked.split(",").count(rule) > 1]:
            raise ValueError(f"--filters: {twice[0]} is named twice")
    columns = arguments.columns.split(",") if arguments.columns else []
    return {
        name: {
            **about,
            "filters": {rule: {} for rule in rules[name].split(",") if rule},
            "columns": columns,
        }
        for name, about in found.items()
    }


def evaluation_texts(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The evaluation texts by name, as a YAML would list them."""
    from tessera.data.preparation.inputs import by_name, parse_inputs

    found: dict[str, str] = {}
    for source in parse_inputs(arguments.against):
        if source.name in found:
            raise ValueError(
                f"--against: '{source.name}' names both {found[source.name]} and {source.path}; "
                "write NAME=ADDRESS"
            )
        found[source.name] = source.path
    if arguments.against_words and not found:
        raise ValueError("--against-words counts for --against, and there is none")
    columns = by_name("--against-column", arguments.against_column, list(found), "text")
    return {
        name: {"path": path, "columns": columns[name].split(",")} for name, path in found.items()
    }


if __name__ == "__main__":
    sys.exit(main())
