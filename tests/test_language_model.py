"""The masked-LM suite against transformers, document by document; and the speed suite."""

import json
import math

import numpy as np
import pytest
import torch
from judging import entries, make_encoder
from tiny_run import make_corpus, settings, write_yaml
from transformers import AutoModelForMaskedLM

from tessera.batch import IGNORED
from tessera.cli.main import main
from tessera.config import decode
from tessera.data.config import DataConfig
from tessera.data.validation import validation_batches
from tessera.evaluation.jobs.models import Model
from tessera.evaluation.jobs.records import Job
from tessera.evaluation.masked_lm import original_ids
from tessera.evaluation.tasks import efficiency, language_model
from tessera.evaluation.tasks.config import Efficiency, MaskedLm
from tessera.tokenizer import load_tokenizer

SHORT = 24


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlm")
    make_corpus(folder / "corpus", documents=4)
    make_encoder(folder / "model", weights=0.3)  # so wide that context matters untrained
    return folder


@pytest.fixture(scope="module")
def task(place):
    data = settings(place / "corpus", place / "run")["train_data"]
    return MaskedLm(
        name="masked_lm",
        data=decode(DataConfig, data, "test"),
        tokenizer=str(place / "corpus" / "tokenizer"),
        rates=[0.3, 0.15],
        max_tokens=700,
        short=SHORT,
        pseudo_perplexity_tokens=12,
    )


def job(place, task):
    folder = str(place / "model")
    asked = Model(name="m", source=folder, folder=folder, random=False, fingerprint="f")
    return Job(model=asked, task_name="t", task=task, seed=1, point={}, inputs="")


def dense(model, ids, at):
    """(logits of one document alone) loss and rank of its tokens at some places, in float64."""
    logits = model(input_ids=ids[None]).logits[0].double()
    return logits.log_softmax(-1)[at], logits[at].argmax(-1)


@torch.inference_mode()
def by_hand(place, task, rate):
    """(source, place in the document, token, loss, right, loss in its piece) of every target."""
    model = AutoModelForMaskedLM.from_pretrained(place / "model", attn_implementation="eager")
    model = model.double().eval()
    tokenizer = load_tokenizer(task.tokenizer)
    found = []
    for source in ("web", "code"):
        for batch in validation_batches(
            task.data,
            source,
            tokenizer,
            vocab_size=256,
            masking_rate=rate,
            max_tokens=task.max_tokens,
            seed=task.seed,
        ):
            labels = batch.labels()
            edges = batch.cu_seqlens.tolist()
            for start, end in zip(edges[:-1], edges[1:], strict=True):
                at = (labels[start:end] != IGNORED).nonzero().squeeze(1)
                if not at.numel():
                    continue
                ids = batch.input_ids[start:end]
                logp, guess = dense(model, ids, at)
                for number, place_ in enumerate(at.tolist()):
                    token = int(labels[start + place_])
                    window = math.nan
                    if place_ >= SHORT:
                        # Cut as training at that length cuts: each piece with its own ends.
                        number_, place_in = divmod(place_ - 1, SHORT - 2)
                        content = ids[1:-1][number_ * (SHORT - 2) :][: SHORT - 2]
                        piece = torch.cat([ids[:1], content, ids[-1:]])
                        alone, _ = dense(model, piece, torch.tensor([place_in + 1]))
                        window = -float(alone[0, token])
                    found.append(
                        (
                            source,
                            place_,
                            token,
                            -float(logp[number, token]),
                            int(guess[number]) == token,
                            window,
                        )
                    )
    return found


def table(outcome, start):
    (one,) = [t for t in outcome.tables if t.title.startswith(start)]
    return {row[0]: row[1:] for row in one.rows}


def test_every_number_is_that_of_transformers_on_each_document_alone(place, task):
    outcome = language_model.run(job(place, task), "cpu", place, None)
    targets = by_hand(place, task, 0.3)
    assert len(targets) > 200

    def check(row, chosen):
        assert row[2] == len(chosen) > 0
        assert row[0] == pytest.approx(np.mean([t[3] for t in chosen]), rel=1e-5)
        assert row[1] == pytest.approx(np.mean([t[4] for t in chosen]))

    assert outcome.scores["loss"] == pytest.approx(np.mean([t[3] for t in targets]), rel=1e-5)
    for source in ("web", "code"):
        check(table(outcome, "By source")[source], [t for t in targets if t[0] == source])
    check(table(outcome, "By position")["0 to 63"], targets)
    check(table(outcome, "By masking rate")["30%"], targets)
    check(table(outcome, "By masking rate")["15%"], by_hand(place, task, 0.15))
    beyond = [t for t in targets if t[1] >= SHORT]
    context = table(outcome, "Does context help?")
    assert context["the whole document"][1] == len(beyond) > 50
    assert context["the whole document"][0] == pytest.approx(
        np.mean([t[3] for t in beyond]), rel=1e-5
    )
    windows = context[f"pieces of {SHORT} tokens"][0]
    assert windows == pytest.approx(np.mean([t[5] for t in beyond]), rel=1e-5)
    assert abs(windows - context["the whole document"][0]) > 1e-4, "the cut changes nothing"


def test_frequency_is_the_rank_among_the_documents_tokens(place, task):
    tokenizer = load_tokenizer(task.tokenizer)
    counts = np.zeros(256, dtype=int)
    for source in ("web", "code"):
        for batch in validation_batches(
            task.data, source, tokenizer, vocab_size=256, masking_rate=0.3, max_tokens=700, seed=17
        ):
            counts += np.bincount(original_ids(batch).numpy(), minlength=256)
    counts[tokenizer.special_ids.tolist()] = 0
    commonest = set(np.argsort(-counts, kind="stable")[:10].tolist())
    outcome = language_model.run(job(place, task), "cpu", place, None)
    chosen = [t for t in by_hand(place, task, 0.3) if t[2] in commonest]
    row = table(outcome, "By frequency")["1 to 10"]
    assert row[2] == len(chosen) and row[0] == pytest.approx(
        np.mean([t[3] for t in chosen]), rel=1e-5
    )


@torch.inference_mode()
def test_pseudo_perplexity_masks_one_token_at_a_time(place, task):
    model = AutoModelForMaskedLM.from_pretrained(place / "model").double().eval()
    tokenizer = load_tokenizer(task.tokenizer)
    losses = []
    for source in ("web", "code"):
        batch = next(
            validation_batches(
                task.data,
                source,
                tokenizer,
                vocab_size=256,
                masking_rate=0.3,
                max_tokens=700,
                seed=17,
            )
        )
        text = original_ids(batch)[: int(batch.cu_seqlens[1])]
        assert text.numel() >= 8, "the first document is too short for six tokens"
        for place_ in range(1, 7):
            masked = text.clone()
            masked[place_] = tokenizer.mask_id
            logp, _ = dense(model, masked, torch.tensor([place_]))
            losses.append(-float(logp[0, text[place_]]))
    outcome = language_model.run(job(place, task), "cpu", place, None)
    assert outcome.scores["pseudo_perplexity"] == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)


def test_a_model_of_another_tokenizer_is_refused(place, task, tmp_path):
    import shutil

    other = shutil.copytree(place / "model", tmp_path / "model")
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["w1"], vocabulary["w2"] = vocabulary["w2"], vocabulary["w1"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    asked = Model(name="m", source=str(other), folder=str(other), random=False, fingerprint="f")
    one = Job(model=asked, task_name="t", task=task, seed=1, point={}, inputs="")
    with pytest.raises(ValueError, match="was trained with another tokenizer"):
        language_model.run(one, "cpu", tmp_path, None)


@pytest.mark.slow
def test_two_models_are_compared_by_one_command(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = settings(place / "corpus", tmp_path / "run")
    write_yaml(tmp_path / "phase.yaml", plain)
    small = ["tasks.masked-lm.max_tokens=300", "tasks.masked-lm.pseudo_perplexity_tokens=0"]
    models = [f"a={place / 'model'}", f"b=random:{place / 'model'}"]
    arguments = ["evaluate", *models, "--suite", "mlm", *small, "--config", "phase.yaml"]
    assert main([*arguments, "--device", "cpu"]) == 0
    found = entries(tmp_path / "results")
    assert found["a", "masked-lm"]["mean"] != found["b", "masked-lm"]["mean"]
    assert found["a", "masked-lm"]["lower_is_better"]
    assert "By position in the document" in (tmp_path / "results" / "index.html").read_text()


def test_without_documents_the_suite_says_how_to_name_them(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(place / "model"), "--suite", "mlm"]) == 2
    (entry,) = entries(tmp_path / "results").values()
    assert "give --config YAML" in entry["message"]


# ---- speed


def test_lengths_are_the_published_ones():
    assert set(efficiency.lengths_of(512, False, 9, 1)) == {512}
    lengths = efficiency.lengths_of(512, True, 20_000, 1)
    assert lengths.mean() == pytest.approx(256, abs=2) and lengths.std() == pytest.approx(64, abs=2)
    assert lengths.min() >= 16 and lengths.max() <= 512
    long = efficiency.lengths_of(8192, True, 20_000, 1)
    assert long.mean() == pytest.approx(4096, rel=0.01)
    assert long.std() == pytest.approx(1024, rel=0.02)


def test_both_ways_serve_the_same_vectors(place):
    asked = job(place, None).model
    packed = efficiency._packed(asked, "cpu")
    padded, longest, vocabulary = efficiency._padded(asked, "cpu")
    assert longest is None and vocabulary == 256
    documents = [torch.arange(10, 10 + n) for n in (7, 40, 21)]
    with torch.inference_mode():
        ours = packed(documents)
        theirs = padded(documents).last_hidden_state
    start = 0
    for row, document in enumerate(documents):
        n = document.numel()
        torch.testing.assert_close(ours[start : start + n], theirs[row, :n], atol=1e-5, rtol=1e-5)
        start += n


def test_batches_hold_what_they_may(place):
    documents = [torch.zeros(n) for n in (10, 30, 5, 25, 40, 1)]

    def sizes(padded):
        batches = efficiency._batches(documents, 60, padded=padded)
        return [[d.numel() for d in batch] for batch in batches]

    assert sizes(padded=False) == [[10, 30, 5], [25], [40, 1]]
    assert sizes(padded=True) == [[10, 30], [5, 25], [40], [1]]


def test_speed_is_measured_of_every_shape_and_way(place):
    task = Efficiency(name="efficiency", documents=4, short=32, long=64, runs=2)
    outcome = efficiency.run(job(place, task), "cpu", place, None)
    ((title, columns, rows),) = [(t.title, t.columns, t.rows) for t in outcome.tables]
    assert len(rows) == 8 and all(row[1] > 0 for row in rows)
    assert outcome.scores["tokens_per_second"] == rows[2][1], "variable short, packed"
    assert {row[3] for row in rows if "padded" in row[0]} == {1.0}
