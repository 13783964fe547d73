"""From text to finished shards, against the bare tokenizer on the same text and processes.

    python benchmarks/preparation.py [--text data/demo/text] [--mb 60] [--rounds 2] [--workers 2]
                                     [--out benchmarks/results/preparation.json]

`bare` is `encode_batch_fast` alone, on text that is in memory: start-up, reading and arrays of
token ids are not in its time. Ours is the whole command: start-up, reading JSON lines or Parquet,
hashing, token ids, shards, index. Ratios are of one run, in turns; on a machine that is shared, the
one of processor time is the steadier.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BATCH_CHARACTERS = 1 << 20
TOKENIZE = Path(__file__).parents[1] / "data_prep" / "tokenize.py"


def texts_of(folder: Path, megabytes: float) -> list[str]:
    """Texts of the training files below a folder, repeated until there is enough."""
    rows = [
        json.loads(line)["text"]
        for file in sorted(folder.glob("*/train.jsonl"))
        for line in file.open(encoding="utf-8")
    ]
    if not rows:
        sys.exit(f"{folder} holds no text; run data_prep/harvest.py, or name another by --text")
    found: list[str] = []
    size = 0
    for number in range(10**9):
        found.append(f"{number} {rows[number % len(rows)]}")
        size += len(found[-1].encode())
        if size >= megabytes * 1e6:
            return found
    raise AssertionError("unreachable")


def bare(texts: list[str], tokenizer: str, workers: int) -> tuple[float, float]:
    """(seconds, processor seconds) of encoding alone, in processes of one core each."""
    context = multiprocessing.get_context("spawn")
    ready, go = context.Semaphore(0), context.Event()
    spent = context.Queue()
    crew = [
        context.Process(target=_encode, args=(texts[n::workers], tokenizer, ready, go, spent))
        for n in range(workers)
    ]
    for process in crew:
        process.start()
    for _ in crew:
        ready.acquire()
    begin = time.perf_counter()
    go.set()
    processor = sum(spent.get() for _ in crew)
    seconds = time.perf_counter() - begin
    for process in crew:
        process.join()
    return seconds, processor


def _encode(texts: list[str], tokenizer: str, ready: Any, go: Any, spent: Any) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
    batches: list[list[str]] = [[]]
    characters = 0
    for text in texts:
        batches[-1].append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            batches.append([])
            characters = 0
    ready.release()
    go.wait()
    begin = time.process_time()
    for batch in batches:
        backend.encode_batch_fast(batch, add_special_tokens=False)
    spent.put(time.process_time() - begin)


def ours(corpus: Path, tokenizer: str, workers: int, out: Path) -> tuple[float, float]:
    """(seconds, processor seconds) of the whole command; the latter are known of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    begin = time.perf_counter()
    command = [sys.executable, str(TOKENIZE), f"c={corpus}", "--tokenizer", tokenizer]
    command += ["--out", str(out), "--workers", str(workers), "--part-size", "4mb"]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    seconds = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, processor


def write_corpora(texts: list[str], folder: Path) -> dict[str, Path]:
    """The same text in both formats."""
    import pyarrow
    import pyarrow.parquet

    lines, table = folder / "c.jsonl", folder / "c.parquet"
    with lines.open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            file.write(json.dumps({"id": str(number), "text": text}, ensure_ascii=False) + "\n")
    columns = {"id": list(map(str, range(len(texts)))), "text": texts}
    pyarrow.parquet.write_table(pyarrow.table(columns), table, row_group_size=1000)
    return {"jsonl": lines, "parquet": table}


def main() -> None:
    """Measure in turns, print, and keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--text", default="data/demo/text", help="folder with */train.jsonl (%(default)s)")
    add("--tokenizer", default="data/demo/tokenizer", help="folder (%(default)s)")
    add("--mb", type=float, default=60, help="megabytes of text (%(default)s)")
    add("--rounds", type=int, default=2, help="turns (%(default)s)")
    add("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    add("--out", help="JSON file for the result")
    arguments = parser.parse_args()
    texts = texts_of(Path(arguments.text), arguments.mb)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    times: dict[str, list[tuple[float, float]]] = {}
    alone: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        corpora = write_corpora(texts, Path(folder))
        for turn in range(arguments.rounds):
            spent = bare(texts, arguments.tokenizer, arguments.workers)
            times.setdefault("bare", []).append(spent)
            for name, corpus in corpora.items():
                out = Path(folder) / f"{name}-{turn}"
                spent = ours(corpus, arguments.tokenizer, arguments.workers, out)
                times.setdefault(name, []).append(spent)
        _, alone["bare"] = bare(texts, arguments.tokenizer, 1)
        for name, corpus in corpora.items():
            _, alone[name] = ours(corpus, arguments.tokenizer, 1, Path(folder) / f"{name}-alone")
    result: dict[str, Any] = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "megabytes": round(megabytes, 1),
        "workers": arguments.workers,
    }
    middle = {
        name: [statistics.median(x) for x in zip(*t, strict=True)] for name, t in times.items()
    }
    for name, (seconds, _) in middle.items():
        result[name] = {
            "mb_per_second": round(megabytes / seconds, 2),
            "of_bare": round(middle["bare"][0] / seconds, 3),
            "of_bare_by_processor_time_of_one_process": round(alone["bare"] / alone[name], 3),
            "seconds": [round(s, 2) for s, _ in times[name]],
        }
    print(json.dumps(result, indent=2))
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
