"""`tessera`: reads the arguments, calls the part that does the work, and sets the exit status.

0 done, 2 the user's mistake (one message), 1 ours (a traceback).
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence

from tessera.cli import data
from tessera.config import ConfigError, mistake


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("tessera").setLevel(logging.INFO)
    logging.getLogger("tessera.model").setLevel(logging.WARNING)
    try:
        return options.command(options) or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        message = mistake(error)
        if message is None:
            raise
        print(f"tessera: {message}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="tessera", description="Pretrain, anneal and release ModernBERT-style encoders."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int | None], help: str):
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(command=run)
        return sub

    def configured(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("config", help="the YAML of a phase")
        sub.add_argument("overrides", nargs="*", metavar="key=value")

    sub = command("check", _check, "What a YAML would run, or everything that is wrong with it.")
    configured(sub)
    sub.add_argument("--world-size", type=int, default=1, metavar="N", help="GPUs in all")

    command("doctor", _doctor, "This machine: versions, devices, attention backends and why not.")

    sub = command("import", _import, "FlexBERT's .pt or a Hugging Face folder to a checkpoint.")
    sub.add_argument("source", help="a .pt file, a Hugging Face folder or id")
    sub.add_argument("--out", required=True, metavar="FILE.pt")
    sub.add_argument("--model", metavar="YAML", help="the model section to expect, or to tile to")
    sub.add_argument(
        "--tile",
        choices=["default", "published"],
        help="lay the larger --model from tiles of the source",
    )

    sub.add_argument(
        "--extend-tokenizer",
        metavar="FOLDER_OR_FILE",
        help="add its tokens, and rows for them: a tokenizer that extends the source's, or a "
        "file of tokens, one a line",
    )

    sub = command("export", _export, "A checkpoint to a Hugging Face folder, verified.")
    sub.add_argument("checkpoint", help="a .pt file or a run folder")
    sub.add_argument("--out", required=True, metavar="DIR")

    sub = command("release", _release, "Every checkpoint of a run as a revision to publish.")
    sub.add_argument("run_folder")
    sub.add_argument("--out", required=True, metavar="DIR")
    sub.add_argument("--push", metavar="ORG/NAME", help="also push to this Hugging Face repository")
    sub.add_argument("--license", metavar="ID", help="named on the model cards, such as apache-2.0")

    sub = command("merge", _merge, "The average of checkpoints of one architecture.")
    sub.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT")
    sub.add_argument(
        "--weights", type=float, nargs="+", help="one per checkpoint; uniform if absent"
    )
    sub.add_argument("--out", required=True, metavar="FILE.pt")

    sub = command("batches", _batches, "What a run reads: one JSON line per global batch.")
    configured(sub)
    sub.add_argument("--start-from", metavar="CKPT", help="continue from this checkpoint's data")
    sub.add_argument("--steps", type=int, default=10, metavar="N")
    sub.add_argument("--world-size", type=int, default=1, metavar="W")
    sub.add_argument("--ids", action="store_true", help="with the documents of each batch")

    data.add_arguments(command("data", data.run, data.HELP))

    sub = command("evaluate", _evaluate, "Masked-LM loss per source; masks filled by an export.")
    sub.add_argument("models", nargs="+", metavar="MODEL", help="checkpoint, run or HF folder")
    sub.add_argument("--config", metavar="YAML", help="whose data to evaluate on")
    sub.add_argument("--fill", action="append", default=[], metavar="TEXT", help="text with [MASK]")

    sub = command("report", _report, "The curves of one run, or of the phases of a chain.")
    sub.add_argument("run_folders", nargs="+", metavar="RUN_FOLDER")
    sub.add_argument("--out", metavar="FILE.html", help="default: report.html in the last folder")
    return top


def _check(options: argparse.Namespace) -> int:
    from tessera.cli.check import describe
    from tessera.config import load
    from tessera.training.config import RunConfig

    if options.world_size < 1:
        raise ConfigError(f"--world-size must be at least 1; got {options.world_size}")
    config = load(RunConfig, options.config, options.overrides)
    print(describe(config, options.config, options.world_size, options.overrides))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from tessera.cli.doctor import report

    print(report())
    return 0


def _import(options: argparse.Namespace) -> int:
    from tessera.config import load
    from tessera.model.config import ModelConfig
    from tessera.tokenizer.extension import read_addition

    target = load(ModelConfig, options.model) if options.model else None
    addition = read_addition(options.extend_tokenizer) if options.extend_tokenizer else None

    from tessera.checkpoints.importer import import_checkpoint

    made = import_checkpoint(
        options.source, options.out, target, tile=options.tile, extend_tokenizer=addition
    )
    print(made)
    if addition is not None:
        beside = made.with_name(f"{made.stem}-tokenizer")
        folder = beside if isinstance(addition, tuple) else options.extend_tokenizer
        print(f"tokenizer: {folder}; prepare text with it, and name it in the YAML")
    return 0


def _export(options: argparse.Namespace) -> int:
    from tessera.checkpoints.exporter import export
    from tessera.checkpoints.reader import read_checkpoint

    folder = export(read_checkpoint(options.checkpoint), options.out)
    print(f"{folder}: a Hugging Face folder; transformers gives the logits of the checkpoint")
    return 0


def _release(options: argparse.Namespace) -> int:
    from tessera.checkpoints.release.revisions import release

    print(release(options.run_folder, options.out, push=options.push, license=options.license))
    return 0


def _merge(options: argparse.Namespace) -> int:
    from tessera.checkpoints.merge import merge

    print(merge(options.checkpoints, options.out, weights=options.weights))
    return 0


def _batches(options: argparse.Namespace) -> int:
    from tessera.cli.batches import lines

    for line in lines(
        options.config,
        options.overrides,
        start_from=options.start_from,
        steps=options.steps,
        world_size=options.world_size,
        with_ids=options.ids,
    ):
        print(line, flush=True)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from tessera.cli.evaluate import lines

    for line in lines(options.models, options.config, options.fill):
        print(line, flush=True)
    return 0


def _report(options: argparse.Namespace) -> int:
    from pathlib import Path

    from tessera.reporting.report import summary_table, write_report

    out = Path(options.out or Path(options.run_folders[-1]) / "report.html")
    write_report([Path(folder) for folder in options.run_folders], out)
    print(summary_table([Path(folder) for folder in options.run_folders]))
    print(f"\nreport: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
