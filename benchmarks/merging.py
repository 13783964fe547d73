"""Decays of one checkpoint that see the data in other orders, and the average of their weights.

    make demo                                       once: the checkpoint before the decay
    python benchmarks/merging.py                    three groups of three decays, an hour or so
    python benchmarks/merging.py --tokens 100_000 --groups 1 --decays 2

A decay is the demo's phase 3 with another `train_data.seed`; `tessera merge` averages a group's
decays, and the last checkpoints of its first decay; `tessera evaluate` gives the loss of all of
them on the same validation documents with the same masks. What is finished is kept in `--runs`
and not done again.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hardware import named
from options import last_losses

ROOT = Path(__file__).parents[1]
YAML = "yamls/demo/phase3.yaml"
MERGE, LAST = "merge", "last"
"""Names of the two averages of a group, in `--runs` and in the numbers."""

Group = dict[str, float]
"""Validation loss of a group's decays, by seed, and of its two averages."""


def main() -> int:
    """Decay, average, evaluate; print the table and keep the numbers. The exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--start", default="runs/demo/phase2", help="a run folder or checkpoint")
    parser.add_argument("--tokens", type=int, default=400_000, help="of each decay")
    parser.add_argument("--groups", type=int, default=3)
    parser.add_argument("--decays", type=int, default=3, help="of each group")
    parser.add_argument("--last", type=int, default=3, help="checkpoints of one decay to average")
    parser.add_argument("--every", type=int, default=20, help="checkpoints are a decay's 1/N apart")
    parser.add_argument("--validation", type=int, default=100_000, help="tokens of each source")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "merging")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/merging.json")
    asked = parser.parse_args()
    if not (ROOT / asked.start).exists():
        print(f"merging.py: there is no {asked.start} yet; run `make demo` first", file=sys.stderr)
        return 2
    if asked.decays < 2 or not 2 <= asked.last <= asked.every:
        parser.error("an average takes two: --decays 2 and --last 2 at least, --last up to --every")
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
    asked.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def group(seeds: Sequence[int], asked: argparse.Namespace) -> Group:
    """Losses of decays of these seeds, of their average, and of the end of the first averaged."""
    folders = {str(seed): asked.runs / f"decay-{seed}-{asked.tokens}" for seed in seeds}
    for seed, folder in folders.items():
        decay(folder, seed, asked)
    first = folders[str(seeds[0])]
    tail = sorted((first / "checkpoints").glob("step*.pt"))[-asked.last :]
    if len(tail) < asked.last:
        raise SystemExit(f"{first}: holds {len(tail)} checkpoints, not {asked.last}; remove it")
    size = f"{asked.tokens}-{asked.decays}"
    averages = {
        MERGE: average(list(folders.values()), asked.runs / f"merge-{seeds[0]}-{size}.pt", asked),
        LAST: average(tail, first / f"last-{asked.last}.pt", asked),
    }
    return losses({**folders, **averages}, asked)


def decay(folder: Path, seed: str, asked: argparse.Namespace) -> None:
    """Train one decay, if it is not there."""
    if last_losses(folder, asked.tokens) is not None:
        return
    settings = {
        "run_folder": folder,
        "start_from": asked.start,
        "duration": f"{asked.tokens}tok",
        "schedule.decay": f"{asked.tokens}tok",
        "train_data.seed": seed,
        "evaluation.interval": "null",
        "evaluation.at_end": "true",
        "checkpoints.interval": f"{asked.tokens // asked.every}tok",
        "checkpoints.keep": asked.last,
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    ran([sys.executable, "main.py", YAML, *overrides], asked.threads)


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


def ran(command: Sequence[str], threads: int) -> str:
    """What a command printed; ends the benchmark where one fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


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
