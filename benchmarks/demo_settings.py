"""What two cores learn most with from the demo's text in the demo's time: settings tried.

    make demo                                      once: the text, the tokenizer, the shards
    python benchmarks/demo_settings.py             half an hour or so
    python benchmarks/demo_settings.py --try "layers=model.num_hidden_layers=6"

Each is one phase of 128-token documents in a batch of two rows, with Muon and a dropout of 0.1, but
for what its name says; the rate rises over a twelfth of the tokens and falls over the last three
tenths. Loss is of validation, mean of the three sources; the speed is that of the median step. What
is finished is kept in `--runs`; another setting is another run.
"""

import statistics
import sys
from collections.abc import Sequence

from hardware import named
from trainings import (
    check_comparable,
    check_phase,
    last_losses,
    mean,
    one_phase,
    parse,
    records_of,
    write,
)

YAML = "yamls/demo/phase1.yaml"


def rows(number: int) -> str:
    """Overrides for a batch of so many rows of 1,024 tokens."""
    return f"batch.rows={number} batch.microbatch_rows={number}"


ADAMW = "optimizer.name=stable_adamw optimizer.weight_decay=1e-5 optimizer.lr=1.5e-3"
SETTINGS = {
    "2 rows": "",
    "a row a batch": rows(1),
    "4 rows": rows(4),
    "StableAdamW": ADAMW,
    "twice Muon's rate": "optimizer.lr=1.2e-2",
    "twice the other rate": "optimizer.rest.lr=6e-3",
    "no dropout": "model.attention_output_dropout=0",
    "masks of 20 %": "train_data.masking.rate=0.2",
}
"""Overrides of the demo's phase 1 without its growing batch, by what they are called."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, print the table, keep the numbers; the exit status."""
    asked = parse(
        __doc__, SETTINGS, "demo_settings", check, seeds=[17], threads=2, arguments=arguments
    )
    found = []
    print("| setting | steps | validation loss | tokens/s |\n|---|---|---|---|", flush=True)
    for name, overrides in asked.settings.items():
        losses, steps = [], []
        for seed in asked.seeds:
            folder = one_phase(
                asked, name, f"{shape(asked.tokens)} {overrides}", seed, asked.tokens, YAML
            )
            losses.append(mean(last_losses(folder, asked.tokens)))
            steps += [record for record in records_of(folder) if record["kind"] == "step"]
        speed = statistics.median(step["tokens_per_second"] for step in steps)
        one = {
            "setting": name,
            "overrides": overrides,
            "steps": len(steps) // len(losses),
            "losses": losses,
            "tokens_per_second": round(speed),
        }
        said = " ".join(f"{loss:.3f}" for loss in losses)
        print(f"| {name} | {one['steps']} | {said} | {round(speed):,} |", flush=True)
        found.append(one)
    kept = {"hardware": named(), "yaml": YAML, "tokens": asked.tokens, "settings": found}
    write(asked, kept)
    return 0


def check(overrides: str, seed: int, tokens: int) -> None:
    """Look at a setting before anything is trained.

    Raises:
        ConfigError: it cannot be trained, or not be compared with the others.
    """
    check_comparable(check_phase(YAML, f"{shape(tokens)} {overrides}", seed, tokens))


def shape(tokens: int) -> str:
    """Overrides of a phase of so many tokens: how its rate rises and falls, and what all have."""
    return (
        "batch.warmup=null model.attention_output_dropout=0.1 "
        f"schedule.warmup={tokens // 12}tok schedule.decay={3 * tokens // 10}tok"
    )


if __name__ == "__main__":
    sys.exit(main())
