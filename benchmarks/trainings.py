"""Trainings that a table is made of: what is asked for, and each kept under the settings it had.

A run's folder ends in a digest of its whole configuration, of the data and of the checkpoint it
starts from: the same training is found again, and any other is another run.
"""

import argparse
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tessera.cli.arguments import load_run_config
from tessera.config import ConfigError, to_plain

if TYPE_CHECKING:
    from tessera.training.config import RunConfig

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
OWN = ("run_folder", "duration", "seed", "evaluation", "checkpoints")
"""Keys that a table sets, alike for each of its runs."""
_TRIED = "--try NAME='KEY=VALUE ...'"

Losses = dict[str, float]
"""Of validation, by source."""


def parse(
    says: str,
    known: Mapping[str, str],
    name: str,
    check: Callable[[str, int, int], None],
    *,
    seeds: Sequence[int],
    threads: int,
    arguments: Sequence[str] | None = None,
    always: Sequence[str] = (),
) -> argparse.Namespace:
    """What is asked of a table of trainings; ends with exit status 2 if it makes no sense.

    `settings` of what is returned are the overrides to train with, by what they are called.

    Args:
        says: what `--help` prints.
        known: the overrides that have names.
        name: of the table: its runs and its numbers are kept under it.
        check: raises ConfigError for overrides that cannot be trained with this seed and tokens.
        seeds: unless others are asked for.
        threads: likewise.
        arguments: of the command line, or these.
        always: names that are in every table.
    """
    parser = argparse.ArgumentParser(
        description=says, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=whole(1), default=400_000, help="of each run")
    parser.add_argument("--seeds", type=whole(0), nargs="+", default=list(seeds))
    parser.add_argument("--threads", type=whole(1), default=threads)
    parser.add_argument("--only", nargs="+", choices=list(known), default=list(known))
    parser.add_argument("--try", dest="tried", action="append", default=[], metavar="NAME=K=V ...")
    add_places(parser, name)
    asked = parser.parse_args(arguments)
    settle_places(parser, asked, name)
    if len(set(asked.seeds)) < len(asked.seeds):
        parser.error(f"--seeds {' '.join(map(str, asked.seeds))}: one of them is there twice")
    asked.settings = {each: known[each] for each in dict.fromkeys([*always, *asked.only])}
    seen: set[str] = set()
    for text in asked.tried:
        tried, equals, overrides = text.partition("=")
        if not equals or not tried.strip() or "=" not in overrides:
            parser.error(f"--try '{text}': is written {_TRIED}")
        if tried in seen:
            parser.error(f"--try '{tried}=...' is there twice; each has a name of its own")
        seen.add(tried)
        asked.settings[tried] = overrides
    order = sorted(asked.settings, key=lambda each: each not in seen)
    for tried in order:
        overrides = asked.settings[tried]
        for seed in asked.seeds if tried == order[0] else asked.seeds[:1]:
            try:
                check(overrides, seed, asked.tokens)
            except ConfigError as error:
                where = f"--try '{tried}'" if tried in seen else f"'{tried}' with these options"
                parser.error(f"{where}: {in_a_line(error)}")
    if not (ROOT / "data/demo/.prepared").exists():
        parser.error("there is no text of the demo yet; run `make demo` first")
    return asked


def whole(least: int) -> Callable[[str], int]:
    """A whole number of an option, and no smaller one."""

    def parsed(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(
                f"must be a whole number, at least {least}; got {text}"
            )
        return value

    return parsed


def add_places(parser: argparse.ArgumentParser, name: str) -> None:
    """Where a table's runs and numbers go: `--runs` and `--out`."""
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / name)
    parser.add_argument(
        "--out",
        type=Path,
        help=f"the numbers; default: results/{name}.json for the table as it is by default, and a "
        "file in --runs for any other",
    )


def settle_places(parser: argparse.ArgumentParser, asked: argparse.Namespace, name: str) -> None:
    """Make both places absolute; the numbers of another table than the default one go elsewhere."""
    asked.runs = asked.runs.resolve()
    if asked.runs.exists() and not asked.runs.is_dir():
        parser.error(f"--runs {asked.runs}: is a file; name a folder")
    others = {key: value for key, value in vars(asked).items() if key not in ("runs", "out")}
    if asked.out is None:
        usual = all(value == parser.get_default(key) for key, value in others.items())
        asked.out = (RESULTS if usual else asked.runs) / f"{name}.json"
        if not usual:
            asked.out = asked.out.with_stem(f"{name}-{digest(others)}")
        return
    asked.out = asked.out.resolve()
    if asked.out.is_dir():
        parser.error(f"--out {asked.out}: is a folder; name a file in it")
    if not asked.out.parent.is_dir():
        parser.error(f"--out {asked.out}: there is no folder {asked.out.parent}")


def write(asked: argparse.Namespace, result: Mapping[str, object]) -> None:
    """Keep the numbers of a table, and say where."""
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nwritten to {asked.out}")


def in_a_line(error: Exception) -> str:
    """What is wrong with a configuration, or a file that it names."""
    problems = getattr(error, "problems", ()) or [str(error)]
    return "; ".join(" ".join(each.split()) for each in problems)


# ---- one training


def settings(overrides: str, seed: int, tokens: int) -> list[str]:
    """Overrides of one phase of a table; `{tokens}` in them are its own."""
    rest = ["evaluation.interval=null", "evaluation.at_end=true", "checkpoints.interval=null"]
    own = overrides.replace("{tokens}", str(tokens)).split()
    return [*rest, *own, f"duration={tokens}tok", f"seed={seed}"]


def check_phase(yaml: str, overrides: str, seed: int, tokens: int) -> "RunConfig":
    """The configuration of one phase.

    Raises:
        ConfigError: it is wrong, or it sets what the table sets.
    """
    for override in overrides.split():
        key = override.partition("=")[0].partition(".")[0]
        if key in OWN:
            raise ConfigError(f"{override}: {key} is the table's own, alike for each of its runs")
    return load_run_config(str(ROOT / yaml), settings(overrides, seed, tokens))


def check_comparable(last: "RunConfig") -> None:
    """Only a loss of masked tokens is of a table.

    Raises:
        ConfigError: this phase, which is a run's last, is causal.
    """
    if last.train_data.causal:
        raise ConfigError(
            "trains with train_data.objective=causal to its end: a causal loss is not comparable "
            "with one of masked tokens"
        )


def one_phase(
    asked: argparse.Namespace, name: str, overrides: str, seed: int, tokens: int, yaml: str
) -> Path:
    """The folder of a phase, which is trained if it is not there."""
    asked_for = settings(overrides, seed, tokens)
    config = load_run_config(str(ROOT / yaml), asked_for)
    folder = run_folder(asked, f"{name}-{seed}-{tokens}", config)
    if not is_finished(folder, tokens):
        train(folder, yaml, asked_for, asked.threads)
    return folder


def train(folder: Path, yaml: str, overrides: Sequence[str], threads: int) -> None:
    """One phase, in a process of its own; ends the benchmark where it fails."""
    ran([sys.executable, "main.py", yaml, *overrides, f"run_folder={folder}"], threads)


def ran(command: Sequence[str], threads: int) -> str:
    """What a command printed; ends the benchmark where one fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done.stdout


def run_folder(asked: argparse.Namespace, name: str, config: "RunConfig") -> Path:
    """Where a run of this configuration is kept; another has another folder."""
    plain = to_plain(config)
    del plain["run_folder"]
    plainly = re.sub(r"[^\w.%+-]+", "-", name)
    return asked.runs / f"{plainly}-{digest([plain, asked.threads, _files(config)])}"


def _files(config: "RunConfig") -> list[str]:
    """Digests of what a configuration names: indices of shards, a tokenizer, a checkpoint."""
    files = [ROOT / config.tokenizer / "tokenizer.json"]
    for source in config.train_data.sources.values():
        for split in filter(None, (source.split, source.validation_split)):
            files.append(ROOT / str(source.local) / split / "index.json")
    before = [config.start_from and config.start_from.checkpoint]
    before.append(config.initial_weights and config.initial_weights.tile)
    for path in filter(None, before):
        from tessera.checkpoints.reader import locate  # torch

        found = locate(ROOT / path)
        files += sorted(found.glob("*.safetensors")) if found.is_dir() else [found]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()]


def digest(plain: object) -> str:
    """Eight letters that tell plain values apart."""
    text = json.dumps(plain, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def is_finished(folder: Path, tokens: int) -> bool:
    """Whether a run was evaluated after so many tokens."""
    return bool(_ends(folder, tokens))


def last_losses(folder: Path, tokens: int) -> Losses:
    """What a finished run ended with.

    Raises:
        SystemExit: with no loss, or with a causal one, which is of another kind.
    """
    ends = _ends(folder, tokens)
    if not ends:
        raise SystemExit(f"{folder}: ended without a validation loss at {tokens:,} tokens")
    if ends[-1].get("objective", "masked") != "masked":
        raise SystemExit(
            f"{folder}: its last validation loss is causal, not comparable with a masked one"
        )
    return {name: one["loss"] for name, one in ends[-1]["sources"].items()}


def _ends(folder: Path, tokens: int) -> list[dict]:
    found = records_of(folder)
    return [r for r in found if r["kind"] == "evaluation" and r["tokens"] >= tokens]


def records_of(folder: Path) -> list[dict]:
    """What a run recorded; nothing if it has not begun."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def mean(losses: Losses) -> float:
    """Over the sources, each alike."""
    return statistics.fmean(losses.values())
