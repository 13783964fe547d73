"""The kinds `linear_probe` and `similarity`, against each text alone in transformers."""

import numpy as np
import pytest
import torch
from judging import WORDS, entries, make_encoder, make_texts, write_rows, write_suite
from transformers import AutoModel, AutoTokenizer

from tessera.cli.main import main
from tessera.evaluation.jobs.models import Model
from tessera.evaluation.jobs.records import Job
from tessera.evaluation.linear_probe import fitted, mean_vectors
from tessera.evaluation.segments import Segment, batches_of
from tessera.evaluation.tasks import frozen
from tessera.evaluation.tasks.config import LinearProbe, Similarity

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frozen")
    make_encoder(folder / "model", weights=0.3)
    make_texts(folder / "texts", rows=80)
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(40):
        words = rng.choice(WORDS, 8)
        kept = int(rng.integers(0, 9))
        other = [*words[:kept], *rng.choice(WORDS, 8 - kept)]
        pairs.append({"text": " ".join(words), "pair": " ".join(other), "score": kept})
    write_rows(folder / "pairs.jsonl", pairs)
    return folder


def job(place, task):
    folder = str(place / "model")
    asked = Model(name="m", source=folder, folder=folder, random=False, fingerprint="f")
    return Job(model=asked, task_name="t", task=task, seed=1, point={}, inputs="")


def splits(place):
    return {s: str(place / "texts" / f"{s}.jsonl") for s in ("train", "validation", "test")}


@torch.inference_mode()
def by_hand(place, texts):
    """(layers, n, D): each text alone, the mean over all its tokens."""
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    model = AutoModel.from_pretrained(place / "model", attn_implementation="eager").eval()
    found = []
    for text in texts:
        given = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        layers = [*given.hidden_states[:-1], given.last_hidden_state]
        found.append(torch.stack([layer[0].mean(0) for layer in layers]).numpy())
    return np.stack(found, axis=1)


def rows_of(path):
    import json

    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_probe_is_scikit_learns_on_the_mean_of_each_texts_vectors(place):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    task = LinearProbe(name="linear_probe", **splits(place), inverse_penalties=[0.1])
    outcome = frozen.run(job(place, task), "cpu", place, None)
    data = {s: rows_of(place / "texts" / f"{s}.jsonl") for s in splits(place)}
    seen = {s: by_hand(place, [r["text"] for r in rows]) for s, rows in data.items()}
    labels = {s: [r["label"] for r in rows] for s, rows in data.items()}
    expected = []
    for layer in range(3):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
        probe.fit(seen["train"][layer], labels["train"])
        expected.append([probe.score(seen[s][layer], labels[s]) for s in ("test", "validation")])
    (table,) = outcome.tables
    assert [row[0] for row in table.rows] == ["embeddings", "1", "2"]
    for row, values in zip(table.rows, expected, strict=True):
        assert row[1:3] == pytest.approx(values, abs=0.04)
    top = max(range(3), key=lambda layer: expected[layer][1])
    assert outcome.scores["accuracy"] == pytest.approx(expected[top][0], abs=0.04)
    assert outcome.scores["accuracy"] > 0.7, "one word tells the class"


def test_similarity_is_the_rank_correlation_of_cosines(place):
    from scipy.stats import spearmanr

    task = Similarity(name="similarity", test=str(place / "pairs.jsonl"))
    outcome = frozen.run(job(place, task), "cpu", place, None)
    rows = rows_of(place / "pairs.jsonl")
    one, other = (by_hand(place, [r[c] for r in rows])[-1] for c in ("text", "pair"))

    def correlation(a, b):
        cosines = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
        return spearmanr(cosines, [r["score"] for r in rows]).statistic

    assert outcome.scores["spearman"] == pytest.approx(correlation(one, other), abs=1e-3)
    mean = np.concatenate([one, other]).mean(0)
    assert outcome.scores["spearman_with_the_mean_taken_off"] == pytest.approx(
        correlation(one - mean, other - mean), abs=1e-3
    )
    assert outcome.scores["spearman"] > 0.5


def test_the_packed_model_gives_the_same_features(place):
    from tessera.checkpoints import load_model

    texts = [row["text"] for row in rows_of(place / "texts" / "test.jsonl")]
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    segments = [
        Segment.of(np.array(tokenizer(text, add_special_tokens=False)["input_ids"]), 1, 2)
        for text in texts
    ]
    batches = batches_of(segments, row_tokens=64, max_seq_len=64, pad_id=3)
    assert len(batches) > 2
    model = load_model(place / "model")
    with torch.inference_mode():
        found = torch.cat([mean_vectors(model, batch) for batch in batches]).numpy()
    np.testing.assert_allclose(found, by_hand(place, texts)[-1], atol=1e-4)


def test_a_feature_that_never_varies_does_no_harm():
    features = np.array([[0.0, 1.0], [1.0, 1.0], [0.1, 1.0], [0.9, 1.0]])
    (classifier,) = fitted(features, np.array([0, 1, 0, 1]), [1.0])
    assert classifier.predict(features).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"test": "pairs.jsonl"}, "has no column 'label'"),
        ({"limit": 1}, "two are needed"),
    ],
)
def test_what_is_wrong_with_the_data_is_said(place, tmp_path, monkeypatch, change, says):
    monkeypatch.chdir(place)
    task = {"name": "linear_probe", **splits(place), **change}
    suite = write_suite(tmp_path / "suite.yaml", {"probe": task})
    out = tmp_path / "results"
    arguments = ["evaluate", "model", "--suite", str(suite), "--out", str(out), "--device", "cpu"]
    assert main([*arguments, "--workers", "1"]) == 2
    (entry,) = entries(out).values()
    assert says in entry["message"]
