"""A corpus, a model and a run so small that whole trainings fit into tests."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import tokenizers
import yaml

from tessera.data.preparation.mds_writer import write_shards
from tessera.tokenizer import load_tokenizer

REPOSITORY = Path(__file__).parents[1]
STARTED: list[subprocess.Popen] = []
"""Processes of the present test; what is left of them is killed when it ends."""
WORDS = 250
SPECIAL = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]


def make_corpus(folder: Path, *, documents: int = 240, seed: int = 0) -> Path:
    """Two sources of documents with frequent words, often repeated; and their tokenizer."""
    make_tokenizer(folder / "tokenizer")
    fingerprint = load_tokenizer(folder / "tokenizer").fingerprint
    for number, source in enumerate(("web", "code")):
        for split, count in (("train", documents), ("validation", 24)):
            rng = np.random.default_rng([seed, number, len(split)])
            write_shards(
                folder / source / split,
                [(f"{source}-{split}-{i}", _document(rng, number + 1)) for i in range(count)],
                vocab_size=WORDS + len(SPECIAL),
                tokenizer_fingerprint=fingerprint,
                shard_bytes=8192,
            )
    return folder


def make_tokenizer(folder: Path, *, words: int = WORDS) -> None:
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *(f"w{i}" for i in range(words))])}
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]")  # noqa: S106
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.add_special_tokens(SPECIAL)
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    folder.mkdir(parents=True)
    backend.save(str(folder / "tokenizer.json"))
    names = {f"{token[1:-1].lower()}_token": token for token in SPECIAL}
    (folder / "special_tokens_map.json").write_text(json.dumps(names))


def _document(rng: np.random.Generator, offset: int) -> np.ndarray:
    length = int(rng.integers(3, 90))
    ranks = 1 + (np.arange(WORDS) + 40 * offset) % WORDS
    drawn = rng.choice(WORDS, length, p=(1 / ranks) / (1 / ranks).sum())
    last_drawn = np.maximum.accumulate(np.where(rng.random(length) < 0.5, np.arange(length), 0))
    return (len(SPECIAL) + drawn[last_drawn]).astype(np.uint16)


def settings(corpus: Path, run_folder: Path, **changes: object) -> dict:
    """The YAML of a tiny phase as a dictionary; `changes` by dotted key with __ for the dot."""
    plain: dict = {
        "run_folder": str(run_folder),
        "duration": "8_000tok",
        "seed": 3,
        "tokenizer": str(corpus / "tokenizer"),
        "model": {
            "vocab_size": 256,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "local_attention": 16,
        },
        "train_data": {
            "sources": {
                "web": {"local": str(corpus / "web"), "weight": 0.6},
                "code": {"local": str(corpus / "code"), "weight": 0.4},
            },
            "max_seq_len": 64,
            "row_tokens": 128,
            "lanes": 4,
            "waiting_pieces": 16,
        },
        "batch": {"rows": 4, "microbatch_rows": 2},
        "optimizer": {"name": "stable_adamw", "lr": 0.01, "weight_decay": 1e-5},
        "schedule": {"name": "warmup_stable_decay", "warmup": "1_000tok", "decay": "1_000tok"},
        "evaluation": {"max_tokens": 1000},
        "compute": {"threads": 1},
        "logging": {"console_seconds": 0.0},
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        section = plain
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    if not plain["duration"].endswith("tok") and "schedule" not in changes:
        plain["schedule"] = {"name": "constant"}
    return plain


def write_yaml(path: Path, plain: dict) -> Path:
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    return path


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "WANDB_SILENT": "true"}


def start(
    yaml_path: Path,
    *overrides: str,
    ranks: int | None = None,
    script: Path = REPOSITORY / "main.py",
    **variables: str,
) -> subprocess.Popen:
    """`python main.py`, or under Composer's launcher if a number of ranks is given."""
    launcher = [] if ranks is None else ["-n", str(ranks)]
    arguments = [str(script), str(yaml_path), *overrides]
    return launch(launcher, *arguments, cwd=yaml_path.parent, **variables)


def launch(launcher: list[str], *arguments: str, cwd: Path, **variables: str) -> subprocess.Popen:
    """A script and its arguments, under Composer's launcher if that is given any of its own."""
    command = [sys.executable, *(["-m", "composer.cli.launcher", *launcher] if launcher else [])]
    process = subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**environment(), **variables},
        cwd=cwd,
    )
    STARTED.append(process)
    return process


def metrics(run_folder: Path, kind: str = "step") -> list[dict]:
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


TIMED = (
    "step_seconds",
    "tokens_per_second",
    "mfu",
    "loader_wait_seconds",
    "graphs_compiled",
    "seconds",
)


def untimed(records: list[dict]) -> list[dict]:
    """Records without what depends on the machine and the process."""
    return [{k: v for k, v in record.items() if k not in TIMED} for record in records]


def train(plain: dict) -> int:
    """A whole run in this process; returns its exit status."""
    from tessera.config import decode
    from tessera.training.config import RunConfig
    from tessera.training.run import build_run

    return build_run(decode(RunConfig, plain, "test")).fit()


def train_until(plain: dict, step: int) -> int:
    """Train in this process; a signal comes while that step is made. Returns the exit status."""
    from composer.core import Callback, State
    from composer.loggers import Logger

    from tessera.config import decode
    from tessera.training.config import RunConfig
    from tessera.training.run import build_run

    run = build_run(decode(RunConfig, plain, "test"))

    class Signal(Callback):
        def after_train_batch(self, state: State, logger: Logger) -> None:
            if int(state.timestamp.batch) == step - 1:
                run.stop.signal = signal.SIGTERM

    run.trainer.state.callbacks.insert(0, Signal())
    return run.fit()


def read(run_folder: Path, step: int | None = None) -> dict:
    """Composer's state in a checkpoint; the newest if no step is given."""
    from tessera.checkpoints.safe_files import load_pickled_tensors
    from tessera.training.run_folder import checkpoint_path

    path = run_folder / "checkpoints" / "latest"
    return load_pickled_tensors(checkpoint_path(run_folder, step) if step else path)["state"]


def same_training_state(one: dict, other: dict) -> bool:
    """Whether weights, moments, clock and our record are bit for bit the same."""
    import torch

    def flat(value):
        if isinstance(value, dict):
            return {k: flat(v) for k, v in value.items()}
        if isinstance(value, torch.Tensor):
            return (str(value.dtype), value.numpy().tobytes())
        return [flat(v) for v in value] if isinstance(value, list) else value

    records = [dict(state["callbacks"]["RunRecord"]) for state in (one, other)]
    for record in records:
        config = json.loads(record["run_config"])
        record["run_config"] = {k: v for k, v in config.items() if k != "run_folder"}
    clocks = [
        {k: v for k, v in state["timestamp"]["Timestamp"].items() if "wct" not in k}
        for state in (one, other)
    ]
    return (
        records[0] == records[1]
        and clocks[0] == clocks[1]
        and all(flat(one[part]) == flat(other[part]) for part in ("model", "optimizers"))
    )
