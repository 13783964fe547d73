"""Shards of tokenised documents: the one definition of their MDS columns, read through mmap.

A folder of shards holds Streaming's MDS files, `index.json`, and `tessera.json` (which tokenizer,
how many tokens). `index.json` is written last: a folder without one is not finished. Reading maps
the files instead of using Streaming's reader, which opens the file again for every document.
"""

import hashlib
import json
import mmap
import os
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

import numpy as np
import xxhash

from tessera.files import JsonObject
from tessera.tokenizer import token_dtype

INDEX = "index.json"
SUMMARY = "tessera.json"
TOKENS_COLUMN = "input_ids"
ID_COLUMN = "id"
STATE = ".tessera"
"""Sub-folder of a cache with its locks and staging folders."""
_MOST_BYTES = 2**32
"""Offsets in a shard are uint32."""
_SHAPE_BYTES = 3  # low bits of an MDS array's first byte: log2 of the bytes of each dimension
_MDS_DTYPE_CODES = {16: "uint16", 17: "int16", 32: "uint32", 33: "int32", 64: "uint64", 65: "int64"}


def columns(vocab_size: int) -> dict[str, str]:
    """The MDS columns of a document: its id and its token ids, without special tokens."""
    return {ID_COLUMN: "str", TOKENS_COLUMN: f"ndarray:{token_dtype(vocab_size).name}"}


@dataclass(frozen=True)
class Layout:
    """How the columns of a sample lie in its bytes, from a shard's entry of the index."""

    names: tuple[str, ...]
    encodings: tuple[str, ...]
    sizes: tuple[int | None, ...]
    """Bytes of a column; None if they vary, and stand as uint32 at the sample's beginning."""

    @property
    def variable(self) -> list[str]:
        """Columns whose size is at the sample's beginning, in that order."""
        return [name for name, size in zip(self.names, self.sizes, strict=True) if not size]

    def encoding(self, name: str) -> str:
        """What MDS calls the type of a column."""
        return self.encodings[self.names.index(name)]

    @property
    def problem(self) -> str | None:
        """Why these are no shards of tokenised documents, if so."""
        if TOKENS_COLUMN not in self.names:
            return f"they have no column '{TOKENS_COLUMN}', only {', '.join(self.names)}"
        kind, _, dtype = self.encoding(TOKENS_COLUMN).partition(":")
        if kind != "ndarray" or dtype not in ("", *_MDS_DTYPE_CODES.values()):
            return (
                f"their column '{TOKENS_COLUMN}' is '{self.encoding(TOKENS_COLUMN)}', not an "
                "ndarray of integers of 16 bits or more, of any length"
            )
        return None


@dataclass(frozen=True)
class ShardFile:
    """One file of a shard, raw or compressed, as the index describes it."""

    basename: str
    bytes: int
    hashes: dict[str, str]


@dataclass(frozen=True)
class ShardEntry:
    """One shard, as the index describes it."""

    samples: int
    raw: ShardFile
    compressed: ShardFile | None
    compression: str | None
    layout: Layout


@dataclass(frozen=True)
class Index:
    """The shards of one folder."""

    shards: tuple[ShardEntry, ...]

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the documents and their order; not how their files are named or compressed."""
        rows = [(shard.samples, shard.raw.bytes, shard.raw.hashes) for shard in self.shards]
        return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:32]


def parse_index(text: str | bytes, where: str) -> Index:
    """Read the text of an `index.json`; raises ValueError naming `where` if it is not one."""
    try:
        entries = json.loads(text)["shards"]
        layouts: dict[Layout, Layout] = {}
        shards = tuple(_parse_entry(entry, layouts) for entry in entries)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where} is not an index of MDS shards ({type(error).__name__}: {error}); "
            "prepare or copy this folder again"
        ) from error
    return Index(shards)


def _parse_entry(entry: JsonObject, layouts: dict[Layout, Layout]) -> ShardEntry:
    if entry["format"] != "mds":
        raise ValueError(f"format '{entry['format']}' is not supported, only 'mds'")
    names, encodings = tuple(entry["column_names"]), tuple(entry["column_encodings"])
    layout = Layout(names, encodings, tuple(entry["column_sizes"]))
    raw, compressed = entry["raw_data"], entry["zip_data"]
    raw_file = _shard_file(raw)
    samples = int(entry["samples"])
    if samples < 0 or 4 * (samples + 2) > raw_file.bytes:
        raise ValueError(f"{samples} documents cannot be in the {raw_file.bytes} bytes of a shard")
    return ShardEntry(
        samples=samples,
        raw=raw_file,
        compressed=_shard_file(compressed) if compressed else None,
        compression=entry["compression"],
        layout=layouts.setdefault(layout, layout),  # shards share it: an index may hold millions
    )


def _shard_file(file: JsonObject) -> ShardFile:
    """A file of a shard, if its name stays inside the folder and its size can be one."""
    name, size = file["basename"], int(file["bytes"])
    parts = name.split("/")
    if not set(parts).isdisjoint({"", ".", "..", STATE, INDEX, SUMMARY}) or "\0" in name:
        raise ValueError(f"it names the file '{name}', which is no place for a shard in its folder")
    if not 0 <= size < _MOST_BYTES:
        raise ValueError(f"it says that '{name}' has {size} bytes; a shard has less than 4 GiB")
    return ShardFile(name, size, file.get("hashes") or {})


def file_problem(data: "np.ndarray | bytes | mmap.mmap", expected: ShardFile) -> str | None:
    """What is wrong with a file's content, or None: its size, then its cheapest known hash."""
    if len(data) != expected.bytes:
        return f"truncated or altered: {len(data)} bytes instead of {expected.bytes}"
    for algorithm in sorted(expected.hashes, key=lambda name: not hasattr(xxhash, name)):
        digest = getattr(xxhash, algorithm, None) or getattr(hashlib, algorithm, None)
        if digest is not None:
            found = digest(data).hexdigest()
            wrong = found != expected.hashes[algorithm]
            return f"its {algorithm} hash differs from the index" if wrong else None
    return None


class Shard:
    """The documents of one MDS shard, mapped into memory.

    Opening reads the offsets and one header per document.
    """

    def __init__(self, file: BinaryIO, entry: ShardEntry, *, verify: bool = True) -> None:
        """Map the file.

        Args:
            file: The raw (not compressed) shard, opened; it may be closed, since the mapping keeps
                a descriptor of its own, and with it any lock on the file.
            entry: What the index says about it.
            verify: Whether to compare the file's hash with the index too.

        Raises:
            ValueError: its content is not what the index describes.
        """
        self.samples = entry.samples
        size = os.fstat(file.fileno()).st_size
        if size != entry.raw.bytes:
            raise ValueError(f"truncated or altered: {size} bytes instead of {entry.raw.bytes}")
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if verify and (problem := file_problem(self._map, entry.raw)):
            raise ValueError(problem)
        self._bytes = np.frombuffer(self._map, np.uint8)
        # Sizes of columns stand as uint32 at any byte, not only at multiples of four. This view has
        # one word beginning at every byte, overlapping its neighbours, so that numpy can gather all
        # of a shard's sizes by their byte offsets in one step.
        self._words = np.ndarray((max(size - 3, 0),), "<u4", buffer=self._map, strides=(1,))
        if size < 4 * (self.samples + 2) or self._words[0] != self.samples:
            raise ValueError(f"its header does not count the {self.samples} documents of the index")
        self._layout = entry.layout
        self._offsets = np.frombuffer(self._map, "<u4", self.samples + 1, offset=4)
        if self._offsets[-1] != size or (self._offsets[1:] < self._offsets[:-1]).any():
            raise ValueError("its table of offsets is damaged")
        self._starts, self.lengths, self.dtype = self._locate_tokens()

    def _column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Where a column's bytes begin and how many there are, for every document."""
        layout, begin, end = self._layout, self._offsets[:-1].astype(np.int64), self._offsets[1:]
        variable = layout.variable
        start = begin + 4 * len(variable)
        for other, fixed in zip(layout.names, layout.sizes, strict=True):
            size = (
                np.full(len(begin), fixed, np.int64)
                if fixed
                else self._words[begin + 4 * variable.index(other)].astype(np.int64)
            )
            if other == name:
                last = name == layout.names[-1]
                if (start + size != end if last else start + size > end).any():
                    raise ValueError(f"its column '{name}' is damaged")
                return start, size
            start = start + size
        raise AssertionError(f"no column '{name}' in {layout.names}")

    def _locate_tokens(self) -> tuple[np.ndarray, np.ndarray, np.dtype]:
        if self._layout.problem:
            raise ValueError(self._layout.problem)
        start, size = self._column(TOKENS_COLUMN)
        name = self._layout.encoding(TOKENS_COLUMN).partition(":")[2]
        if not name and self.samples:  # then the dtype stands before the shape
            codes = self._bytes[start]
            name = _MDS_DTYPE_CODES.get(int(codes[0]), "unknown")
            if (codes != codes[0]).any() or name == "unknown":
                raise ValueError(
                    f"its column '{TOKENS_COLUMN}' is not integers of one kind of 16 bits or more"
                )
            start, size = start + 1, size - 1
        dtype = np.dtype(name or np.uint16).newbyteorder("<")
        shape = self._bytes[start].astype(np.int64) if self.samples else start
        if (shape >> 2 != 1).any():
            raise ValueError(f"its column '{TOKENS_COLUMN}' is not one-dimensional")
        head = 1 + (1 << (shape & _SHAPE_BYTES))
        body = size - head
        if (body < 0).any() or (body % dtype.itemsize).any():
            raise ValueError(f"its column '{TOKENS_COLUMN}' is damaged")
        return (
            (start + head).astype(np.uint32),
            (body // dtype.itemsize).astype(np.int32),
            dtype,
        )

    def tokens(self, sample: int) -> np.ndarray:
        """Token ids of a document: a copy, since a view would keep the file open."""
        count, start = self.lengths[sample], self._starts[sample]
        return np.frombuffer(self._map, self.dtype, count, start).copy()

    def document_id(self, sample: int) -> str:
        """The id of a document; '' if the shard has no such column of strings."""
        if ID_COLUMN not in self._layout.names or self._layout.encoding(ID_COLUMN) != "str":
            return ""
        start, size = self._ids
        return self._map[start[sample] : start[sample] + size[sample]].decode()

    @cached_property
    def _ids(self) -> tuple[np.ndarray, np.ndarray]:
        return self._column(ID_COLUMN)
