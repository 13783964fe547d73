"""Tiny encoders and labelled data, for tests that judge models."""

import json
import random
import subprocess
import sys
from pathlib import Path

import tiny_run
import yaml

WORDS = [f"w{i}" for i in range(tiny_run.WORDS)]


def make_encoder(folder: Path, *, seed: int = 0, weights: float = 0.02) -> Path:
    """A ModernBERT of plain transformers, with random weights and a tokenizer of 250 words."""
    import torch
    from transformers import AutoModelForMaskedLM, ModernBertConfig

    from tessera.tokenizer import files_for_transformers, load_tokenizer

    tiny_run.make_tokenizer(folder / "made")
    files = load_tokenizer(folder / "made").framed_files()
    for name, text in files_for_transformers(files, 128).items():
        (folder / name).write_text(text)
    torch.manual_seed(seed)
    config = ModernBertConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        initializer_range=weights,
        num_attention_heads=2,
        local_attention=16,
        max_position_embeddings=128,
        pad_token_id=3,
        cls_token_id=1,
        sep_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
        classifier_pooling="mean",
    )
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_texts(folder: Path, *, rows: int = 96, seed: int = 0) -> Path:
    """`train`, `validation` and `test` of texts whose class is told by one word: even or odd."""
    draw = random.Random(seed)
    for split, count in (("train", rows), ("validation", 32), ("test", 32)):
        made = []
        for number in range(count):
            label = number % 2
            words = draw.choices(WORDS[20:], k=draw.randint(3, 12))
            words.insert(draw.randrange(len(words)), WORDS[label])
            made.append({"text": " ".join(words), "label": ["even", "odd"][label]})
        write_rows(folder / f"{split}.jsonl", made)
    return folder


def classification(folder: Path, **changes: object) -> dict:
    """The YAML of a classification task on `make_texts`."""
    training = {"lr": [3e-3], "epochs": [2], "batch": 16}
    splits = {name: str(folder / f"{name}.jsonl") for name in ("train", "validation", "test")}
    return {"name": "classification", **splits, "max_tokens": 32, "training": training, **changes}


def write_suite(path: Path, tasks: dict, seeds: list[int] | None = None) -> Path:
    path.write_text(yaml.safe_dump({"tasks": tasks, "seeds": seeds or [1, 2]}, sort_keys=False))
    return path


def start(*arguments: object, cwd: Path, **environment: str) -> subprocess.Popen:
    """The command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tessera.cli.main", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**tiny_run.environment(), "CUDA_VISIBLE_DEVICES": "", **environment},
        cwd=cwd,
        start_new_session=True,
    )


def call(*arguments: object, cwd: Path, **environment: str) -> tuple[int, str]:
    """Run a command to its end: its status and what it said."""
    process = start(*arguments, cwd=cwd, **environment)
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def entries(out: Path) -> dict[tuple[str, str], dict]:
    """results.json by model and task."""
    content = json.loads((out / "results.json").read_text())
    return {(entry["model"], entry["task"]): entry for entry in content["entries"]}
