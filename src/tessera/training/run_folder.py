"""A run folder on disk: its lock, its checkpoints, what is kept of them.

- `config.yaml`: the configuration, resolved
- `metrics.jsonl`: one object per step, and one per evaluation
- `machine.json`: devices, versions, and the rate that FLOP utilisation is measured against
- `checkpoints/step00001234.pt`: the state of training after that step
- `checkpoints/latest`: a link to the newest
- `checkpoints/complete.yaml`: the configuration of which the phase is complete
- `checkpoints/pinned.json`: steps that `keep` never deletes
- `checkpoints/*.damaged`: what could not be read again
- `stop`: made by whoever wants the run to save and end after its step
- `ended.json`: how the newest start of the run ended, and after which step; absent while it runs
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import time
import zipfile
from pathlib import Path

from tessera.files import UNFINISHED, as_json, sync_folder, write_whole

STOP_FILE = "stop"
STOPPING = b"stopping"
PATIENCE_SECONDS = 5.0
"""How long to wait for a lock: a killed run's is free at once."""
STOPPING_SECONDS = 600.0
"""How long to wait for a run that has said it is stopping: it may be saving a large model."""
_NAME = re.compile(r"step(\d+)\.pt")


class Lock:
    """The right to write to a run folder, which the kernel takes back when the process ends."""

    def __init__(self, file: int) -> None:
        self._file = file

    def say_stopping(self) -> None:
        """Tell whoever waits for the lock that it will soon be free; fit for a signal handler."""
        os.pwrite(self._file, STOPPING, 0)

    def release(self) -> None:
        """Let another process write."""
        os.close(self._file)


def lock(folder: Path) -> Lock:
    """Take the lock of a run folder, waiting a moment for a run that is just ending.

    Raises:
        ValueError: another process is training in this folder.
    """
    file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    begin = time.monotonic()
    while True:
        try:
            # A POSIX lock belongs to the process: unlike a flock it is not inherited by a fork,
            # which could hold it after this process has gone.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                _warn_unlocked(folder, error)
                break
        ending = os.pread(file, len(STOPPING), 0) == STOPPING
        if time.monotonic() - begin > (STOPPING_SECONDS if ending else PATIENCE_SECONDS):
            os.close(file)
            raise ValueError(
                f"{folder} is in use: another run is training there. Two would write over each "
                "other; wait for it, stop it, or give this one a run_folder of its own"
            )
        time.sleep(0.2)
    os.ftruncate(file, 0)
    return Lock(file)


def is_held(folder: Path) -> bool:
    """Whether a process trains in a run folder, here or on another machine that shares it."""
    try:
        file = os.open(folder / ".lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go of again at once
        return False
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return True
        return not (folder / "ended.json").exists()  # a file system that keeps no locks
    finally:
        os.close(file)


def _warn_unlocked(folder: Path, error: OSError) -> None:
    print(f"tessera: {folder}: this file system keeps no locks ({error}); start no second run here")


def checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints of a run folder by step, oldest first."""
    found = {}
    for path in (folder / "checkpoints").glob("step*.pt"):
        match = _NAME.fullmatch(path.name)
        if match:
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after this step is kept."""
    return folder / "checkpoints" / f"step{step:08d}.pt"


def is_whole(path: Path) -> bool:
    """Whether a checkpoint was written to its end: its zip directory, written last, is there."""
    try:
        with zipfile.ZipFile(path):
            return True
    except (OSError, zipfile.BadZipFile):
        return False


def mark_complete(folder: Path, config: str) -> None:
    """Note that the phase of this configuration, as YAML, has come to its end."""
    if not is_complete(folder, config):
        path = folder / "checkpoints" / "complete.yaml"
        write_whole(path, config.encode())


def is_complete(folder: Path, config: str) -> bool:
    """Whether the phase of this very configuration has ended, and its checkpoint is still there."""
    path = folder / "checkpoints" / "complete.yaml"
    if not path.is_file() or path.read_text(encoding="utf-8") != config:
        return False
    return is_whole(folder / "checkpoints" / "latest")


def forget_end(folder: Path) -> None:
    """Remove what an earlier start of the run noted about its end."""
    (folder / "ended.json").unlink(missing_ok=True)


def note_end(folder: Path, how: str, step: int) -> None:
    """Write down how a run ended, for whoever looks a day later."""
    content = {"how": how, "step": step, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    with contextlib.suppress(OSError):  # a full disk has been said already
        write_whole(folder / "ended.json", as_json(content).encode())


def point_latest(path: Path) -> None:
    """Make `latest`, beside a checkpoint, mean it: the old link or the new one, never none."""
    link = path.parent / "latest"
    temporary = path.parent / ".latest.writing"
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    temporary.symlink_to(path.name)
    os.replace(temporary, link)
    sync_folder(path.parent)


def pinned(folder: Path) -> set[int]:
    """Steps whose checkpoints are never deleted.

    Raises:
        ValueError: the list is damaged.
    """
    path = folder / "checkpoints" / "pinned.json"
    if not path.is_file():
        return set()
    try:
        return {int(step) for step in json.loads(path.read_bytes())}
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): write the steps of the checkpoints that are never to be "
            "deleted into it, such as [1000, 2000], or delete it"
        ) from error


def pin(folder: Path, step: int) -> None:
    """Never delete the checkpoint after this step."""
    steps = sorted(pinned(folder) | {step})
    path = folder / "checkpoints" / "pinned.json"
    write_whole(path, json.dumps(steps).encode())


def prune(folder: Path, keep: int) -> list[Path]:
    """Delete all but the newest `keep` whole checkpoints and the pinned ones.

    Returns:
        What was deleted.
    """
    whole = [step for step, path in checkpoints(folder).items() if is_whole(path)]
    stay = set(whole[-keep:]) | pinned(folder)
    gone = [checkpoint_path(folder, step) for step in whole if step not in stay]
    for path in gone:
        path.unlink()
    return gone


def clear_unfinished(folder: Path, began: float) -> None:
    """Delete what an interrupted write left, and a `stop` file that is older than this run.

    Args:
        folder: the run folder.
        began: when this run was started, in seconds since 1970. A newer `stop` is meant for it.
    """
    for path in (folder / "checkpoints").glob(UNFINISHED):
        path.unlink()
    with contextlib.suppress(FileNotFoundError):
        if (folder / STOP_FILE).stat().st_mtime < began:
            (folder / STOP_FILE).unlink()
