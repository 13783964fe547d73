"""Helpers for tests that run the scripts of data_prep: a tokenizer, text, shards read back."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

SCRIPTS = Path(__file__).parents[1] / "data_prep"
WORDS = ["tile", "row", "mosaic", "packs", "the", "of", "na\u00efve", "\u96c5", "def f():"]


def words(count, seed=0):
    rng = np.random.default_rng(seed)
    return " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), count))


def make_records(count=300, longest=90):
    return [{"id": f"r{i}", "text": words(5 + i % longest, seed=i)} for i in range(count)]


def write_jsonl(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in records))
    return path


def script(name):
    """A script of data_prep as a module; tokenize.py must not take the standard one's name."""
    spec = importlib.util.spec_from_file_location(f"data_prep_{name}", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def make_tokenizer(folder, vocab_size=320):
    """A byte-level BPE tokenizer with the four special tokens, in a folder."""
    train = script("train_tokenizer")
    train.save(train.train_bpe((row["text"] for row in make_records(100)), vocab_size), folder, 512)
    return folder


def call(name, *arguments, timeout=300, **environment):
    """Run a script as a person would; returns the finished process."""
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), *map(str, arguments)]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env)


def contents(folder):
    """Every file below a folder by its relative name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }
