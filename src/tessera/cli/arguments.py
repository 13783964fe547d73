"""How commands are told a configuration, paths, or models to judge and where to do it."""

import argparse
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tessera import fetch
from tessera.config import ConfigError, load
from tessera.fetch import Wanted
from tessera.paths import LOCAL, Place

if TYPE_CHECKING:
    from tessera.evaluation.jobs.plan import Cell
    from tessera.evaluation.suites import SuiteConfig
    from tessera.training.config import RunConfig


def add_config(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """The positional `CONFIG [key=value ...]`; or `several` YAMLs, which are among `overrides`."""
    parser.add_argument("config", help="the YAML of a phase")
    more = "CONFIG or key=value" if several else "key=value"
    parser.add_argument("overrides", nargs="*", metavar=more)


def load_config(options: argparse.Namespace) -> "RunConfig":
    """The configuration that `add_config` asked for.

    Raises:
        ConfigError: naming every key that is wrong.
    """
    return load_run_config(options.config, options.overrides)


def load_run_config(path: str, overrides: Sequence[str] = ()) -> "RunConfig":
    """A phase's configuration; imports no torch.

    Raises:
        ConfigError: naming every key that is wrong.
    """
    from tessera.training.config import RunConfig

    return load(RunConfig, path, overrides)


def at_least(least: int, option: str, value: int) -> int:
    """The value of an option, if it is large enough.

    Raises:
        ConfigError: it is not.
    """
    if value < least:
        raise ConfigError(f"{option} must be at least {least}; got {value}")
    return value


def existing(path: str, wanted: Wanted = "newest") -> Path:
    """A path that a command is to read, before anything heavy is imported to read it.

    Args:
        path: of this machine, or a remote one, which is fetched into the cache.
        wanted: what is needed of it, if it is a remote run folder.

    Raises:
        ValueError: there is nothing, or it cannot be fetched.
    """
    found = fetch.local(path, wanted)
    if not found.exists():
        raise ConfigError(f"{path}: there is no such file or folder")
    return found


def written(option: str, path: str) -> Path:
    """A path that a command is to write: of this machine, expanded.

    Raises:
        ConfigError: it is somewhere else.
    """
    return Path(placed(option, path, LOCAL))


def placed(option: str, path: str, place: Place) -> str:
    """A path that an option names, expanded.

    Raises:
        ConfigError: it is where this option's cannot be.
    """
    try:
        return place.parse(path)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from None


# ---- judging models


def add_judging(parser: argparse.ArgumentParser) -> None:
    """Where the jobs of a suite run, and where their results go."""
    parser.add_argument(
        "--out",
        default="results",
        metavar="DIR",
        help="folder for index.html, results.json, results.csv and a record of each job: what is "
        "finished there is not done again",
    )
    parser.add_argument(
        "--executor",
        choices=["local", "slurm", "ray"],
        help="where jobs run; more about it in the suite's `executor`, such as "
        "executor.sbatch.gres=gpu:1",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="jobs at a time; a GPU each, else all cores"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU if there is one")


def judge_models(
    options: argparse.Namespace, suite: "SuiteConfig", models: Sequence[str], *, keep: bool = False
) -> list["Cell"]:
    """Do the jobs of a suite that `add_judging` says where to do, and say what failed.

    Args:
        options: of the command.
        suite: the tasks.
        models: as they were typed.
        keep: whether the best trained model of each task is kept.

    Raises:
        ConfigError: a model or an option is wrong, or jobs failed.
    """
    from dataclasses import replace
    from functools import partial

    from tessera.evaluation.jobs.models import resolve
    from tessera.evaluation.jobs.running import Asked, judge
    from tessera.evaluation.jobs.work import gpus
    from tessera.reporting.results_page import write_results_page

    if options.workers is not None:
        at_least(1, "--workers", options.workers)
    out = written("--out", options.out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; name a folder")
    command = shlex.join(["tessera", *sys.argv[1:]])
    asked = {"name": options.executor, "workers": options.workers}
    given = {name: value for name, value in asked.items() if value is not None}
    executor = replace(suite.executor, **given)
    if options.device == "cuda" and executor.name == "local" and not gpus():
        raise ConfigError("--device cuda: there is no GPU on this machine")
    asked_for = Asked(
        suite=suite,
        models=resolve(models, out),
        out=out,
        executor=executor,
        command=command,
        device=options.device,
        keep=keep,
        show=partial(write_results_page, out=out, command=command),
    )
    with _stoppable():
        cells = judge(asked_for)
    print(f"page     {out / 'index.html'}")
    print(f"numbers  {out / 'results.json'}, {out / 'results.csv'}")
    failed = [cell for cell in cells if cell.problem is not None or cell.failed]
    if failed:
        counts = {
            "failed": sum(len(cell.failed) for cell in cells),
            "could not begin": sum(cell.problem is not None for cell in cells),
        }
        said = " and ".join(f"{count} {what}" for what, count in counts.items() if count)
        raise ConfigError(
            f"of the jobs, {said}; the page says which and why; the same command tries them again"
        )
    return cells


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, and say then that nothing finished is lost."""
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    except KeyboardInterrupt:
        print("tessera: stopped; the same command does what is not finished", file=sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
