"""A run folder in an object store, as training sees it: taken, restored, handed what was saved."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tessera
from tessera.fetch import pointers
from tessera.object_store import S3Store, StoreError, StoreUnavailable
from tessera.training import run_folder
from tessera.training.config import RunConfig
from tessera.training.console import warn
from tessera.training.remote.lease import acquire
from tessera.training.remote.restore import patiently, restore
from tessera.training.shutdown import TrainingStopped

_FAILED_PATIENCE_SECONDS = 20.0
"""How long a run that ends by an error waits for uploads: the launcher soon ends it."""


class RemoteRun:
    """The store that a run holds, through the process that uploads to it. On rank 0 alone."""

    def __init__(self, config: RunConfig, process: subprocess.Popen[str]) -> None:
        self._config, self._process = config, process
        self._problem = self._lost = ""
        self._closed = False

    def saved(self, step: int) -> None:
        """A checkpoint is on the local disk: it goes up while training goes on."""
        self._order(do="saved", step=step)

    def settled(self) -> str | None:
        """Wait a moment until every checkpoint is up.

        Returns:
            '' if they are; what to tell people if the last one will not be; None to ask again.
        """
        problem = self._problem or self._flush(self._config.checkpoints.upload_minutes * 60)
        if self._lost:
            return f"{self._lost}. What came after is in {self._config.folder} alone"
        if not problem:
            return problem
        self._problem = problem
        newest = max(run_folder.checkpoints(self._config.folder).values(), default="nothing")
        return (
            f"THE LAST CHECKPOINT IS NOT UPLOADED: {problem}. It is in {newest} alone; start "
            "again on this machine once the store takes it, or save that file"
        )

    def close(self) -> None:
        """Bring the records up, give the lease back, and let the process end."""
        if self._closed:
            return
        self._closed = True
        end = time.monotonic() + _FAILED_PATIENCE_SECONDS
        while not self._problem and time.monotonic() < end:
            if self._flush(_FAILED_PATIENCE_SECONDS) is not None:
                break
        self._order(do="close", patience_seconds=_FAILED_PATIENCE_SECONDS)
        if (problem := self._answer("closed")) and not self._problem:
            warn(f"{self._config.remote}: the last records are not there ({problem})")
        assert self._process.stdin is not None and self._process.stdout is not None
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                pipe.close()
            except OSError:
                continue  # it ended before it had read what was written
        self._process.wait()

    def _flush(self, patience_seconds: float) -> str | None:
        self._order(do="flush", patience_seconds=patience_seconds)
        return self._answer("flushed")

    def _order(self, **fields: Any) -> None:
        while self._readable():  # before the order: what comes after it may be its answer
            self._note(self._read())
        try:
            _write(self._process, fields)
        except (OSError, ValueError):
            self._note(None)

    def _answer(self, name: str) -> str | None:
        """Wait for an answer, noting others on the way."""
        while True:
            found = self._read()
            if found is None:
                self._note(None)
                return self._problem
            if name in found:
                return found[name]
            self._note(found)

    def _note(self, found: dict[str, Any] | None) -> None:
        if found is None and not self._problem:
            self._problem = "the uploading process is gone"
            if not self._closed:
                warn(f"NOTHING IS UPLOADED ANY MORE: {self._problem}; stopping after this step")
                (self._config.folder / run_folder.STOP_FILE).touch()
        elif found is not None and "lost" in found:
            self._problem = self._lost = str(found["lost"])

    def _readable(self) -> bool:
        assert self._process.stdout is not None
        return not self._problem and bool(select.select([self._process.stdout], [], [], 0)[0])

    def _read(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else None


def open_remote(config: RunConfig, say: Callable[[str], None]) -> RemoteRun | None:
    """Take the lease of the store that a run lives in, and restore its folder from there.

    Returns:
        What training hands its checkpoints to; None for a run that is all local.

    Raises:
        LeaseHeld: another run is training there.
        ValueError: it cannot be restored, or written to.
        TrainingStopped: the store does not answer.
    """
    if config.remote is None:
        return None
    store = S3Store(config.remote)
    try:
        lease, before = patiently(
            lambda: acquire(store, config.checkpoints.lease_seconds, say), say
        )
        order = {
            "place": store.place,
            "folder": str(config.folder.absolute()),
            "lease": lease.pass_on(),
            "keep": config.checkpoints.keep,
            "cached": config.is_cached,
        }
        remote = RemoteRun(config, _start_uploader(order))
        try:
            restore(
                store,
                config.folder,
                generation=lease.terms.generation,
                before=before,
                cached=config.is_cached,
                say=say,
            )
            for step in _not_up(store, config):
                remote.saved(step)
        except BaseException:
            remote.close()
            raise
        return remote
    except StoreUnavailable as error:
        raise TrainingStopped(f"{error}; nothing was changed: start again later") from error


def problems(config: RunConfig) -> list[str]:
    """What keeps a run's object store from being read, by key; empty if nothing does."""
    if config.remote is None:
        return []
    try:
        S3Store(config.remote).list("checkpoints/")
    except StoreUnavailable:
        return []  # it may pass; whoever starts the run waits for it
    except StoreError as error:
        return [f"{'run_folder' if config.is_cached else 'checkpoints.remote'}: {error}"]
    return []


def has_begun(config: RunConfig) -> bool:
    """Whether there is a checkpoint of the phase, here or in its store."""
    if run_folder.checkpoints(config.folder) and not config.is_cached:
        return True
    if config.remote is None:
        return False
    try:
        return bool(pointers(S3Store(config.remote).list("checkpoints/")))
    except StoreError:
        return False


def is_complete(config: RunConfig, resolved: str) -> bool:
    """Whether the phase of this very configuration, as YAML, has ended and is all there."""
    if config.remote is None:
        return run_folder.is_complete(config.folder, resolved)
    store = S3Store(config.remote)
    try:
        marked = store.read("checkpoints/complete.yaml")
        return (
            marked is not None
            and marked.content == resolved.encode()
            and bool(pointers(store.list("checkpoints/")))
        )
    except StoreError:
        return False  # whoever goes on says what is wrong


def _not_up(store: S3Store, config: RunConfig) -> list[int]:
    """Local checkpoints that are to be in the store, and are not."""
    up = pointers(store.list("checkpoints/"))
    local = run_folder.checkpoints(config.folder)
    missing = [step for step, path in local.items() if f"checkpoints/{path.name}" not in up]
    whole = [step for step in missing if run_folder.is_whole(local[step])]
    if config.checkpoints.keep == "all":
        return whole
    newest = sorted(local)[-config.checkpoints.keep :]
    return [step for step in whole if step in run_folder.pinned(config.folder) | set(newest)]


def _start_uploader(order: dict[str, Any]) -> subprocess.Popen[str]:
    source = str(Path(tessera.__file__).parent.parent)  # as this process found it
    path = os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "tessera.training.remote.uploader"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    _write(process, order)
    return process


def _write(process: subprocess.Popen[str], fields: dict[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(fields) + "\n")
    process.stdin.flush()
