"""The process beside rank 0 that keeps a run's lease and brings its files to the object store.

A process, not threads: training forks loader workers, which must not happen beside threads, and
its steps are not to share an interpreter with hashing and TLS. It ends with rank 0, at once.

One checkpoint goes up at a time, from the local disk, the newest first; where retention would
delete one before its turn, it is left out. Memory is bounded by the parts in flight, whatever the
model's size. A store that fails is tried again for as long as training goes on.

Rank 0 writes JSON lines to the standard input: `begin`, then `saved`, `flush`, `close`. Answers
come as JSON lines on the standard output; what people must know goes to the standard error.
"""

import ctypes
import hashlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tessera.fetch import pointers, read_pointer
from tessera.object_store import Entry, S3Store, StoreError, StoreUnavailable
from tessera.training import run_folder
from tessera.training.remote.lease import LEASE, RENEWALS, Lease, LeaseLost

STOP_SECONDS = 5.0
"""How often the store is asked for an object named `stop`."""
RECORD_SECONDS = 60.0
"""How often small records go up between checkpoints."""
SMALL_BYTES = 16 * 2**20
"""Records up to this size go up between checkpoints; larger ones with checkpoints alone."""
LOCAL_COPIES = 2
"""Of the checkpoints that are up, a cache keeps so many."""
NICE = 10
"""Of one core that a step wants too, a tenth; at 19 uploads stand still on a busy machine."""
_WARN_SECONDS = 60.0
_FLUSH_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 15.0
_PR_SET_PDEATHSIG = 1


class Uploader:
    """What is to go up, and the threads that bring it there."""

    def __init__(self, order: dict[str, Any]) -> None:
        """Take over the lease.

        Args:
            order: `place`, `folder`, `lease`, `keep`, `cached`, as rank 0 wrote them.
        """
        self.store = S3Store(order["place"])
        self.folder = Path(order["folder"])
        self.keep, self.cached = order["keep"], order["cached"]
        self.lease = Lease.passed_on(S3Store(order["place"]), order["lease"])
        self._lease_lock = threading.RLock()
        self._heartbeat_store = S3Store(order["place"])  # a client is made by one thread
        self._changed = threading.Condition()
        self._waiting: set[int] = set()
        self._up: dict[str, tuple[int, int]] = {}
        """Of each record that is up: size and time of change."""
        self._pins: set[int] = set()
        self._closing = False
        self._busy = False
        self._failing_since: float | None = None
        self._flushing_since: float | None = None
        self._last_said = 0.0
        self.trouble = ""
        self.lost = ""

    # ---- what rank 0 asks for

    def saved(self, step: int) -> None:
        """A checkpoint is on the local disk."""
        with self._changed:
            self._waiting.add(step)
            self._changed.notify_all()

    def flush(self, patience_seconds: float) -> str | None:
        """Wait a moment until everything is up.

        Args:
            patience_seconds: for how long a store may fail before it is not waited for.

        Returns:
            '' if it is up; what is in the way, for good; None if it is worth asking again.
        """
        with self._changed:
            self._flushing_since = self._flushing_since or time.monotonic()
            end = time.monotonic() + _FLUSH_SECONDS
            while self._waiting or self._busy:
                now = time.monotonic()
                if self.lost:
                    return self.lost
                if self._failing_since is not None:
                    failing = now - max(self._flushing_since, self._failing_since)
                    if failing > patience_seconds:
                        return self.trouble
                if now > end:
                    return None
                self._changed.wait(0.1)
        return self.lost

    def close(self, patience_seconds: float) -> str:
        """Bring the records up a last time, and let go of the lease."""
        end = time.monotonic() + patience_seconds
        while not self.lost:
            try:
                with self._lease_lock:
                    self._bring_records(everything=True)
                    self.lease.release()
                return ""
            except (StoreError, LeaseLost) as error:
                self.trouble = str(error)
                if isinstance(error, LeaseLost) or time.monotonic() > end:
                    break
                self._complain(self.trouble)
                time.sleep(1.0)
        return self.lost or self.trouble

    # ---- the threads

    def keep_lease(self) -> None:
        """Renew the lease, look for a wish to stop, keep the cache's folder there; for ever."""
        period = self.lease.terms.seconds / RENEWALS
        renew_at = time.monotonic()
        while not self.lost:
            if time.monotonic() >= renew_at:
                renew_at = time.monotonic() + period
                self._try(self._renew, uploads=False)
            self._try(self._look_for_stop, uploads=False)
            if self.cached:
                (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            time.sleep(min(STOP_SECONDS, max(0.05, renew_at - time.monotonic())))

    def bring(self) -> None:
        """Bring up what is waiting, the newest first; for ever."""
        # Steps come first. On Linux this is the priority of this thread and of those that it
        # starts, which send the parts; the thread that keeps the lease is not to wait for anybody.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        pause, records_at = 0.5, time.monotonic() + RECORD_SECONDS
        while not self.lost:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting), timeout=1.0)
                step = max(self._waiting, default=None)
                self._busy = step is not None
            done = True
            if step is not None:
                done = self._try(partial(self._bring_checkpoint, step))
            elif time.monotonic() >= records_at and not self._closing:
                records_at = time.monotonic() + RECORD_SECONDS
                self._try(lambda: self._bring_records(everything=False))
            with self._changed:
                if done and step is not None:
                    self._waiting.discard(step)
                    if self.keep != "all":
                        self._waiting &= self._pins | {s for s in self._waiting if s > step}
                self._busy = False
                self._changed.notify_all()
            pause = 0.5 if done else min(2 * pause, _LONGEST_PAUSE_SECONDS)
            if not done:
                time.sleep(pause)

    def _try(self, work: Callable[[], None], *, uploads: bool = True) -> bool:
        """Do it, or say what the store has against it; `uploads`: whether `flush` waits for it."""
        try:
            work()
        except LeaseLost as error:
            self._lose(str(error))
            return False
        except StoreError as error:
            if uploads and self._failing_since is None:
                self._failing_since = time.monotonic()
            if uploads and not isinstance(error, StoreUnavailable):
                # Perhaps a person mends it: new credentials are found by a new client only.
                self.store = S3Store(self.store.place)
            self._complain(str(error))
            return False
        except OSError as error:
            self._complain(f"{error.filename or self.folder}: {error.strerror}")
            return False
        if uploads and self._failing_since is not None:
            seconds, self._failing_since = time.monotonic() - self._failing_since, None
            if self._last_said:
                _say(f"{self.store.place} takes uploads again, after {seconds:.0f} s")
            self._last_said = 0.0
        return True

    def _complain(self, text: str) -> None:
        self.trouble = text
        if time.monotonic() - self._last_said < _WARN_SECONDS and self._last_said:
            return
        self._last_said = time.monotonic()
        waiting = ", ".join(f"step {step}" for step in sorted(self._waiting)) or "records"
        _say(
            f"warning: NOT UPLOADED ({text}); {waiting} in {self.folder} and nowhere else. "
            "Training goes on, and this is tried again"
        )

    def _lose(self, text: str) -> None:
        with self._changed:
            self.lost = f"{text}; nothing has been written there since"
            self._changed.notify_all()
        _say(f"warning: THE LEASE IS LOST: {text}; stopping after this step")
        _answer(lost=self.lost)
        self._wish_to_stop()

    # ---- the lease

    def _renew(self) -> None:
        with self._lease_lock:
            self.lease.renew()

    def _check_lease(self) -> None:
        """Raise unless this run surely holds the lease."""
        if self.lost:
            raise LeaseLost(self.lost)
        if not self.lease.is_fresh:
            self._renew()

    def _look_for_stop(self) -> None:
        if self._heartbeat_store.read(run_folder.STOP_FILE) is not None:
            self._heartbeat_store.delete([run_folder.STOP_FILE])
            self._wish_to_stop()

    def _wish_to_stop(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / run_folder.STOP_FILE).touch()

    # ---- what goes up

    def _bring_checkpoint(self, step: int) -> None:
        """Object first, records second, pointer last; then what retention leaves out goes."""
        path = run_folder.checkpoint_path(self.folder, step)
        self._pins |= run_folder.pinned(self.folder)
        try:
            file = path.open("rb")  # retention may delete the name from now on
        except FileNotFoundError:
            return
        with file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            name = f"checkpoints/{path.name}"
            pointer = f"{name.removesuffix('.pt')}.json"
            said = {"bytes": size, "sha256": digest}
            self._check_lease()
            before = read_pointer(self.store, pointer)
            if before != said:
                if before is not None:
                    self.store.delete([pointer])
                self.store.upload(name, file)
            self._bring_records(everything=True)
            self._check_lease()
            self.store.write(pointer, json.dumps({"file": path.name, **said}).encode())
        _answer(up=step)
        self._prune()

    def _bring_records(self, *, everything: bool) -> None:
        """All other files of the folder that have changed since they went up last."""
        self._check_lease()
        for path in record_files(self.folder):
            name = str(path.relative_to(self.folder))
            try:
                status = path.stat()
                stamp = status.st_size, status.st_mtime_ns
                if self._up.get(name) == stamp or (not everything and stamp[0] > SMALL_BYTES):
                    continue
                content = path.read_bytes()
            except FileNotFoundError:
                continue
            if path.suffix == ".jsonl":
                content = content[: content.rfind(b"\n") + 1]  # the last line may be half written
            self.store.write(name, content)
            self._up[name] = stamp

    def _prune(self) -> None:
        """Keep in the store what `keep` says, and in a cache two of those that are up."""
        listed = self.store.list("checkpoints/")
        whole = {step: name for name in pointers(listed) if (step := _step(name)) is not None}
        if self.keep != "all":
            stay = {*sorted(whole)[-self.keep :], *self._pins}
            for step in [step for step in whole if step not in stay]:
                name = whole.pop(step)
                self.store.delete([pointers(listed)[name], name])
        self.store.delete(_cut_off(listed, self._waiting | set(whole)))
        if self.cached:
            for step, path in list(run_folder.checkpoints(self.folder).items())[:-LOCAL_COPIES]:
                if step in whole:
                    path.unlink(missing_ok=True)


def record_files(folder: Path) -> list[Path]:
    """The files of a run folder that are neither checkpoints nor of one process alone."""
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") for part in parts)
        checkpoint = parts[0] == "checkpoints" and path.suffix not in {".json", ".yaml"}
        foreign = parts[0] in {"wandb", run_folder.STOP_FILE, LEASE}
        if path.is_file() and not (hidden or checkpoint or foreign or path.is_symlink()):
            found.append(path)
    return found


def _cut_off(listed: dict[str, Entry], known: set[int]) -> list[str]:
    """Checkpoints without a pointer, which an earlier process did not finish."""
    whole = pointers(listed)
    names = [name for name in listed if name.endswith(".pt") and name not in whole]
    return [name for name in names if (step := _step(name)) is not None and step not in known]


def _step(name: str) -> int | None:
    digits = Path(name).stem.removeprefix("step")
    return int(digits) if digits.isdigit() else None


def _answer(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def _say(text: str) -> None:
    print(f"tessera: {text}", file=sys.stderr, flush=True)


def _or_end(work: Callable[[], None]) -> None:
    """Run a thread's work; a defect in it ends the process, which rank 0 notices."""
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def main() -> None:
    """Serve rank 0 until it closes, or is gone."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # rank 0 decides: it may have something to save
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    uploader: Uploader | None = None
    for line in sys.stdin:
        order = json.loads(line)
        if uploader is None:
            uploader = Uploader(order)
            for work in (uploader.keep_lease, uploader.bring):
                threading.Thread(target=_or_end, args=(work,), daemon=True).start()
        elif order["do"] == "saved":
            uploader.saved(order["step"])
        elif order["do"] == "flush":
            _answer(flushed=uploader.flush(order["patience_seconds"]))
        elif order["do"] == "close":
            _answer(closed=uploader.close(order["patience_seconds"]))
            break
    os._exit(0)  # rank 0 is gone, or has what it wanted


if __name__ == "__main__":
    main()
