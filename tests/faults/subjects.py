"""What is edited, the command that then reads it, and what its answer should be.

Each subject starts from the same folder: a tiny corpus (raw, compressed, remote), its tokenizer, a
run that has ended in the middle, exports of it, a FlexBERT checkpoint, texts of every format, and
the YAMLs that are shipped.
"""

import hashlib
import json
import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import preparing
import tiny_run

from faults import texts
from faults.edits import edit_file_bytes, edit_json, edit_yaml
from faults.start import clean, tessera, tokenize, train

FREE_NAMES = {"sources", "data"}
"""Sections, and folders of YAMLs, whose keys anybody may choose."""


@dataclass(frozen=True)
class Edited:
    """What was done to a case's folder."""

    what: str
    must_refuse: bool = False
    """A key was made up: nothing may accept it."""
    same: bool = True
    """Whether an answer, if there is one, must be that of the folder before the edit."""


@dataclass(frozen=True)
class Subject:
    """One kind of file and what reads it. All are called in a process of their own, in a copy."""

    edit: Callable[[random.Random], Edited]
    """Changes files of the current folder."""
    run: Callable[[random.Random], int]
    """The real entry point; the dice choose among several."""
    answer: Callable[[str], Any] = lambda output: None
    """What is to be the same as before the edit: from the output and the current folder."""
    compared: bool = True
    """Whether `answer` is compared with that of the unedited folder, rather than with None."""
    seconds: float = 30.0


# ---- YAMLs


def _edit_a_yaml(paths: list[Path]) -> Callable[[random.Random], Edited]:
    def edit(dice: random.Random) -> Edited:
        path = dice.choice(paths)
        what, made_up = edit_yaml(dice, path)
        section = made_up[-2] if len(made_up) > 1 else path.parent.name
        strange = len(made_up) > 0 and section not in FREE_NAMES
        return Edited(what, must_refuse=strange and "extends" not in str(made_up[-1]), same=False)

    return edit


PHASES = [
    *("phase1.yaml", "phase2.yaml", "phase3.yaml", "anneal.yaml", "prolong.yaml"),
    *("demo/phase1.yaml", "demo/phase2.yaml", "demo/anneal.yaml", "demo/recipe.yaml"),
    *("large/phase1.yaml", "large/phase3.yaml"),
]
_CHOSEN = Path("chosen")


def _edit_shipped(dice: random.Random) -> Edited:
    """Edit a phase or what it extends; which phase is then checked is noted beside."""
    from tessera.config import defined_in

    phase = Path("shipped/yamls", dice.choice(PHASES))
    files, left = [], [phase]
    while left:
        path = left.pop()
        files.append(path)
        for name in re.findall(r"extends: *([\w./-]+\.yaml)", path.read_text()):
            left.append(path.parent / name)
    assert defined_in(phase, "run_folder") is not None
    _CHOSEN.write_text(str(phase.relative_to("shipped")))
    return _edit_a_yaml(files)(dice)


def _check_shipped(dice: random.Random) -> int:
    import os

    phase = _CHOSEN.read_text() if _CHOSEN.exists() else "yamls/phase1.yaml"
    os.chdir("shipped")
    begun = [] if dice.random() < 0.2 else ["start_from=null", "initial_weights=null"]
    other = [] if "demo" in phase else ["tokenizer=./tokenizer"]
    return tessera("check", phase, *begun, *other, "--world-size", str(dice.choice([1, 1, 8])))


def _edit_recipe(dice: random.Random) -> Edited:
    return _edit_a_yaml([Path("shipped/recipes/pretrain.yaml")])(dice)


def _read_recipe(dice: random.Random) -> int:
    """What tokenize.py would do, without the network that it would do it with."""
    from tessera.config import ConfigError

    module = preparing.script("tokenize")
    sys.argv = ["tokenize.py", "--config", "shipped/recipes/pretrain.yaml"]
    try:
        module.config_of(module.parse_arguments())
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


# ---- shards, indexes, manifests


def _shard_files(*below: str) -> list[Path]:
    return [
        path
        for folder in below
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
        and ("index.json" in path.name or "tessera.json" in path.name or "mds" in path.name)
    ]


def _edit_shards(dice: random.Random) -> Edited:
    path = dice.choice(_shard_files("corpus", "store"))
    what = edit_json(dice, path) if path.suffix == ".json" else edit_file_bytes(dice, path)
    return Edited(f"{path.parent}: {what}")


def _use_shards(dice: random.Random) -> int:
    command = dice.choice(["batches", "batches", "check", "inspect"])
    if command == "inspect":
        return tessera(
            "data", "inspect", dice.choice(["corpus", "corpus/web/train", "corpus/packed"])
        )
    return tessera(
        command, "fresh.yaml", *(["--steps", "9", "--ids"] if command == "batches" else [])
    )


def _told(output: str) -> Any:
    """Lines that depend on documents alone; those of a manifest may be other ones."""
    changing = ("columns", "manifest", "shards", "trained on", "to train", "can be", "one row")
    lines = [line for line in output.splitlines() if not line.startswith(changing)]
    return [line for line in lines if not re.search(r"warning|source '|tokenizer", line)]


def _evaluate(dice: random.Random) -> int:
    return tessera("evaluate", "model", "--config", "phase.yaml", "--fill", "w1 [MASK] w3")


# ---- checkpoints and models


def _export(dice: random.Random) -> int:
    command = dice.choice(["export", "export", "import", "merge", "evaluate"])
    newest = sorted(Path("run/checkpoints").glob("step*.pt"))[-1]
    if command == "export":
        return tessera("export", str(dice.choice(["run", newest])), "--out", "made")
    if command == "import":
        return tessera("import", str(newest), "--out", "made.pt")
    if command == "merge":
        return tessera(
            "merge", *sorted(map(str, Path("run/checkpoints").glob("step*.pt"))), "--out", "made.pt"
        )
    return tessera("evaluate", "run", "--config", "phase.yaml")


def _edit_bytes_of(*patterns: str) -> Callable[[random.Random], Edited]:
    def edit(dice: random.Random) -> Edited:
        found = sorted(p for pattern in patterns for p in Path(".").glob(pattern) if p.is_file())
        path = dice.choice(found)
        return Edited(f"{path.parent}/" + edit_file_bytes(dice, path))

    return edit


def _weights(output: str) -> Any:
    """Digests of the tensors that were made."""
    import torch
    from safetensors.torch import load_file

    tensors: dict = {}
    if Path("made/model.safetensors").exists():
        tensors = load_file("made/model.safetensors")
    elif Path("made.pt").exists():
        tensors = torch.load("made.pt", weights_only=False)["state"]["model"]
    made = {name: hashlib.sha256(t.numpy().tobytes()).hexdigest() for name, t in tensors.items()}
    return made or [line for line in output.splitlines() if "warning" not in line]


def _edit_state(dice: random.Random) -> Edited:
    """Edit what a checkpoint says beside its tensors, and save it as torch does."""
    import torch

    from faults.edits import edit_plain

    path = sorted(Path("half/checkpoints").glob("step*.pt"))[-1]
    state = torch.load(path, weights_only=False)
    _, what, _ = edit_plain(dice, dice.choice([state, state["state"], state["state"]["callbacks"]]))
    path.unlink()
    torch.save(state, path)
    return Edited(what, same=False)


def _use_state(dice: random.Random) -> int:
    newest = str(sorted(Path("half/checkpoints").glob("step*.pt"))[-1])
    command = dice.choice(["export", "import", "check", "start"])
    if command == "check":
        return tessera("check", "phase.yaml", "run_folder=half")
    if command == "start":
        return tessera("check", "next.yaml", f"start_from={newest}")
    return tessera(command, newest, "--out", "made" if command == "export" else "made.pt")


def _edit_model(dice: random.Random) -> Edited:
    path = dice.choice(sorted(p for p in Path("model").iterdir() if p.is_file()))
    what = edit_json(dice, path) if path.suffix == ".json" else edit_file_bytes(dice, path)
    return Edited(what, same=False)


def _use_model(dice: random.Random) -> int:
    command = dice.choice(["evaluate", "fill", "import", "start"])
    if command == "evaluate":
        return tessera("evaluate", "model", "--config", "phase.yaml")
    if command == "fill":
        return tessera("evaluate", "model", "--fill", "w1 [MASK] w3")
    if command == "start":
        return tessera("check", "next.yaml", "start_from=model")
    return tessera("import", "model", "--out", "made.pt")


def _use_flexbert(dice: random.Random) -> int:
    return tessera("import", "flexbert.pt", "--out", "made.pt")


# ---- a run that goes on


def _edit_run(dice: random.Random) -> Edited:
    path = dice.choice(sorted(p for p in Path("half").rglob("*") if p.is_file()))
    if path.name == "latest":
        path.unlink()
        path.symlink_to(dice.choice(["nowhere.pt", "latest", "..", "/etc/passwd", "config.yaml"]))
        return Edited("latest points elsewhere")
    if path.suffix in (".json", ".yaml") and dice.random() < 0.7:
        edit = edit_json if path.suffix == ".json" else lambda d, p: edit_yaml(d, p)[0]
        return Edited(edit(dice, path))
    return Edited(edit_file_bytes(dice, path))


def _go_on(dice: random.Random) -> int:
    return train("phase.yaml", "run_folder=half")


def _steps(output: str) -> Any:
    records = [json.loads(line) for line in Path("half/metrics.jsonl").read_text().splitlines()]
    return tiny_run.untimed([record for record in records if record["kind"] == "step"])


def _report(dice: random.Random) -> int:
    return tessera("report", "half", "--out", "report.html")


def _train_edited(dice: random.Random) -> int:
    """Train for a few seconds on a YAML that was edited; one that wants longer is told to stop."""
    import signal
    import threading

    def stop() -> None:
        import os

        os.kill(os.getpid(), signal.SIGTERM)

    timer = threading.Timer(15, stop)
    timer.daemon = True
    timer.start()
    return train("phase.yaml", "compute.threads=1")


# ---- tokenizers, texts


def _edit_tokenizer(dice: random.Random) -> Edited:
    path = dice.choice(sorted(Path("corpus/tokenizer").iterdir()))
    return Edited(edit_json(dice, path) if dice.random() < 0.8 else edit_file_bytes(dice, path))


def _use_tokenizer(dice: random.Random) -> int:
    command = dice.choice(["check", "batches", "inspect"])
    if command == "check":
        return tessera("check", "fresh.yaml")
    if command == "batches":
        return tessera("batches", "fresh.yaml", "--steps", "5", "--ids")
    return tessera("data", "inspect", "corpus/web/train", "--tokenizer", "corpus/tokenizer")


def _edit_words(dice: random.Random) -> Edited:
    path = dice.choice(sorted(Path("words/tokenizer").iterdir()))
    return Edited(
        edit_json(dice, path) if dice.random() < 0.8 else edit_file_bytes(dice, path), same=False
    )


def _tokenize_words(dice: random.Random) -> int:
    options = ["--tokenizer", "words/tokenizer", "--out", "out", "--validation-share", "0.3"]
    return tokenize("x=texts/lines.jsonl", *options)


def _edit_text(dice: random.Random) -> Edited:
    path = dice.choice(sorted(p for p in Path("texts").rglob("*") if p.is_file()))
    _CHOSEN.write_text(str(texts.input_of(path)))
    return Edited(edit_file_bytes(dice, path))


def _tokenize_text(dice: random.Random) -> int:
    chosen = _CHOSEN.read_text() if _CHOSEN.exists() else "texts/lines.jsonl"
    options = ["--tokenizer", "words/tokenizer", "--out", "out", "--validation-share", "0.3"]
    return tokenize(f"x={chosen}", *options, "--part-size", dice.choice(["1kb", "64mb"]))


def _count_documents(output: str) -> Any:
    return texts.disagreement(Path(_CHOSEN.read_text()), Path("out/x"), output)


def _clean_text(dice: random.Random) -> int:
    chosen = _CHOSEN.read_text() if _CHOSEN.exists() else "texts/lines.jsonl"
    options = ["--out", "out", "--work", "work", "--workers", "1"]
    return clean(f"x={chosen}", *options, "--duplicates", dice.choice(["exact", "minhash"]))


def _count_cleaned(output: str) -> Any:
    """Of every document it is said what became of it."""
    counted = json.loads(Path("out/cleaning.json").read_text())["splits"]
    ours = sum(split["documents"] for split in counted)
    return texts.difference(ours, Path(_CHOSEN.read_text()))


SUBJECTS = {
    "shipped YAMLs": Subject(_edit_shipped, _check_shipped),
    "recipes": Subject(_edit_recipe, _read_recipe),
    "shards": Subject(_edit_shards, _use_shards, _told),
    "validation": Subject(_edit_shards, _evaluate, _told),
    "checkpoints": Subject(_edit_bytes_of("run/checkpoints/step*.pt"), _export, _weights),
    "state": Subject(_edit_state, _use_state),
    "models": Subject(_edit_model, _use_model),
    "FlexBERT": Subject(_edit_bytes_of("flexbert.pt"), _use_flexbert, _weights),
    "reports": Subject(_edit_run, _report),
    "tokenizers": Subject(_edit_tokenizer, _use_tokenizer, _told),
    "words": Subject(_edit_words, _tokenize_words),
    "texts": Subject(_edit_text, _tokenize_text, _count_documents, compared=False),
    "resuming": Subject(_edit_run, _go_on, _steps, seconds=90),
    "training": Subject(_edit_a_yaml([Path("phase.yaml")]), _train_edited, seconds=90),
}
DEAR: tuple[str, ...] = ("resuming", "training")
"""Seconds a case rather than tenths."""
if find_spec("datatrove"):  # of the extra `data`
    cleaning = Subject(_edit_text, _clean_text, _count_cleaned, compared=False, seconds=60)
    SUBJECTS["cleaning"], DEAR = cleaning, (*DEAR, "cleaning")
