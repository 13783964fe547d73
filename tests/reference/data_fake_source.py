"""A small source in memory, with the interface of `tessera.data.sources.source.Documents`."""

import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from tessera.data.sources.source import BadShard

CLS, SEP, PAD, MASK, UNK = range(5)
SIZE = 500


def fake_tokenizer(fingerprint="fake", size=SIZE):
    return SimpleNamespace(
        cls_id=CLS, sep_id=SEP, pad_id=PAD, mask_id=MASK,
        special_ids=np.arange(5), size=size, fingerprint=fingerprint,
        word_starts=np.arange(size) % 3 == 0,
    )  # fmt: skip


@dataclass
class FakeSource:
    """Documents whose tokens say where they come from: unique within a small corpus."""

    name: str
    lengths_of: tuple[tuple[int, ...], ...]
    bad: set[int] = field(default_factory=set)
    index_fingerprint: str = "index"
    tokenizer_fingerprint: str | None = "fake"
    asked: list[list[int]] = field(default_factory=list)
    summary: dict = field(default_factory=dict)

    def __post_init__(self):
        self.samples = np.array([len(shard) for shard in self.lengths_of])
        self.shard_bytes = np.array([2 * sum(shard) + 1 for shard in self.lengths_of])

    def document(self, shard, sample):
        if shard in self.bad:
            raise BadShard(self.name, shard, f"{shard}.mds", "damaged", "mend it")
        length = self.lengths_of[shard][sample]
        seed = hash((sum(map(ord, self.name)), shard, sample)) % 2**32
        return (5 + (np.arange(length) * 7 + seed) % (SIZE - 5)).astype(np.uint16)

    def document_id(self, shard, sample):
        return f"{self.name}-{shard}-{sample}"

    def lengths(self, shard):
        return np.array(self.lengths_of[shard])

    def lengths_here(self, shard):
        return None if shard in self.bad else self.lengths(shard)

    def will_need(self, shards):
        self.asked.append(list(shards))

    def close(self):
        pass


def corpus(name, documents, *, shards=4, longest=90, seed=0, **more):
    """A source of random lengths, some documents empty."""
    rng = np.random.default_rng(sum(map(ord, name)) + seed)
    lengths = rng.integers(0, longest, documents).tolist()
    bounds = np.linspace(0, documents, shards + 1).astype(int)
    parts = tuple(tuple(lengths[a:b]) for a, b in zip(bounds, bounds[1:], strict=False))
    return FakeSource(name, parts, **more)


def open_fake(name, source, split, vocab_size):
    """Opens `local` such as "documents=300,longest=90", so that a worker makes the same source."""
    numbers = dict(part.split("=") for part in source.local.split(",") if part)
    return corpus(name, seed=len(split), **{key: int(n) for key, n in numbers.items()})


def open_broken(name, source, split, vocab_size):
    """The same with its first shard damaged."""
    opened = open_fake(name, source, split, vocab_size)
    opened.bad = {0}
    return opened


def open_stuck(name, source, split, vocab_size):
    """A source that takes for ever to read a document."""
    opened = open_fake(name, source, split, vocab_size)
    opened.document = lambda shard, sample: time.sleep(3600)
    return opened
