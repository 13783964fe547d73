"""The seam between documents on a disk or in a bucket and everything that trains on them.

A source is read through `Documents`, whatever it is stored as. Another format is a new file in this
folder with a class of that shape and a function `open_documents(name, source, split, vocab_size)`,
and one line in `tessera.data.config.FORMATS`; training, validation and preflight open every source
with `open_source`. Each worker process opens its sources anew. What cannot be opened, a `remote` or
`cache_limit` that the format cannot serve among it, raises ValueError with the way out.
"""

from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np

from tessera.data.config import FORMATS, SourceConfig
from tessera.files import JsonObject
from tessera.tokenizer import Tokenizer


class Documents(Protocol):
    """The documents of one split of one source, by (shard, sample)."""

    samples: np.ndarray
    """(shards,) int64: documents of each shard."""
    shard_bytes: np.ndarray
    """(shards,) int64: size of each shard on disk when it can be read."""
    index_fingerprint: str
    """Identifies the documents and their order: a run resumes only on the same."""
    summary: JsonObject
    """What preparation wrote beside the documents (`tessera.json`), or {} if nothing did."""

    @property
    def tokenizer_fingerprint(self) -> str | None:
        """The tokenizer that made the token ids, if known."""

    def document(self, shard: int, sample: int) -> np.ndarray:
        """The token ids of a document, without special tokens: any integer dtype, one-dimensional.

        Raises BadShard where a shard cannot be read, so that it may be passed over.
        """

    def document_id(self, shard: int, sample: int) -> str:
        """The id the document was stored under; '' if it has none."""

    def lengths(self, shard: int) -> np.ndarray:
        """(documents of the shard,) tokens of each as stored; reads no document."""

    def lengths_here(self, shard: int) -> np.ndarray | None:
        """The same, if nothing has to be fetched for it, and nothing verified; else None."""

    def lacking(self) -> str | None:
        """What is missing of a source that is all local; None if it is whole, or is fetched."""

    def will_need(self, shards: Iterable[int]) -> None:
        """Fetch these shards in the background, in this order, instead of those asked before."""

    def close(self) -> None:
        """Let go of files and threads."""


OpenSource = Callable[[str, SourceConfig, str, int | None], Documents]
"""(name, source, split, vocab_size if ids are to be checked) -> the opened source."""


def open_source(name: str, source: SourceConfig, split: str, vocab_size: int | None) -> Documents:
    """Open one split of one source, in the format that its configuration names.

    Raises:
        ValueError: it does not exist, holds nothing, or is no such source; names it and the way
            out.
    """
    return import_module(FORMATS[source.format]).open_documents(name, source, split, vocab_size)


def check_tokenizer(name: str, documents: Documents, tokenizer: Tokenizer) -> None:
    """Refuse shards that another tokenizer made; those that do not say are taken on trust."""
    made_with = documents.tokenizer_fingerprint
    if made_with not in (None, tokenizer.fingerprint):
        raise ValueError(
            f"source '{name}' was prepared with another tokenizer ({made_with}) than this run's "
            f"({tokenizer.fingerprint}): its token ids would mean other tokens; set `tokenizer` to "
            "the one beside the shards, or prepare the source again"
        )


class BadShard(ValueError):
    """A shard that cannot be read: missing, truncated, altered. Names file, source and cure."""

    def __init__(self, source: str, shard: int, path: Path | str, problem: str, cure: str) -> None:
        self.source, self.shard, self.path = source, shard, str(path)
        self.problem, self.cure = problem, cure
        super().__init__(source, shard, path, problem, cure)

    def __str__(self) -> str:
        return (
            f"source '{self.source}', shard {self.shard}, {self.path}: {self.problem}; {self.cure}"
        )
