"""The tasks a model is judged by, each recomputed by hand; and their data, wherever it lies."""

import fcntl
import json
import math
import random
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from judging import (
    WORDS,
    classification,
    job,
    make_encoder,
    make_search,
    make_texts,
    ndcg_at_10,
    put_on_hub,
    use_hub,
    vectors,
    write_rows,
)

from tessera.evaluation.jobs.records import Records
from tessera.evaluation.jobs.work import JudgeWork
from tessera.evaluation.tasks.inputs import tables
from tessera.evaluation.tasks.memory import halving


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    make_encoder(folder / "model")
    make_texts(folder / "texts")
    return folder


# ---- data


ROWS = [{"text": "a, b", "label": 1}, {"text": "c\nd", "label": 0}]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv", "jsonl.gz"])
def test_rows_are_the_same_out_of_every_format(tmp_path, kind):
    import gzip

    import pyarrow
    import pyarrow.parquet

    file = tmp_path / f"rows.{kind}"
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if kind == "jsonl":
        file.write_text(lines)
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    elif kind == "csv":
        file.write_text('text,label\n"a, b",1\n"c\nd",0\n')
    else:
        file.write_bytes(gzip.compress(lines.encode()))
    read = tables.read_split(str(file), ["text", "label"])
    assert [row["text"] for row in read] == ["a, b", "c\nd"]
    assert [int(row["label"]) for row in read] == [1, 0]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"text": "x"}\n', "has no column 'label'; row 0 has text"),
        ("a.jsonl", '{"text": "x", "label": null}\n', "row 0 has nothing in column 'label'"),
        ("a.jsonl", "", "holds no rows"),
        ("a.jsonl", '{"text": "x", "label": 1}\nno json\n', "a.jsonl: "),
        ("a.xlsx", "x", "is read as .jsonl, .parquet, .csv or .tsv"),
        ("a.csv", "text,label\nx\n", "line 2 has 1 cells"),
        ("a.parquet", "no parquet", "a.parquet: "),
    ],
)
def test_data_that_cannot_be_read_is_named(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError) as raised:
        tables.read_split(str(tmp_path / name), ["text", "label"])
    assert says in str(raised.value) and name in str(raised.value)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub's cache with the layout that `hf download nyu-mll/glue` leaves, in small."""
    folder = use_hub(tmp_path / "hub", monkeypatch)
    rows = {
        split: [{"sentence1": f"w{i}", "sentence2": split, "label": i % 2} for i in range(6)]
        for split in ("train", "validation")
    }
    put_on_hub(folder, "nyu-mll/glue", {"rte": rows}, "abc123")
    return folder


def test_a_data_set_of_the_hub_is_read_out_of_its_cache(hub):
    where = "hf://datasets/nyu-mll/glue/rte/validation"
    rows = tables.read_split(where, ["sentence1", "label"])
    assert [(row["sentence1"], row["label"]) for row in rows[:2]] == [("w0", 0), ("w1", 1)]
    assert {row["sentence2"] for row in rows} == {"validation"} and len(rows) == 6
    assert tables.look_at(where, []) == "abc123"
    both = tables.read_split("hf://datasets/nyu-mll/glue/rte/train+validation", ["label"])
    assert len(both) == 12
    columns = tables.read_columns(where, ["sentence1", "label"], ["label"], limit=4)
    assert columns == {"label": [0, 1, 0, 1]}
    with pytest.raises(ValueError, match="has no column 'labell'; it has sentence1"):
        tables.read_columns(where, ["labell"], ["labell"])
    with pytest.raises(ValueError, match="cannot be read"):
        tables.read_split("hf://datasets/nyu-mll/glue/mnli/train", [])


def test_a_row_of_the_hub_without_a_label_is_named(hub):
    rows = [{"text": "x", "label": label} for label in (0, 1, None, 1)]
    put_on_hub(hub, "some/set", {"all": {"train": rows}}, "abc124")
    where = "hf://datasets/some/set/all/train"
    with pytest.raises(ValueError, match="row 2 has nothing in column 'label'"):
        tables.read_columns(where, ["text", "label"], ["label"])
    assert tables.read_columns(where, ["text", "label"], ["label"], limit=2) == {"label": [0, 1]}


def test_a_data_set_that_is_not_there_says_how_to_bring_it(hub):
    with pytest.raises(ValueError, match="hf download nyu-mll/blue --repo-type dataset"):
        tables.look_at("hf://datasets/nyu-mll/blue/rte/train", [])
    with pytest.raises(ValueError, match="is written hf://datasets/ORG/NAME/SUBSET/SPLIT"):
        tables.look_at("hf://datasets/nyu-mll/glue", [])


# ---- what dies in the middle


def failure(tmp_path, asked):
    work = JudgeWork(out=str(tmp_path / "out"), threads=1, command="c", device="cpu")
    work.do(asked)
    return Records(out=tmp_path / "out").read_failure(asked)


def test_f1_of_more_than_two_classes_is_refused_before_anything_is_trained(place, tmp_path):
    rows = [{"text": f"w{n} w1", "label": "abc"[n % 3]} for n in range(9)]
    file = str(write_rows(tmp_path / "three.jsonl", rows))
    plain = {"name": "classification", "train": file, "validation": file, "metrics": ["f1"]}
    said = failure(tmp_path, job(place / "model", plain))["message"]
    assert said == (
        f"{file}: has 3 classes, and f1 is of two, the later of which is sought; "
        "write metrics: [macro_f1]"
    )


def test_weights_that_are_not_finite_are_refused(place, tmp_path):
    pytest.importorskip("accelerate")
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(place / "model", tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    name = "model.layers.1.mlp.Wo.weight"
    weights[name][3, 4] = math.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    said = failure(tmp_path, job(broken, classification(place / "texts")))
    assert (
        "its weights hold NaN or infinity, first in model.layers.1.mlp.Wo.weight" in said["message"]
    )
    assert said["traceback"] is None


def test_an_error_of_ours_is_kept_with_its_traceback(place, tmp_path, monkeypatch):
    from tessera.evaluation.tasks import finetuning

    def breaks(*arguments):
        raise KeyError("something")

    monkeypatch.setattr(finetuning, "run", breaks)
    said = failure(tmp_path, job(place / "model", classification(place / "texts")))
    assert said["message"] == "KeyError: 'something'" and "in breaks" in said["traceback"]


def test_a_job_that_a_killed_command_left_running_is_waited_for(place, tmp_path, monkeypatch):
    from tessera.evaluation.jobs.records import Outcome
    from tessera.evaluation.tasks import finetuning

    def twice(*arguments):
        raise AssertionError("the job was done again")

    monkeypatch.setattr(finetuning, "run", twice)
    asked = job(place / "model", classification(place / "texts"))
    records = Records(out=tmp_path)
    lock = tmp_path / ".running" / f"{asked.id}.lock"
    lock.parent.mkdir()
    work = JudgeWork(out=str(tmp_path), threads=1, command="c", device="cpu")
    second = threading.Thread(target=work.do, args=(asked,))
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        second.start()
        second.join(0.3)
        assert second.is_alive(), "it did not wait"
        records.finish(asked, Outcome(scores={}, validation={}, split="test"), {})
    second.join(20)
    assert not second.is_alive() and records.read_failure(asked) is None


def test_what_does_not_fit_into_memory_is_done_in_parts_and_said():
    tried, notes = [], []

    def attempt(size):
        tried.append(size)
        if size > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    assert halving(attempt, 24, notes) == "done"
    assert tried == [24, 12, 6, 3], "all divide the batch"
    assert notes == ["out of memory with 24 examples at a time: done 3 at a time"]

    def never(size):
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate")

    with pytest.raises(ValueError, match="out of memory with a single example"):
        halving(never, 4, notes)

    def other(size):
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        halving(other, 4, notes)


# ---- words


def test_labels_stand_at_the_first_token_of_their_words(tmp_path):
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    from tessera.evaluation.tasks import finetuning

    backend = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="?"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.train_from_iterator(
        ["see Anna go"] * 9,
        tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=["?", "[PAD]"]),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")
    split = finetuning._aligned(tokenizer, [["see", "Annas", "go", "far"]], [[0, 1, 2, 3]], 6)
    (example,) = split.examples
    pieces = [t.lstrip("\u0120") for t in tokenizer.convert_ids_to_tokens(example["input_ids"])]
    labelled = [
        (p, label) for p, label in zip(pieces, example["labels"], strict=True) if label >= 0
    ]
    assert labelled[:3] == [("see", 0), ("Anna", 1), ("go", 2)]
    assert len(labelled) + split.cut_off.size == 4
    short = finetuning._aligned(tokenizer, [["see", "Annas", "go", "far"]], [[0, 1, 2, 3]], 3)
    assert short.cut_off.tolist() == [2, 3]


def test_words_are_scored_as_sklearn_scores_them(place, tmp_path):
    pytest.importorskip("accelerate")
    from sklearn.metrics import f1_score
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    from tessera.evaluation.tasks import finetuning

    draw = random.Random(0)
    splits = {}
    for split, count in (("train", 64), ("validation", 16), ("test", 16)):
        rows = []
        for _ in range(count):
            words = draw.choices(WORDS, k=draw.randint(2, 9))
            labels = ["LOW" if int(word[1:]) < 60 else "O" for word in words]
            rows.append({"words": words, "labels": labels})
        splits[split] = str(write_rows(tmp_path / f"{split}.jsonl", rows))
    plain = {"name": "token_classification", **splits, "max_tokens": 8}
    plain["training"] = {"batch": 8}
    asked = job(place / "model", plain, point={"lr": 1e-2, "weight_decay": 0.0, "epochs": 4})
    outcome = finetuning.run(asked, "cpu", tmp_path, tmp_path / "kept")
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "kept").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "kept")
    truth, guesses = [], []
    for line in Path(splits["test"]).read_text().splitlines():
        row = json.loads(line)
        encoded = tokenizer(" ".join(row["words"]), return_tensors="pt")
        with torch.inference_mode():
            found = model(**encoded).logits[0].argmax(-1).tolist()
        # One token a word, after [CLS]; six words fit beside [CLS] and [SEP].
        named = [model.config.id2label[i] for i in found[1:-1]][:6]
        truth += row["labels"]
        guesses += named + ["cut off"] * (len(row["labels"]) - len(named))
    expected = f1_score(truth, guesses, labels=["LOW"], average="micro")
    assert 0.3 < expected < 1
    assert outcome.scores["f1"] == pytest.approx(expected, abs=0.03)
    assert any("lie beyond max_tokens" in note for note in outcome.notes)


# ---- retrieval


@pytest.fixture
def search(tmp_path):
    return make_search(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("trained", [False, True])
def test_ndcg_is_what_the_formula_gives(place, tmp_path, search, trained):
    pytest.importorskip("mteb")
    from tessera.evaluation.tasks import retrieval

    plain = {"name": "retrieval", **{k: v for k, v in search.items() if trained or k != "train"}}
    plain["training"] = {"batch": 20, "lr": [1e-3]}
    asked = job(place / "model", plain, point={"lr": 1e-3, "weight_decay": 0.0, "epochs": 2})
    outcome = retrieval.run(asked, "cpu", tmp_path, tmp_path / "kept")
    rows = {name: tables.read_split(search[name], []) for name in search}
    queries, documents = (
        vectors(tmp_path / "kept", [row["text"] for row in rows[name]])
        for name in ("queries", "documents")
    )
    gains = np.zeros((40, 40))
    for row in rows["relevance"][:-1]:
        gains[int(row["query"][1:]), int(row["document"][1:])] = row["score"]
    expected = ndcg_at_10(queries @ documents.T, gains)
    assert 0.1 < expected < 1
    assert outcome.scores["ndcg_at_10"] == pytest.approx(expected, abs=2e-4)
    assert any("1 lines name queries or documents that are not there" in n for n in outcome.notes)
