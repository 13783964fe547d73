"""Tokens a second on synthetic documents, by the protocol of ModernBERT's efficiency/.

Four shapes, random ids; the packed model as we serve it beside transformers' sdpa on padded
batches, and beside graphs that lie in the model's folder, in turns within one process. Only real
tokens count.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tessera.evaluation.jobs.models import Model
from tessera.evaluation.jobs.records import Job, Outcome, Table
from tessera.evaluation.tasks.config import Efficiency
from tessera.evaluation.tasks.loading import check_finite
from tessera.evaluation.tasks.memory import is_out_of_memory

Documents = Sequence[Tensor]
Serve = Callable[[Documents], Any]
"""Encodes some documents, each (L,) int64, in one call."""

_FIRST_ID, _LAST_ID = 100, 16_000
_CPU_BATCH_TOKENS = 16_384
_LARGEST_BATCH_TOKENS = 4096 * 512


def run(job: Job, device: str, scratch: Path, kept: Path | None) -> Outcome:
    """Time one model.

    Raises:
        ValueError: the model cannot be loaded, or not one document fits into memory.
    """
    task = job.task
    assert isinstance(task, Efficiency)
    padded, longest, vocabulary = _padded(job.model, device)
    ways: dict[str, Serve] = {"padded (transformers, sdpa)": padded}
    notes = []
    packed = _packed(job.model, device)
    if packed is None:
        notes.append("is no ModernBERT, which alone can be served packed")
    else:
        ways = {"packed (ours)": packed, **ways}
    ways |= _graphs(job.model, device, notes)
    rows: list[list[Any]] = []
    scores: dict[str, float] = {}
    for name, length, variable, count in _shapes(task):
        if longest is not None and length > longest:
            notes.append(f"{name}: left out, the model ends at {longest} tokens")
            continue
        documents = _documents(task, length, variable, count, vocabulary, device)
        speeds: dict[str, list[float]] = {}
        sizes = {}
        for way, serve in ways.items():
            sizes[way] = _batch_tokens(task, serve, documents, length, device, notes, way)
            speeds[way] = []
        for _ in range(task.runs):  # in turns, so that a busy moment of the machine hits all
            for way, serve in ways.items():
                batches = _batches(documents, sizes[way], padded=way != "packed (ours)")
                speeds[way].append(_tokens_per_second(serve, batches, device))
        first = next(iter(speeds))
        base = statistics.fmean(speeds["padded (transformers, sdpa)"])
        for way, found in speeds.items():
            mean = statistics.fmean(found)
            spread = statistics.stdev(found) if len(found) > 1 else 0.0
            rows.append([f"{name}, {way}", mean, spread, mean / base, sizes[way]])
        key = "tokens_per_second_" + name.split(" (")[0].replace(" ", "_")
        scores[key] = statistics.fmean(speeds[first])
    if not scores:
        raise ValueError("; ".join(notes))
    main = scores.get("tokens_per_second_variable_short", next(iter(scores.values())))
    columns = ["documents", "tokens/s", "spread", "times padded", "tokens in a batch"]
    return Outcome(
        scores={"tokens_per_second": main, **scores},
        validation={"tokens_per_second": main},
        split="synthetic",
        tables=[Table(title=f"Real tokens a second, {task.runs} runs", columns=columns, rows=rows)],
        notes=notes,
    )


def _shapes(task: Efficiency) -> list[tuple[str, int, bool, int]]:
    long = task.long_documents or task.documents
    return [
        (f"fixed short ({task.short})", task.short, False, task.documents),
        (f"variable short (around {task.short // 2})", task.short, True, task.documents),
        (f"fixed long ({task.long})", task.long, False, long),
        (f"variable long (around {task.long // 2})", task.long, True, long),
    ]


def lengths_of(length: int, variable: bool, count: int, seed: int) -> np.ndarray:
    """(count,) lengths: all alike, or normal around half of it with an eighth of it as deviation.

    Clipped to 16 and `length`, as published: (256, 64) for 512, (4096, 1024) for 8192.
    """
    if not variable:
        return np.full(count, length)
    drawn = np.random.default_rng(seed).normal(length / 2, length / 8, count)
    return np.clip(np.round(drawn), 16, length).astype(np.int64)


def _documents(
    task: Efficiency, length: int, variable: bool, count: int, vocabulary: int, device: str
) -> Documents:
    draw = np.random.default_rng(task.seed)
    last = min(_LAST_ID, vocabulary)
    first = min(_FIRST_ID, last // 2)
    return [
        torch.from_numpy(draw.integers(first, last, n)).to(device)
        for n in lengths_of(length, variable, count, task.seed)
    ]


def _batches(documents: Documents, most: int, *, padded: bool) -> list[Documents]:
    """Documents in their order, as many together as have at most `most` token slots."""
    batches: list[list[Tensor]] = []
    slots = 0
    for document in documents:
        size = document.numel()
        longest = max([size, *(d.numel() for d in batches[-1])]) if batches else size
        grown = longest * (len(batches[-1]) + 1) if padded and batches else slots + size
        if not batches or grown > most:
            batches.append([])
            grown = size
        batches[-1].append(document)
        slots = grown
    return list(batches)


@torch.inference_mode()
def _tokens_per_second(serve: Serve, batches: Sequence[Documents], device: str) -> float:
    _wait(device)
    began = time.perf_counter()
    for batch in batches:
        serve(batch)
    _wait(device)
    seconds = time.perf_counter() - began
    return sum(document.numel() for batch in batches for document in batch) / seconds


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@torch.inference_mode()
def _batch_tokens(
    task: Efficiency,
    serve: Serve,
    documents: Documents,
    length: int,
    device: str,
    notes: list[str],
    way: str,
) -> int:
    """How many token slots a batch may have: the most that fits a GPU, in steps of a half.

    What fits is tried on the longest documents. It warms up too.
    """
    total = sum(document.numel() for document in documents)
    if task.batch_tokens is not None:
        size = task.batch_tokens
    else:
        size = _CPU_BATCH_TOKENS if device == "cpu" else _LARGEST_BATCH_TOKENS
    asked = size = max(length, min(size, total))
    by_length = sorted(documents, key=lambda document: -document.numel())
    while True:
        try:
            serve(_batches(by_length, size, padded=True)[0])
            _wait(device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if size <= length:
                raise ValueError(f"{way}: out of memory with one document of {length}") from error
            size = max(length, size // 2)
            if device == "cuda":
                torch.cuda.empty_cache()
        else:
            if size < asked and task.batch_tokens is not None:
                notes.append(f"{way}: out of memory with {asked} tokens: batches of {size}")
            return size


def _dtype(device: str) -> torch.dtype:
    return torch.bfloat16 if device == "cuda" else torch.float32


def _packed(asked: Model, device: str) -> Serve | None:
    """Our model: documents end to end."""
    from tessera.checkpoints import CheckpointError, load_model

    try:
        model = load_model(asked.folder).model
    except CheckpointError:
        return None
    model.to(device, _dtype(device))

    def serve(documents: Documents) -> Any:
        lengths = torch.tensor([0, *(document.numel() for document in documents)])
        ends = lengths.cumsum(0).int().to(device)
        return model(torch.cat(list(documents)), cu_seqlens=ends, max_seqlen=int(lengths.max()))

    return serve


def _graphs(asked: Model, device: str, notes: list[str]) -> dict[str, Serve]:
    """What `tessera export --onnx --int8 --openvino` left in the folder, on padded batches."""
    from tessera.checkpoints.graphs import PLACES, missing_packages, session

    found: dict[str, Serve] = {}
    for kind, place in PLACES.items():
        file = Path(asked.folder) / place
        if not file.is_file():
            continue
        missing = missing_packages([kind])
        if device != "cpu" or missing:
            why = f"{', '.join(missing)} is not installed" if missing else "graphs run on a CPU"
            notes.append(f"{place}: not timed, {why}")
            continue
        run = session(file, threads=torch.get_num_threads())

        def serve(documents: Documents, run: Any = run) -> Any:
            ids, mask = _rectangle(documents, "cpu")
            return run(ids.numpy(), mask.numpy())

        shape = serve([torch.full((16,), 5)]).shape
        head = "" if len(shape) == 3 and shape[-1] == _width(asked) else ", with its head"
        found[f"padded ({kind}{head})"] = serve
    return found


def _width(asked: Model) -> int | None:
    from transformers import AutoConfig

    width: int | None = getattr(AutoConfig.from_pretrained(asked.folder), "hidden_size", None)
    return width


def _rectangle(documents: Documents, device: str) -> tuple[Tensor, Tensor]:
    """(texts, tokens) ids and mask, int64."""
    most = max(document.numel() for document in documents)
    ids = torch.zeros(len(documents), most, dtype=torch.int64, device=device)
    mask = torch.zeros_like(ids)
    for row, document in enumerate(documents):
        ids[row, : document.numel()] = document
        mask[row, : document.numel()] = 1
    return ids, mask


def _padded(asked: Model, device: str) -> tuple[Serve, int | None, int]:
    """Transformers' model on padded batches; where its positions end, and its vocabulary."""
    from transformers import AutoModel

    try:
        model: Any = AutoModel.from_pretrained(
            asked.folder, attn_implementation="sdpa", dtype=_dtype(device)
        )
    except (ValueError, OSError) as error:
        raise ValueError(f"{asked.source}: cannot be loaded: {error}") from error
    check_finite(asked, model)
    model.to(device).eval()
    config = model.config
    # Rotary positions have no end; learned ones do.
    rotary = any(hasattr(config, key) for key in ("rope_theta", "global_rope_theta"))
    rotary = rotary or getattr(config, "rope_parameters", None) is not None
    longest = None if rotary else getattr(config, "max_position_embeddings", None)

    def serve(documents: Documents) -> Any:
        ids, mask = _rectangle(documents, device)
        return model(input_ids=ids, attention_mask=mask)

    return serve, longest, int(config.vocab_size)
