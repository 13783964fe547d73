"""The suite `long`: names recalled over a distance, and one's own texts, against transformers."""

import numpy as np
import pytest
import torch
from judging import WORDS, entries, make_encoder, write_rows, write_suite
from tiny_run import make_corpus, settings
from transformers import AutoModelForMaskedLM

from tessera.batch import IGNORED
from tessera.cli.main import main
from tessera.config import decode
from tessera.data.config import DataConfig
from tessera.evaluation.documents import material
from tessera.evaluation.jobs.models import Model
from tessera.evaluation.jobs.records import Job
from tessera.evaluation.masked_lm import contents_of, original_ids
from tessera.evaluation.recall import recall_texts, recalled
from tessera.evaluation.segments import Segment, batches_of
from tessera.evaluation.tasks import language_model, recall
from tessera.evaluation.tasks.config import MaskedLm, Recall
from tessera.tokenizer import load_tokenizer

DISTANCES = [21, 40]
PHRASE, NAME = 8, 3
LENGTH = 2 * PHRASE + NAME


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    make_corpus(folder / "corpus", documents=4)
    make_encoder(folder / "model", weights=0.3)
    return folder


@pytest.fixture(scope="module")
def task(place):
    data = settings(place / "corpus", place / "run")["train_data"]
    return Recall(
        name="recall",
        data=decode(DataConfig, data, "test"),
        tokenizer=str(place / "corpus" / "tokenizer"),
        distances=[*DISTANCES, 4000],
        names=6,
    )


def model_of(place):
    folder = str(place / "model")
    return Model(name="m", source=folder, folder=folder, random=False, fingerprint="f")


def job(place, task):
    return Job(model=model_of(place), task_name="t", task=task, seed=1, point={}, inputs="")


def texts_of(place, task):
    asked = material(model_of(place), task, "cpu")
    return recall_texts(
        asked.contents(seed=task.seed),
        asked.tokenizer,
        distances=task.distances,
        names=task.names,
        name_tokens=NAME,
        phrase_tokens=PHRASE,
        max_seq_len=64,
        row_tokens=128,
        seed=task.seed,
    )


def each_text(texts):
    """(ids as the model sees them, labels) of every text, in order."""
    for batch in texts.batches:
        labels, edges = batch.labels(), batch.cu_seqlens.tolist()
        for start, end in list(zip(edges[:-1], edges[1:], strict=True))[: batch.documents]:
            yield batch.input_ids[start:end], labels[start:end]


def test_what_differs_is_the_earlier_mention_alone(place, task):
    texts = texts_of(place, task)
    tokenizer = load_tokenizer(task.tokenizer)
    found = list(each_text(texts))
    assert texts.distances == tuple(DISTANCES) and texts.names == 6 and len(found) == 18
    names = set()
    for number in range(6):
        control, *mentioned = found[3 * number : 3 * number + 3]
        (at,) = [(control[1] != IGNORED).nonzero().squeeze(1)]
        assert at.tolist() == list(range(at[0], at[0] + NAME)), "one name, at one place"
        name = control[1][at]
        names.add(tuple(name.tolist()))
        assert (control[0][at] == tokenizer.mask_id).all()
        assert not np.isin(control[0].numpy(), name.numpy()).any(), "the control gives it away"
        first = int(at[0]) - PHRASE
        known = control[0][first : first + LENGTH].clone()
        known[PHRASE : PHRASE + NAME] = name
        for distance, (ids, labels) in zip(DISTANCES, mentioned, strict=True):
            assert len(ids) == 64 and torch.equal(labels, control[1])
            expected = control[0].clone()
            expected[first - distance :][:LENGTH] = known
            assert torch.equal(ids, expected)
    assert len(names) == 6


def test_recall_is_that_of_transformers_on_each_text_alone(place, task):
    model = AutoModelForMaskedLM.from_pretrained(place / "model", attn_implementation="eager")
    model = model.double().eval()
    losses, right = [], []
    with torch.inference_mode():
        for ids, labels in each_text(texts_of(place, task)):
            at = (labels != IGNORED).nonzero().squeeze(1)
            logits = model(input_ids=ids[None]).logits[0][at]
            losses.append(-logits.log_softmax(-1)[torch.arange(NAME), labels[at]].mean())
            right.append((logits.argmax(-1) == labels[at]).double().mean())
    losses = torch.stack(losses).reshape(6, 3).mean(0).tolist()
    right = torch.stack(right).reshape(6, 3).mean(0).tolist()
    outcome = recall.run(job(place, task), "cpu", place, None)
    (table,) = outcome.tables
    assert [row[0] for row in table.rows] == ["21", "40"]
    for number, row in enumerate(table.rows, start=1):
        assert row[1:5] == pytest.approx([right[number], right[0], losses[number], losses[0]])
        assert row[5] == 18
        assert losses[number] != pytest.approx(losses[0], abs=1e-3), "the mention changes nothing"
    assert outcome.scores["accuracy"] == pytest.approx(np.mean(right[1:]))
    notes = " ".join(outcome.notes)
    assert "left out: 4000" in notes and "end to end" in notes


def copied(ids, at):
    """What a reader who looks up the words before a name would put there; None if nothing."""
    before = ids[at[0] - PHRASE : at[0]]
    for start in range(len(ids) - LENGTH):
        if start != at[0] - PHRASE and np.array_equal(ids[start : start + PHRASE], before):
            return ids[start + PHRASE : start + PHRASE + NAME]
    return None


def test_whoever_looks_the_phrase_up_recalls_every_name_and_none_of_the_control(place, task):
    texts = texts_of(place, task)
    found = []
    for batch in texts.batches:
        answer = torch.zeros(2, batch.masked_positions.numel())
        ids, edges = batch.input_ids.numpy(), batch.cu_seqlens.numpy()
        slots = batch.masked_positions[batch.masked_labels != IGNORED].numpy().reshape(-1, NAME)
        for number, at in enumerate(slots):
            start = edges[np.searchsorted(edges, at[0], side="right") - 1]
            name = copied(ids[start : start + 64], at - start)
            here = slice(number * NAME, (number + 1) * NAME)
            if name is not None:
                answer[1, here] = torch.from_numpy(name == batch.masked_labels[here].numpy())
        found.append(answer)
    each = {kind: one.accuracy for kind, one in recalled(texts, found).items()}
    assert each == {None: 0.0, 21: 1.0, 40: 1.0}


def test_texts_fill_rows_without_a_token_lost():
    rng = np.random.default_rng(0)
    segments = []
    for length in (30, 60, 64, 3, 12, 64):
        plain = Segment.of(rng.integers(10, 90, length - 2), 1, 2)
        at = np.arange(1, length - 1, 2)
        segments.append(Segment(ids=plain.ids, positions=at, labels=plain.ids[at]))
    batches = batches_of(segments, row_tokens=128, max_seq_len=64, pad_id=3)
    assert len({batch.masked_positions.shape for batch in batches}) == 1
    expected = [list(s.ids[1:-1]) for s in segments]
    assert [list(c) for c in contents_of(batches)] == expected
    for batch in batches:
        assert batch.input_ids.numel() == 128 == int(batch.cu_seqlens[-1])
        assert int(batch.cu_seqlens.diff().max()) <= 64
        assert torch.equal(original_ids(batch), batch.input_ids), "labels are what stands there"
        assert (batch.input_ids[batch.tokens :] == 3).all()


def test_ones_own_texts_are_asked_in_the_models_own_tokens(place, tmp_path):
    rng = np.random.default_rng(1)
    write_rows(
        tmp_path / "mine.jsonl",
        [{"body": " ".join(rng.choice(WORDS, 60))} for _ in range(5)],
    )
    asked = MaskedLm(
        name="masked_lm",
        texts=str(tmp_path / "mine.jsonl"),
        text="body",
        rates=[0.3],
        short=24,
        pseudo_perplexity_tokens=0,
    )
    outcome = language_model.run(job(place, asked), "cpu", place, None)
    model = AutoModelForMaskedLM.from_pretrained(place / "model", attn_implementation="eager")
    losses, tokens = [], 0
    with torch.inference_mode():
        for batch in material(model_of(place), asked, "cpu").batches(
            "texts", rate=0.3, max_tokens=10**6, seed=17
        ):
            assert batch.max_seqlen == 128, "the model's longest"
            tokens += batch.tokens
            labels, edges = batch.labels(), batch.cu_seqlens.tolist()
            for start, end in zip(edges[:-1], edges[1:], strict=True):
                at = (labels[start:end] != IGNORED).nonzero().squeeze(1)
                if at.numel():
                    logits = model.eval()(input_ids=batch.input_ids[None, start:end]).logits[0, at]
                    losses += (
                        -logits.log_softmax(-1)[range(len(at)), labels[start:end][at]]
                    ).tolist()
    assert tokens == 5 * 62
    assert outcome.scores["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert outcome.split == "texts" and "gain_over_24_tokens" in outcome.scores
    assert "another tokenizer" in " ".join(outcome.notes)


@pytest.mark.slow
def test_the_suite_draws_its_curves(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    rows = [{"text": " ".join(rng.choice(WORDS, 200))} for _ in range(20)]
    write_rows(tmp_path / "mine.jsonl", rows)
    on = {"texts": "mine.jsonl"}
    tasks = {
        "recall": {"name": "recall", "names": 4, **on},
        "context": {"name": "masked_lm", "short": 32, "pseudo_perplexity_tokens": 0, **on},
    }
    suite = write_suite(tmp_path / "suite.yaml", tasks)
    arguments = [f"a={place / 'model'}", f"b=random:{place / 'model'}", "--suite", str(suite)]
    assert main(["evaluate", *arguments, "--device", "cpu"]) == 0
    found = entries(tmp_path / "results")
    assert found["a", "recall"]["metric"] == "accuracy"
    page = (tmp_path / "results" / "index.html").read_text()
    assert page.count("<polyline") == 2 * 2 and "stroke-dasharray" in page


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"distances": [4000]}, "none of 4000 lies between 19"),
        ({"max_seq_len": 4096, "distances": [1000]}, "shorter than one text of 4096 tokens"),
    ],
)
def test_what_cannot_be_asked_is_said(place, task, change, says):
    from dataclasses import replace

    with pytest.raises(ValueError, match=says):
        recall.run(job(place, replace(task, **change)), "cpu", place, None)
