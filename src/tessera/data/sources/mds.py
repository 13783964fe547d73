"""Documents in MDS shards, from a folder or from a remote one that a folder caches."""

import errno
import json
import logging
import os
import resource
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from tessera.data.config import SourceConfig
from tessera.data.sources.cache import ShardCache, refuse_links_out
from tessera.data.sources.download import FetchFailed, read_remote_file
from tessera.data.sources.locks import CacheError, FolderLocks
from tessera.data.sources.mds_shard import (
    INDEX,
    SUMMARY,
    Index,
    Shard,
    parse_index,
)
from tessera.data.sources.source import BadShard
from tessera.files import JsonObject, write_whole

log = logging.getLogger(__name__)

_NAMED = 3
"""How many of many shards a message names."""
_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of a process that holds too much, for which no shard is to blame."""
_SKIP = "to train without such shards, set train_data.on_bad_shard: skip"


class MdsDocuments:
    """The documents of one split of one source.

    Holds no thread and no connection until it is read from.

    Attributes:
        name: What the configuration calls the source.
        folder: Where the shards are, or will be.

    The others are those of `tessera.data.sources.source.Documents`.
    """

    def __init__(
        self,
        name: str,
        local: Path | str,
        *,
        remote: str | None = None,
        split: str = "",
        cache_limit_bytes: int | None = None,
        vocab_size: int | None = None,
        attempts: int = 3,
    ) -> None:
        """Read the index; a remote one is kept in `local`, and compared with it from then on.

        Args:
            name: For messages.
            local: The folder that holds, or will hold, the shards.
            remote: Where they come from, if not there already: whatever Streaming reads.
            split: Sub-folder of both; '' for none.
            cache_limit_bytes: Shards that were fetched are evicted, oldest first, beyond this.
            vocab_size: If given, the first document of every shard is checked against it.
            attempts: How often a fetch is tried before it fails.

        Raises:
            ValueError: there is no such folder or index, or the remote's has changed.
        """
        self.name = name
        self.folder = Path(local) / split
        if remote is not None:
            remote = os.path.join(remote, split).rstrip("/")
            if os.path.realpath(remote) == os.path.realpath(self.folder):
                remote = None
        if remote is not None:
            refuse_links_out(name, Path(local), split)
        self._remote, self._attempts, self._vocab_size = remote, attempts, vocab_size
        self._index = self._read_index() if remote is None else self._read_remote_index(remote)
        shards = self._index.shards
        self.summary = self._read_summary()
        self.samples = np.array([shard.samples for shard in shards], np.int64)
        self.shard_bytes = np.array([shard.raw.bytes for shard in shards], np.int64)
        self.index_fingerprint = self._index.fingerprint
        self._cache: ShardCache | None = None
        if remote is not None or any(shard.compressed for shard in shards):
            self._cache = ShardCache(
                *(name, self.folder, remote or str(self.folder), shards),
                limit_bytes=cache_limit_bytes if remote is not None else None,
                attempts=attempts,
                release=self._unmap_all,
            )
        self._open_limit_bytes = cache_limit_bytes // 2 if cache_limit_bytes else None
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._open_bytes = 0
        self._verified: set[int] = set()
        self._pid = os.getpid()

    @property
    def tokenizer_fingerprint(self) -> str | None:
        """The tokenizer that made the token ids, if preparation recorded it."""
        return self.summary.get("tokenizer")

    def document(self, shard: int, sample: int) -> np.ndarray:
        """Token ids of a document, without special tokens, in the dtype of the shard: a copy.

        Raises:
            BadShard: the shard cannot be read, after retries.
            ValueError: the shard holds token ids that the vocabulary does not have.
        """
        return self._shard(shard).tokens(sample)

    def document_id(self, shard: int, sample: int) -> str:
        """The id that preparation gave to a document; '' if it gave none."""
        return self._shard(shard).document_id(sample)

    def lacking(self) -> str | None:
        """Which shards of the index a folder without remote lacks; None if all are here, whole.

        Looks at names and sizes only.
        """
        if self._remote is not None:
            return None
        gone, altered = [], []
        for shard in self._index.shards:
            here = []
            for file in filter(None, (shard.raw, shard.compressed)):
                with suppress(FileNotFoundError):
                    here.append((file, (self.folder / file.basename).stat().st_size))
            if not here:
                gone.append((shard.compressed or shard.raw).basename)
            for file, size in here:
                if size != file.bytes:
                    altered.append(f"{file.basename} ({size} bytes instead of {file.bytes})")
        found = [
            f"{len(names)} of the {len(self.samples)} shards that its {INDEX} names {what}: "
            + ", ".join(names[:_NAMED] + ["..."] * (len(names) > _NAMED))
            for names, what in ((gone, "do not exist"), (altered, "have another size"))
            if names
        ]
        return f"{self.folder}: {'; '.join(found)}" if found else None

    def lengths(self, shard: int) -> np.ndarray:
        """(documents of the shard,) int32: tokens of each, read from the headers alone."""
        return self._shard(shard).lengths

    def lengths_here(self, shard: int) -> np.ndarray | None:
        """(documents of the shard,) int32 if its file is here as the index says, unverified."""
        entry = self._index.shards[shard]
        try:
            with open(self.folder / entry.raw.basename, "rb") as file:
                return Shard(file, entry, verify=False).lengths
        except (OSError, ValueError):
            return None

    def will_need(self, shards: Iterable[int]) -> None:
        """Fetch these shards in the background, in this order; replaces the previous list."""
        if self._cache is not None:
            self._cache.prefetch(shard for shard in shards if shard not in self._open)

    def close(self) -> None:
        """Unmap every shard and stop the background threads."""
        self._unmap_all()
        if self._cache is not None:
            self._cache.close()

    def _unmap_all(self) -> None:
        self._open.clear()
        self._open_bytes = 0

    def _shard(self, number: int) -> Shard:
        """The shard, opened and the most recently used."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        if self._pid != os.getpid():  # a fork's copies would keep locks of the parent alive
            self.close()
            self._pid = os.getpid()
        if not 0 <= number < len(self.samples):
            raise IndexError(f"source '{self.name}' has {len(self.samples)} shards, not {number}")
        self._drop_to_fit(int(self.shard_bytes[number]))
        shard = self._open[number] = self._open_shard(number)
        self._open_bytes += int(self.shard_bytes[number])
        return shard

    def _drop_to_fit(self, wanted_bytes: int) -> None:
        """Unmap the least recently used: each costs a descriptor, and cannot be evicted."""
        limit = self._open_limit_bytes
        while self._open and (
            len(self._open) >= _open_shards()
            or (limit is not None and self._open_bytes + wanted_bytes > limit)
        ):
            number, _ = self._open.popitem(last=False)
            self._open_bytes -= int(self.shard_bytes[number])
            if self._cache is not None and self._remote is not None:
                self._cache.touch(number)

    def _open_shard(self, number: int) -> Shard:
        path = self.folder / self._index.shards[number].raw.basename
        try:
            shard = self._map(number, path)
        except CacheError:
            raise
        except FetchFailed as error:
            cure = "check that it is whole there and may be read"
            raise BadShard(self.name, number, path, str(error), f"{cure}; {_SKIP}") from error
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) in _OURS:
                raise
            problem = "does not exist" if isinstance(error, FileNotFoundError) else str(error)
            cure = "prepare or copy it again"
            raise BadShard(self.name, number, path, problem, f"{cure}; {_SKIP}") from error
        self._check_vocabulary(shard, path)
        self._verified.add(number)
        return shard

    def _map(self, number: int, path: Path) -> Shard:
        entry, verify = self._index.shards[number], number not in self._verified
        if self._cache is None:
            with open(path, "rb") as file:
                return Shard(file, entry, verify=verify)
        for last in (False, True):
            with self._cache.open(number) as file:
                try:
                    return Shard(file, entry, verify=verify)
                except ValueError as error:
                    if last or not self._cache.discard(number):
                        raise
                    log.warning("source '%s': %s: %s; fetching it again", self.name, path, error)
        raise AssertionError("unreachable")

    def _check_vocabulary(self, shard: Shard, path: Path) -> None:
        if self._vocab_size is None or not shard.samples or not shard.lengths[0]:
            return
        if (largest := int(shard.tokens(0).max())) >= self._vocab_size:
            raise ValueError(
                f"source '{self.name}': {path} holds token id {largest}, but the model's "
                f"vocabulary has {self._vocab_size}; use the tokenizer of these shards, or "
                "prepare them again with yours"
            )

    def _read_index(self) -> Index:
        path = self.folder / INDEX
        if not path.is_file():
            raise ValueError(
                f"source '{self.name}': {self.folder} "
                + ("has no index.json" if self.folder.is_dir() else "does not exist")
                + "; prepare the data first, or correct `local` or `split`"
            )
        index = parse_index(path.read_bytes(), f"source '{self.name}': {path}")
        for layout in {shard.layout for shard in index.shards}:
            if problem := layout.problem:
                raise ValueError(
                    f"source '{self.name}': the shards in {self.folder} cannot be trained on: "
                    f"{problem}; tokenize the text with data_prep/tokenize.py"
                )
        if not any(shard.samples for shard in index.shards):
            raise ValueError(f"source '{self.name}': {self.folder} holds no documents")
        return index

    def _read_remote_index(self, remote: str) -> Index:
        """The index of the remote, which is copied to `local`, or must equal what is there."""
        path = self.folder / INDEX
        locks = FolderLocks(self.folder, self.name)
        with locks.holding("index"):
            try:
                content = read_remote_file(remote, INDEX, locks.folder / "index", self._attempts)
            except Exception as error:
                if isinstance(error, FileNotFoundError) or not path.is_file():
                    raise ValueError(
                        f"source '{self.name}': cannot read {remote}/{INDEX}: {error}; correct "
                        "`remote` or `split`, or prepare and upload the data first"
                    ) from error
                log.warning(
                    "source '%s': %s cannot be reached (%s); going on with the index in %s",
                    *(self.name, remote, error, self.folder),
                )
                return self._read_index()
            index = parse_index(content, f"source '{self.name}': {remote}/{INDEX}")
            if path.is_file() and index.fingerprint != self._read_index().fingerprint:
                raise ValueError(
                    f"source '{self.name}': the shards at {remote} have changed since "
                    f"{self.folder} was filled from there; to read the new ones, set `local` "
                    "to a new folder or delete this one; to continue a run, restore the old ones"
                )
            write_whole(path, content)
            if not (self.folder / SUMMARY).is_file():
                self._fetch_summary(remote, locks.folder / "index")
        return self._read_index()

    def _fetch_summary(self, remote: str, staging: Path) -> None:
        try:
            content = read_remote_file(remote, SUMMARY, staging, attempts=1)
        except Exception as error:  # each kind of remote has its own way to say that it is absent
            log.info("source '%s': %s has no %s (%s)", self.name, remote, SUMMARY, error)
        else:
            write_whole(self.folder / SUMMARY, content)

    def _read_summary(self) -> JsonObject:
        path = self.folder / SUMMARY
        if not path.is_file():
            return {}
        try:
            summary = dict(json.loads(path.read_bytes()))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(
                f"source '{self.name}': {path} is damaged ({error}); prepare or copy it again"
            ) from error
        listed = sum(shard.samples for shard in self._index.shards)
        if summary.get("documents", listed) != listed:
            raise ValueError(
                f"source '{self.name}': {path} counts {summary['documents']} documents, the "
                f"{INDEX} beside it {listed}: one of them is damaged, or of other shards; prepare "
                "or copy both again"
            )
        return summary


def open_documents(
    name: str, source: SourceConfig, split: str, vocab_size: int | None
) -> MdsDocuments:
    """Open one split of a source of MDS shards; see `MdsDocuments`."""
    limit = source.cache_limit
    return MdsDocuments(
        name,
        Path(source.local),
        remote=source.remote,
        split=split,
        cache_limit_bytes=None if limit is None else limit.value,
        vocab_size=vocab_size,
    )


def _open_shards() -> int:
    """How many shards a source keeps mapped: a mapping costs a file descriptor."""
    return max(16, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4, 1024))
