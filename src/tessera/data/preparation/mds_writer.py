"""Writing shards: in parts that are whole or absent, published as a folder with an index.

A killed run leaves a folder without `index.json`, which no reader takes for finished, and parts
that the next run finds done. The files are those that Streaming's own writer makes, byte for byte;
it is not used because it takes torch with it, and seconds.
"""

import bz2
import gzip
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from tessera.data.preparation.notes import Notes
from tessera.data.sources import special_tokens
from tessera.data.sources.mds_shard import ID_COLUMN, INDEX, SUMMARY, TOKENS_COLUMN, columns
from tessera.files import write_whole
from tessera.tokenizer import token_dtype

PARTS = ".parts"
_LENGTHS = "lengths.json"
_NOTES = "notes.json"


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
    if part.exists():
        return
    writer = PartWriter(
        part, vocab_size=vocab_size, shard_bytes=shard_bytes, compression=compression
    )
    for document_id, tokens in documents:
        writer.add(document_id, tokens)
    writer.finish(Notes())


class PartWriter:
    """Some of a folder's documents on their way to the disk, under a name that nobody reads."""

    def __init__(
        self,
        part: Path,
        *,
        vocab_size: int,
        shard_bytes: int = 2**26,
        compression: str | None = None,
    ) -> None:
        """Begin a part; what an earlier, killed writer left of it is thrown away."""
        self._part = part
        self._unfinished = part.with_suffix(".unfinished")
        shutil.rmtree(self._unfinished, ignore_errors=True)
        self._unfinished.mkdir(parents=True)
        self._vocab_size, self._dtype = vocab_size, token_dtype(vocab_size)
        self._compress = compressor(compression)
        described = columns(vocab_size)
        self._described: dict[str, Any] = {
            "version": 2,
            "format": "mds",
            "compression": compression,
            "hashes": ["xxh64"],
            "size_limit": shard_bytes,
            "column_names": [ID_COLUMN, TOKENS_COLUMN],
            "column_encodings": [described[ID_COLUMN], described[TOKENS_COLUMN]],
            "column_sizes": [None, None],
        }
        self._header = json.dumps(self._described, sort_keys=True).encode()
        self._limit = shard_bytes
        self._counts: Counter[int] = Counter()
        self._shards: list[dict[str, Any]] = []
        self._begin_shard()

    def add(self, document_id: str, tokens: np.ndarray) -> None:
        """Write a document; an empty one is only counted.

        Raises:
            ValueError: it holds a token id that the vocabulary does not have.
        """
        self._counts[len(tokens)] += 1
        if not len(tokens):
            return
        if (largest := int(tokens.max())) >= self._vocab_size:
            raise ValueError(
                f"document '{document_id}' holds token id {largest}, but the vocabulary has "
                f"{self._vocab_size}"
            )
        name = document_id.encode()
        array = _array_bytes(tokens.astype(self._dtype, copy=False))
        sample = np.array([len(name), len(array)], np.uint32).tobytes() + name + array
        size = len(sample) + 4
        if self._samples and self._size + size > self._limit:
            self._end_shard()
        self._samples.append(sample)
        self._size += size

    def finish(self, notes: Notes) -> None:
        """Bring the rest to the disk and give the part its name."""
        if self._samples:
            self._end_shard()
        index = {"version": 2, "shards": self._shards}
        (self._unfinished / INDEX).write_text(json.dumps(index, sort_keys=True))
        (self._unfinished / _LENGTHS).write_text(json.dumps(sorted(self._counts.items())))
        if notes.found:
            (self._unfinished / _NOTES).write_text(json.dumps(notes.found))
        self._unfinished.rename(self._part)

    def _begin_shard(self) -> None:
        self._samples: list[bytes] = []
        self._size = 4 + 4 + len(self._header)

    def _end_shard(self) -> None:
        sizes = [0, *map(len, self._samples)]
        offsets = np.array(sizes).cumsum() + 4 + 4 * len(sizes) + len(self._header)
        raw = b"".join(
            [
                np.uint32(len(self._samples)).tobytes(),
                offsets.astype(np.uint32).tobytes(),
                self._header,
                *self._samples,
            ]
        )
        name = f"shard.{len(self._shards):05}.mds"
        entry = {"samples": len(self._samples), "raw_data": _file(name, raw), "zip_data": None}
        if self._compress is not None:
            ending, compress = self._compress
            name, raw = f"{name}.{ending}", compress(raw)
            entry["zip_data"] = _file(name, raw)
        (self._unfinished / name).write_bytes(raw)
        self._shards.append({**entry, **self._described})
        self._begin_shard()


def _array_bytes(tokens: np.ndarray) -> bytes:
    """An array of one dimension as MDS writes it: kind of shape, shape, values."""
    shape_bytes = 1 if len(tokens) < 1 << 8 else 2 if len(tokens) < 1 << 16 else 4
    head = bytes([1 << 2 | {1: 0, 2: 1, 4: 2}[shape_bytes]])
    return head + len(tokens).to_bytes(shape_bytes, "little") + tokens.tobytes()


def _file(name: str, content: bytes) -> dict[str, Any]:
    hashes = {"xxh64": xxhash.xxh64_hexdigest(content)}
    return {"basename": name, "bytes": len(content), "hashes": hashes}


def compressor(name: str | None) -> tuple[str, Callable[[bytes], bytes]] | None:
    """(ending, function) of a compression that Streaming knows, such as 'zstd' or 'zstd:7'.

    Raises:
        ValueError: there is no such compression.
    """
    if not name:
        return None
    kind, _, level = name.partition(":")
    most = {"zstd": 22, "gz": 9, "bz2": 9, "br": 11, "snappy": 0}
    if (level and not level.isdigit()) or kind not in most or int(level or 0) > most[kind]:
        raise ValueError(
            f"--compression {name}: one of zstd, gz, bz2, br, snappy, or such as zstd:7 "
            "(up to zstd:22, gz:9, bz2:9, br:11)"
        )
    number = int(level) if level else None
    if kind == "gz":
        return kind, lambda raw: gzip.compress(raw, 9 if number is None else number, mtime=0)
    if kind == "bz2":
        return kind, lambda raw: bz2.compress(raw, 9 if number is None else number)
    if kind == "br":
        import brotli

        return kind, lambda raw: bytes(
            brotli.compress(raw, quality=11 if number is None else number)
        )
    if kind == "snappy":
        import snappy

        return kind, snappy.compress
    import zstd

    return kind, lambda raw: bytes(zstd.compress(raw, 3 if number is None else number))


def publish(
    folder: Path | str,
    parts: Sequence[Path],
    *,
    vocab_size: int,
    tokenizer_fingerprint: str | None,
    prepared_from: dict[str, Any] | None = None,
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Join finished parts into one folder of shards; killed at any moment, it can be repeated.

    Args:
        folder: Gets the shards, numbered in the order of `parts`, then the two JSON files.
        parts: Folders that `write_part` wrote, on the same file system.
        vocab_size: Of the tokenizer.
        tokenizer_fingerprint: Kept in `tessera.json`, so that training refuses another tokenizer.
        prepared_from: Kept in `tessera.json`: what the documents came from, and how.
        more: Kept in `tessera.json` too.

    Returns:
        What `tessera.json` says.
    """
    folder = Path(folder)
    entries: list[dict[str, Any]] = []
    for part in parts:
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
    summary = summary_of(
        [part_record(part) for part in parts],
        shards=len(entries),
        vocab_size=vocab_size,
        tokenizer_fingerprint=tokenizer_fingerprint,
        prepared_from=prepared_from,
        more=more,
    )
    write_whole(folder / SUMMARY, json.dumps(summary, indent=2).encode())
    write_whole(folder / INDEX, index_bytes(entries))
    shutil.rmtree(folder / PARTS)
    return summary


def index_bytes(entries: Sequence[dict[str, Any]]) -> bytes:
    """The content of `index.json`."""
    return json.dumps({"version": 2, "shards": list(entries)}, sort_keys=True).encode()


def part_record(part: Path) -> dict[str, Any]:
    """What a finished part says of itself: `lengths` and `notes`."""
    notes = part / _NOTES
    return {
        "lengths": json.loads((part / _LENGTHS).read_text()),
        "notes": json.loads(notes.read_text()) if notes.exists() else {},
    }


def summary_of(
    records: Sequence[dict[str, Any]],
    *,
    shards: int,
    vocab_size: int,
    tokenizer_fingerprint: str | None,
    prepared_from: dict[str, Any] | None,
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What `tessera.json` says of a folder, from the records of its parts in their order."""
    counts: Counter[int] = Counter()
    notes = Notes()
    for record in records:
        counts.update(dict(record["lengths"]))
        notes.update(Notes(record["notes"]))
    return {
        "tokenizer": tokenizer_fingerprint,
        "vocab_size": vocab_size,
        "dtype": token_dtype(vocab_size).name,
        special_tokens.KEY: special_tokens.NONE,
        **_statistics(counts),
        "shards": shards,
        "prepared_from": prepared_from,
        **({"noted": notes.found} if notes.found else {}),
        **(more or {}),
    }


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
