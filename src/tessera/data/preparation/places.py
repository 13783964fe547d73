"""What an address means: a local path, or an object of a store behind fsspec (s3://, gs://, hf://).

Everything preparation reads or writes passes through here, so that an error names the address and
what to do about it. S3 and Google's store are reached through pyarrow, which is always installed;
every other scheme through the file system that fsspec knows for it.
"""

import contextlib
import errno
import functools
import io
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from tessera.files import write_whole
from tessera.paths import ANYWHERE, is_remote
from tessera.retry import persistently

log = logging.getLogger(__name__)

_BUFFER_BYTES = 1 << 22
_ATTEMPTS = 5
_GLOB = re.compile(r"[*?\[]")
_GS_PATIENCE_SECONDS = 30
_BUCKETS = ("s3://", "s3a://", "gs://", "gcs://")
_STAMPS = ("mtime", "LastModified", "last_modified", "updated", "blob_id", "ETag", "etag")
_AT_ONCE = 16
Result = TypeVar("Result")
Item = TypeVar("Item")


class PlaceError(ValueError):
    """An address that cannot be read or written: names it, and what to do."""


class Absent(PlaceError):
    """An address where nothing is."""


class Interrupted(PlaceError):
    """A store that did not answer as it should: trying again later may help."""


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of an input."""

    address: str
    name: str
    """Relative to the root of its input, with '/' between folders."""
    bytes: int
    changed: int | str | None = None
    """When, or in what version, as far as its store says."""


def expanded(address: str) -> str:
    """What an address names, as every key and option of a path is read.

    Raises:
        PlaceError: a variable is not set, or the address holds credentials.
    """
    try:
        return ANYWHERE.parse(address)
    except ValueError as error:
        raise PlaceError(str(error)) from None


def root_of(address: str) -> str:
    """What names of files are relative to: a folder, that of a file, or what precedes a glob."""
    if is_glob(address):
        before = address[: cast(re.Match, _GLOB.search(address)).start()]
        return before.rpartition("/")[0] or ("" if not before.startswith("/") else "/")
    if is_remote(address):
        return address if not is_file(address) else address.rpartition("/")[0]
    path = Path(address)
    return str(path if path.is_dir() else path.parent)


def is_glob(address: str) -> bool:
    """Whether it stands for all files that match, such as `s3://bucket/x/*.parquet`."""
    return _GLOB.search(address) is not None and (is_remote(address) or not os.path.exists(address))


def is_file(address: str) -> bool:
    """Whether there is one object of just this address."""
    if not is_remote(address):
        return os.path.isfile(address)
    system, path = file_system(address)
    return bool(_trying(address, lambda: system.isfile(path)))


def at_once(action: Callable[[Item], Result], items: Sequence[Item], remote: bool) -> list[Result]:
    """What an action gives for each item; of a store, many at a time, since each takes a while."""
    if not remote or len(items) < 2:
        return [action(item) for item in items]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(action, items))


def remote_files(address: str) -> list[File]:
    """Every object below a remote folder, or that matches a remote glob, by name.

    Raises:
        PlaceError: there is none, or the store refuses.
    """
    system, path = file_system(address)
    find = system.glob if is_glob(address) else system.find

    def listing() -> dict[str, Any]:
        bucket = path.partition("/")[0]
        if address.startswith(_BUCKETS) and not system.exists(bucket):
            raise PlaceError(f"{address}: no such bucket; correct the name")
        if not is_glob(address):
            system.info(path)  # says which of permission and object is missing
        return dict(find(path, detail=True))

    found = _trying(address, listing)
    root = root_of(address)
    _, inner = file_system(root)
    scheme = address.partition("://")[0]
    files = []
    for key, info in sorted(found.items()):
        if info.get("type") == "file":
            stamp = next((info[field] for field in _STAMPS if info.get(field)), None)
            name = key.removeprefix(inner.rstrip("/")).lstrip("/")
            size = int(info.get("size") or 0)
            stamp = None if stamp is None else str(stamp)
            files.append(File(address=f"{scheme}://{key}", name=name, bytes=size, changed=stamp))
    if not files:
        raise Absent(f"{address}: nothing is there; correct the address")
    return files


def open_file(address: str, buffer_bytes: int = _BUFFER_BYTES) -> BinaryIO:
    """A file to read from; errors of a store come out of it as PlaceError."""
    if not is_remote(address):
        return open(address, "rb")
    system, path = file_system(address)
    file = _trying(address, lambda: system.open(path, "rb"))
    return io.BufferedReader(_Raw(file, address), buffer_bytes)


def read_bytes(address: str) -> bytes | None:
    """The content of a small file; None if there is no such file."""
    if not is_remote(address):
        return Path(address).read_bytes() if Path(address).is_file() else None
    system, path = file_system(address)

    def read() -> bytes | None:
        return system.cat_file(path) if system.exists(path) else None

    return _trying(address, read)


def write(address: str, content: bytes) -> None:
    """Write a small file, whole or not at all; the folder of a local one is made."""
    if is_remote(address):
        write_remote(address, content)
    else:
        Path(address).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(address), content)


def put(address: str, local: Path) -> None:
    """Move a finished local file to where it belongs: renamed on its disk, or into a store."""
    if is_remote(address):
        write_remote(address, local)
        local.unlink()
        return
    Path(address).parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(local, address)
    except OSError as error:
        if error.errno != errno.EXDEV:  # the folder of a job's work may be another disk
            raise
        with open(local, "rb") as source:
            write_whole(Path(address), lambda target: shutil.copyfileobj(source, target))
        local.unlink()


def write_remote(address: str, content: bytes | Path) -> None:
    """Put an object into a store: bytes, or what a local file holds."""
    system, path = file_system(address)

    def write() -> None:
        with system.open(path, "wb") as target:
            if isinstance(content, bytes):
                target.write(content)
            else:
                with open(content, "rb") as source:
                    shutil.copyfileobj(source, target, _BUFFER_BYTES)

    _trying(address, write)


def names_below(address: str) -> list[str]:
    """The names of the objects below a remote folder; none if it does not exist."""
    try:
        return [file.name for file in remote_files(address)]
    except Absent:
        return []


def exists(address: str) -> bool:
    """Whether there is an object of this address."""
    system, path = file_system(address)
    return bool(_trying(address, lambda: system.exists(path)))


def remove(address: str, *, recursive: bool = False) -> None:
    """Delete a file, or with `recursive` all below a folder; an absent one is no mistake."""
    if is_remote(address):
        system, path = file_system(address)
        with contextlib.suppress(Absent):
            _trying(address, lambda: system.rm(path, recursive=recursive))
    elif recursive and os.path.isdir(address):
        shutil.rmtree(address)
    else:
        Path(address).unlink(missing_ok=True)


def file_system(address: str) -> tuple[Any, str]:
    """The fsspec file system of a remote address, and the path in it."""
    scheme, _, path = address.partition("://")
    try:
        system = _file_system(scheme, os.getpid())
    except (ImportError, ValueError) as error:
        raise PlaceError(f"{address}: no reader for {scheme}:// is installed ({error})") from error
    return system, path


@functools.cache
def _file_system(scheme: str, pid: int) -> Any:
    import fsspec

    if scheme in ("s3", "s3a"):
        from fsspec.implementations.arrow import ArrowFSWrapper
        from pyarrow import fs

        names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "S3_ENDPOINT_URL")
        endpoint = next((os.environ[name] for name in names if os.environ.get(name)), None)
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        store = fs.S3FileSystem(
            endpoint_override=endpoint,
            region=region or ("us-east-1" if endpoint else None),
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3),
            request_timeout=60,
            connect_timeout=10,
            allow_delayed_open=True,  # small objects in one request instead of three
        )
        return ArrowFSWrapper(store, skip_instance_cache=True)
    if scheme in ("gs", "gcs"):
        from fsspec.implementations.arrow import ArrowFSWrapper
        from pyarrow import fs

        # Without it, a store that does not answer is asked for a quarter of an hour.
        patience = timedelta(seconds=_GS_PATIENCE_SECONDS)
        store = fs.GcsFileSystem(retry_time_limit=patience)
        return ArrowFSWrapper(store, skip_instance_cache=True)
    return fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False)


class _Raw(io.RawIOBase):
    """A store's file as Python's buffered reader wants it."""

    def __init__(self, file: Any, address: str) -> None:
        self._file, self._address = file, address

    def readinto(self, buffer: Any) -> int:
        with explained(self._address):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        with explained(self._address):
            self._file.seek(offset, whence)
            return int(self._file.tell())

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            with contextlib.suppress(Exception):
                self._file.close()
        super().close()


@contextlib.contextmanager
def explained(address: str) -> Iterator[None]:
    """Turn what a store's library raises into one message.

    Raises:
        PlaceError: it will not get better by itself: no such bucket or object, no permission.
        Interrupted: it may.
    """
    try:
        yield
    except PlaceError:
        raise
    except Exception as error:  # each library has its own kinds
        text = " ".join(str(error).split())
        if re.search(r"NO_SUCH_BUCKET|NoSuchBucket|[Bb]ucket.*(not exist|not found)", text):
            raise PlaceError(f"{address}: no such bucket; correct the name") from error
        if isinstance(error, PermissionError) or re.search(
            r"ACCESS_DENIED|AccessDenied|Forbidden|403|401|Unauthorized|InvalidAccessKeyId|"
            r"INVALID_ACCESS_KEY_ID|SignatureDoesNotMatch|gated",
            text,
        ):
            raise PlaceError(
                f"{address}: no permission; check the credentials of this machine (AWS_PROFILE or "
                "AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, HF_TOKEN) and what they may do"
            ) from error
        if isinstance(error, FileNotFoundError) or re.search(r"NotFound|Path does not exist", text):
            raise Absent(f"{address}: does not exist; correct the address") from error
        raise Interrupted(
            f"{address}: cannot be reached ({type(error).__name__}: {text[:300]}); the same "
            "command goes on from here once it can"
        ) from error


def patiently(action: Callable[[], Result]) -> Result:
    """Do it, and again with growing pauses while a store interrupts."""
    return persistently(
        action,
        attempts=_ATTEMPTS,
        first_pause_seconds=0.5,
        is_final=lambda error: not isinstance(error, Interrupted),
        before_pause=lambda attempt, seconds, error: log.warning("%s; trying again", error),
    )


def _trying(address: str, action: Callable[[], Result]) -> Result:
    def explain() -> Result:
        with explained(address):
            return action()

    return patiently(explain)
