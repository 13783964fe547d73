"""Edit files at random, call the real entry points, and see how they end.

Usage:
    python tests/faults/fuzz.py                          a minute of every subject
    python tests/faults/fuzz.py --cases 5000 --seed 7 --subject shards texts
    python tests/faults/fuzz.py --seed 7 --only 1234     one case again, with all that it said

A command must end with 0 or 2 (75 where it was told to stop, 1 with one message where training
cannot go on), say no traceback, take no more time and memory than it may, and answer as it did
before the edit wherever the files themselves tell. Exit status: 0, or 1 if there were faults.
"""

import argparse
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from faults import forks  # noqa: E402
from faults.start import prepare  # noqa: E402
from faults.subjects import DEAR, SUBJECTS  # noqa: E402

DEAR_ONES = 15
"""One case in so many is of a dear subject."""
VARIANTS = 6
"""So many ways of calling a subject's command, whose answers before an edit are kept."""
SLOW_REFUSAL_SECONDS = 10.0


@dataclass(frozen=True)
class Case:
    """One edit and one command, by its number."""

    seed: int
    number: int

    @property
    def subject(self) -> str:
        """Cheap ones in turn, with a dear one now and then."""
        cheap = [name for name in SUBJECTS if name not in DEAR]
        turn, dear = divmod(self.number, DEAR_ONES)
        return DEAR[turn % len(DEAR)] if dear == DEAR_ONES - 1 else cheap[self.number % len(cheap)]

    @property
    def variant(self) -> random.Random:
        """The dice that choose the command."""
        return random.Random(f"{self.subject} {self.number % VARIANTS}")

    def work(self) -> int:
        """Edit the current folder, note what was done, and call the command."""
        edited = SUBJECTS[self.subject].edit(random.Random(f"{self.seed} {self.number}"))
        Path("edited").write_text(
            f"{int(edited.same)}{int(edited.must_refuse)}{edited.what}", errors="replace"
        )
        return SUBJECTS[self.subject].run(self.variant)


@dataclass
class Trial:
    """All cases, what became of them, and the folder that they start from."""

    scratch: Path
    keep: Path
    tried: Counter = field(default_factory=Counter)
    ended: dict[str, Counter] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    answers: dict[tuple[str, int], Any] = field(default_factory=dict)

    def fresh(self, name: str) -> Path:
        """A copy of the folder that everything starts from."""
        folder = self.scratch / name
        shutil.copytree(self.scratch / "start", folder, symlinks=True)
        return folder

    def before(self, case: Case) -> Any:
        """The command's answer where nothing was edited."""
        subject, key = SUBJECTS[case.subject], (case.subject, case.number % VARIANTS)
        if key not in self.answers:
            folder = self.fresh("before")
            status, output = forks.call(lambda: subject.run(case.variant), folder)
            assert status == 0, f"{case.subject} fails without any edit ({status}):\n{output}"
            self.answers[key] = _answer(case, folder, output) if subject.compared else None
            shutil.rmtree(folder)
        return self.answers[key]

    def start(self, case: Case) -> forks.Child:
        """Begin a case, once it is known that its command works where nothing was edited."""
        self.before(case)
        return forks.start(
            case.work, self.fresh(f"case{case.number}"), SUBJECTS[case.subject].seconds
        )

    def judge(self, case: Case, child: forks.Child) -> str:
        """Count a case that has ended; returns what is to be said of it."""
        note, output = child.folder / "edited", child.output
        told = note.read_text() if note.exists() else "10(the edit itself failed)"
        problem = self._problem(case, child, output, same=told[0] == "1", made_up=told[1] == "1")
        if problem is None and not note.exists():
            problem = "the edit itself failed"
        outcome = {0: "accepted", 75: "accepted", 1: "stopped"}.get(child.status, "refused")
        self.tried[case.subject] += 1
        self.ended.setdefault(case.subject, Counter())["faults" if problem else outcome] += 1
        line = f"{case.number} {case.subject}: {told[2:]}: {outcome} ({child.status})"
        if problem:
            self.faults.append(f"{line}\n    {problem}")
            shutil.copytree(
                child.folder, self.keep / child.folder.name, symlinks=True, dirs_exist_ok=True
            )
            (self.keep / f"{child.folder.name}.out").write_text(output)
        child.clear()
        return f"{line}: FAULT: {problem}" if problem else line

    def _problem(
        self, case: Case, child: forks.Child, output: str, *, same: bool, made_up: bool
    ) -> str | None:
        if child.status == -1:
            return f"has not ended after {SUBJECTS[case.subject].seconds:.0f} s"
        if "Traceback (most recent call last)" in output or "panicked at" in output:
            last = [
                line
                for line in output.splitlines()
                if re.match(r"\w[\w.]*(Error|Exception)\b", line)
            ]
            return f"a traceback: {last[-1][:200] if last else '?'}"
        if child.status == 2:
            if not output.strip():
                return "refused without a word"
            slow = child.cpu_seconds > SLOW_REFUSAL_SECONDS
            return f"refused after {child.cpu_seconds:.0f} s of work" if slow else None
        if child.status == 1 and case.subject == "training" and "tessera: " in output:
            return None  # it cannot go on, and says why
        if child.status == 75 and case.subject in DEAR:
            return None
        if child.status != 0:
            return f"ended with {child.status}"
        if made_up:
            return "a key that does not exist was accepted"
        if not same:
            return None
        try:
            answer = _answer(case, child.folder, output)
        except Exception as error:
            return f"its answer cannot be read: {type(error).__name__}: {error}"
        expected = self.before(case)
        return None if answer == expected else f"another answer: {_difference(expected, answer)}"


def _answer(case: Case, folder: Path, output: str) -> Any:
    here = Path.cwd()
    os.chdir(folder)
    try:
        return SUBJECTS[case.subject].answer(output)
    finally:
        os.chdir(here)


def _difference(expected: Any, found: Any) -> str:
    if isinstance(expected, list) and isinstance(found, list):
        for one, other in zip(expected, found, strict=False):
            if one != other:
                return f"{str(other)[:200]!r} instead of {str(one)[:200]!r}"
        return f"{len(found)} lines instead of {len(expected)}"
    return str(found)[:300]


def main() -> int:
    """Run the cases asked for; prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--cases", type=int, help="how many (default: as many as fit the time)")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--only", type=int, metavar="N", help="one case, with what it printed")
    parser.add_argument("--subject", nargs="+", choices=[*SUBJECTS], default=[*SUBJECTS])
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--keep", type=Path, help="folder for what faults left behind")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    _import_everything()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        keep = options.keep or Path(tempfile.mkdtemp(prefix="fuzz-faults-"))
        keep.mkdir(parents=True, exist_ok=True)
        trial = Trial(Path(scratch), keep)
        (trial.scratch / "start").mkdir()
        status, output = forks.call(lambda: prepare(Path()) or 0, trial.scratch / "start")
        assert status == 0, output
        if options.only is not None:
            case = Case(options.seed, options.only)
            child = trial.start(case)
            while not child.ended():
                time.sleep(0.01)
            print(child.output)
            print(trial.judge(case, child))
        else:
            _run(trial, options)
        return _report(trial)


def _run(trial: Trial, options: argparse.Namespace) -> None:
    """Some cases at a time, until there are enough or time is up."""
    began = time.monotonic()
    running: list[tuple[Case, forks.Child]] = []
    number = 0
    while True:
        enough = (
            sum(trial.tried.values()) + len(running) >= options.cases
            if options.cases is not None
            else time.monotonic() - began > options.seconds
        )
        while not enough and len(running) < options.workers:
            case = Case(options.seed, number)
            number += 1
            if case.subject in options.subject:
                running.append((case, trial.start(case)))
        ended = [one for one in running if one[1].ended()]
        running = [one for one in running if one[1].status is None]
        for case, child in ended:
            line = trial.judge(case, child)
            if "FAULT" in line:
                print(line, flush=True)
        if enough and not running:
            return
        time.sleep(0.002)


def _report(trial: Trial) -> int:
    names = ("accepted", "refused", "stopped", "faults")
    print(f"\n{'':<16}{'tried':>8}" + "".join(f"{name:>10}" for name in names))
    total: Counter = Counter()
    for subject in SUBJECTS:
        counts = trial.ended.get(subject, Counter())
        total += counts
        row = f"{subject:<16}{trial.tried[subject]:>8}"
        print(row + "".join(f"{counts[name]:>10}" for name in names))
    row = f"{'together':<16}{sum(trial.tried.values()):>8}"
    print(row + "".join(f"{total[name]:>10}" for name in names))
    if trial.faults:
        print(f"\n{len(trial.faults)} faults; what they left is in {trial.keep}")
        print("\n".join(trial.faults))
        return 1
    shutil.rmtree(trial.keep)
    return 0


def _import_everything() -> None:
    """What the commands import, once; no thread may run when a process forks."""
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "disabled",
        "TQDM_DISABLE": "1",
        "MPLBACKEND": "agg",
    }
    import composer  # noqa: F401
    import streaming  # noqa: F401
    import torch
    import transformers  # noqa: F401

    import tessera.checkpoints.exporter
    import tessera.checkpoints.importer
    import tessera.checkpoints.merge
    import tessera.data.inspection
    import tessera.data.validation
    import tessera.evaluation.fill_mask
    import tessera.reporting.report
    import tessera.training.trainer  # noqa: F401

    torch.set_num_threads(1)


if __name__ == "__main__":
    sys.exit(main())
