"""What a remote folder holds, brought here by Streaming.

Its `Stream` downloads, decompresses and validates; its shared memory and its `__iter__` are not
used.
"""

import errno
import logging
import os
import shutil
import threading
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from tessera.data.sources.decompress import decompress_file
from tessera.data.sources.locks import CacheError
from tessera.data.sources.mds_shard import ShardEntry
from tessera.files import JsonObject
from tessera.retry import persistently

log = logging.getLogger(__name__)

_DOWNLOAD_TIMEOUT_SECONDS = 300.0
_FIRST_PAUSE_SECONDS = 1.0
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class FetchFailed(ValueError):
    """A shard cannot be fetched, after retries."""


class Remote:
    """The shards of a remote folder: any that Streaming reads, such as s3://, or a path."""

    def __init__(self, source: str, url: str, folder: Path, *, attempts: int) -> None:
        """Describe it; nothing is read yet.

        Args:
            source: Name for messages.
            url: Where the shards are.
            folder: The cache they are fetched for, for messages.
            attempts: How often a fetch is tried before it fails.
        """
        self._url = url
        self._source, self._folder, self._attempts = source, folder, attempts
        self._streams: dict[tuple[int, int], Any] = {}
        self._holds_raw = False
        """Whether a raw shard was found where the index names a compressed one."""

    def fetch(self, shard: ShardEntry, staging: Path) -> Path:
        """Bring a shard into an empty folder of its own, decompressed and compared with its hash.

        Returns:
            The file, in `staging`.

        Raises:
            FetchFailed: it is missing, or arrives and is not right, after retries.
            CacheError: the remote cannot be reached, or the disk is full.
        """

        def warn(attempt: int, seconds: float, error: Exception) -> None:
            log.warning(
                "source '%s': attempt %d to fetch %s from %s failed: %s",
                *(self._source, attempt, shard.raw.basename, self._url, error),
            )

        try:
            return persistently(
                lambda: self._fetch_either(shard, staging),
                attempts=self._attempts,
                first_pause_seconds=_FIRST_PAUSE_SECONDS,
                is_final=_is_full_disk,
                before_pause=warn,
            )
        except Exception as error:  # each kind of remote raises its own
            raise self._explained(error, shard, staging) from error

    def _fetch_either(self, shard: ShardEntry, staging: Path) -> Path:
        """Fetch a shard as the index names it or, where that is absent, raw.

        Public corpora hold raw shards under an index that names compressed ones.
        """
        if shard.compressed is None:
            return self._fetch_once(shard, staging)
        raw = replace(shard, compressed=None, compression=None)
        first, second = (raw, shard) if self._holds_raw else (shard, raw)
        try:
            return self._fetch_once(first, staging)
        except Exception as error:
            if not _may_be_absent(error):
                raise
            try:
                fetched = self._fetch_once(second, staging)
            except Exception as other:
                raise (error if _may_be_absent(other) else other) from other
        if second is raw and not self._holds_raw:
            self._holds_raw = True
            log.info(
                "source '%s': %s does not hold %s, which its index names; the raw shards are "
                "fetched instead",
                *(self._source, self._url, shard.compressed.basename),
            )
        return fetched

    def _fetch_once(self, shard: ShardEntry, staging: Path) -> Path:
        from streaming.base.format import reader_from_json  # takes seconds to import

        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        stream = self._stream(shard)
        stream.local = str(staging)
        stream.prepare_shard(reader_from_json(str(staging), None, _streaming_entry(shard)))
        return staging / shard.raw.basename

    def _explained(self, error: Exception, shard: ShardEntry, staging: Path) -> ValueError:
        """Whose fault it is: the shard's if it is missing, or arrived and was not right."""
        if _is_full_disk(error):
            return CacheError(
                f"source '{self._source}': no space left for {self._folder}; free some, or set or "
                "lower cache_limit"
            )
        problem = f"cannot be fetched from {self._url} ({error})"
        arrived = (staging / (shard.compressed or shard.raw).basename).exists()
        if arrived or isinstance(error, FileNotFoundError):
            return FetchFailed(problem)
        return CacheError(
            f"source '{self._source}': {shard.raw.basename} {problem}; nothing says that the shard "
            "is bad: check that the remote can be reached and read, and start again"
        )

    def _stream(self, shard: ShardEntry) -> Any:
        """Streaming's client for the remote: one per thread, since not all may be shared."""
        from streaming.base.hashing import is_hash

        key = os.getpid(), threading.get_ident()
        if key not in self._streams:
            self._streams[key] = _stream_class()(
                remote=self._url,
                local=str(self._folder),
                download_retry=1,
                download_timeout=_DOWNLOAD_TIMEOUT_SECONDS,
                keep_zip=False,
            )
        stream = self._streams[key]
        hashes = (shard.compressed or shard.raw).hashes
        stream.raw_bytes = shard.raw.bytes
        stream.validate_hash = next((name for name in hashes if is_hash(name)), None)
        return stream


@cache
def _stream_class() -> type:
    """Streaming's client, except that it decompresses no further than the index promises."""
    from streaming import Stream
    from streaming.base.hashing import get_hash

    class BoundedStream(Stream):
        raw_bytes = 0

        def _decompress_shard_part(
            self, zip_info: Any, zip_filename: str, raw_filename: str, compression: str | None
        ) -> None:
            assert compression is not None, "asked for compressed shards alone"
            name = self.validate_hash
            if name and get_hash(name, Path(zip_filename).read_bytes()) != zip_info.hashes[name]:
                raise ValueError(f"Checksum failure: {zip_filename}")
            size = os.path.getsize(zip_filename)
            if size != zip_info.bytes:  # all there is to compare where an index has no hashes
                raise ValueError(
                    f"{zip_info.basename} has {size} bytes, the index says {zip_info.bytes}"
                )
            decompress_file(
                Path(zip_filename), Path(raw_filename), compression, raw_bytes=self.raw_bytes
            )
            os.remove(zip_filename)

    return BoundedStream


def _may_be_absent(error: Exception) -> bool:
    """Whether a remote may have said that there is no such file.

    The Hub has a class of its own for it. S3 has a code, or says that access is denied where the
    bucket may not be listed.
    """
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return (
        isinstance(error, FileNotFoundError)
        or "NotFound" in type(error).__name__
        or code in ("404", "NoSuchKey", "403")
    )


def read_remote_file(remote: str, name: str, staging: Path, attempts: int) -> bytes:
    """The content of a small file of a remote folder, through Streaming.

    Raises:
        Whatever the last attempt to fetch it raised; FileNotFoundError if it does not exist.
    """
    from streaming.base.storage.download import CloudDownloader

    file = staging / name

    def fetch() -> bytes:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            path = os.path.join(remote, name)
            CloudDownloader.direct_download(path, str(file), _DOWNLOAD_TIMEOUT_SECONDS)
            return file.read_bytes()
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    return persistently(fetch, attempts=attempts, first_pause_seconds=_FIRST_PAUSE_SECONDS)


def _is_full_disk(error: Exception) -> bool:
    return getattr(error, "errno", None) in _NO_SPACE


def _streaming_entry(shard: ShardEntry) -> JsonObject:
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
