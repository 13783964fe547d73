"""`tessera check`: what YAMLs would run and need, at a glance, and everything wrong with them."""

import argparse
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tessera import fetch
from tessera.cli.arguments import add_config, at_least
from tessera.config import (
    ConfigError,
    decode_file,
    defined_in,
    load_plain,
    refusal,
    to_plain,
)
from tessera.paths import is_remote
from tessera.training.config import RunConfig
from tessera.training.remote.remote_run import has_begun
from tessera.training.start.inherited import RECIPE, Taken, fill

if TYPE_CHECKING:
    from tessera.checkpoints.checkpoint import Checkpoint
    from tessera.planning.plan import Hardware, Plan
    from tessera.training.resume import Saved

HELP = "What YAMLs would run and need, or everything that is wrong with them."


@dataclass(kw_only=True)
class Checked:
    """One YAML, looked at."""

    path: str
    problems: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    lines: dict[str, str] = field(default_factory=dict)
    """The recipe and what it needs; empty if its values are wrong."""
    config: RunConfig | None = None
    plan: "Plan | None" = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    add_config(parser, several=True)
    parser.add_argument("--world-size", type=int, default=1, metavar="N", help="GPUs in all")
    parser.add_argument(
        "--gpu", metavar="NAME", help="h100, h200, b200, a100-40, a100-80, l40s or 4090"
    )
    parser.add_argument("--price", type=float, metavar="X", help="of a GPU-hour")
    parser.add_argument(
        "--utilisation", type=float, metavar="X", help="share of the GPU's operations (0.25)"
    )
    parser.add_argument("--json", action="store_true", help="for programs; exit status as ever")


def run(options: argparse.Namespace) -> None:
    """Print each phase, or several as one run; then say what is wrong.

    Raises:
        ConfigError: with every problem of every YAML.
    """
    hardware = _hardware(options)
    paths = [options.config]
    paths += [word for word in options.overrides if _is_yaml(word)]
    overrides = [word for word in options.overrides if not _is_yaml(word)]
    found: list[Checked] = []
    for path in paths:
        before = [each.config for each in found if each.config is not None]
        found.append(check(path, overrides, hardware, before))
    if options.json:
        print(json.dumps({"phases": [_as_json(each) for each in found]}, indent=2))
    else:
        page = _page(found)
        print("\n".join(page) + "\n" * bool(page), end="", flush=True)
    if said := _refusals(found):
        raise ConfigError("\n".join(said))


def check(
    path: str, overrides: Sequence[str], hardware: "Hardware", before: Sequence[RunConfig] = ()
) -> Checked:
    """Look at one YAML; what it would continue from may be what phases `before` it will write.

    Raises:
        ConfigError: it is no YAML.
    """
    plain, taken = fill(load_plain(path, overrides), [to_plain(config) for config in before])
    try:
        config = decode_file(RunConfig, plain, path, overrides)
    except ConfigError as error:
        from tessera.training.preflight import missing_files

        problems = [*error.problems, *missing_files(plain)]
        return Checked(path=path, problems=[_located(p, path, overrides) for p in problems])
    return _checked(config, path, overrides, hardware, before, taken)


def describe(config: RunConfig, origin: str, world_size: int, overrides: Sequence[str] = ()) -> str:
    """The page of one phase.

    Raises:
        ConfigError: with every problem, if it would not run on `world_size` ranks.
    """
    from tessera.planning.plan import Hardware

    found = _checked(config, origin, overrides, Hardware(world_size=world_size), ())
    if found.problems:
        raise refusal(origin, found.problems)
    return "\n".join(_page([found]))


def _checked(
    config: RunConfig,
    path: str,
    overrides: Sequence[str],
    hardware: "Hardware",
    before: Sequence[RunConfig],
    taken: Taken | None = None,
) -> Checked:
    from tessera.planning.mixture import mixture_lines
    from tessera.planning.plan import lines_of, plan_of
    from tessera.planning.recipe import recipe_lines
    from tessera.training.preflight import examine

    saved, damaged = _saved(config)
    findings = examine(config, hardware.world_size, resuming=saved is not None, planned=before)
    problems, doubts = list(findings.problems), list(findings.doubts)
    if damaged and saved is None:
        problems += [f"run_folder: {each}" for each in damaged]
        problems.append(
            f"run_folder: none of the checkpoints in {config.folder} can be read. To begin this "
            "phase again from its start, move the run folder away"
        )
    elif saved is not None:
        doubts += [
            f"run_folder: {each}; it would be set aside, and {saved.path.name} gone on from"
            for each in damaged
        ]
    changes: list[str] = []
    if saved is not None:
        from tessera.training.rate_jump import cut_short, describe_jump
        from tessera.training.resume import data_changes, resumable, skipped_too_late

        try:
            changes = resumable(config, saved)
            if not problems and not saved.done(config.duration):
                changes += data_changes(config, saved)
            doubts += skipped_too_late(config, saved)
        except ValueError as error:
            problems.append(str(error))
        jump = describe_jump(config, saved.run_config, saved.progress)
        if saved.done(config.duration):
            jump = cut_short(config, saved.run_config, saved.progress)
        doubts += [jump] if jump else []
    begins = _start(config, findings.origin) if saved is None else _continuation(config, saved)
    if taken is not None and taken.keys:
        begins += f"\n{', '.join(taken.keys)}: not in the YAML, as in {taken.place}"
        if taken.place == RECIPE:  # what is not there may bring another tokenizer
            problems = [problem for problem in problems if not problem.startswith("tokenizer:")]
    plan = plan_of(config, findings.readings, hardware)
    lines = recipe_lines(config, hardware.world_size, begins)
    lines["data"] = "\n".join([lines["data"], *mixture_lines(findings.readings)])
    lines |= lines_of(plan)
    if changes:
        lines["changed"] = "\n".join(changes)
    return Checked(
        path=path,
        problems=[_located(problem, path, overrides) for problem in problems],
        doubts=[*doubts, *plan.doubts()],
        lines=lines,
        config=config,
        plan=plan,
    )


def _hardware(options: argparse.Namespace) -> "Hardware":
    from tessera.planning.gpus import gpu_of
    from tessera.planning.plan import Hardware

    used, price = options.utilisation, options.price
    if used is not None and not 0 < used <= 1:
        raise ConfigError(f"--utilisation is a share, in (0, 1]; got {used:g}")
    if price is not None and not price >= 0:
        raise ConfigError(f"--price must not be negative; got {price:g}")
    return Hardware(
        world_size=at_least(1, "--world-size", options.world_size),
        gpu=None if options.gpu is None else gpu_of(options.gpu),
        utilisation=used,
        price=price,
    )


def _is_yaml(word: str) -> bool:
    return "=" not in word and word.endswith((".yaml", ".yml"))


def _page(found: Sequence[Checked]) -> list[str]:
    """One phase in its lines; several in a table, with curves and what each is warned of."""
    if len(found) == 1:
        lines = dict(found[0].lines)
        if found[0].doubts:
            lines["warning"] = "\n".join(found[0].doubts)
        width = max(map(len, lines), default=0) + 2
        margin = "\n" + " " * width  # what is several things stands one below the other
        return [f"{name:<{width}}{text.replace(chr(10), margin)}" for name, text in lines.items()]
    from tessera.planning.chain import chain_lines

    plans = [each.plan for each in found if each.plan is not None]
    page = chain_lines(plans) if plans else []
    return [*page, *(f"warning  {each.path}: {text}" for each in found for text in each.doubts)]


def _refusals(found: Sequence[Checked]) -> list[str]:
    """What is wrong with each YAML; what several have in common is said once."""
    said: set[str] = set()
    texts = []
    for each in found:
        bare = {problem: re.sub(r" \(from [^)]*\):", ":", problem) for problem in each.problems}
        new = [problem for problem in each.problems if bare[problem] not in said]
        again = len(each.problems) - len(new)
        said |= set(bare.values())
        if again:
            new.append(f"{again} said above")
        if each.problems:
            texts.append(
                str(refusal(each.path, new))
                if new[:-1] or not again
                else f"{each.path}: the same {again} problems"
            )
    return texts


def _as_json(checked: Checked) -> dict:
    from tessera.planning.plan import plan_json

    return {
        "yaml": checked.path,
        "problems": checked.problems,
        "warnings": checked.doubts,
        "plan": None if checked.plan is None else plan_json(checked.plan),
    }


def _located(problem: str, origin: str, overrides: Sequence[str]) -> str:
    """The problem, with the file its key stands in if that is another one than `origin`."""
    key, colon, text = problem.partition(":")
    if not re.fullmatch(r"[\w.]+", key) or any(o.startswith(key) for o in overrides):
        return problem
    path = defined_in(Path(origin), key)
    if path is None or path == Path(origin):
        return problem
    return f"{key} (from {os.path.normpath(path)}){colon}{text}"


def _saved(config: RunConfig) -> tuple["Saved | None", list[str]]:
    """What the phase would resume from, and what is damaged; nothing is renamed, as training would.

    Of a run folder in an object store the checkpoint is fetched, and compared with its checksum.
    """
    from tessera.files import zip_damage
    from tessera.training.run_folder import checkpoints

    damaged: list[str] = []
    path = None
    here = [] if config.is_cached else list(checkpoints(config.folder).values())
    for newest in reversed(here):
        problem = zip_damage(newest)
        if problem is None:
            path = newest
            break
        damaged.append(f"{newest} {problem}")
    if path is None and config.remote is not None and has_begun(config):
        from tessera.checkpoints.reader import locate

        path = locate(fetch.local(config.remote))
    if path is None:
        return None, damaged
    from tessera.training.resume import read

    return read(path), damaged


def _continuation(config: RunConfig, saved: "Saved") -> str:
    if saved.done(config.duration):
        return f"nothing: complete already, in {saved.path.name}"
    steps, tokens = saved.progress["steps"], saved.progress["tokens"]
    return f"{saved.path}: resumes after {steps:,} steps, {tokens:,} tokens"


def _start(config: RunConfig, origin: "Checkpoint | None") -> str:
    if config.initial_weights is not None:
        return f"tiles of {config.initial_weights.tile} ({config.initial_weights.mode})"
    if config.start_from is None:
        return "random weights"
    if origin is None:
        place = config.start_from.checkpoint
        there = is_remote(place) or Path(place).exists()
        return f"{place}, which {'cannot be read' if there else 'is not there yet'}"
    from tessera.checkpoints.history import decayed

    both = config.start_from.optimizer and origin.optimizer is not None
    carried = "weights and optimizer" if both else "weights"
    rate = origin.learning_rate
    stopped = f"; it stopped at lr {rate:g}" if rate is not None else ""
    peak = origin.progress.get("max_lr")
    if rate is not None and peak and decayed(origin):
        stopped += f", decayed from {peak:g}: a checkpoint before its decay is better to go on from"
    return f"{carried} of {config.start_from.checkpoint}{stopped}"
