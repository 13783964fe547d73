"""What two cores learn most with from the demo's text in the demo's time: settings tried.

    make demo                                      once: the text, the tokenizer, the shards
    python benchmarks/demo_settings.py             half an hour or so
    python benchmarks/demo_settings.py --try "layers=model.num_hidden_layers=6"

Each is one phase of 128-token documents in a batch of two rows, with Muon and a dropout of 0.1, but
for what its name says; the rate rises over a twelfth of the tokens and falls over the last three
tenths. Loss is of validation, mean of the three sources; the speed is that of
the median step. What is finished is kept in `--runs`.
"""

import json
import statistics
import sys

from hardware import named
from options import mean, one_phase, parse, records_of

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


def main() -> int:
    """Train what is missing, print the table, keep the numbers; the exit status."""
    asked = parse(__doc__, SETTINGS, "demo_settings", seeds=[17], threads=2)
    settings = {name: SETTINGS[name] for name in asked.only}
    settings |= {name: rest for name, _, rest in (each.partition("=") for each in asked.tried)}
    found = []
    print("| setting | steps | validation loss | tokens/s |\n|---|---|---|---|", flush=True)
    for name, overrides in settings.items():
        losses, steps = [], []
        for seed in asked.seeds:
            folder = asked.runs / f"{name.replace(' ', '-')}-{seed}-{asked.tokens}"
            shape = "batch.warmup=null model.attention_output_dropout=0.1"
            shape += f" schedule.warmup={asked.tokens // 12}tok"
            shape += f" schedule.decay={3 * asked.tokens // 10}tok"
            scores = one_phase(
                folder, f"{shape} {overrides}", seed, asked.tokens, asked.threads, YAML
            )
            losses.append(mean(scores))
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
    asked.out.write_text(json.dumps(kept, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
