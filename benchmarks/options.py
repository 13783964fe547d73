"""Options of training on the demo's text: loss at equal tokens beside the recipe, three seeds each.

    make demo                                       once: the text, the tokenizer, the shards
    python benchmarks/options.py                    the options below, an hour or so on two cores
    python benchmarks/options.py --only muon --tokens 1_000_000 --threads 2
    python benchmarks/options.py --try 'wide=model.hidden_size=256 model.num_attention_heads=8'

`A >> B` is a run in two phases: A for a quarter of the tokens, then B, which starts from it and
goes on with the rows after it. Runs of one seed read the same rows, and as many tokens. What is
finished is kept in `--runs` and not done again; another setting is another run. A difference is the
mean over seeds of an option's loss less the recipe's, with its standard error.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence

from hardware import named
from trainings import (
    Losses,
    check_comparable,
    check_phase,
    last_losses,
    mean,
    one_phase,
    parse,
    records_of,
    write,
)

from tessera.config import ConfigError

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
TWO = " >> "


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, print the table, keep the numbers; the exit status."""
    asked = parse(
        __doc__,
        OPTIONS,
        "options",
        check,
        seeds=[17, 18, 19],
        threads=1,
        arguments=arguments,
        always=[RECIPE],
    )
    found: dict[str, dict[int, Losses]] = {name: {} for name in asked.settings}
    for seed in asked.seeds:  # the recipe and the options in turns
        for name, overrides in asked.settings.items():
            found[name][seed] = trained(asked, name, overrides, seed)
            print(f"{name}, seed {seed}: {mean(found[name][seed]):.4f}", flush=True)
    print()
    print("\n".join(table(found)))
    result = {
        "hardware": named(),
        "yaml": YAML,
        "tokens": asked.tokens,
        "overrides": asked.settings,
        "validation_loss": found,
    }
    write(asked, result)
    return 0


def check(overrides: str, seed: int, tokens: int) -> None:
    """Look at the phases of an option before anything is trained.

    Raises:
        ConfigError: it cannot be trained, or not be compared with the recipe.
    """
    first, two, second = overrides.partition(TWO)
    if not two:
        check_comparable(check_phase(YAML, f"{growth(tokens)} {first}", seed, tokens))
        return
    before = check_phase(YAML, f"{growth(tokens)} {first}", seed, max(1, int(FIRST * tokens)))
    left, step = tokens - int(FIRST * tokens), before.batch.rows * before.train_data.row_tokens
    if left <= step:
        raise ConfigError(
            f"--tokens {tokens}: too few for two phases; the second needs more than the {step:,} "
            f"of a step, so give more than {int(step / (1 - FIRST)):,}"
        )
    check_comparable(check_phase(YAML, f"{onward('runs/first', 1)} {second}", seed, left))


def trained(asked: argparse.Namespace, name: str, overrides: str, seed: int) -> Losses:
    """Validation losses at the end of a run, which is done if it is not there."""
    tokens = asked.tokens
    first, two, second = overrides.partition(TWO)
    start = f"{growth(tokens)} {first}"
    if not two:
        folder = one_phase(asked, name, start, seed, tokens, YAML)
    else:
        before = one_phase(asked, f"{name}-first", start, seed, int(FIRST * tokens), YAML)
        steps = [record for record in records_of(before) if record["kind"] == "step"]
        rest = f"{onward(str(before), sum(step['rows'] for step in steps))} {second}"
        tokens -= steps[-1]["tokens"]
        folder = one_phase(asked, name, rest, seed, tokens, YAML)
    return last_losses(folder, tokens)


def growth(tokens: int) -> str:
    """How the batch and the rate grow at the beginning of so many tokens."""
    return f"batch.warmup.over={tokens // 4}tok schedule.warmup={tokens // 12}tok"


def onward(before: str, rows: int) -> str:
    """What makes a phase go on from a run folder, with the rows after those it read."""
    return (
        f"start_from={before} train_data.skip_rows=[0-{rows - 1}] batch.warmup=null "
        "schedule.warmup=0tok"
    )


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
