"""`tessera report`: the curves of one run, or of the phases of a chain."""

import argparse
from pathlib import Path

from tessera.cli.arguments import existing, written
from tessera.paths import is_remote

HELP = "The curves of one run, or of the phases of a chain."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("run_folders", nargs="+", metavar="RUN_FOLDER")
    parser.add_argument(
        "--out",
        metavar="FILE.html",
        help="default: report.html in the last, or here if that is remote",
    )


def run(options: argparse.Namespace) -> None:
    """Write the page, and print the summary."""
    out = written("--out", options.out) if options.out is not None else None
    folders = [existing(folder, "records") for folder in options.run_folders]
    if out is None and is_remote(options.run_folders[-1]):
        out = Path("report.html")

    from tessera.reporting.metrics import read_chain

    read_chain(folders)  # before matplotlib is imported: what cannot be read is said at once

    from tessera.reporting.report import summary_table, write_report

    out = out or folders[-1] / "report.html"
    write_report(folders, out)
    print(summary_table(folders))
    print(f"\nreport: {out}")
