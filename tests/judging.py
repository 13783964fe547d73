"""Tiny encoders and labelled data, for tests that judge models."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import tiny_run
import yaml

from tessera.config import decode
from tessera.evaluation.jobs.models import Model
from tessera.evaluation.jobs.records import Job
from tessera.evaluation.suites import SuiteConfig

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


def job(folder, plain, **changes):
    """A job of one task on the encoder of a folder, at one point of the grid."""
    suite = decode(SuiteConfig, {"tasks": {"t": plain}}, "test")
    model = Model(name="m", source=str(folder), folder=str(folder), random=False, fingerprint="f")
    point = {"lr": 3e-3, "weight_decay": 0.0, "epochs": 2}
    given = {"model": model, "task_name": "t", "task": suite.tasks["t"], "seed": 1, "inputs": ""}
    return Job(**{**given, "point": point, **changes})


def make_search(folder: Path, *, seed: int = 1, count: int = 40) -> dict[str, str]:
    """Documents of twelve words, and queries that are some of a document's words.

    The paths of `queries`, `documents`, `relevance` (whose last line names nobody) and `train`.
    """
    draw = random.Random(seed)
    documents = [{"id": f"d{i}", "text": " ".join(draw.choices(WORDS, k=12))} for i in range(count)]
    queries, relevance, pairs = [], [], []
    for number, document in enumerate(documents):
        words = document["text"].split()
        queries.append({"id": f"q{number}", "text": " ".join(draw.sample(words, 4))})
        relevance.append({"query": f"q{number}", "document": document["id"], "score": 2})
        if number % 3 == 0:
            other = f"d{(number + 1) % count}"
            relevance.append({"query": f"q{number}", "document": other, "score": 1})
        pairs.append({"query": queries[-1]["text"], "positive": document["text"]})
    relevance.append({"query": "nobody", "document": "d0", "score": 1})
    made = {"queries": queries, "documents": documents, "relevance": relevance, "train": pairs}
    return {name: str(write_rows(folder / f"{name}.jsonl", rows)) for name, rows in made.items()}


def gains_of(relevance: list[dict], count: int = 40) -> np.ndarray:
    """(queries, documents) scores of `make_search`'s relevance."""
    gains = np.zeros((count, count))
    for row in relevance[:-1]:
        gains[int(row["query"][1:]), int(row["document"][1:])] = row["score"]
    return gains


def read_rows(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def vectors(folder, texts):
    """Means of the last hidden states, by transformers, one text at a time."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModel.from_pretrained(folder).eval(),
    )
    with torch.inference_mode():
        found = [
            model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
            for text in texts
        ]
    return torch.nn.functional.normalize(torch.stack(found), dim=-1).double().numpy()


def ndcg_at_10(similar, gains):
    """Mean over queries of sum(gain / log2(rank + 1)) over its best possible value."""
    values = []
    for row, gain in zip(similar, gains, strict=True):
        ranked = gain[np.argsort(-row)][:10]
        ideal = np.sort(gain)[::-1][:10]
        weights = 1 / np.log2(np.arange(2, 2 + len(ranked)))
        values.append((ranked * weights).sum() / (ideal * weights).sum())
    return float(np.mean(values))


def use_hub(folder: Path, monkeypatch) -> Path:
    """Make a folder this process's cache of the hub."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder.parent / "datasets"))
    return folder


def put_on_hub(
    hub: Path, name: str, tables: dict[str, dict[str, list[dict]]], revision: str, ref: str = "main"
) -> Path:
    """A data set as `hf download` leaves it in a cache: rows by subset and split, and a README."""
    import pyarrow
    import pyarrow.parquet

    folder = hub / f"datasets--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / revision
    (folder / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / ref).write_text(revision)
    about = "---\nconfigs:\n"
    for subset, splits in tables.items():
        about += f"- config_name: {subset}\n  data_files:\n"
        (snapshot / subset).mkdir(parents=True)
        for split, rows in splits.items():
            file = snapshot / subset / f"{split}-00000-of-00001.parquet"
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
            about += f"  - {{split: {split}, path: {subset}/{split}-*}}\n"
    (snapshot / "README.md").write_text(about + "---\n")
    return snapshot


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
