"""A folder as the cache of a remote one, shared by every process of a machine.

The file system is the only shared state. A shard whose file exists is local. A flock marks one that
is being fetched, or open; the kernel drops it with its process, so kill -9 leaves nothing to clean.
A shard arrives in a staging folder and is renamed into place when its hash is right.
"""

import fcntl
import json
import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tessera.data.sources.download import Remote
from tessera.data.sources.locks import FolderLocks
from tessera.data.sources.mds_shard import ShardEntry
from tessera.files import write_whole

log = logging.getLogger(__name__)

_SLOTS = 32
_PREFETCH_THREADS = 2
_LOOK_AGAIN_SECONDS = 0.01


def refuse_links_out(source: str, folder: Path, below: str) -> None:
    """Refuse a folder of a cache which is, or is below, a link to elsewhere: files would go there.

    Raises:
        ValueError: naming the source, the link and where it leads.
    """
    place = Path(os.path.realpath(folder / below))
    if not place.is_relative_to(os.path.realpath(folder)):
        raise ValueError(
            f"source '{source}': {folder / below} is a link that leads out of the cache, to "
            f"{place}; remove it, or set `local` to a new folder"
        )


class ShardCache:
    """Fetches shards into `folder`, and evicts others before, to stay within a limit.

    What is promised: the shards in `folder` and those being fetched into it, of all processes, are
    together never larger than `limit_bytes`, as long as this holds what may not be evicted (shards
    that a process has open, and those that were here before any was fetched) and the shard that is
    to be opened. Where it does not, opening closes this process's own and waits for fetches of
    others to end; if that is not enough, it goes beyond the limit and says so once.
    """

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
            release: Called when only shards that are open could be evicted: closes those of this
                process.

        Raises:
            ValueError: the limit cannot hold enough shards to work with, or a link in the folder
                leads out of it.
        """
        self.folder = folder
        self._source, self._shards = source, shards
        self._limit_bytes, self._release = limit_bytes, release
        self._locks = FolderLocks(folder, source)
        self._remote = Remote(source, remote, folder, attempts=attempts)
        self._prefetcher: Prefetcher | None = None
        self._warned = False
        for parent in {os.path.dirname(shard.raw.basename) for shard in shards}:
            refuse_links_out(source, folder, parent)
        largest = max((_bytes_to_fetch(shard) for shard in shards), default=0)
        if limit_bytes is not None and limit_bytes < 4 * largest:
            raise ValueError(
                f"source '{source}': cache_limit {limit_bytes}b is too small: it must hold four of "
                f"the largest shards, {4 * largest}b; raise it, or write smaller shards"
            )

    def path(self, number: int) -> Path:
        """Where the file of a shard is, or will be."""
        return self.folder / self._shards[number].raw.basename

    def open(self, number: int) -> BinaryIO:
        """Open a shard's file, after fetching it if it is not here.

        Returns:
            The file, under a shared flock that keeps it from being evicted until it, and what was
            mapped from it, are closed.

        Raises:
            FetchFailed: it cannot be fetched, after retries.
            CacheError: the cache cannot be written to.
        """
        while (file := self._open_here(number)) is None:
            with self._locks.holding(_slot(number)) as lock:
                assert lock is not None
                if not self.path(number).exists():
                    with self._reserved(number, lock, patient=True):
                        return self._fetch(number)
        self.touch(number)
        return file

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

    def _open_here(self, number: int) -> BinaryIO | None:
        try:
            file = open(self.path(number), "rb")  # noqa: SIM115
        except FileNotFoundError:
            return None
        with suppress(OSError):  # where there are no locks, nothing is evicted either
            fcntl.flock(file, fcntl.LOCK_SH)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # evicted before it was locked
        return None

    def _try_prefetch(self, number: int) -> bool:
        """Fetch unless another process or thread is at it; False to try again later."""
        try:
            with self._locks.holding(_slot(number), wait=False) as lock:
                if lock is None:
                    return False
                if not self.path(number).exists():
                    with self._reserved(number, lock, patient=False) as reserved:
                        if reserved:
                            self._fetch(number).close()
        except Exception as error:  # whoever needs the shard will meet it too, and raise
            log.warning("source '%s': prefetch of shard %d: %s", self._source, number, error)
        return True

    def _fetch(self, number: int) -> BinaryIO:
        """Download a shard and put it into its place, locked before anyone could evict it."""
        staged = self._remote.fetch(self._shards[number], self._locks.folder / _slot(number))
        os.utime(staged)
        file = open(staged, "rb")  # noqa: SIM115
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH)
        self.path(number).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged, self.path(number))
        return file

    # How several processes share a limit without one that governs them: whoever fetches holds one
    # of 32 slot locks, and writes into that lock's file how many bytes are coming and under which
    # name. Under the lock "room", a process adds up what lies in the folder and what the notes of
    # the other slots announce, and evicts until its own shard fits too; only then does it write its
    # own note. A process that is killed drops its slot's lock, which the next one to look notices:
    # a note whose lock is free announces nothing, and what was staged for it is removed.
    @contextmanager
    def _reserved(self, number: int, lock: int, *, patient: bool) -> Iterator[bool]:
        """Hold room for a shard in its slot, whose lock the caller has; yields whether there is.

        With `patient`, waits until other fetches have finished and can be evicted; if that frees
        nothing, exceeds the limit.
        """
        try:
            made, others_fetch = self._make_room(number, lock)
            if patient and not made:
                self._release()
                while not made:
                    made, others_fetch = self._make_room(number, lock, beyond=not others_fetch)
                    if not made:
                        time.sleep(_LOOK_AGAIN_SECONDS)
            yield made
        finally:
            os.ftruncate(lock, 0)
            shutil.rmtree(self._locks.folder / _slot(number), ignore_errors=True)

    def _make_room(self, number: int, lock: int, *, beyond: bool = False) -> tuple[bool, bool]:
        """Evict until what is here, on its way here, and needed now, is within the limit.

        Args:
            number: The shard that is needed; noted in the lock of its slot, for the others, if
                there is room.
            lock: Descriptor of that lock.
            beyond: Whether to go beyond the limit where it cannot be kept.

        Returns:
            Whether there is room; whether others are fetching shards.
        """
        needed_bytes = _bytes_to_fetch(self._shards[number])
        excess = 0
        with self._locks.holding("room"):
            kept = self._kept()
            coming: dict[str, int] = {}
            if self._limit_bytes is not None:
                coming = self._coming(except_for=_slot(number))
                present = self._present()  # after `coming`: what arrives in between is in both
                taken = {basename: size for _, size, basename in present} | coming
                excess = sum(taken.values()) + needed_bytes - self._limit_bytes
                for _, size, basename in sorted(present):
                    if excess <= 0:
                        break
                    if basename not in kept and basename not in coming:
                        excess -= size if _evict(self.folder / basename) else 0
            if excess <= 0 or beyond:
                note = f"{needed_bytes} {self._shards[number].raw.basename}"
                os.pwrite(lock, note.encode(), 0)
        if excess > 0 and beyond:
            self._warn_once()
        return excess <= 0 or beyond, bool(coming)

    def _coming(self, *, except_for: str) -> dict[str, int]:
        """Bytes of the shards that others are fetching; clears what killed processes left."""
        found = {}
        for path in sorted(self._locks.folder.glob("slot-*.lock")):
            if path.stem == except_for:
                continue
            with self._locks.holding(path.stem, wait=False) as lock:
                if lock is not None:
                    os.ftruncate(lock, 0)
                    shutil.rmtree(self._locks.folder / path.stem, ignore_errors=True)
                elif note := path.read_text():
                    size, _, basename = note.partition(" ")
                    found[basename] = int(size)
        return found

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


def _bytes_to_fetch(shard: ShardEntry) -> int:
    """Disk that fetching takes: while it is decompressed, a shard is there twice."""
    return shard.raw.bytes + (shard.compressed.bytes if shard.compressed else 0)


def _slot(number: int) -> str:
    """Name of the lock under which a shard is fetched, and of its staging folder."""
    return f"slot-{number % _SLOTS:02}"


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


class Prefetcher:
    """Daemon threads of the process that makes it: never before a fork."""

    def __init__(self, try_prefetch: Callable[[int], bool]) -> None:
        """Start the threads; `try_prefetch` returns False for a shard to try again later."""
        self.pid = os.getpid()
        self._try_prefetch = try_prefetch
        self._wanted: deque[int] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        for _ in range(_PREFETCH_THREADS):
            threading.Thread(target=self._work, name="tessera-prefetch", daemon=True).start()

    def replace(self, numbers: Iterable[int]) -> None:
        """Work through these from now on."""
        with self._changed:
            self._wanted = deque(numbers)
            self._changed.notify_all()

    def stop(self) -> None:
        """End the threads, each after the shard it is at."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._wanted and not self._stopped:
                    self._changed.wait()
                if self._stopped:
                    return
                wanted = self._wanted
                number = wanted.popleft()
            if not self._try_prefetch(number):
                with self._changed:
                    wanted.append(number)  # to a list that may have been replaced meanwhile
                    self._changed.wait(0.05)
