"""`tessera release`: every checkpoint of a run as a revision, with card and restart state."""

import argparse
import re
import sys
from pathlib import Path

from tessera.cli.arguments import existing, written
from tessera.config import ConfigError

HELP = "Every checkpoint of a run as a revision to publish."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("run_folder")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--push", metavar="ORG/NAME", help="also push to this Hub repository")
    parser.add_argument("--license", metavar="ID", help="named on the cards, such as apache-2.0")
    parser.add_argument(
        "--results",
        metavar="DIR",
        help="of `tessera evaluate --out DIR`: its numbers go on the cards, of revisions that are "
        "there already too",
    )
    parser.add_argument(
        "--language",
        action="append",
        default=[],
        metavar="CODE",
        help="of the text, named on the cards, such as en; may be given several times",
    )


def run(options: argparse.Namespace) -> None:
    """Release, and print the index.

    Raises:
        ConfigError: a licence or a language is none.
    """
    out, run_folder = written("--out", options.out), existing(options.run_folder, "all")
    results = existing(options.results) if options.results is not None else None
    license = None if options.license is None else options.license.lower()
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license):
        raise ConfigError(
            f"--license {options.license}: expected an identifier of the Hugging Face Hub, such as "
            "apache-2.0, mit or cc-by-4.0; 'other' for one of your own"
        )
    for code in options.language:
        if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|code|multilingual", code):
            raise ConfigError(f"--language {code}: expected a code such as en, de or zh; or code")

    from tessera.checkpoints.release.model_card import About
    from tessera.checkpoints.release.revisions import release

    about = About(
        languages=options.language, example=_example(run_folder), picture=_picture(run_folder)
    )
    index = release(
        run_folder, out, push=options.push, license=license, about=about, results=results
    )
    print(index)
    if license is None:
        print(
            "tessera: warning: no licence was named, and without one nobody may use the model; "
            "give --license, such as --license apache-2.0, with the same command",
            file=sys.stderr,
        )


def _example(run_folder: Path) -> tuple[str, str] | None:
    """A text of a validation split with a mask, and what stood there; None if none is here."""
    from tessera.evaluation.fill_mask import example_of
    from tessera.training.config import RunConfig

    path = run_folder / "config.yaml"
    if not path.is_file():
        return None
    from tessera.config import load

    try:
        config = load(RunConfig, path)
        return example_of(config.train_data.sources, config.tokenizer)
    except (ConfigError, ValueError, OSError):
        return None  # the card says another sentence then


def _picture(run_folder: Path) -> bytes | None:
    """The loss of the run as a PNG; None if there is no record of it."""
    from tessera.reporting.metrics import read_chain

    try:
        phases = read_chain([run_folder])
    except ValueError:
        return None
    from tessera.reporting.canvas import NARROW_INCHES, picture
    from tessera.reporting.plots import loss_figure

    return picture("loss", loss_figure, phases, 1.6 * NARROW_INCHES)
