"""How fast batches come from MDS shards on local disk, and what a long run costs in memory.

    python benchmarks/loader.py [--tokens 50e6] [--minutes 1] [--out benchmarks/results/loader.json]
    python benchmarks/loader.py --only-memory --minutes 5 --tokens 200e6
    python benchmarks/loader.py --only-memory --minutes 60 --pace 500e3    as fast as a GPU trains

Writes shards of synthetic documents (log-normal lengths) to a temporary folder, and reads them as
the base recipe's phases do, masks and tensors included, in one process.
"""

import argparse
import dataclasses
import json
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from hardware import named

from tessera.data.config import BatchConfig, DataConfig, SourceConfig
from tessera.data.loader import Loader
from tessera.data.pipeline.shuffle import Order, group_spans
from tessera.data.preparation.mds_writer import write_shards

VOCAB_SIZE = 50_368
TOKENIZER: Any = SimpleNamespace(
    cls_id=50_281, sep_id=50_282, pad_id=50_283, mask_id=50_284, size=VOCAB_SIZE,
    special_ids=np.arange(50_280, 50_285), fingerprint="benchmark", word_starts=None,
)  # fmt: skip
KINDS = ("rss", "pss", "uss")
"""Resident; with shared pages divided among those who share them; of nobody else."""
MEMORY_SAMPLES = 60
GPU_TOKENS_PER_SECOND = 500e3
SHAPES = {
    # name: (max_seq_len, row_tokens, rows of a global batch of 8 ranks, lanes)
    "base phase 1": (1024, 8_192, 576, 96),
    "base phase 2": (8192, 98_304, 48, 48),
}


def documents(tokens: int, longest: int) -> Iterator[tuple[str, np.ndarray]]:
    """About so many tokens of random documents."""
    rng = np.random.default_rng(0)
    number = 0
    while tokens > 0:
        length = int(np.exp(rng.normal(5.8, 1.1)).clip(16, longest))
        yield f"{number:08}", rng.integers(0, 50_280, length, dtype=np.uint16)
        number, tokens = number + 1, tokens - length


def make_loader(folder: Path, shape: str, *, workers: int = 0, **more: Any) -> Loader:
    """One of eight ranks of a recipe."""
    max_seq_len, row_tokens, rows, lanes = SHAPES[shape]
    config = DataConfig(
        sources={"web": SourceConfig(local=str(folder), split="")},
        max_seq_len=max_seq_len,
        row_tokens=row_tokens,
        lanes=lanes,
        workers=workers,
    )
    batch = BatchConfig(rows=rows, microbatch_rows=max(1, 98_304 // row_tokens))
    settings = {"vocab_size": VOCAB_SIZE, "seed": 1, "rank": 0, "world_size": 8} | more
    return Loader(config, batch, TOKENIZER, **settings)


def speed(folder: Path, shape: str, *, rounds: int = 5) -> dict[str, float]:
    """Million real tokens a second of one process, waiting for each batch."""
    batches = iter(make_loader(folder, shape))
    next(batches)
    rates, processor = [], []
    for _ in range(rounds):
        begin, begin_processor, tokens = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - begin < 2:
            tokens += next(batches).tokens
        rates.append(tokens / (time.perf_counter() - begin) / 1e6)
        processor.append(tokens / (time.process_time() - begin_processor) / 1e6)
    return {
        "mtok_per_s": round(float(np.median(rates)), 1),
        "lowest": round(min(rates), 1),
        "highest": round(max(rates), 1),
        "mtok_per_processor_s": round(float(np.median(processor)), 1),
    }


def first_batches(folder: Path) -> dict[str, float]:
    """Seconds to the first batch: fresh, and resumed very far into a run."""
    seconds = {}
    for name, workers in (("in process", 0), ("two workers", 2)):
        loader = make_loader(folder, "base phase 1", workers=workers)
        batch = next(iter(loader))
        far = {
            lane: dataclasses.replace(
                state,
                cursors=(state.cursors[0]._replace(document=10**7),),
                waiting=tuple((0, 10**7 - 300 + n, 0) for n in range(256)),
            )
            for lane, state in batch.state.lanes.items()
        }
        state = dataclasses.replace(batch.state, lanes=far, rows=10**7 * 96, step=10**7)
        for kind, start in (("fresh", None), ("resumed", state)):
            begin = time.perf_counter()
            batches = iter(make_loader(folder, "base phase 1", workers=workers, state=start))
            next(batches)
            seconds[f"{kind}, {name}"] = round(time.perf_counter() - begin, 3)
            batches.close()
    return seconds


def two_billion_documents() -> dict[str, float]:
    """Seconds and peak memory to the first 100,000 places of an index of 2e9 documents."""
    samples = np.random.default_rng(0).integers(50_000, 90_000, 29_000)
    tracemalloc.start()
    begin = time.perf_counter()
    for group in range(8):
        spans = group_spans(samples, group=group, groups=8, shuffle=True, key=("order", 1))
        order = Order(spans, block_documents=262_144, shuffle=True, key=("order", 1, group))
        order.locate(np.arange(10**9, 10**9 + 100_000 // 8))
    seconds, (_, peak) = time.perf_counter() - begin, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "documents": int(samples.sum()),
        "seconds": round(seconds, 3),
        "peak_megabytes": round(peak / 1e6, 1),
    }


def memory_over_time(
    folder: Path, minutes: float, *, workers: int = 0, pace: float | None = None
) -> dict[str, Any]:
    """Memory of the loader's processes during a long run, as fast as batches come or at a pace.

    A GPU of 500,000 tokens a second would take hours for what a loader gives in minutes.
    """
    batches = iter(make_loader(folder, "base phase 1", workers=workers))
    begin, tokens, samples = time.monotonic(), 0, []
    for part in range(1, MEMORY_SAMPLES + 1):
        while time.monotonic() - begin < part * minutes * 60 / MEMORY_SAMPLES:
            tokens += sum(batch.tokens for batch in islice(batches, 1 if pace else 10))
            if pace:
                time.sleep(max(0.0, tokens / pace - (time.monotonic() - begin)))
        seconds = round(time.monotonic() - begin, 1)
        samples.append({"seconds": seconds, "tokens": tokens} | memory_now())
    batches.close()
    return (
        {"minutes": minutes, "workers": workers, "pace": pace}
        | flatness(samples)
        | {"samples": samples}
    )


def flatness(samples: list[dict[str, float]]) -> dict[str, Any]:
    """The slope of the resident memory, a straight line without the first sixth; the extremes.

    What is private or shared depends on which other processes have mapped the same files, so that
    the other two kinds go up and down, and have no slope to speak of.
    """
    late = samples[len(samples) // 6 :]
    hours = [sample["tokens"] / GPU_TOKENS_PER_SECOND / 3600 for sample in late]
    minutes = [sample["seconds"] / 60 for sample in late]
    rss = [sample["rss"] for sample in late]
    return {
        "tokens": samples[-1]["tokens"],
        "hours_of_a_gpu": round(samples[-1]["tokens"] / GPU_TOKENS_PER_SECOND / 3600, 2),
        "rss_megabytes_per_hour_of_a_gpu": round(float(np.polyfit(hours, rss, 1)[0]), 2),
        "rss_megabytes_per_minute": round(float(np.polyfit(minutes, rss, 1)[0]), 3),
        "lowest_and_highest_megabytes": {
            kind: [min(s[kind] for s in late), max(s[kind] for s in late)] for kind in KINDS
        },
    }


def memory_now() -> dict[str, float]:
    """Megabytes of this process and its children together."""
    import psutil

    this = psutil.Process()
    parts = [process.memory_full_info() for process in (this, *this.children(recursive=True))]
    return {kind: round(sum(getattr(part, kind) for part in parts) / 1e6, 1) for kind in KINDS}


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=float, default=50e6)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--only-memory", action="store_true", help="with and without a worker")
    parser.add_argument("--pace", type=float, help="tokens a second taken, with one worker")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    report: dict[str, Any] = {"hardware": named()}
    if not arguments.only_memory:
        report["two billion documents"] = two_billion_documents()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "web"
        stream = documents(int(arguments.tokens), 8192)
        write_shards(folder, stream, vocab_size=VOCAB_SIZE, tokenizer_fingerprint="benchmark")
        if not arguments.only_memory:
            report["seconds to the first batch"] = first_batches(folder)
            for shape in SHAPES:
                report[shape] = speed(folder, shape)
                print(shape, report[shape], flush=True)
        counts = (1,) if arguments.pace else (0, 1) if arguments.only_memory else (0,)
        for workers in counts:
            name = "memory, one worker" if workers else "memory"
            report[name] = memory_over_time(
                folder, arguments.minutes, workers=workers, pace=arguments.pace
            )
    print(json.dumps(report, indent=1))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
