"""How full our rows are, and how fast one process packs and masks documents already in memory.

    python benchmarks/packer.py [--tokens 24e6] [--rounds 3] [--spans]
        [--out benchmarks/results/packer.json]

The streams are those that the published packer was measured on (its fill, and its tokens/s with
masking on another machine, stand beside ours). On a machine that is shared, the figure per second
of processor time is the steadier one.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tessera.data.pipeline.masking import Vocabulary, mask
from tessera.data.pipeline.packing import Waiting, wants_more
from tessera.data.pipeline.pieces import Piece
from tessera.data.pipeline.rows import RowFormat, lay_out
from tessera.data.randomness import Draws

VOCAB_SIZE, SPECIAL = 50_368, (50_280, 50_281, 50_282, 50_283, 50_284)
STREAMS: dict[str, tuple[int, int, dict[str, float]]] = {
    # name: (row_tokens, max_seq_len, what the published packer did on it)
    "log-normal 16..1024": (98_304, 1024, {"fill": 0.99994, "mtok_per_s": 36.4}),
    "uniform 32..1024": (98_304, 1024, {"fill": 0.99988, "mtok_per_s": 38.9}),
    "all 1024": (98_304, 1024, {"fill": 1.0, "mtok_per_s": 41.6}),
    "log-normal 16..1024, short rows": (8_192, 1024, {"fill": 0.99928, "mtok_per_s": 34.2}),
    "uniform 32..1024, short rows": (8_192, 1024, {"fill": 0.99864, "mtok_per_s": 35.0}),
    "log-normal 16..8192": (98_304, 8192, {"fill": 0.99994, "mtok_per_s": 41.6}),
    "uniform 32..8192": (98_304, 8192, {"fill": 0.99921, "mtok_per_s": 49.9}),
    "log-normal 16..8192, large": (57_344, 8192, {}),
    "log-normal 16..8192, large decay": (49_152, 8192, {}),
}


def lengths(name: str, tokens: int, longest: int) -> np.ndarray:
    """Lengths of documents, special tokens included, of about so many tokens together."""
    rng = np.random.default_rng(0)
    if name.startswith("log-normal"):
        draw = np.exp(rng.normal(5.8, 1.1, tokens // 100)).clip(16, longest).astype(int)
    elif name.startswith("uniform"):
        draw = rng.integers(32, longest + 1, tokens // 100)
    else:
        draw = np.full(tokens // 100, longest)
    return draw[: int(np.searchsorted(np.cumsum(draw), tokens))]


def rows(documents: list[np.ndarray], form: RowFormat, masked: bool) -> Iterator[int]:
    """Pack, lay out and mask; yields the real tokens of each row."""
    draws = Draws()
    waiting = Waiting()
    number = 0
    for index, document in enumerate(documents):
        waiting.add(Piece((0, index, 0), document))
        while not wants_more(waiting, form.row_tokens, 256):
            ids, _, tokens = lay_out(waiting.take_row(form.row_tokens), form)
            if masked:
                draws.begin("masks", 17, number)
                mask(ids, form.vocabulary, 0.3, draws, spans=form.spans)
            number += 1
            yield tokens


def measure(name: str, tokens: int, rounds: int, spans: bool) -> dict[str, Any]:
    """Fill and the median speed of one stream."""
    row_tokens, longest, published = STREAMS[name]
    rng = np.random.default_rng(1)
    text = rng.integers(0, SPECIAL[0], tokens, dtype=np.uint16)
    ends = np.cumsum(lengths(name, tokens, longest) - 2)
    documents = np.split(text[: ends[-1]], ends[:-1])
    ordinary = np.zeros(2**16, bool)
    ordinary[:VOCAB_SIZE] = True
    ordinary[list(SPECIAL)] = False
    replacements = np.flatnonzero(ordinary).astype(np.uint16)
    vocabulary = Vocabulary(50_284, ordinary, replacements)
    cls_id, sep_id, pad_id = np.array([[50_281], [50_282], [50_283]], np.uint16)
    form = RowFormat(row_tokens, longest, cls_id, sep_id, pad_id, VOCAB_SIZE, vocabulary, spans)
    speeds: dict[bool, list[float]] = {True: [], False: []}
    processor: list[float] = []
    for _ in range(rounds):
        for masked in (True, False):
            begin, begin_processor = time.perf_counter(), time.process_time()
            real = list(rows(documents, form, masked))
            speeds[masked].append(sum(real) / (time.perf_counter() - begin) / 1e6)
            if masked:
                processor.append(sum(real) / (time.process_time() - begin_processor) / 1e6)
    return {
        "row_tokens": row_tokens,
        "fill": round(sum(real) / len(real) / row_tokens, 6),
        "mtok_per_s": round(float(np.median(speeds[True])), 1),
        "mtok_per_s_range": [round(min(speeds[True]), 1), round(max(speeds[True]), 1)],
        "mtok_per_processor_s": round(float(np.median(processor)), 1),
        "mtok_per_s_without_masking": round(float(np.median(speeds[False])), 1),
        "published": published,
    }


def main() -> None:
    """Measure every stream."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=float, default=24e6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--spans", action="store_true", help="mask spans, not single tokens")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results = {}
    for name in STREAMS:
        results[name] = measure(name, int(arguments.tokens), arguments.rounds, arguments.spans)
        print(name, json.dumps(results[name]), flush=True)
    report: dict[str, Any] = {
        "hardware": f"{os.cpu_count()} x {platform.processor() or platform.machine()}"
    }
    report |= {"numpy": np.__version__, "streams": results}
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
