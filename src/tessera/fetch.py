"""Copies of remote checkpoints, models, tokenizers and run folders, for whoever reads them.

A copy lies in the cache folder under the remote's own names, is fetched again when the remote has
another version, and may be deleted at any moment when nobody reads it. Files are compared with the
checksums that a run wrote beside them; nothing that is fetched is executed. Imports no torch.

In a run folder, `checkpoints/step00000010.json` is the pointer of `step00000010.pt`: it was written
after it, and holds its size and SHA-256. A checkpoint without a pointer, beside others that have
one, was cut off, and is not there.
"""

import fcntl
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from tessera.files import as_json, write_whole
from tessera.object_store import (
    Entry,
    ReadOnlyStore,
    S3Store,
    StoreError,
    open_store,
    sha256_of,
)
from tessera.paths import SOURCE, cached, is_remote

Wanted = Literal["newest", "records", "all"]
"""Of a run folder: its newest checkpoint; all but the checkpoints; everything."""

_VERSIONS = ".versions.json"
_CHECKPOINT = re.compile(r"(?:.*/)?step\d+\.pt")


def local(place: str | Path, wanted: Wanted = "newest") -> Path:
    """The file or folder of this machine that a path means; a remote one is fetched.

    Args:
        place: a local path, which is only expanded, or a remote file or folder.
        wanted: what is needed of a folder, if it is a run's.

    Raises:
        ValueError: it means nothing, or there is nothing, or it arrives and is not right.
    """
    text = SOURCE.parse(str(place))
    return _fetch(text, wanted) if is_remote(text) else Path(text)


def pointers(listed: dict[str, Entry], under: str = "checkpoints/") -> dict[str, str]:
    """The whole checkpoints of a listing, oldest first: the name of each, and of its pointer."""
    names = sorted(name for name in listed if _CHECKPOINT.fullmatch(name))
    found = {name: f"{name.removesuffix('.pt')}.json" for name in names if name.startswith(under)}
    return {name: pointer for name, pointer in found.items() if pointer in listed}


def read_pointer(store: S3Store | ReadOnlyStore, name: str) -> dict[str, Any] | None:
    """What a pointer says: `bytes` and `sha256`; None if it is gone.

    Raises:
        StoreError: it is not a pointer.
    """
    found = store.read(name)
    if found is None:
        return None
    try:
        pointer = json.loads(found.content)
        return {"bytes": int(pointer["bytes"]), "sha256": str(pointer["sha256"])}
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{store.place}/{name}: is not a checkpoint's pointer ({error})"
        ) from error


def bring(store: S3Store | ReadOnlyStore, name: str, pointer: str | None, path: Path) -> None:
    """Bring a checkpoint, and compare it with its pointer if it has one.

    Raises:
        StoreError: it is gone, or is not what the pointer says; nothing stays at `path`.
    """
    said = read_pointer(store, pointer) if pointer is not None else None
    store.download(name, path)
    if said is None:
        return
    size = path.stat().st_size
    if size != said["bytes"] or sha256_of(path) != said["sha256"]:
        path.unlink()
        raise StoreError(
            f"{store.place}/{name}: is damaged: {size} bytes with another checksum than its "
            f"pointer says ({said['bytes']} bytes)"
        )


def _fetch(place: str, wanted: Wanted) -> Path:
    store = open_store(place)
    listed = store.list()
    if not listed:
        return _fetch_file(place)
    folder = cached("fetched", place)
    with _holding(folder):
        versions = _versions(folder)
        names = _needed(place, listed, wanted)
        for name, pointer in names.items():
            path = folder / name
            if versions.get(name) != listed[name].version or not path.is_file():
                bring(store, name, pointer, path)
                versions[name] = listed[name].version
                write_whole(folder / _VERSIONS, as_json(versions).encode())
        for path in folder.rglob("step*.pt"):  # what is gone there is not the newest here
            if str(path.relative_to(folder)) not in listed:
                path.unlink()
    return folder


def _needed(place: str, listed: dict[str, Entry], wanted: Wanted) -> dict[str, str | None]:
    """The files to fetch, and the pointer of each that has one."""
    found = pointers(listed, under="")
    checkpoints = found or {name: "" for name in sorted(listed) if _CHECKPOINT.fullmatch(name)}
    every = {name: checkpoints.get(name) or None for name in listed}
    records: dict[str, str | None] = {
        name: None for name in listed if not _CHECKPOINT.fullmatch(name)
    }
    if "config.json" in listed:  # a Hugging Face folder, or a release's revision
        return {name: None for name in records if not name.startswith("checkpoints/")}
    if not checkpoints:
        return every
    if wanted == "records":
        return records
    if wanted == "all":
        return records | {name: pointer or None for name, pointer in checkpoints.items()}
    newest = max(checkpoints, key=lambda name: PurePosixPath(name).name)
    return {newest: checkpoints[newest] or None}


def _fetch_file(place: str) -> Path:
    """A single file, compared with its pointer if it is a run's checkpoint."""
    parent, _, name = place.rpartition("/")
    if parent.endswith(":/"):
        raise StoreError(f"{place}: there is nothing in this bucket")
    store = open_store(parent)
    # A folder of thousands of files is not listed for one of them, only what begins like it.
    listed = store.list(name.removesuffix(".pt")) if isinstance(store, S3Store) else store.list()
    if name not in listed:
        raise StoreError(f"{place}: there is no such file or folder")
    pointer = pointers(listed, under="").get(name)
    folder = cached("fetched", place)
    with _holding(folder):
        path, versions = folder / name, _versions(folder)
        if versions.get(name) != listed[name].version or not path.is_file():
            bring(store, name, pointer, path)
            write_whole(folder / _VERSIONS, as_json({name: listed[name].version}).encode())
    return path


@contextmanager
def _holding(folder: Path) -> Iterator[None]:
    """One process of the machine at a time fills a folder; kill -9 lets go of it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _versions(folder: Path) -> dict[str, str]:
    try:
        return dict(json.loads((folder / _VERSIONS).read_text()))
    except (OSError, ValueError, TypeError):
        return {}
