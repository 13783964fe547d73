"""Options of training on the demo's text: loss at equal tokens beside the recipe, three seeds each.

    make demo                                       once: the text, the tokenizer, the shards
    python benchmarks/options.py                    the options below, an hour or so on two cores
    python benchmarks/options.py --only muon --tokens 1_000_000 --threads 2
    python benchmarks/options.py --try 'wide=model.hidden_size=256 model.num_attention_heads=8'

`A >> B` is a run in two phases: A for a quarter of the tokens, then B, which starts from it and
goes on with the rows after it. Runs of one seed read the same rows, and as many tokens. What is
finished is kept in `--runs` and not done again. A difference is the mean over seeds of an option's
loss less the recipe's, with its standard error.
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

ROOT = Path(__file__).parents[1]
YAML = "yamls/demo/recipe.yaml"
RECIPE = "recipe"
OPTIONS = {
    RECIPE: "",
    "muon": "optimizer.name=muon optimizer.lr=1.5e-3 optimizer.weight_decay=0.01 "
    "optimizer.rest.lr=1.5e-3",
    "muon, rate by shape": "optimizer.name=muon optimizer.adjust_lr=original optimizer.lr=1e-2 "
    "optimizer.weight_decay=0.01 optimizer.rest.lr=1.5e-3",
    "falling mask rate": "train_data.masking.rate=0.4 train_data.masking.final_rate=0.15 "
    "train_data.masking.over={tokens}tok",
    "whole words": "train_data.masking.whole_words=true",
    "spans": "train_data.masking.spans=true",
    "qk-norm": "model.qk_norm=true",
    "twice the rate": "optimizer.lr=3e-3",
    "causal detour": "train_data.objective=causal >> train_data.objective=masked",
}
"""Overrides of `YAML`, by what they are called."""
FIRST = 0.25
"""The first phase's share of the tokens; the batch grows, and the rate rises, in it alone."""

Losses = dict[str, float]
"""Of validation, by source."""


def main() -> int:
    """Train what is missing, print the table, keep the numbers; the exit status."""
    asked = parse(__doc__, OPTIONS, "options", seeds=[17, 18, 19], threads=1)
    options = {name: OPTIONS[name] for name in dict.fromkeys([RECIPE, *asked.only])}
    options |= {name: rest for name, _, rest in (each.partition("=") for each in asked.tried)}
    found: dict[str, dict[int, Losses]] = {name: {} for name in options}
    for seed in asked.seeds:  # the recipe and the options in turns
        for name, overrides in options.items():
            folder = asked.runs / f"{name.replace(' ', '-')}-{seed}-{asked.tokens}"
            found[name][seed] = trained(folder, overrides, seed, asked.tokens, asked.threads)
            print(f"{name}, seed {seed}: {mean(found[name][seed]):.4f}", flush=True)
    print()
    print("\n".join(table(found)))
    result = {
        "hardware": named(),
        "yaml": YAML,
        "tokens": asked.tokens,
        "overrides": options,
        "validation_loss": found,
    }
    asked.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def parse(
    says: str, known: Mapping[str, str], name: str, *, seeds: Sequence[int], threads: int
) -> argparse.Namespace:
    """What is asked of a table of trainings, each a set of overrides of a YAML of the demo.

    Args:
        says: what `--help` prints.
        known: the overrides that have names.
        name: of the table: its runs and its numbers are kept under it.
        seeds: unless others are asked for.
        threads: likewise.
    """
    parser = argparse.ArgumentParser(
        description=says, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=400_000, help="of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds)
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--only", nargs="+", choices=list(known), default=list(known))
    parser.add_argument("--try", dest="tried", action="append", default=[], metavar="NAME=K=V ...")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / name)
    parser.add_argument("--out", type=Path, default=ROOT / f"benchmarks/results/{name}.json")
    asked = parser.parse_args()
    if not (ROOT / "data/demo/.prepared").exists():
        parser.error("there is no text of the demo yet; run `make demo` first")
    return asked


def trained(folder: Path, overrides: str, seed: int, tokens: int, threads: int) -> Losses:
    """Validation losses at the end of a run, which is done if it is not there."""
    growth = f"batch.warmup.over={tokens // 4}tok schedule.warmup={tokens // 12}tok"
    first, two, second = overrides.partition(" >> ")
    if not two:
        return one_phase(folder, f"{growth} {overrides}", seed, tokens, threads)
    before = folder.with_name(f"{folder.name}-first")
    one_phase(before, f"{growth} {first}", seed, int(FIRST * tokens), threads)
    steps = [record for record in records_of(before) if record["kind"] == "step"]
    done, rows = steps[-1]["tokens"], sum(step["rows"] for step in steps)
    onward = f"start_from={before} train_data.skip_rows=[0-{rows - 1}] batch.warmup=null"
    onward += " schedule.warmup=0tok"
    return one_phase(folder, f"{onward} {second}", seed, tokens - done, threads)


def one_phase(
    folder: Path, overrides: str, seed: int, tokens: int, threads: int, yaml: str = YAML
) -> Losses:
    """Validation losses at the end of a phase, which is done if it is not there."""
    if (losses := last_losses(folder, tokens)) is not None:
        return losses
    rest = "evaluation.interval=null evaluation.at_end=true checkpoints.interval=null"
    settings = f"{rest} {overrides}".format(tokens=tokens).split()
    settings += [f"run_folder={folder}", f"duration={tokens}tok", f"seed={seed}"]
    done = subprocess.run(
        [sys.executable, "main.py", yaml, *settings],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
    )
    losses = last_losses(folder, tokens)
    if done.returncode or losses is None:
        raise SystemExit(f"{folder}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return losses


def last_losses(folder: Path, tokens: int) -> Losses | None:
    """What a finished run ended with; None if it is not finished."""
    ends = [r for r in records_of(folder) if r["kind"] == "evaluation" and r["tokens"] >= tokens]
    return {name: one["loss"] for name, one in ends[-1]["sources"].items()} if ends else None


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


def table(found: Mapping[str, Mapping[int, Losses]]) -> Sequence[str]:
    """A line an option: its loss, and its difference from the recipe by pairs of seeds."""
    lines = ["| option | validation loss | less the recipe's |", "|---|---|---|"]
    recipe = found[RECIPE]
    for name, runs in found.items():
        values = [mean(losses) for losses in runs.values()]
        said = ""
        if name != RECIPE:
            pairs = [mean(losses) - mean(recipe[seed]) for seed, losses in runs.items()]
            error = statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else math.nan
            said = f"{statistics.fmean(pairs):+.3f} ± {error:.3f}"
        lines.append(f"| {name} | {statistics.fmean(values):.3f} | {said} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
