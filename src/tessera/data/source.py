"""One source of documents: whole documents by (shard, sample), from a folder or a remote one."""

import json
import resource
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tessera.data.shards import INDEX, SUMMARY, BadShard, Shard, parse_index


class Source:
    """The documents of one split of one source.

    Attributes:
        name: What the configuration calls the source.
        samples: (shards,) int64, documents per shard.
        shard_bytes: (shards,) int64, size of each shard on disk when it can be read.
        index_fingerprint: Identifies the documents and their order.
        summary: What preparation wrote beside the index (`tessera.json`), or {} if nothing did.
    """

    def __init__(
        self,
        name: str,
        local: Path | str,
        *,
        remote: str | None = None,
        split: str = "",
        vocab_size: int | None = None,
    ) -> None:
        """Read the index.

        Raises:
            ValueError: there is no such folder or index; names the source and the cure.
        """
        self.name = name
        self.folder = Path(local) / split
        self._vocab_size = vocab_size
        index = self.folder / INDEX
        if not index.is_file():
            raise ValueError(
                f"source '{name}': {self.folder} "
                + ("has no index.json" if self.folder.is_dir() else "does not exist")
                + "; prepare the data first, or correct `local` or `split`"
            )
        self._index = parse_index(index.read_bytes(), str(index))
        summary = self.folder / SUMMARY
        self.summary: dict[str, Any] = json.loads(summary.read_text()) if summary.is_file() else {}
        shards = self._index.shards
        self.samples = np.array([shard.samples for shard in shards], np.int64)
        self.shard_bytes = np.array([shard.raw.bytes for shard in shards], np.int64)
        self.index_fingerprint = self._index.fingerprint
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._verified: set[int] = set()

    @property
    def tokenizer_fingerprint(self) -> str | None:
        """The tokenizer that made the token ids, if preparation recorded it."""
        return self.summary.get("tokenizer")

    def document(self, shard: int, sample: int) -> np.ndarray:
        """Token ids of a document, without special tokens: a read-only view of the file.

        Raises:
            BadShard: the shard cannot be read, after retries.
            ValueError: the shard holds token ids that the vocabulary does not have.
        """
        return self._shard(shard).tokens(sample)

    def document_id(self, shard: int, sample: int) -> str:
        """The id that preparation gave to a document."""
        return self._shard(shard).document_id(sample)

    def lengths(self, shard: int) -> np.ndarray:
        """(documents of the shard,) int32: tokens of each, read from the headers alone."""
        return self._shard(shard).lengths

    def will_need(self, shards: Iterable[int]) -> None:
        """Fetch these shards in the background, in this order; replaces the previous wish."""

    def close(self) -> None:
        """Unmap every shard; documents already handed out stay valid."""
        self._open.clear()

    def _shard(self, number: int) -> Shard:
        shard = self._open.get(number)
        if shard is None:
            shard = self._open_shard(number)
            while len(self._open) >= _open_shards():
                self._open.popitem(last=False)
            self._open[number] = shard
        else:
            self._open.move_to_end(number)
        return shard

    def _open_shard(self, number: int) -> Shard:
        entry = self._index.shards[number]
        path = self.folder / entry.raw.basename
        try:
            shard = Shard(path, entry, verify=number not in self._verified)
        except (OSError, ValueError) as error:
            cure = "copy or prepare it again, or set data.on_bad_shard: skip"
            raise BadShard(self.name, number, path, str(error), cure) from error
        self._check_vocabulary(shard, path)
        self._verified.add(number)
        return shard

    def _check_vocabulary(self, shard: Shard, path: Path) -> None:
        if self._vocab_size is None or not shard.samples or not shard.lengths[0]:
            return
        if (largest := int(shard.tokens(0).max())) >= self._vocab_size:
            raise ValueError(
                f"source '{self.name}': {path} holds token id {largest}, but the model's "
                f"vocabulary has {self._vocab_size}; use the tokenizer of these shards, or "
                "prepare them again with yours"
            )


def _open_shards() -> int:
    """How many shards a source keeps mapped: a mapping costs a file descriptor."""
    return max(16, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4, 1024))
