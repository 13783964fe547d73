"""Writing shards: in parts that are whole or absent, published as a folder with an index.

A killed run leaves a folder without `index.json`, which no reader takes for finished, and parts
that the next run finds done.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tessera.data.sources import special_tokens
from tessera.data.sources.mds_shard import (
    ID_COLUMN,
    INDEX,
    SUMMARY,
    TOKENS_COLUMN,
    columns,
)
from tessera.files import write_whole
from tessera.tokenizer import token_dtype

PARTS = ".parts"
_LENGTHS = "lengths.json"


def write_shards(
    folder: Path | str,
    documents: Iterable[tuple[str, np.ndarray]],
    *,
    vocab_size: int,
    tokenizer_fingerprint: str | None = None,
    shard_bytes: int = 2**26,
    compression: str | None = None,
    prepared_from: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a finished folder of shards in one go; see `write_part` and `publish`.

    Returns:
        What `tessera.json` says: documents, tokens, length percentiles.
    """
    part = Path(folder) / PARTS / "00000"
    write_part(
        part, documents, vocab_size=vocab_size, shard_bytes=shard_bytes, compression=compression
    )
    return publish(
        folder,
        [part],
        vocab_size=vocab_size,
        tokenizer_fingerprint=tokenizer_fingerprint,
        prepared_from=prepared_from,
    )


def write_part(
    part: Path,
    documents: Iterable[tuple[str, np.ndarray]],
    *,
    vocab_size: int,
    shard_bytes: int = 2**26,
    compression: str | None = None,
) -> None:
    """Write some of a folder's documents, unless that was done before; killed, it leaves nothing.

    Args:
        part: A folder under `PARTS` of the folder to publish. It exists if and only if it is whole.
        documents: (id, token ids). Empty documents are left out and counted.
        vocab_size: Decides the dtype; a token id beyond it raises ValueError.
        shard_bytes: A shard is closed before it outgrows this.
        compression: None, or what Streaming calls it, such as 'zstd' or 'zstd:7'.
    """
    from streaming import MDSWriter  # takes seconds, which readers need not spend

    class Writer(MDSWriter):
        def flush_shard(self) -> None:
            if self.new_samples:  # a document larger than the limit would leave an empty shard
                super().flush_shard()

    if part.exists():
        return
    unfinished = part.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    dtype = token_dtype(vocab_size)
    counts: Counter[int] = Counter()
    with Writer(
        columns=columns(vocab_size),
        out=str(unfinished),
        hashes=["xxh64"],
        size_limit=shard_bytes,
        compression=compression,
    ) as writer:
        for document_id, tokens in documents:
            counts[len(tokens)] += 1
            if not len(tokens):
                continue
            if (largest := int(tokens.max())) >= vocab_size:
                raise ValueError(
                    f"document '{document_id}' holds token id {largest}, but the vocabulary has "
                    f"{vocab_size}"
                )
            writer.write({ID_COLUMN: document_id, TOKENS_COLUMN: tokens.astype(dtype, copy=False)})
    (unfinished / _LENGTHS).write_text(json.dumps(sorted(counts.items())))
    unfinished.rename(part)


def publish(
    folder: Path | str,
    parts: Sequence[Path],
    *,
    vocab_size: int,
    tokenizer_fingerprint: str | None,
    prepared_from: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Join finished parts into one folder of shards; killed at any moment, it can be repeated.

    Args:
        folder: Gets the shards, numbered in the order of `parts`, then the two JSON files.
        parts: Folders that `write_part` wrote, on the same file system.
        vocab_size: Of the tokenizer.
        tokenizer_fingerprint: Kept in `tessera.json`, so that training refuses another tokenizer.
        prepared_from: Kept in `tessera.json`: what the documents came from, and how.

    Returns:
        What `tessera.json` says.
    """
    folder = Path(folder)
    entries: list[dict[str, Any]] = []
    counts: Counter[int] = Counter()
    for part in parts:
        counts.update(dict(json.loads((part / _LENGTHS).read_text())))
        for entry in json.loads((part / INDEX).read_text())["shards"]:
            for kind in ("raw_data", "zip_data"):
                if entry[kind] is None:
                    continue
                suffix = entry[kind]["basename"].split(".", 2)[2]
                name = f"shard.{len(entries):05}.{suffix}"
                if (part / entry[kind]["basename"]).exists():
                    (part / entry[kind]["basename"]).rename(folder / name)
                entry[kind]["basename"] = name
            entries.append(entry)
    summary = {
        "tokenizer": tokenizer_fingerprint,
        "vocab_size": vocab_size,
        "dtype": token_dtype(vocab_size).name,
        special_tokens.KEY: special_tokens.NONE,
        **_statistics(counts),
        "shards": len(entries),
        "prepared_from": prepared_from,
    }
    write_whole(folder / SUMMARY, json.dumps(summary, indent=2).encode())
    index = {"version": 2, "shards": entries}
    write_whole(folder / INDEX, json.dumps(index, sort_keys=True).encode())
    shutil.rmtree(folder / PARTS)
    return summary


def has_documents(parts: Sequence[Path]) -> bool:
    """Whether any of these finished parts holds a document that is not empty."""
    return any(
        length and count
        for part in parts
        for length, count in json.loads((part / _LENGTHS).read_text())
    )


def _statistics(counts: Counter[int]) -> dict[str, Any]:
    """Documents, tokens and length percentiles from how many documents have each length."""
    empty = counts.pop(0, 0)
    lengths = np.array(sorted(counts), np.int64)
    documents = np.array([counts[length] for length in lengths.tolist()], np.int64)
    total, tokens = int(documents.sum()), int((lengths * documents).sum())
    percentiles: dict[str, float] = {}
    if total:
        ranks = np.cumsum(documents)
        for percent in (0, 1, 10, 25, 50, 75, 90, 99, 100):
            rank = max(1, -(-percent * total // 100))  # nearest rank
            percentiles[f"p{percent}"] = int(lengths[np.searchsorted(ranks, rank)])
        percentiles["mean"] = round(tokens / total, 1)
    return {
        "documents": total,
        "tokens": tokens,
        "empty_documents": empty,
        "document_tokens": percentiles,
    }
