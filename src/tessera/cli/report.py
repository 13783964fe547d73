"""`tessera report`: the curves of one run, of the phases of a chain, or of runs side by side."""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tessera.cli.arguments import at_least, existing, written
from tessera.config import ConfigError, decode
from tessera.paths import is_remote

if TYPE_CHECKING:
    from tessera.reporting.phase import Phase

HELP = "The curves of one run, of the phases of a chain, or of runs side by side."
_FOLLOW_SECONDS = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("run_folders", nargs="+", metavar="RUN_FOLDER")
    parser.add_argument(
        "--compare",
        action="store_true",
        help="runs beside one another, over tokens, operations and time; not phases of one",
    )
    parser.add_argument(
        "--follow",
        nargs="?",
        type=int,
        const=_FOLLOW_SECONDS,
        metavar="SECONDS",
        help=f"write the page again every so many seconds ({_FOLLOW_SECONDS}) while a run goes on; "
        "a browser that shows it keeps up",
    )
    parser.add_argument(
        "--out",
        metavar="FILE.html",
        help="default: report.html in the last, or here if that is remote; compare.html here",
    )


def run(options: argparse.Namespace) -> None:
    """Write the page, and print the summary.

    Raises:
        ConfigError: there is one run to compare.
    """
    out = written("--out", options.out) if options.out is not None else None
    if options.compare and len(options.run_folders) < 2:
        raise ConfigError("--compare: name two runs or more")
    if options.follow is not None:
        at_least(1, "--follow", options.follow)
        _await_first_step(options.run_folders, options.follow)
    folders = [existing(folder, "records") for folder in options.run_folders]
    if out is None and options.compare:
        out = Path("compare.html")
    if out is None and is_remote(options.run_folders[-1]):
        out = Path("report.html")
    out = out or folders[-1] / "report.html"

    from tessera.reporting.metrics import read_chain

    read_chain(folders)  # before matplotlib is imported: what cannot be read is said at once

    from tessera.reporting.report import summary_table

    write = _writer(out, compare=options.compare)
    if options.follow is not None:
        folders = _follow(options.run_folders, write, out, options.follow)
    write(folders, None)
    print(summary_table(folders))
    print(f"\nreport: {out}")


def _writer(out: Path, *, compare: bool) -> Callable[[Sequence[Path], int | None], None]:
    from tessera.reporting.report import write_report

    if not compare:
        return lambda folders, refresh: write_report(folders, out, refresh_seconds=refresh)
    from tessera.reporting.comparison import write_comparison

    return lambda folders, refresh: write_comparison(
        folders, out, operations=operations_of, refresh_seconds=refresh
    )


def operations_of(phase: "Phase") -> float:
    """Floating-point operations of a run, counted; documents are taken for equally long.

    NaN if its configuration does not say what model it is.
    """
    from tessera.model.config import ModelConfig
    from tessera.model.flops import needed_flops, pairs_of

    try:
        model = decode(ModelConfig, phase.config["model"], phase.name)
    except (KeyError, ConfigError):
        return math.nan
    predicted = phase.column("predicted_tokens" if phase.causal else "masked_tokens")
    length = phase.tokens / phase.documents if phase.documents > 0 else math.nan
    return needed_flops(
        model,
        phase.tokens,
        float(predicted.sum()),
        lambda most: (
            phase.tokens
            / length
            * pairs_of(length, length if most is None else min(length, most), phase.causal)
        ),
        causal=phase.causal,
    )


# ---- while a run goes on


def _await_first_step(places: Sequence[str], seconds: int) -> None:
    """Wait until every run has a step to show, if the newest is going on."""
    said = False
    while _is_going_on(places[-1]) and not all(map(_has_steps, places)):
        if not said:
            print("waiting for the first step", flush=True)
            said = True
        time.sleep(min(seconds, 5))


def _follow(
    places: Sequence[str],
    write: Callable[[Sequence[Path], int | None], None],
    out: Path,
    seconds: int,
) -> list[Path]:
    """Write the page as long as one of the runs goes on; returns the folders as they are then."""
    print(f"following: {out}, written every {seconds} s; Ctrl-C ends this, not the run", flush=True)
    shown = sys.stdout.isatty()
    while True:
        going = any(map(_is_going_on, places))
        folders = [existing(place, "records") for place in places]
        if not going:
            return folders
        write(folders, seconds)
        if shown:
            print(f"\r{time.strftime('%H:%M:%S')} written", end="", flush=True)
        end = time.monotonic() + seconds
        while time.monotonic() < end and any(map(_is_going_on, places)):
            time.sleep(min(2.0, seconds))


def _has_steps(place: str) -> bool:
    path = existing(place, "records") / "metrics.jsonl"
    return path.is_file() and path.stat().st_size > 0


def _is_going_on(place: str) -> bool:
    """Whether a process trains in a run folder; of a remote one, whether no end is noted."""
    from tessera.training.run_folder import is_held

    if is_remote(place):
        return not (existing(place, "records") / "ended.json").is_file()
    folder = existing(place, "records")
    return is_held(folder)
