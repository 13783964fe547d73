"""Named locks of a folder, shared by the processes of a machine; kill -9 leaves none behind."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tessera.data.sources.mds_shard import STATE

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class CacheError(ValueError):
    """The cache itself cannot be used: no permission, no locks, no space. No shard is to blame."""


class FolderLocks:
    """Named flocks in the `STATE` folder of a cache."""

    def __init__(self, cache: Path, source: str) -> None:
        self.folder = cache / STATE
        self._source = source

    @contextmanager
    def holding(self, name: str, *, wait: bool = True) -> Iterator[int | None]:
        """Hold a lock; yields its descriptor, or None if another has it and `wait` is False.

        Raises:
            CacheError: the folder cannot be written to, or its file system has no locks.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise CacheError(
                f"source '{self._source}': cannot write to the cache {self.folder.parent} "
                f"({error.strerror}); set `local` to a folder of your own"
            ) from error
        try:
            if not self._lock(lock, wait):
                yield None
                return
            try:
                yield lock
            finally:  # not left to close(): a forked child would keep the lock alive
                fcntl.flock(lock, fcntl.LOCK_UN)
        finally:
            os.close(lock)

    def _lock(self, lock: int, wait: bool) -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _NO_LOCKS:
                raise CacheError(
                    f"source '{self._source}': the file system of {self.folder.parent} has no "
                    "flock, by which processes share a cache; set `local` to a local disk"
                ) from error
            raise
        return True
