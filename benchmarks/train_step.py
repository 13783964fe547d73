"""Time training steps, ours beside transformers', and write benchmarks/results/<device>.json.

    python benchmarks/train_step.py                                  what suits this machine
    python benchmarks/train_step.py --model base --max-length 1024   a published setting
    python benchmarks/train_step.py --attention all                  each backend that serves here

On a GPU the first runs the four published settings, each in a process and with a share of the time
of its own: what one cannot do, another still can. Every variant is written down as soon as it is
measured, and one that fails with what it failed of.

A step is forward, backward and optimizer on documents of log-normal lengths, other ones each time;
tokens are real ones, padding counts nothing. Utilisation is against a matrix product timed in the
same run. Exit status: 0; 1 if no variant of a setting could be measured; 2 if what is asked makes
no sense.
"""

import argparse
import gc
import json
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hardware import named
from measuring import Timer, parts_of_a_step
from models import MODELS
from trainings import whole
from workloads import (
    StoredLengths,
    Variant,
    Workload,
    draw_workload,
    optimizer_name,
    stored_lengths,
    tessera,
    transformers_variant,
)

from tessera.config import ConfigError, mistake
from tessera.model.attention.backends import choose, survey
from tessera.model.compilation import graph_breaks
from tessera.model.config import ModelConfig
from tessera.model.device_rate import matmul_rate

CONFIG = "yamls/demo/phase2.yaml"
RESULTS = Path(__file__).parent / "results"
PUBLISHED = [("base", 1024), ("base", 8192), ("large", 1024), ("large", 8192)]
SLOTS = {"base": 98_304, "large": 49_152}
"""Token slots of a step on a GPU: what leaves room on 80 GB without recomputing activations."""


LEAST_SLOTS = 64
"""Of a step: so many hold a masked token."""
FIRST_WORD = 5
"""Ids below are special tokens; documents are drawn from this one on."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one setting, or start a process for each of the published ones; the exit status."""
    parser = _parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    try:
        device = device_of(options.device)
        published = device.type == "cuda" and options.model is None and options.max_length is None
        model = options.model or ("tiny" if device.type == "cpu" else "base")
        settings = PUBLISHED if published else [(model, options.max_length or 512)]
        for each, length in settings:
            check(options, device, each, length)
        stored = None
        if options.lengths == "shards":
            stored = stored_lengths(options.config or CONFIG, settings[0][1])
    except (ConfigError, ValueError, OSError) as error:
        if (said := mistake(error)) is None:
            raise
        parser.error(" ".join(said.split()))
    if published:
        return measure_published(options, arguments)
    return measure_setting(options, device, *settings[0], stored)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, help="tiny on a CPU, base on a GPU")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=N", help="num_hidden_layers=8")
    parser.add_argument("--max-length", type=whole(1), help="of a document, in tokens; 512")
    parser.add_argument("--min-length", type=whole(1), default=8)
    parser.add_argument(
        "--lengths", choices=["log-normal", "uniform", "fixed", "shards"], default="log-normal"
    )
    parser.add_argument("--config", help=f"whose shards; {CONFIG}")
    parser.add_argument(
        "--slots", type=whole(LEAST_SLOTS), help="token slots of a step; 8192 on a CPU"
    )
    parser.add_argument("--attention", default="auto", help="a backend, 'auto', or 'all'")
    parser.add_argument("--no-compile", action="store_true", help="leave ours uncompiled on a GPU")
    parser.add_argument("--checkpoint", action="store_true", help="ours recomputes activations")
    parser.add_argument("--only-ours", action="store_true", help="leave transformers out")
    parser.add_argument(
        "--two-of-theirs", action="store_true", help="transformers' most common and best alone"
    )
    parser.add_argument("--rounds", type=whole(1), default=4)
    parser.add_argument(
        "--steps", type=whole(1), default=4, help="timed steps per variant and round"
    )
    parser.add_argument("--warm-up", type=whole(0), default=3, help="steps of each variant before")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all there is to measure")
    parser.add_argument("--threads", type=whole(1), default=2, help="on a CPU")
    parser.add_argument("--device", help="cpu, or a GPU such as cuda:0")
    parser.add_argument("--out", type=Path, help="the file to write; results/<device>.json")
    return parser


def device_of(name: str | None) -> torch.device:
    """The device of this name, or the one that is here.

    Raises:
        ConfigError: there is none such.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: cpu, or a GPU such as cuda:0")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device {name}: there are {torch.cuda.device_count()} GPUs here")
    return device


def check(options: argparse.Namespace, device: torch.device, model: str, length: int) -> None:
    """Look at what is asked of a model and a length before anything is measured.

    Raises:
        ConfigError: it makes no sense.
        ValueError: from a shape of a model, or a backend, that cannot be.
    """
    config = shape_of(model, options.set)
    if options.min_length > length:
        raise ConfigError(f"--min-length {options.min_length} is over --max-length {length}")
    if options.lengths != "shards" and options.config is not None:
        raise ConfigError("--config is only read for its shards: add --lengths shards")
    if not options.minutes > 0:
        raise ConfigError(f"--minutes must be positive; got {options.minutes:g}")
    if options.attention != "all":
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        try:
            choose(options.attention, device, dtype, config.head_size)
        except ValueError as error:
            said = str(error).removeprefix("attention: ")
            raise ConfigError(f"--attention {options.attention}: {said}") from None
    path = options.out or default_path(device)
    if path.is_dir():
        raise ConfigError(f"--out {path}: is a folder; name a file in it")
    if files := [str(parent) for parent in path.parents if parent.is_file()]:
        raise ConfigError(f"--out {path}: {files[0]} is a file")
    try:
        known = json.loads(path.read_text()) if path.exists() else {"entries": {}}
    except ValueError:
        known = {}
    if not isinstance(known, dict) or "entries" not in known:
        raise ConfigError(f"--out {path}: holds something else, which stays as it is")


def shape_of(model: str, changes: Sequence[str]) -> ModelConfig:
    """One of `MODELS` with other numbers.

    Raises:
        ConfigError: naming the numbers there are.
    """
    usual = MODELS[model]
    numbers = [key for key, value in vars(usual).items() if type(value) is int]
    for change in changes:
        key, _, value = change.partition("=")
        if key not in numbers or not re.fullmatch(r"[0-9][0-9_]*", value):
            raise ConfigError(
                f"--set {change}: KEY=N, N a whole number, KEY one of {', '.join(numbers)}"
            )
    config = replace(usual, **numbers_of(changes))
    if config.vocab_size <= FIRST_WORD:
        raise ConfigError(
            f"--set vocab_size={config.vocab_size}: the first {FIRST_WORD} are special tokens; "
            f"at least {FIRST_WORD + 1}"
        )
    return config


def numbers_of(changes: Sequence[str]) -> dict[str, int]:
    """`KEY=N`s by key."""
    return {key: int(value) for key, value in (part.split("=") for part in changes)}


def measure_published(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Each of the published settings in a process of its own, in equal shares of the time left.

    Returns:
        The exit status: 1 if one of them did not end well.
    """
    end = time.monotonic() + 60 * options.minutes
    failed = False
    for number, (model, length) in enumerate(PUBLISHED):
        seconds = max(1.0, (end - time.monotonic()) / (len(PUBLISHED) - number))
        own = ["--model", model, "--max-length", str(length), "--minutes", str(seconds / 60)]
        command = [sys.executable, __file__, *arguments, *own]  # the last of an option counts
        try:
            process = subprocess.run(command, timeout=max(1.0, end + 20 - time.monotonic()))
            outcome = f"exit status {process.returncode}" if process.returncode else ""
        except subprocess.TimeoutExpired:
            outcome = "out of time"
        if outcome:
            failed = True
            print(f"\n{model} @ {length}: {outcome}", flush=True)
    return int(failed)


def measure_setting(
    options: argparse.Namespace,
    device: torch.device,
    model: str,
    length: int,
    stored: StoredLengths | None,
) -> int:
    """Every variant on one model and length; the exit status."""
    end = time.monotonic() + 60 * options.minutes
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    changes, config = numbers_of(options.set), shape_of(model, options.set)
    slots = options.slots or (8192 if device.type == "cpu" else SLOTS.get(model, 98_304))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def workload(step: int) -> Workload:
        return draw_workload(
            vocab_size=config.vocab_size,
            slots=slots,
            max_length=length,
            seed=step,
            lengths=options.lengths,
            min_length=options.min_length,
            stored=stored,
        )

    entry: dict[str, Any] = {
        "date": date.today().isoformat(),
        "model": model,
        "changes": changes,
        "layers": config.num_hidden_layers,
        "max_length": length,
        "lengths": options.lengths,
        "slots": slots,
        "optimizer": optimizer_name(),
        "machine": named(),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "matmul_flops_per_second": matmul_rate(device, dtype, seconds=1.0),
        "variants": [],
        "parts_of_a_step": {},
    }
    name = "-".join([f"{model}@{length}x{slots}", options.lengths, *options.set])
    path = options.out or default_path(device)
    print(
        f"\n{name}: matrix products {entry['matmul_flops_per_second'] / 1e12:.2f} TFLOP/s, "
        f"{entry['optimizer']}\n{HEADER}",
        flush=True,
    )

    def keep(summary: dict[str, Any]) -> None:
        entry["variants"].append(summary)
        print_row(summary, entry["variants"][0])
        write(path, device, name, entry)

    builds = variants(config, device, options)
    # On a CPU variants take turns, so that whatever else the machine does meets all of them. On a
    # GPU one follows the other, each with all of the memory.
    groups = [builds] if device.type == "cpu" else [{key: builds[key]} for key in builds]
    for group in groups:
        measure_group(group, config, workload, device, options, end, entry, keep)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    write(path, device, name, entry)
    shares = ", ".join(f"{part} {share:.0%}" for part, share in entry["parts_of_a_step"].items())
    print(
        f"a step of ours: {shares}; graph breaks: {graph_breaks()}\nwritten to {path}", flush=True
    )
    return int(all("failed" in variant for variant in entry["variants"]))


def measure_group(
    builds: dict[str, Callable[[], Variant]],
    config: ModelConfig,
    workload: Callable[[int], Workload],
    device: torch.device,
    options: argparse.Namespace,
    end: float,
    entry: dict[str, Any],
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Time variants that take turns, and keep what was seen; their memory is free afterwards."""
    timers = started(builds, workload, device, options, end, keep)
    for _ in range(options.rounds):
        for name, timer in list(timers.items()):
            if not timer.speeds or time.monotonic() < end:
                attempt(name, partial(timer.round, options.steps), timers, keep)
    for name, timer in timers.items():
        first = not entry["variants"]
        keep(timer.summary(config, entry["matmul_flops_per_second"]))
        if first:
            profiled = partial(parts_of_a_step, timer.variant, workload(0), device)
            shares = attempt(f"profile of {name}", profiled, {}, lambda failure: None)
            entry["parts_of_a_step"] = shares or {}
            entry["graph_breaks"] = graph_breaks()


def variants(
    config: ModelConfig, device: torch.device, options: argparse.Namespace
) -> dict[str, Callable[[], Variant]]:
    """How each is built, by name: ours, transformers' as most run it, its best, what is between."""
    cuda = device.type == "cuda"
    names = [options.attention]
    if options.attention == "all":
        names = [name for name, reason in survey(device) if reason is None]
    compiled = cuda and not options.no_compile

    def ours(name: str) -> Callable[[], Variant]:
        return lambda: tessera(
            config, device, attention=name, compiled=compiled, checkpointed=options.checkpoint
        )

    def theirs(kind: dict[str, Any]) -> Callable[[], Variant]:
        # A padded microbatch of a GPU user: what fits with a dense head.
        most = 32_768 if cuda else None
        return lambda: transformers_variant(config, device, max_slots=most, **kind)

    builds = {f"tessera, {name}": ours(name) for name in names}
    if options.only_ours:
        return builds
    kinds: list[dict[str, Any]] = [{}, {"sparse": True, "sorted_microbatches": 4}]
    if cuda and dict(survey(device))["flash-attn-2"] is None:
        kinds.append({"implementation": "flash_attention_2", "sparse": True})
    if not options.two_of_theirs:
        kinds += [{"sparse": True}, {"sorted_microbatches": 4}]
    return builds | {f"transformers, {kind}": theirs(kind) for kind in kinds}


def started(
    builds: dict[str, Callable[[], Variant]],
    workload: Callable[[int], Workload],
    device: torch.device,
    options: argparse.Namespace,
    end: float,
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, Timer]:
    """The variants that could be built and warmed up."""
    timers: dict[str, Timer] = {}
    for name, build in builds.items():
        if time.monotonic() > end:
            keep({"name": name, "failed": "out of time"})
            continue

        timer = attempt(name, partial(start, build, workload, device, options), {}, keep)
        if timer is not None:
            timers[name] = timer
    return timers


def start(
    build: Callable[[], Variant],
    workload: Callable[[int], Workload],
    device: torch.device,
    options: argparse.Namespace,
) -> Timer:
    """A variant, warmed up."""
    timer = Timer(build(), workload, device)
    timer.warm_up(options.warm_up)
    return timer


def attempt(
    name: str, work: Callable[[], Any], timers: dict[str, Timer], keep: Callable[[Any], None]
) -> Any:
    """What `work` returns; if it fails, None, the failure kept, and the variant not timed on."""
    try:
        return work()
    except torch.OutOfMemoryError as error:
        keep({"name": name, "failed": f"out of memory: {str(error)[:200]}"})
    except Exception as error:
        traceback.print_exc(limit=-2)
        keep({"name": name, "failed": f"{type(error).__name__}: {str(error)[:400]}"})
    timers.pop(name, None)
    return None


def default_path(device: torch.device) -> Path:
    """A file for each kind of device."""
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return RESULTS / f"{slug}.json"


def device_name(device: torch.device) -> str:
    """As its maker calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else named()["processor"]


def write(path: Path, device: torch.device, name: str, entry: dict[str, Any]) -> None:
    """Keep the entry, so far, beside those of other settings on this device."""
    fresh: dict[str, Any] = {"device": device_name(device), "entries": {}}
    known = json.loads(path.read_text()) if path.exists() else fresh
    known["entries"][name] = entry
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=2) + "\n")


HEADER = (
    f"{'variant':58} {'tokens/s':>9} {'[slowest..fastest]':>20} {'slots':>7} {'MFU':>6} "
    f"{'GiB':>5} ours is"
)


def print_row(row: dict[str, Any], first: dict[str, Any]) -> None:
    """One variant, for a person."""
    if "failed" in row:
        print(f"{row['name'][:58]:58} {row['failed']}", flush=True)
        return
    low, high = row["slowest_and_fastest"]
    ratio = first.get("tokens_per_second", 0) / row["tokens_per_second"]
    again = row["recompiled_after_warm_up"]
    print(
        f"{row['name']:58} {row['tokens_per_second']:9,} {f'[{low:,}..{high:,}]':>20} "
        f"{row['slots']:7,} {row['utilisation']:6.1%} {(row['peak_bytes'] or 0) / 2**30:5.1f} "
        f"{ratio:7.2f}x" + f"  recompiled {again}" * bool(again),
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
