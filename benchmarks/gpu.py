"""What only a GPU can tell, unattended, in pieces of nine minutes at most.

    make gpu                                         all of it, into runs/gpu
    python benchmarks/gpu.py --only tests run        some pieces
    python benchmarks/gpu.py --tiny                  every piece in small, on a CPU: runs/gpu-tiny

Each piece is a process of its own. Its output, its status and what it measured are in the folder
`--out` as soon as it ends, and `summary.md` tells all on a page. A piece that ended well is not
done again: after an interruption, or on another machine with the same folder, the same command goes
on. A piece that had another command, as with `--tiny`, is done again. Exit status: 0, or 1 if a
piece failed.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hardware
import yaml

REPOSITORY = Path(__file__).parents[1]
SECONDS = 540
AIMS = {("base", 1024): 500, ("base", 8192): 400, ("large", 1024): 230, ("large", 8192): 200}
"""Thousand real tokens per second hoped for on one H200."""


@dataclass(frozen=True)
class Piece:
    """One thing to find out."""

    name: str
    what: str
    command: list[str]
    told: Callable[[Path], str] = lambda folder: ""
    """The lines of the summary, from what the piece left in the folder."""


def pieces(out: Path, *, tiny: bool) -> list[Piece]:
    """All of them, the most wanted first."""
    python, script = sys.executable, str(REPOSITORY / "benchmarks" / "train_step.py")
    steps = ["--rounds", "1", "--steps", "1", "--warm-up", "1", "--slots", "1024"] if tiny else []
    settings = (
        [("tiny", 128), ("tiny", 512)]
        if tiny
        else [("base", 1024), ("base", 8192), ("large", 1024), ("large", 8192)]
    )
    tests = ["tests/test_attention.py", "-k", "oracle"] if tiny else ["-m", "gpu", "tests/gpu"]
    found = [
        Piece("machine", "what is here", [python, "-m", "tessera.cli.main", "doctor"], _whole_log),
        Piece("tests", "the tests for a GPU", [python, "-m", "pytest", "-q", *tests], _last_line),
    ]
    for model, length in settings:
        name = f"{model}-{length}"
        command = [python, script, "--model", model, "--max-length", str(length), "--minutes", "8"]
        found.append(
            Piece(
                f"step-{name}",
                f"a training step of {model} at {length} tokens, beside transformers",
                [*command, *steps, "--out", str(out / f"step-{name}.json")],
                partial(_steps, model),
            )
        )
    found.append(
        Piece(
            "attention",
            "every attention backend that serves here",
            [
                *(python, script, "--model", settings[0][0], "--max-length", str(settings[0][1])),
                *("--attention", "all", "--only-ours", "--minutes", "8"),
                *steps,
                *("--out", str(out / "attention.json")),
            ],
            partial(_steps, settings[0][0]),
        )
    )
    name = _run_name(tiny)
    found.append(
        Piece(
            "run",
            "a run through Composer with a trace of three steps",
            [python, str(REPOSITORY / "main.py"), str(out / f"{name}.yaml")],
            partial(_run, name),
        )
    )
    return found


def main() -> int:
    """Do what is left to do; writes the summary after every piece."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="runs/gpu; with --tiny runs/gpu-tiny")
    parser.add_argument("--only", nargs="+", metavar="PIECE")
    parser.add_argument("--tiny", action="store_true", help="in small, on whatever is here")
    options = parser.parse_args()
    out = (options.out or Path("runs/gpu-tiny" if options.tiny else "runs/gpu")).resolve()
    if out.exists() and not out.is_dir():
        parser.error(f"--out {out}: is a file; name a folder")
    planned = pieces(out, tiny=options.tiny)
    unknown = set(options.only or []) - {piece.name for piece in planned}
    if unknown:
        parser.error(f"no piece {sorted(unknown)}; there are {[p.name for p in planned]}")
    if not options.tiny and not _has_gpu():
        parser.error("no CUDA device here; --tiny tries this command without one")
    out.mkdir(parents=True, exist_ok=True)
    if not (out / f"{_run_name(options.tiny)}.yaml").exists():
        prepare_run(out, tiny=options.tiny)
    for piece in planned:
        if options.only is None or piece.name in options.only:
            do(piece, out)
            (out / "summary.md").write_text(summary(planned, out))
    print(f"\n{out / 'summary.md'}")
    return int(
        any(_ended(piece, out).get("status") != 0 for piece in planned if _ended(piece, out))
    )


def do(piece: Piece, out: Path) -> None:
    """Run a piece, unless it ended well before; ends it after nine minutes."""
    if _ended(piece, out).get("status") == 0:
        print(f"{piece.name}: done before", flush=True)
        return
    print(f"{piece.name}: {piece.what}", flush=True)
    began = time.monotonic()
    paths = os.pathsep.join([str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")])
    with (out / f"{piece.name}.log").open("w") as log:
        process = subprocess.Popen(
            piece.command,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,
        )
        try:
            status: int | str = process.wait(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            status = f"not ended after {SECONDS} s"
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    seconds = time.monotonic() - began
    ended = {"status": status, "seconds": round(seconds, 1), "command": piece.command}
    (out / f"{piece.name}.ended.json").write_text(json.dumps(ended, indent=2) + "\n")
    print(f"{piece.name}: {'ended well' if status == 0 else status} in {seconds:.0f} s", flush=True)


def prepare_run(out: Path, *, tiny: bool) -> None:
    """A corpus of random words with the published lengths, and the YAML of a short run on it."""
    sys.path.insert(0, str(REPOSITORY / "tests"))
    import numpy as np
    import tiny_run
    from numpy.random import default_rng

    from tessera.data.preparation.mds_writer import write_shards
    from tessera.tokenizer import load_tokenizer

    name = _run_name(tiny)
    corpus = out / ("corpus" if not tiny else f"{name}-corpus")
    shutil.rmtree(corpus, ignore_errors=True)  # of an interrupted call
    length, tokens = (64, 20_000) if tiny else (1024, 4_000_000)
    tiny_run.make_corpus(corpus, documents=40)
    rng = default_rng(0)
    lengths = np.clip(rng.lognormal(6.0, 1.0, 2 * tokens // 400), 16, 4 * length).astype(int)
    documents = (
        (f"d{i}", rng.integers(5, 250, n).astype(np.uint16)) for i, n in enumerate(lengths)
    )
    write_shards(
        corpus / "long" / "train",
        documents,
        vocab_size=255,
        tokenizer_fingerprint=load_tokenizer(corpus / "tokenizer").fingerprint,
    )
    plain: dict[str, Any] = tiny_run.settings(
        corpus, out / name, duration="12ba" if tiny else "120ba"
    )
    plain["train_data"]["sources"]["long"] = {
        "local": str(corpus / "long"),
        "weight": 8.0,
        "validation_split": None,
    }
    plain["compute"] = {"trace": {"after_steps": 2 if tiny else 40, "steps": 3}}
    plain["logging"] = {"console_seconds": 5.0}
    if not tiny:
        plain["model"] = {"vocab_size": 50368}
        plain["train_data"] |= {"max_seq_len": length, "row_tokens": 8192, "lanes": 96}
        plain["batch"] = {"rows": 96, "microbatch_rows": 12}
    (out / f"{name}.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))


def _run_name(tiny: bool) -> str:
    """Of the run's folder and YAML: one in small is not gone on with in full."""
    return "tiny-run" if tiny else "run"


# ---- the page


def summary(planned: list[Piece], out: Path) -> str:
    """All pieces on a page of Markdown."""
    machine = ", ".join(f"{name} {value}" for name, value in hardware.named().items())
    lines = ["# What this GPU does", "", f"{_gpu()}; {machine}.", ""]
    lines += ["| piece | what | outcome | seconds |", "|---|---|---|---|"]
    for piece in planned:
        ended = _ended(piece, out)
        status = ended.get("status", "not begun")
        outcome = "ended well" if status == 0 else f"status {status}" if ended else status
        lines.append(f"| {piece.name} | {piece.what} | {outcome} | {ended.get('seconds', '')} |")
    for piece in planned:
        ended = _ended(piece, out)
        if not ended:
            continue
        told = piece.told(out / f"{piece.name}.log") if ended["status"] == 0 else ""
        if ended["status"] != 0:
            told = "```\n" + _tail(out / f"{piece.name}.log", 25) + "\n```"
        if told:
            lines += ["", f"## {piece.name}", "", told]
    return "\n".join(lines) + "\n"


def _ended(piece: Piece, out: Path) -> dict[str, Any]:
    """How a piece ended; nothing if it did not, or if what ended had another command."""
    path = out / f"{piece.name}.ended.json"
    ended = json.loads(path.read_text()) if path.exists() else {}
    return ended if _same(ended.get("command", []), piece.command) else {}


def _same(one: list[str], other: list[str]) -> bool:
    """Whether two commands ask for the same: on another machine their paths begin otherwise."""
    plain = [[word.rsplit("/", 1)[-1] for word in command[1:]] for command in (one, other)]
    return plain[0] == plain[1]


def _tail(log: Path, lines: int) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _whole_log(log: Path) -> str:
    return f"```\n{log.read_text().strip()}\n```"


def _last_line(log: Path) -> str:
    return _tail(log, 1)


def _steps(model: str, log: Path) -> str:
    """The table of what train_step.py measured of this model."""
    measured = json.loads(log.with_suffix(".json").read_text())
    lines = [
        "| variant | real tokens/s | MFU | peak GiB | compiled again | aim |",
        "|---|---|---|---|---|---|",
    ]
    for entry in measured["entries"].values():
        if entry["model"] != model:
            continue
        aim = AIMS.get((entry["model"], entry["max_length"]))
        for row in entry["variants"]:
            if "failed" in row:
                lines.append(f"| {row['name']} | {row['failed']} | | | | |")
                continue
            peak = row["peak_bytes"]
            ours = row["name"].startswith("tessera") and aim is not None
            lines.append(
                f"| {row['name']} | {row['tokens_per_second']:,} | {row['utilisation']:.1%} | "
                f"{'' if peak is None else f'{peak / 2**30:.1f}'} | "
                f"{row['recompiled_after_warm_up']} | {f'{aim}k' if ours else ''} |"
            )
    return "\n".join(lines)


def _run(name: str, log: Path) -> str:
    """Speed and losses of the run, and where the time of the traced steps went."""
    folder = log.parent / name
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "step"]
    later = sorted(record["tokens_per_second"] for record in steps[len(steps) // 3 :])
    again = sum("more graphs" in line for line in log.read_text().splitlines())
    table = (folder / "trace.txt").read_text().splitlines()
    shown = "\n".join(line[:180] for line in table[:25])
    return (
        f"{len(steps)} steps, loss {steps[0]['loss']:.3f} to {steps[-1]['loss']:.3f}; median "
        f"{later[len(later) // 2]:,.0f} real tokens/s after the first third; {again} steps "
        f"compiled again. Three steps by torch's profiler (`{name}/trace.json.gz` as a timeline):"
        "\n\n"
        f"```\n{shown}\n```"
    )


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU (in small)"


if __name__ == "__main__":
    sys.exit(main())
