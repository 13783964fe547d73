"""What happens to a run in a soak: each is done to it once, at a moment of its own."""

import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from reference.s3 import S3, Request


@dataclass
class Running:
    """A start of the run that is being disturbed."""

    process: subprocess.Popen
    folder: Path
    """Where it writes on this machine."""
    store: S3 | None
    dice: random.Random

    @property
    def top(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    def ranks(self) -> list[psutil.Process]:
        """The processes that train: those of main.py below the launcher, or the process itself."""
        below = [p for p in self.top.children() if "main.py" in " ".join(p.cmdline())]
        return below or [self.top]

    def everything(self) -> list[psutil.Process]:
        return [*self.top.children(recursive=True), self.top]

    def wait_for_a_moment(self) -> None:
        """Some steps after it began to write; every other time, while a checkpoint is written."""
        metrics = self.folder / "metrics.jsonl"

        def size() -> int:
            return metrics.stat().st_size if metrics.exists() else 0

        before, last = size(), time.monotonic() + 120
        while size() <= before and self.process.poll() is None and time.monotonic() < last:
            before = min(before, size())  # what comes after the checkpoint is cut off first
            time.sleep(0.01)
        time.sleep(self.dice.random() * 1.5)
        last = time.monotonic() + self.dice.choice([0, 2])
        while time.monotonic() < last and self.process.poll() is None:
            if any((self.folder / "checkpoints").glob(".step*.writing")):
                return


def send(processes: list[psutil.Process], number: int) -> None:
    """Send a signal to those that are still there."""
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


# ---- ends: after each the run is started again


def kill_everything(run: Running) -> None:
    send(run.everything(), signal.SIGKILL)


def kill_a_rank(run: Running) -> None:
    send([run.dice.choice(run.ranks())], signal.SIGKILL)


def kill_the_launcher(run: Running) -> None:
    send([run.top], signal.SIGKILL)


def ask_a_rank(run: Running) -> None:
    send([run.dice.choice(run.ranks())], signal.SIGTERM)


def ask_the_launcher(run: Running) -> None:
    send([run.top], signal.SIGTERM)


def stop_file(run: Running) -> None:
    (run.folder / "stop").touch()


def stopped_rank(run: Running) -> None:
    """A rank that does nothing for a while, and goes on: nobody may notice but the clock."""
    rank = run.dice.choice(run.ranks())
    send([rank], signal.SIGSTOP)
    time.sleep(2 + 3 * run.dice.random())
    send([rank], signal.SIGCONT)
    time.sleep(0.5)
    kill_everything(run)


def stopped_for_ever(run: Running) -> None:
    """A rank that stays stopped until a person ends everything."""
    send([run.dice.choice(run.ranks())], signal.SIGSTOP)
    time.sleep(4)
    kill_everything(run)


# ---- what happens to files between two starts


def _newest(folder: Path) -> Path | None:
    return max((folder / "checkpoints").glob("step*.pt"), default=None)


def torn_metrics(folder: Path, dice: random.Random) -> None:
    """The tail that a machine which lost its power had not written: after the checkpoint."""
    path, newest = folder / "metrics.jsonl", _newest(folder)
    if newest is None or not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    step = int(newest.stem.removeprefix("step"))
    sizes = [len(line) for line in lines]
    kept = sum(
        sizes[: max((i + 1 for i, line in enumerate(lines) if _step(line) <= step), default=0)]
    )
    with path.open("r+b") as file:
        file.truncate(dice.randint(kept, sum(sizes)))
        file.seek(0, 2)
        file.write(b'{"kind": "step", "st')


def _step(line: bytes) -> float:
    import json

    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def torn_checkpoint(folder: Path, dice: random.Random) -> None:
    """The newest checkpoint cut short, or with a bit of it another; an older one is there."""
    newest = _newest(folder)
    if newest is None or len(list((folder / "checkpoints").glob("step*.pt"))) < 2:
        return
    content = bytearray(newest.read_bytes())
    if dice.random() < 0.5:
        del content[dice.randrange(len(content)) :]
    else:
        content[dice.randrange(64, len(content) * 3 // 4)] ^= 16
    newest.unlink()
    newest.write_bytes(content)


def lost_latest(folder: Path, dice: random.Random) -> None:
    link = folder / "checkpoints" / "latest"
    link.unlink(missing_ok=True)
    if dice.random() < 0.5:
        link.symlink_to("nowhere.pt")


def litter(folder: Path, dice: random.Random) -> None:
    """What a writer that was killed leaves."""
    if (folder / "checkpoints").is_dir():
        (folder / "checkpoints" / ".step99999999.pt.writing").write_bytes(b"PK")
    if folder.is_dir():
        (folder / ".metrics.jsonl.writing").write_bytes(b"")


# ---- what the object store does


def failing_store(run: Running) -> None:
    """The store refuses, drops or delays a third of what it is asked, for some seconds."""
    assert run.store is not None
    dice = random.Random(run.dice.random())

    def judge(request: Request) -> int | float | str | None:
        return dice.choice([503, 500, "drop", "half", 0.3]) if dice.random() < 0.35 else None

    run.store.judge = judge
    time.sleep(4)
    run.store.judge = lambda request: None
    kill_everything(run)


def absent_store(run: Running) -> None:
    """The store answers nothing but 503 for some seconds, while the run goes on."""
    assert run.store is not None
    run.store.judge = lambda request: 503
    time.sleep(5)
    run.store.judge = lambda request: None
    time.sleep(1)
    ask_a_rank(run)


ENDS: dict[str, Callable[[Running], None]] = {
    "SIGKILL to everything": kill_everything,
    "SIGKILL to a rank": kill_a_rank,
    "SIGKILL to the launcher": kill_the_launcher,
    "SIGTERM to a rank": ask_a_rank,
    "SIGTERM to the launcher": ask_the_launcher,
    "a stop file": stop_file,
    "a rank stopped a while": stopped_rank,
    "a rank stopped for ever": stopped_for_ever,
}
STORE_ENDS: dict[str, Callable[[Running], None]] = {
    "a store that fails": failing_store,
    "a store that is away": absent_store,
}
TEARS: dict[str, Callable[[Path, random.Random], None]] = {
    "metrics.jsonl torn": torn_metrics,
    "newest checkpoint torn": torn_checkpoint,
    "latest lost": lost_latest,
    "litter of a writer": litter,
}
