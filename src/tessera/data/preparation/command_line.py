"""What the scripts that read text have in common on the command line."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Config = TypeVar("Config")
_SOURCE_OPTIONS = ("text_column", "id_column", "encoding", "quoting")
_EXECUTOR_OPTIONS = ("tasks", "workers", "logs", "partition", "time", "qos", "environment")


def add_input_options(parser: argparse.ArgumentParser, recipe: str) -> None:
    """Which text, and how it is read."""
    add = parser.add_argument
    add(
        "input",
        nargs="*",
        help="[NAME=]ADDRESS of a source; with --config, key=value over what it says",
    )
    add("--config", metavar="YAML", help=f"what to do, such as {recipe}")
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
    add("--ignore-split-names", action="store_true", default=None, help="take all files together")


def add_executor_options(parser: argparse.ArgumentParser) -> None:
    """Where the work is done."""
    add = parser.add_argument
    add("--executor", choices=["local", "slurm", "ray"], help="where it runs (local)")
    add("--tasks", type=int, help="jobs for a cluster, each a share of the parts (64)")
    add("--workers", type=int, help="processes here (one a core), or jobs at a time on a cluster")
    add("--logs", help="folder for what the jobs of a cluster say (OUT/logs)")
    add("--partition", help="of Slurm (cpu)")
    add("--time", help="Slurm's limit for a job (24:00:00)")
    add("--qos", help="of Slurm")
    add("--memory-gb", type=int, help="of a Slurm job (4)")
    add("--environment", help="what a Slurm job runs first, such as 'source .venv/bin/activate'")


def given(arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """What was given of the options that a YAML has too, and of where the work is done."""
    found = {n: getattr(arguments, n) for n in names if getattr(arguments, n) not in (None, "")}
    executor = {n: getattr(arguments, n) for n in (*_EXECUTOR_OPTIONS, "memory_gb")}
    executor = {name: value for name, value in executor.items() if value is not None}
    if arguments.executor:
        executor["name"] = arguments.executor
    return {**found, "executor": executor} if executor else found


def refuse_beside_yaml(arguments: argparse.Namespace, more: Sequence[str] = ()) -> None:
    """Refuse options that are of one source where a YAML names the sources."""
    if refused := [name for name in (*_SOURCE_OPTIONS, *more) if getattr(arguments, name)]:
        raise ValueError(
            f"--{refused[0].replace('_', '-')} is of one source: with --config, write it into the "
            f"YAML, or sources.NAME.{refused[0]}=..."
        )


def configured(cls: type[Config], arguments: argparse.Namespace, options: dict[str, Any]) -> Config:
    """The configuration of the options alone, or of a YAML with options over it.

    Raises:
        ConfigError: naming every mistake.
    """
    from tessera.config import decode, load, to_plain

    if not arguments.config:
        return decode(cls, options, "command line")
    config = load(cls, arguments.config, arguments.input)
    if not options:
        return config
    plain = to_plain(config)
    sections = {
        key: {**plain[key], **value} for key, value in options.items() if isinstance(value, dict)
    }
    return decode(cls, {**plain, **options, **sections}, "command line")


def named_sources(arguments: argparse.Namespace, inputs: Sequence[str]) -> dict[str, dict]:
    """The inputs by name, as a YAML would list them."""
    from tessera.data.preparation.inputs import parse_inputs

    found: dict[str, dict] = {}
    for source in parse_inputs(inputs, arguments.text_column, encodings=arguments.encoding):
        if source.name in found or not source.name:
            raise ValueError(
                f"{source.path}: '{source.name}' cannot name a source: it is taken, or no folder's "
                "name; write NAME=PATH"
            )
        found[source.name] = {
            "path": source.path,
            "text_column": source.reading.text,
            "id_column": arguments.id_column,
            "encoding": source.reading.encoding,
            "quoting": arguments.quoting,
        }
    return found


def exit_status(work: Callable[[], int]) -> int:
    """Do it, and say what the user has to mend in one message."""
    from tessera.config import ConfigError

    try:
        return work()
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


def as_number(options: dict[str, Any], name: str) -> None:
    """Make a number of an option's text; what is none is left for the decoder to say so."""
    if name in options:
        with contextlib.suppress(ValueError):
            options[name] = float(options[name])
