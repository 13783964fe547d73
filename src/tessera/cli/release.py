"""`tessera release`: every checkpoint of a run as a revision, with card and restart state."""

import argparse

from tessera.cli.arguments import existing, written

HELP = "Every checkpoint of a run as a revision to publish."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("run_folder")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--push", metavar="ORG/NAME", help="also push to this Hub repository")
    parser.add_argument("--license", metavar="ID", help="named on the cards, such as apache-2.0")


def run(options: argparse.Namespace) -> None:
    """Release, and print the index."""
    out, run_folder = written("--out", options.out), existing(options.run_folder, "all")

    from tessera.checkpoints.release.revisions import release

    print(release(run_folder, out, push=options.push, license=options.license))
