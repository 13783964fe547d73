"""End, starve and damage real runs again and again; compare each with one that was left alone.

Usage:
    python tests/faults/soak.py --minutes 5 --seed 3

Runs on 1 or 2 ranks, on a disk of their own that fills up, on one that is slow, or in an object
store (on loopback) that X status: 0, or 1 if anything differed.
"""

import argparse
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import tiny_run  # noqa: E402
from reference.s3 import BUCKET, S3, serve  # noqa: E402

from faults import events  # noqa: E402
from faults.events import ENDS, STORE_ENDS, TEARS, Running  # noqa: E402

DISK_BYTES = 8_000_000
"""Of the small disk: a few checkpoints, and no more."""
SLOW_MICROSECONDS = 30_000
"""What each write, fsync and rename costs on the slow disk."""
PREEMPTED = 75
ROUNDED = ("loss", "grad_norm", "sources")
RUN = {
    "duration": "30_000tok",
    "checkpoints": {"interval": "2ba", "keep": 3, "milestones": ["9_000tok"]},
    "evaluation__interval": "10ba",
    "evaluation__max_tokens": 400,
    "train_data__masking": {"rate": 0.4, "final_rate": 0.2, "over": "20_000tok"},
    "batch": {
        "rows": 8,
        "microbatch_rows": 2,
        "warmup": {"initial_rows": 4, "increment_rows": 4, "over": "10_000tok"},
    },
}
MOVED = "the machine replaced"
KINDS = ("disk", "small disk", "store", "slow disk")
STARTS = 5
"""So often a run is started and disturbed, at most, before it is left to end."""


@dataclass
class Soak:
    """What was done and what came of it."""

    scratch: Path
    corpus: Path
    dice: random.Random
    store: S3
    worlds: tuple[int, ...] = (1, 2)
    starts: int = STARTS
    run: dict = field(default_factory=lambda: dict(RUN))
    tried: Counter = field(default_factory=Counter)
    survived: Counter = field(default_factory=Counter)
    lines: int = 0
    differing: int = 0
    runs: int = 0
    faults: list[str] = field(default_factory=list)
    alone: list[dict] = field(default_factory=list)
    slow_disk: Path | None = None
    """A library that makes one, where there is a compiler."""
    variables: dict[str, str] = field(default_factory=dict)
    """Of the environment in which the run at hand is started."""

    def leave_alone(self) -> None:
        """The run that nobody disturbs."""
        folder = self.scratch / "alone"
        yaml_path = tiny_run.write_yaml(
            self.scratch / "alone.yaml", tiny_run.settings(self.corpus, folder, **self.run)
        )
        output, status = _finish(tiny_run.start(yaml_path))
        assert status == 0, output
        self.alone = _records(folder / "metrics.jsonl")

    def disturb(self, until: float) -> None:
        """One run from its first start to its end; counts everything."""
        self.runs += 1
        kind = KINDS[self.runs % len(KINDS)]
        name = f"run{self.runs}"
        place = f"s3://{BUCKET}/{name}" if kind == "store" else str(self.scratch / name)
        folder = _folder_of(place)
        changes = {**self.run, "checkpoints__lease_seconds": 4}
        plain = tiny_run.settings(self.corpus, place, **changes)
        yaml_path = tiny_run.write_yaml(self.scratch / f"{name}.yaml", plain)
        worlds: set[int] = set()
        done: list[str] = []
        self.variables = {}
        if kind == "slow disk" and self.slow_disk is not None:
            self.variables = {
                "LD_PRELOAD": str(self.slow_disk),
                "SLOW_FOLDER": str(folder),
                "SLOW_MICROSECONDS": str(SLOW_MICROSECONDS),
            }
            self.tried["a slow disk"] += 1
            done.append("a slow disk")
        with ExitStack() as closing:
            if kind == "small disk":
                closing.enter_context(_small_disk(folder))
            for number in range(self.dice.randint(min(2, self.starts), self.starts)):
                if time.monotonic() > until and number:
                    break
                done += self._one_start(yaml_path, folder, kind, worlds)
                if done and done[-1] == "complete":
                    break
            (folder / "full").unlink(missing_ok=True)
            output, status = _finish(self._start(yaml_path, worlds))
            if status != 0:
                self.faults.append(
                    f"{name} ({kind}; {', '.join(done)}) ended with {status}:\n{output}"
                )
                return
            self._compare(name, kind, done, folder, worlds)

    def _start(self, yaml_path: Path, worlds: set[int]) -> subprocess.Popen:
        world = self.dice.choice(self.worlds)
        worlds.add(world)
        return tiny_run.start(yaml_path, ranks=world if world > 1 else None, **self.variables)

    def _one_start(self, yaml_path: Path, folder: Path, kind: str, worlds: set[int]) -> list[str]:
        process = self._start(yaml_path, worlds)
        run = Running(process, folder, self.store if kind == "store" else None, self.dice)
        run.wait_for_a_moment()
        if process.poll() is not None:
            output, status = _finish(process)
            if status == 0:
                return ["complete"]
            self.faults.append(f"ended by itself with {status}:\n{output}")
            return []
        ends: dict[str, Callable] = dict(ENDS)
        if kind == "store":
            ends = {**ENDS, **STORE_ENDS}
        if kind == "small disk" and os.path.ismount(folder):
            ends = {**ENDS, "a full disk": _fill}
        what = self._least_tried(ends)
        self.tried[what] += 1
        done = [what]
        ends[what](run)
        output, status = _finish(process, seconds=90)
        if status in (None, 2) or (
            status == 1 and "Traceback" in output and "disk" not in what and not _killed(what)
        ):
            self.faults.append(f"after {what}: status {status}\n{output}")
            done = [f"{what}, badly"]
        (folder / "full").unlink(missing_ok=True)
        if self.dice.random() < 0.5:
            tear = self._least_tried([*TEARS, MOVED] if kind == "store" else TEARS)
            if tear == MOVED:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                TEARS[tear](folder, self.dice)
            self.tried[tear] += 1
            done.append(tear)
        return done

    def _least_tried(self, faults: Iterable[str]) -> str:
        """One of those that were tried least often, so that a short soak tries many kinds."""
        often = {what: self.tried[what] for what in faults}
        return self.dice.choice([what for what in often if often[what] == min(often.values())])

    def _compare(
        self, name: str, kind: str, done: list[str], folder: Path, worlds: set[int]
    ) -> None:
        path = folder / "metrics.jsonl"
        if kind == "store":
            path = self.scratch / f"{name}.jsonl"
            path.write_bytes(self.store.read(f"{name}/metrics.jsonl"))
        records = _records(path)
        wrong = abs(len(records) - len(self.alone))
        first = ""
        for one, other in zip(records, self.alone, strict=False):
            if not same(one, other, exact=worlds == {1}):
                wrong += 1
                first = first or f"{one}\n  instead of {other}"
        self.lines += len(records)
        self.differing += wrong
        if wrong:
            self.faults.append(
                f"{name} ({kind}; {', '.join(done)}): {wrong} lines differ\n  {first}"
            )
        else:
            self.survived.update(what for what in done if what in self.tried)

    def report(self) -> int:
        """Print the table."""
        print(f"\n{'fault':<28}{'tried':>7}{'survived':>10}")
        for what in (*ENDS, *STORE_ENDS, "a full disk", "a slow disk", *TEARS, MOVED):
            print(f"{what:<28}{self.tried[what]:>7}{self.survived[what]:>10}")
        print(
            f"{'together':<28}{self.tried.total():>7}{self.survived.total():>10}\n\n"
            f"{self.runs} runs of {len(self.alone)} lines; {self.lines} lines compared, "
            f"{self.differing} differing"
        )
        for fault in self.faults:
            print(f"\nFAULT: {fault}")
        return 1 if self.faults or not self.lines else 0


def _make_slow_disk(folder: Path) -> Path | None:
    """Compile the library; None without a C compiler."""
    library = folder / "slow_disk.so"
    source = Path(__file__).parent / "slow_disk.c"
    command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no slow disk: {error}", flush=True)
        return None
    return library


def _killed(what: str) -> bool:
    """Whether the other ranks of what was killed may say that they lost it."""
    return "SIGKILL" in what or "stopped" in what or "store" in what


def same(one: dict, other: dict, *, exact: bool) -> bool:
    """Whether two records of a run are the same; losses to rounding if not `exact`."""
    if exact:
        return one == other
    plain = [{k: v for k, v in record.items() if k not in ROUNDED} for record in (one, other)]
    close = one["kind"] != "step" or abs(one["loss"] - other["loss"]) < 5e-3
    return plain[0] == plain[1] and close


def _records(path: Path) -> list[dict]:
    """All records; a torn line at the end of a run that was complete already is none, and stays."""
    whole = path.read_text().rpartition("\n")[0]
    return tiny_run.untimed([json.loads(line) for line in whole.splitlines()])


def _finish(process: subprocess.Popen, seconds: float = 240) -> tuple[str, int | None]:
    """What it printed, and its status; None if it had to be killed."""
    try:
        output, _ = process.communicate(timeout=seconds)
        return output[-6000:], process.returncode
    except subprocess.TimeoutExpired:
        events.send(Running(process, Path(), None, random.Random()).everything(), 9)
        return process.communicate()[0][-6000:], None


def _folder_of(place: str) -> Path:
    from tessera.config import decode
    from tessera.training.config import RunConfig

    return decode(RunConfig, tiny_run.settings(Path("x"), place), "soak").folder  # type: ignore


class _small_disk:
    """A disk of its own for a run folder, where this user may mount one; else a folder as usual."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mounted = folder, False

    def __enter__(self) -> None:
        self.folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "soak", str(self.folder)]
        self.mounted = subprocess.run(command, capture_output=True).returncode == 0

    def __exit__(self, *about: object) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=False)


def _fill(run: Running) -> None:
    """Leave no room on the disk, and wait for the run to end by it; the next start has room."""
    path = run.folder / "full"
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            pass
    try:
        run.process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        events.kill_everything(run)


def main() -> int:
    """Soak for so many minutes; prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--starts", type=int, default=STARTS, help="of a run, at most")
    parser.add_argument("--duration", default=RUN["duration"], help="of a run")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "soak",
        "AWS_SECRET_ACCESS_KEY": "soak",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch, serve() as store:
        os.environ["S3_ENDPOINT_URL"] = store.endpoint
        os.environ["TESSERA_CACHE"] = f"{scratch}/cache"
        store.client().create_bucket(Bucket=BUCKET)
        corpus = tiny_run.make_corpus(Path(scratch) / "corpus", documents=60)
        dice = random.Random(options.seed)
        settings = {**RUN, "duration": options.duration}
        worlds = tuple(options.worlds)
        soak = Soak(Path(scratch), corpus, dice, store, worlds, options.starts, settings)
        soak.slow_disk = _make_slow_disk(Path(scratch))
        soak.leave_alone()
        end = time.monotonic() + 60 * options.minutes
        while time.monotonic() < end:
            soak.disturb(end)
            print(
                f"{soak.runs} runs, {soak.tried.total()} faults, {soak.lines} lines compared, "
                f"{soak.differing} differing",
                flush=True,
            )
        return soak.report()


if __name__ == "__main__":
    sys.exit(main())
