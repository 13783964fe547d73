"""A folder as the cache of a remote one, shared by every process of a machine.

The file system is the only shared state. A shard whose file exists is local. A flock marks one that
is being fetched, or read; the kernel drops it with its process, so kill -9 leaves nothing to clean.
A shard arrives in a staging folder and is renamed into place when its hash is right. Streaming's
`Stream` fetches, decompresses and validates; its shared memory and its `__iter__` are not used.
"""

import errno
import fcntl
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tessera.data.folder_locks import CacheError, FolderLocks
from tessera.data.prefetch import Prefetcher
from tessera.data.shards import ShardEntry, write_whole

log = logging.getLogger(__name__)

_SLOTS = 32
_DOWNLOAD_TIMEOUT_SECONDS = 300.0
_FIRST_PAUSE_SECONDS = 0.5
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class FetchFailed(ValueError):
    """A shard cannot be fetched, after retries."""


class ShardCache:
    """Fetches shards into `folder`, and evicts others to stay within a limit."""

    def __init__(
        self,
        source: str,
        folder: Path,
        remote: str,
        shards: Sequence[ShardEntry],
        *,
        limit_bytes: int | None = None,
        attempts: int = 3,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        """Describe the cache; nothing is written before something has to be fetched.

        Args:
            source: Name for messages.
            folder: Where the shards go.
            remote: Where they come from: what Streaming reads. Equal to `folder` for compressed
                shards that are local already.
            shards: All shards of the index.
            limit_bytes: Shards that were fetched are evicted, oldest first, beyond this.
            attempts: How often a fetch is tried before it fails.
            release: Called when only shards that are being read could be evicted: closes those of
                this process.

        Raises:
            ValueError: the limit cannot hold enough shards to work with.
        """
        self.folder = folder
        self._source, self._remote, self._shards = source, remote, shards
        self._limit_bytes, self._attempts, self._release = limit_bytes, attempts, release
        self._locks = FolderLocks(folder, source)
        self._streams: dict[tuple[int, int], Any] = {}
        self._prefetcher: Prefetcher | None = None
        self._warned = False
        largest = max((_bytes_to_fetch(shard) for shard in shards), default=0)
        if limit_bytes is not None and limit_bytes < 4 * largest:
            raise ValueError(
                f"source '{source}': cache_limit {limit_bytes}b is too small: it must hold four of "
                f"the largest shards, {4 * largest}b; raise it, or write smaller shards"
            )

    def path(self, number: int) -> Path:
        """Where the file of a shard is, or will be."""
        return self.folder / self._shards[number].raw.basename

    def fetch(self, number: int) -> Path:
        """Return the path of a shard's file after making sure that it exists.

        Raises:
            FetchFailed: it cannot be fetched, after retries.
            CacheError: the cache cannot be written to.
        """
        path = self.path(number)
        while not path.exists():
            self._fetch_once(number, wait=True)
        return path

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Fetch these in the background, in this order, as far ahead as the limit allows."""
        budget = float("inf") if self._limit_bytes is None else self._limit_bytes // 4
        ahead: list[int] = []
        for number in numbers:
            budget -= _bytes_to_fetch(self._shards[number])
            if budget < 0:
                break
            if self.path(number).exists():
                self.touch(number)
            else:
                ahead.append(number)
        if self._prefetcher is None or self._prefetcher.pid != os.getpid():
            if not ahead:
                return
            self._prefetcher = Prefetcher(self._try_prefetch)
        self._prefetcher.replace(ahead)

    def touch(self, number: int) -> None:
        """Make a shard the youngest, the last to be evicted."""
        # A file of another user keeps its age; one that is gone will be fetched again.
        with suppress(PermissionError, FileNotFoundError):
            os.utime(self.path(number))

    def discard(self, number: int) -> bool:
        """Remove a damaged copy so that it is fetched again; False if it may be the only one."""
        with self._locks.holding("room"):
            if self._shards[number].raw.basename in self._kept():
                return False
            self.path(number).unlink(missing_ok=True)
        return True

    def close(self) -> None:
        """Stop the background threads after what they are fetching now."""
        if self._prefetcher is not None and self._prefetcher.pid == os.getpid():
            self._prefetcher.stop()
        self._prefetcher = None

    def _try_prefetch(self, number: int) -> bool:
        """Fetch unless another process or thread is at it; False to try again later."""
        try:
            return self.path(number).exists() or self._fetch_once(number, wait=False)
        except Exception as error:  # whoever needs the shard will meet it too, and raise
            log.warning("source '%s': prefetch of shard %d: %s", self._source, number, error)
            return True

    def _fetch_once(self, number: int, *, wait: bool) -> bool:
        """Fetch a shard if nobody else does.

        Returns:
            False if another one holds the slot, and `wait` was False.
        """
        slot = f"slot-{number % _SLOTS:02}"
        with self._locks.holding(slot, wait=wait) as lock:
            if lock is None:
                return False
            if self.path(number).exists():
                return True
            staging = self._locks.folder / slot
            try:
                needed_bytes = _bytes_to_fetch(self._shards[number])
                if not self._make_room(needed_bytes, lock, slot):
                    if not wait:
                        return True  # a prefetch is not worth more than the limit
                    self._release()
                    if not self._make_room(needed_bytes, lock, slot):
                        self._warn_once()
                file = self._download(number, staging)
                self.path(number).parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, self.path(number))
            finally:
                os.ftruncate(lock, 0)
                shutil.rmtree(staging, ignore_errors=True)
        return True

    def _download(self, number: int, staging: Path) -> Path:
        from streaming.base.format import reader_from_json  # takes seconds to import

        shard = self._shards[number]
        stream = self._stream(shard)
        stream.local = str(staging)
        reader = reader_from_json(str(staging), None, _streaming_entry(shard))
        for attempt in range(1, self._attempts + 1):
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            try:
                stream.prepare_shard(reader)
                return staging / shard.raw.basename
            except Exception as error:  # each kind of remote raises its own
                if attempt == self._attempts or getattr(error, "errno", None) in _NO_SPACE:
                    raise self._explained(error, shard, staging) from error
                log.warning(
                    "source '%s': attempt %d to fetch %s from %s failed: %s",
                    *(self._source, attempt, shard.raw.basename, self._remote, error),
                )
                time.sleep(_FIRST_PAUSE_SECONDS * 2**attempt)
        raise AssertionError("unreachable")

    def _explained(self, error: Exception, shard: ShardEntry, staging: Path) -> ValueError:
        """Whose fault it is: the shard's if it is missing, or arrived and was not right."""
        if getattr(error, "errno", None) in _NO_SPACE:
            return CacheError(
                f"source '{self._source}': no space left for {self.folder}; free some, or set or "
                "lower cache_limit"
            )
        problem = f"cannot be fetched from {self._remote} ({error})"
        arrived = (staging / (shard.compressed or shard.raw).basename).exists()
        if arrived or isinstance(error, FileNotFoundError):
            return FetchFailed(problem)
        return CacheError(
            f"source '{self._source}': {shard.raw.basename} {problem}; nothing says that the shard "
            "is bad: check that the remote can be reached and read, and start again"
        )

    def _stream(self, shard: ShardEntry) -> Any:
        """Streaming's client for the remote: one per thread, since not all may be shared."""
        from streaming import Stream
        from streaming.base.hashing import is_hash

        key = os.getpid(), threading.get_ident()
        if key not in self._streams:
            self._streams[key] = Stream(
                remote=self._remote,
                local=str(self._locks.folder),
                download_retry=1,
                download_timeout=_DOWNLOAD_TIMEOUT_SECONDS,
                keep_zip=False,
            )
        stream = self._streams[key]
        hashes = (shard.compressed or shard.raw).hashes
        stream.validate_hash = next((name for name in hashes if is_hash(name)), None)
        return stream

    def _make_room(self, needed_bytes: int, lock: int, slot: str) -> bool:
        """Evict until what is here, on its way here, and needed now, is within the limit.

        Returns:
            False if it is not, although nothing more may be evicted.

        Args:
            needed_bytes: What this process is about to fetch.
            lock: Descriptor of its slot's lock, in which the amount is noted for the others.
            slot: That slot.
        """
        excess = 0
        with self._locks.holding("room"):
            kept = self._kept()
            if self._limit_bytes is not None:
                present = self._present()
                excess = sum(size for _, size, _ in present) + needed_bytes - self._limit_bytes
                excess += self._reserved_bytes(except_for=slot)
                for _, size, basename in sorted(present):
                    if excess <= 0:
                        break
                    if basename not in kept and _evict(self.folder / basename):
                        excess -= size
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(needed_bytes).encode(), 0)
        return excess <= 0

    def _reserved_bytes(self, *, except_for: str) -> int:
        """What the other slots are fetching; clears those that a killed process left behind."""
        total = 0
        for path in sorted(self._locks.folder.glob("slot-*.lock")):
            if path.stem == except_for:
                continue
            with self._locks.holding(path.stem, wait=False) as lock:
                if lock is None:  # held
                    total += int(path.read_text() or 0)
                else:
                    os.ftruncate(lock, 0)
                    shutil.rmtree(self._locks.folder / path.stem, ignore_errors=True)
        return total

    def _present(self) -> list[tuple[float, int, str]]:
        """(mtime, bytes, basename) of every shard of the index that is here."""
        found = []
        for shard in self._shards:
            with suppress(FileNotFoundError):
                status = os.stat(self.folder / shard.raw.basename)
                found.append((status.st_mtime, status.st_size, shard.raw.basename))
        return found

    def _kept(self) -> set[str]:
        """Shards that were here before any was fetched: perhaps the only copy, never removed."""
        record = self._locks.folder / "kept.json"
        if not record.exists():
            names = [basename for _, _, basename in self._present()]
            write_whole(record, json.dumps(names).encode())
        return set(json.loads(record.read_text()))

    def _warn_once(self) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "source '%s': %s exceeds its cache_limit, since all shards in it are being read, "
                "or were there before it became a cache; raise cache_limit",
                *(self._source, self.folder),
            )


def read_remote_file(remote: str, name: str, staging: Path, attempts: int) -> bytes:
    """The content of a small file of a remote folder, through Streaming.

    Raises:
        Whatever the last attempt to fetch it raised; FileNotFoundError if it does not exist.
    """
    from streaming.base.storage.download import CloudDownloader

    file = staging / name
    for attempt in range(1, attempts + 1):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            path = os.path.join(remote, name)
            CloudDownloader.direct_download(path, str(file), _DOWNLOAD_TIMEOUT_SECONDS)
            return file.read_bytes()
        except Exception:
            if attempt == attempts:
                raise
            time.sleep(_FIRST_PAUSE_SECONDS * 2**attempt)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    raise AssertionError("unreachable")


def _bytes_to_fetch(shard: ShardEntry) -> int:
    """Disk that fetching takes: while it is decompressed, a shard is there twice."""
    return shard.raw.bytes + (shard.compressed.bytes if shard.compressed else 0)


def _streaming_entry(shard: ShardEntry) -> dict[str, Any]:
    """The entry of the index as Streaming's reader wants it."""
    return {
        "version": 2,
        "format": "mds",
        "compression": shard.compression,
        "hashes": sorted(shard.raw.hashes),
        "size_limit": None,
        "samples": shard.samples,
        "column_names": list(shard.layout.names),
        "column_encodings": list(shard.layout.encodings),
        "column_sizes": list(shard.layout.sizes),
        "raw_data": vars(shard.raw),
        "zip_data": vars(shard.compressed) if shard.compressed else None,
    }


def _evict(path: Path) -> bool:
    """Remove a shard's file unless a process is reading it, which a shared flock on it tells."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    return True
