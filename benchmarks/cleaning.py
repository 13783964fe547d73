"""Copies among many documents: time and memory of data_prep/clean.py on text it makes up.

    python benchmarks/cleaning.py [--documents 1000000] [--workers 2]
                                  [--out benchmarks/results/cleaning.json]

Of a hundred documents five are equal to an earlier one and five differ from one in some words; what
was found of them is printed beside the time. Memory is the largest sum over all processes.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from hardware import named

CLEAN = Path(__file__).parents[1] / "data_prep" / "clean.py"
WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdgklmnrst"]
LENGTH = 60
"""Words of a document."""


def write_documents(path: Path, count: int) -> None:
    """Documents of random words, a tenth of them copies."""
    draw = random.Random(0)
    earlier: list[list[str]] = []
    with path.open("w") as file:
        for number in range(count):
            kind = number % 100
            if kind < 10 and earlier:
                words = list(draw.choice(earlier))
                if kind < 5:
                    words[draw.randrange(LENGTH)] = draw.choice(WORDS)
            else:
                words = draw.choices(WORDS, k=LENGTH)
                if kind == 50:
                    earlier.append(words)
            file.write(json.dumps({"id": str(number), "text": " ".join(words)}) + "\n")


def memory_of(process: subprocess.Popen) -> int:
    """Bytes that a process and those it started hold now, in all."""
    total = 0
    try:
        parent = psutil.Process(process.pid)
        for one in [parent, *parent.children(recursive=True)]:
            total += one.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=1_000_000, help="how many (%(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--out", help="JSON file for the result")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus, out = Path(folder) / "c.jsonl", Path(folder) / "out"
        write_documents(corpus, arguments.documents)
        megabytes = corpus.stat().st_size / 1e6
        command = [sys.executable, str(CLEAN), f"c={corpus}", "--out", str(out)]
        command += ["--workers", str(arguments.workers), "--part-size", "16mb"]
        begin, largest = time.perf_counter(), 0
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            while process.poll() is None:
                largest = max(largest, memory_of(process))
                time.sleep(0.5)
            seconds = time.perf_counter() - begin
            said, _ = process.communicate()
        if process.returncode:
            sys.exit(f"clean.py ended with {process.returncode}")
        found = {why: int(count) for count, why in re.findall(r"(\d+) removed, (.+)", said)}
    load = os.getloadavg()[0]
    result = {
        **named(),
        "load_average": round(load, 1),
        "documents": arguments.documents,
        "megabytes": round(megabytes, 1),
        "workers": arguments.workers,
        "seconds": round(seconds, 1),
        "largest_memory_mb": round(largest / 1e6),
        "removed": found,
    }
    print(json.dumps(result, indent=2))
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
