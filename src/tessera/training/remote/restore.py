"""Brings a run folder's checkpoints and records from its object store to the local disk.

Which side is right where they differ: the local one, if no other run has held the lease since it
was last in step (it may hold what could not be uploaded any more); else the store. What the store
overrules is set aside under another name, not deleted.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from tessera.fetch import bring, pointers, read_pointer
from tessera.files import as_json, write_whole
from tessera.object_store import Entry, S3Store, StoreError, StoreUnavailable, sha256_of
from tessera.training import run_folder
from tessera.training.remote.lease import LEASE

MARKER = ".remote.json"
"""In the local folder: which store, and which generation of its lease, it was last in step with."""
PATIENCE_SECONDS = 120.0
"""How long the start of a run waits for a store that does not answer."""
_SUPERSEDED = ".superseded"
_NOT_RECORDS = (LEASE, run_folder.STOP_FILE)

Value = TypeVar("Value")


def restore(
    store: S3Store,
    folder: Path,
    *,
    generation: int,
    before: int,
    cached: bool,
    say: Callable[[str], None],
) -> None:
    """Make the local folder one that a run can go on from, as if it had always been here.

    Args:
        store: of the run folder, whose lease this run holds.
        folder: on this machine; need not exist.
        generation: of this run's lease.
        before: the generation before it.
        cached: whether the folder is only a cache of the store.
        say: told what people should know.

    Raises:
        ValueError: both sides hold checkpoints, and nothing says which continues the other; or
            there are checkpoints in the store, and none of them is whole.
        StoreError: the store cannot be read.
    """
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    listed = patiently(store.list, say)
    whole = pointers(listed)
    marker = _marker(folder)
    known = marker.get("place") == store.place
    in_step = known and marker.get("generation") == before
    local = run_folder.checkpoints(folder)
    if whole and local and not known and not cached:
        raise ValueError(
            f"{folder} and {store.place} both hold checkpoints, and nothing says which of them "
            "continues the other; move one of them away, or name another checkpoints.remote"
        )
    if not in_step and (whole or cached):  # a store that was emptied begins anew
        _set_aside(store, whole, local)
    if whole:
        # Of a cache that is in step, a file may have been cleared away all the same.
        _bring_records(store, folder, listed, missing_only=in_step, say=say)
        _bring_newest(store, folder, whole, in_step=in_step, say=say)
    marker = {"place": store.place, "generation": generation}
    write_whole(folder / MARKER, as_json(marker).encode())


def bring_checkpoint(store: S3Store, name: str, folder: Path, say: Callable[[str], None]) -> None:
    """One checkpoint, as other nodes need it: unless it is here already, byte for byte."""
    path, pointer = folder / name, f"{name.removesuffix('.pt')}.json"
    said = patiently(lambda: read_pointer(store, pointer), say)
    if said is None or not _is(path, said):
        patiently(lambda: bring(store, name, pointer, path), say)


def patiently(
    work: Callable[[], Value], say: Callable[[str], None], seconds: float | None = None
) -> Value:
    """Do it, again and again for a while if the store does not answer.

    Raises:
        StoreUnavailable: it did not answer in all that time.
    """
    end = time.monotonic() + (PATIENCE_SECONDS if seconds is None else seconds)
    pause, said = 1.0, False
    while True:
        try:
            return work()
        except StoreUnavailable as error:
            if time.monotonic() + pause > end:
                raise
            if not said:
                say(f"{error}; trying again")
            said = True
            time.sleep(pause)
            pause = min(2 * pause, 10.0)


def _bring_newest(
    store: S3Store,
    folder: Path,
    whole: dict[str, str],
    *,
    in_step: bool,
    say: Callable[[str], None],
) -> None:
    """The newest whole checkpoint, if the local ones are not newer and known to be right."""
    newest_here = max(run_folder.checkpoints(folder), default=-1)
    for name, pointer in reversed(whole.items()):
        path = folder / name
        if in_step and newest_here >= int(path.stem.removeprefix("step")):
            return
        try:
            said = patiently(partial(read_pointer, store, pointer), say)
            if said is None or not _is(path, said):
                say(f"fetching {store.place}/{name}")
                patiently(partial(bring, store, name, pointer, path), say)
            return
        except StoreUnavailable:
            raise
        except StoreError as error:
            say(f"{error}; going back to the one before it")
    raise ValueError(
        f"{store.place}/checkpoints: none of its {len(whole)} checkpoints can be read. To begin "
        "this phase again from its start, name another run folder"
    )


def _bring_records(
    store: S3Store,
    folder: Path,
    listed: dict[str, Entry],
    *,
    missing_only: bool,
    say: Callable[[str], None],
) -> None:
    """All files but checkpoints and their pointers."""
    for name in listed:
        checkpoint = Path(name).stem.startswith("step") and name.startswith("checkpoints/")
        if missing_only and (folder / name).exists():
            continue
        if not checkpoint and name not in _NOT_RECORDS and not Path(name).name.startswith("."):
            patiently(partial(store.download, name, folder / name), say)


def _set_aside(store: S3Store, whole: dict[str, str], local: dict[int, Path]) -> None:
    """Rename local checkpoints that the store does not hold, byte for byte."""
    for path in local.values():
        pointer = whole.get(f"checkpoints/{path.name}")
        said = read_pointer(store, pointer) if pointer is not None else None
        if said is None or not _is(path, said):
            path.rename(path.with_name(path.name + _SUPERSEDED))


def _is(path: Path, said: dict[str, object]) -> bool:
    return (
        path.is_file()
        and path.stat().st_size == said["bytes"]
        and sha256_of(path) == said["sha256"]
    )


def _marker(folder: Path) -> dict[str, object]:
    try:
        return dict(json.loads((folder / MARKER).read_text()))
    except (OSError, ValueError, TypeError):
        return {}
