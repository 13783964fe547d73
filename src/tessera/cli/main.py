"""`tessera`: reads the arguments, calls the command that does the work, sets the exit status.

0 done, 2 the user's mistake (one message), 1 ours (a traceback). A command is a file of this
folder with `HELP`, `add_arguments` and `run`. None imports torch before its arguments, the YAML and
the paths in it are right.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from tessera.cli import (
    batches,
    check,
    data,
    doctor,
    evaluate,
    export,
    finetune,
    import_,
    merge,
    release,
    report,
)
from tessera.config import mistake

COMMANDS = {
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
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = parser().parse_args(arguments)
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
