"""`tessera`: reads the arguments, calls the command that does the work, sets the exit status.

0 done, 2 the user's mistake (one message), 1 ours (a traceback). A command is a file of this
folder with `HELP`, `add_arguments` and `run`. None imports torch before its arguments, the YAML and
the paths in it are right.
"""

import argparse
import difflib
import logging
import os
import re
import sys
from collections.abc import Sequence

from tessera.cli import (
    batches,
    check,
    data,
    evaluate,
    export,
    finetune,
    import_,
    merge,
    release,
    report,
    train,
)
from tessera.cli.planning import doctor, init, shapes
from tessera.config import ConfigError, mistake

COMMANDS = {
    "init": init,
    "check": check,
    "doctor": doctor,
    "import": import_,
    "export": export,
    "release": release,
    "merge": merge,
    "batches": batches,
    "data": data,
    "evaluate": evaluate,
    "finetune": finetune,
    "report": report,
    "shapes": shapes,
    "train": train,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    try:
        options = _parse(sys.argv[1:] if arguments is None else list(arguments))
    except ConfigError as error:
        print(f"tessera: {error}", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("tessera").setLevel(logging.INFO)
    logging.getLogger("tessera.model").setLevel(logging.WARNING)
    try:
        options.run(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        message = mistake(error)
        if message is None:
            raise
        print(f"tessera: {message}", file=sys.stderr)
        return 2
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    """The options; keys of a YAML may stand behind options too.

    Raises:
        ConfigError: there is no such command, or a key was written as an option.
    """
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        close = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"one of {', '.join(COMMANDS)}"
        raise ConfigError(f"{arguments[0]}: no such command; {hint}")
    options, rest = parser().parse_known_args(arguments)
    if not hasattr(options, "overrides"):
        return parser().parse_args(arguments)
    for number, word in enumerate(rest):
        key = re.fullmatch(r"--([A-Za-z_]\w*(?:\.\w+)+)(?:=(.*))?", word)
        if key is not None:
            value = key[2] or next(iter(rest[number + 1 :]), "VALUE")
            raise ConfigError(f"{word}: keys of the YAML are written {key[1]}={value}")
        if word.startswith("-"):
            return parser().parse_args(arguments)  # whose message names the options there are
    options.overrides = [*options.overrides, *rest]
    return options


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="tessera", description="Pretrain, anneal and release ModernBERT-style encoders."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.HELP, description=command.HELP)
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return top


if __name__ == "__main__":
    sys.exit(main())
