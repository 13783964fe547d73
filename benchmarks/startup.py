"""How long commands take before they say or do something, beside importing torch or Composer.

Usage:
    python benchmarks/startup.py [--runs 3]

Every figure is the fastest of some runs of a whole process; ratios are within this call.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hardware import named

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import tiny_run  # noqa: E402

AIMS = {
    "tessera check, a wrong key": ("import torch", 0.3),
    "tessera check, a good YAML": ("import torch", 1.5),
    "tokenize.py --help": ("import torch", 0.1),
    "tokenize.py, two documents": ("import torch", 1.0),
    "main.py, to the first step": ("import composer", 2.0),
}
"""Beside what each is held, and the ratio aimed at."""


def main() -> None:
    """Measure, print a table, keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(Path(folder), runs)
    rows = []
    print(f"{'what':<30} {'seconds':>8} {'ratio':>7} {'aim':>5}  beside")
    for name, (beside, aim) in AIMS.items():
        ratio = seconds[name] / seconds[beside]
        print(f"{name:<30} {seconds[name]:>8.2f} {ratio:>7.2f} {aim:>5}  {beside}")
        rows.append({"what": name, "seconds": seconds[name], "ratio": ratio, "beside": beside})
    for beside in ("import torch", "import composer"):
        print(f"{beside:<30} {seconds[beside]:>8.2f}")
        rows.append({"what": beside, "seconds": seconds[beside]})
    result = {"hardware": named(), "runs": runs, "results": rows}
    path = Path(__file__).parent / "results" / "startup.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


def measure(folder: Path, runs: int) -> dict[str, float]:
    """Seconds of each, in turns, so that a slow moment of the machine meets all of them."""
    corpus = tiny_run.make_corpus(folder / "corpus", documents=40)
    settings = tiny_run.settings(corpus, folder / "run", duration="1ba", evaluation__at_end=False)
    yaml_path = tiny_run.write_yaml(folder / "run.yaml", settings)
    text = folder / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"w1 w{n} w3"}) + "\n" for n in range(200)))
    python = [sys.executable]
    check = [*python, "-m", "tessera.cli.main", "check", str(yaml_path)]
    tokenize = [*python, str(ROOT / "data_prep/tokenize.py")]
    commands: dict[str, Callable[[int], list[str]]] = {
        "import torch": lambda n: [*python, "-c", "import torch"],
        "import composer": lambda n: [*python, "-c", "import composer"],
        "tessera check, a wrong key": lambda n: [*check, "batch.row=1"],
        "tessera check, a good YAML": lambda n: check,
        "tokenize.py --help": lambda n: [*tokenize, "--help"],
        "tokenize.py, two documents": lambda n: [
            *tokenize, f"some={text}", "--out", str(folder / f"shards{n}"), "--workers", "1",
            "--tokenizer", str(corpus / "tokenizer"),
        ],
        "main.py, to the first step": lambda n: [
            *python, str(ROOT / "main.py"), str(yaml_path), f"run_folder={folder / f'run{n}'}",
        ],
    }  # fmt: skip
    found = dict.fromkeys(commands, float("inf"))
    for number in range(runs):
        for name, command in commands.items():
            begin = time.perf_counter()
            done = subprocess.run(
                command(number), capture_output=True, text=True, env=tiny_run.environment()
            )
            found[name] = min(found[name], time.perf_counter() - begin)
            assert done.returncode == (2 if "wrong" in name else 0), done.stderr + done.stdout
    return found


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
