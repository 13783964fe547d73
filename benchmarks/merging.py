"""Decays of one checkpoint that see the data in other orders, and the average of their weights.

    make demo                                       once: the checkpoint before the decay
    python benchmarks/merging.py                    three groups of three decays, an hour or so
    python benchmarks/merging.py --tokens 100_000 --groups 1 --decays 2

A decay is the demo's phase 3 with another `train_data.seed`; `tessera merge` averages a group's
decays, and the last checkpoints of its first decay; `tessera evaluate` gives the loss of all of
them on the same validation documents with the same masks. What is finished is kept in `--runs`
and not done again; decays of another checkpoint, or of other settings, are others.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hardware import named
from trainings import (
    ROOT,
    add_places,
    digest,
    in_a_line,
    is_finished,
    ran,
    run_folder,
    settle_places,
    train,
    whole,
    write,
)

from tessera.cli.arguments import load_run_config
from tessera.config import ConfigError

YAML = "yamls/demo/phase3.yaml"
MERGE, LAST = "merge", "last"
"""Names of the two averages of a group, in `--runs` and in the numbers."""

Group = dict[str, float]
"""Validation loss of a group's decays, by seed, and of its two averages."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Decay, average, evaluate; print the table and keep the numbers. The exit status."""
    asked = parse(arguments)
    found = []
    for number in range(asked.groups):
        found.append(group([100 * (number + 1) + n for n in range(asked.decays)], asked))
        print(f"group {number + 1}: {json.dumps(found[-1])}", flush=True)
    print()
    print("\n".join(table(found, asked.last)))
    result = {
        "hardware": named(),
        "yaml": YAML,
        "start": asked.start,
        "tokens": asked.tokens,
        "last": f"{asked.last} checkpoints, {asked.tokens // asked.every} tokens apart",
        "validation_loss": found,
    }
    write(asked, result)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What is asked; ends with exit status 2 if it makes no sense."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--start", default="runs/demo/phase2", help="a run folder or checkpoint")
    add("--tokens", type=whole(1), default=400_000, help="of each decay")
    add("--groups", type=whole(1), default=3)
    add("--decays", type=whole(2), default=3, help="of each group")
    add("--last", type=whole(2), default=3, help="checkpoints of one decay to average")
    add("--every", type=whole(2), default=20, help="checkpoints are a decay's 1/N apart")
    add("--validation", type=whole(1), default=100_000, help="tokens of each source")
    add("--threads", type=whole(1), default=2)
    add_places(parser, "merging")
    asked = parser.parse_args(arguments)
    settle_places(parser, asked, "merging")
    if asked.last > asked.every:
        parser.error(f"--last {asked.last}: a decay has --every {asked.every} checkpoints")
    if asked.tokens < asked.every:
        parser.error(
            f"--tokens {asked.tokens}: no {asked.every} checkpoints (--every) fit into so few"
        )
    try:
        config = load_run_config(str(ROOT / YAML), settings(0, asked))
        step = config.batch.rows * config.train_data.row_tokens
        if asked.tokens < asked.last * step:
            parser.error(
                f"--tokens {asked.tokens}: {asked.last} checkpoints (--last) take as many steps of "
                f"up to {step:,} tokens, so {asked.last * step:,} at least"
            )
        if not (ROOT / asked.start).exists():
            parser.error(f"there is no {asked.start} yet; run `make demo` first")
        run_folder(asked, "decay", config)  # there is a checkpoint
    except (ConfigError, ValueError) as error:
        parser.error(in_a_line(error))
    return asked


def group(seeds: Sequence[int], asked: argparse.Namespace) -> Group:
    """Losses of decays of these seeds, of their average, and of the end of the first averaged."""
    folders = {str(seed): decay(seed, asked) for seed in seeds}
    first = folders[str(seeds[0])]
    tail = sorted((first / "checkpoints").glob("step*.pt"))[-asked.last :]
    if len(tail) < asked.last:
        raise SystemExit(f"{first}: holds {len(tail)} checkpoints, not {asked.last}; remove it")
    own = digest([folder.name for folder in folders.values()])
    averages = {
        MERGE: average(list(folders.values()), asked.runs / f"merge-{seeds[0]}-{own}.pt", asked),
        LAST: average(tail, first / f"last-{asked.last}.pt", asked),
    }
    return losses({**folders, **averages}, asked)


def decay(seed: int, asked: argparse.Namespace) -> Path:
    """The folder of a decay, which is trained if it is not there."""
    overrides = settings(seed, asked)
    config = load_run_config(str(ROOT / YAML), overrides)
    folder = run_folder(asked, f"decay-{seed}-{asked.tokens}", config)
    if not is_finished(folder, asked.tokens):
        train(folder, YAML, overrides, asked.threads)
    return folder


def settings(seed: int, asked: argparse.Namespace) -> list[str]:
    """Overrides of a decay."""
    each = {
        "start_from": asked.start,
        "duration": f"{asked.tokens}tok",
        "schedule.decay": f"{asked.tokens}tok",
        "train_data.seed": seed,
        "evaluation.interval": "null",
        "evaluation.at_end": "true",
        "checkpoints.interval": f"{asked.tokens // asked.every}tok",
        "checkpoints.keep": asked.last,
    }
    return [f"{key}={value}" for key, value in each.items()]


def average(checkpoints: Sequence[Path], out: Path, asked: argparse.Namespace) -> Path:
    """`tessera merge`, anew: which checkpoints a file is made of does not show in its name."""
    out.unlink(missing_ok=True)
    ran([*tessera("merge"), *map(str, checkpoints), "--out", str(out)], asked.threads)
    return out


def losses(models: Mapping[str, Path], asked: argparse.Namespace) -> Group:
    """Each model's loss as `tessera evaluate` prints it, the mean of the sources."""
    overrides = [f"start_from={asked.start}", f"evaluation.max_tokens={asked.validation}"]
    paths = [str(path) for path in models.values()]
    printed = ran([*tessera("evaluate"), *paths, "--config", YAML, *overrides], asked.threads)
    found: dict[str, list[float]] = {path: [] for path in paths}
    for line in printed.splitlines():
        words = line.split()
        if words and words[0] in found:  # model, source, loss, share right, unigram entropy
            found[words[0]].append(float(words[2]))
    return {name: round(statistics.fmean(found[str(path)]), 4) for name, path in models.items()}


def tessera(command: str) -> list[str]:
    """The beginning of a command of ours, from this environment."""
    return [sys.executable, "-m", "tessera.cli.main", command]


def table(found: Sequence[Group], last: int) -> list[str]:
    """A line a group, and what averaging gains over groups with its standard error."""
    lines = [
        f"| group | decays | their mean | their merge | less the mean | last {last} of the first "
        "merged | less the first |",
        "|---|---|---|---|---|---|---|",
    ]
    gains, tail_gains = [], []
    for number, each in enumerate(found, 1):
        decays = [loss for name, loss in each.items() if name not in (MERGE, LAST)]
        mean = statistics.fmean(decays)
        gains.append(each[MERGE] - mean)
        tail_gains.append(each[LAST] - decays[0])
        lines.append(
            f"| {number} | {', '.join(f'{loss:.3f}' for loss in decays)} | {mean:.3f} | "
            f"{each[MERGE]:.3f} | {gains[-1]:+.3f} | {each[LAST]:.3f} | {tail_gains[-1]:+.3f} |"
        )
    said = [with_error(values) for values in (gains, tail_gains)]
    return [*lines, f"| all |  |  |  | {said[0]} |  | {said[1]} |"]


def with_error(values: Sequence[float]) -> str:
    """The mean with its standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):+.3f} ± {error:.3f}"


if __name__ == "__main__":
    sys.exit(main())
