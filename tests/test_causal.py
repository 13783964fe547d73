"""A causal phase: next tokens, attention to the left alone, and what everybody is told of it."""

import json
import shutil
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import tiny_run
import torch
from reference.data_fake_source import fake_tokenizer, open_fake
from test_modernbert import SMALL, cumulative, documents, random_model

from tessera.batch import IGNORED
from tessera.checkpoints.reader import read_checkpoint
from tessera.cli.batches import batch_lines
from tessera.cli.main import main
from tessera.config import ConfigError, decode
from tessera.data.config import BatchConfig, DataConfig, SourceConfig
from tessera.data.loader import Loader
from tessera.data.pipeline.fingerprint import check_fingerprint
from tessera.data.validation import validation_batches
from tessera.model.modernbert import ModernBertForMaskedLM
from tessera.tokenizer import load_tokenizer
from tessera.training import run_folder
from tessera.training.config import RunConfig
from tessera.training.preflight import examine
from tessera.training.run import build_run

SPECIAL = range(5)
DATA = DataConfig(
    sources={
        "web": SourceConfig(local="documents=300", weight=0.6),
        "code": SourceConfig(local="documents=50,longest=200", weight=0.4),
    },
    objective="causal",
    max_seq_len=32,
    row_tokens=128,
    lanes=8,
    seed=1,
    waiting_pieces=12,
    block_documents=100,
)
BATCH = BatchConfig(rows=8, microbatch_rows=4)
AS_FAKE = {"vocab_size": 512, "seed": 1, "open_source": open_fake}


# ---- what is predicted


def asked(ids, ends):
    """{slot: the token it is to predict}, a segment at a time."""
    found, start = {}, 0
    for end in ends:
        for slot in range(start, end - 1):
            if ids[slot + 1] not in SPECIAL:
                found[slot] = ids[slot + 1]
        start = end
    return found


def test_every_token_is_predicted_once_from_its_own_document():
    masked = Loader(replace(DATA, objective="masked"), BATCH, fake_tokenizer(), **AS_FAKE)
    loader = Loader(DATA, BATCH, fake_tokenizer(), **AS_FAKE)
    rows = [row for *_, each in islice(loader.steps(), 6) for row in each]
    others = [row for *_, each in islice(masked.steps(), 6) for row in each]
    assert any(row.pieces[0][2] > 0 for row in rows), "no piece of a long document"
    assert any(row.tokens < len(row.ids) for row in rows), "no padding"
    for row, other in zip(rows, others, strict=True):
        other.ids[other.positions] = other.labels
        assert np.array_equal(row.ids, other.ids), "the same rows, without masks"
        expected = asked(row.ids.tolist(), row.ends.tolist())
        assert dict(zip(row.positions.tolist(), row.labels.tolist(), strict=True)) == expected
        assert len(row.positions) == row.tokens - 2 * row.documents, "all but [CLS] and [SEP]"


def test_batches_have_one_shape_and_do_not_depend_on_ranks():
    loader = Loader(DATA, BATCH, fake_tokenizer(), **AS_FAKE)
    batches = [b for step in islice(loader, 4) for b in step.microbatches]
    assert {b.masked_positions.numel() for b in batches} == {4 * 128}
    for batch in batches:
        expected = asked(batch.input_ids.tolist(), batch.cu_seqlens[1:].tolist())
        labels = batch.labels()
        assert {i: t for i, t in enumerate(labels.tolist()) if t != IGNORED} == expected
        assert batch.masked_tokens == len(expected)
    lines = [
        list(batch_lines(DATA, BATCH, fake_tokenizer(), world_size=w, steps=4, **AS_FAKE))
        for w in (1, 4)
    ]
    assert lines[0] == lines[1]
    assert lines[0][0]["predicted_tokens"] == sum(b.masked_tokens for b in batches[:2])
    assert "masked_tokens" not in lines[0][0]


def test_validation_asks_the_same_rows():
    def batches(rate):
        settings = AS_FAKE | {"masking_rate": rate, "max_tokens": 3000}
        return validation_batches(DATA, "web", fake_tokenizer(), **settings)

    for batch, masked in zip(batches(None), batches(0.15), strict=True):
        labels = masked.labels()
        originals = torch.where(labels == IGNORED, masked.input_ids, labels)
        assert torch.equal(batch.input_ids, originals)
        assert batch.masked_tokens == batch.tokens - 2 * batch.documents


# ---- the model


def decoder_of(model):
    """The same weights as transformers' causal ModernBERT.

    Its window counts the token itself, and there is one fewer before it than in the left half of
    the encoder's, which ours keeps.
    """
    transformers = pytest.importorskip("transformers", minversion="5")
    shape = model.config
    kinds = ["sliding_attention", "full_attention"]
    thetas = [shape.local_rope_theta, shape.global_rope_theta]
    config = transformers.ModernBertDecoderConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        norm_eps=shape.norm_eps,
        pad_token_id=0,
        local_attention=2 * (shape.local_attention // 2 + 1),
        layer_types=[kinds[shape.is_global(i)] for i in range(shape.num_hidden_layers)],
        rope_parameters={
            kind: {"rope_type": "default", "rope_theta": theta}
            for kind, theta in zip(kinds, thetas, strict=True)
        },
        attn_implementation="eager",
    )
    theirs = transformers.ModernBertDecoderForCausalLM(config).eval()
    weights = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("Wqkv.weight"):
            for part, each in zip("qkv", tensor.chunk(3), strict=True):
                weights[name.replace("Wqkv", f"{part}_proj")] = each
        else:
            weights[name.replace("head.", "lm_head.")] = tensor
    theirs.load_state_dict(weights)
    return theirs


def causal(config):
    model = random_model(config)
    ours = ModernBertForMaskedLM(config, causal=True).eval()
    ours.load_state_dict(model.state_dict())
    return ours


@pytest.mark.parametrize("window", [16, 100], ids=["short window", "long window"])
def test_loss_and_gradient_are_those_of_transformers_decoder(window):
    model = causal(replace(SMALL, local_attention=window, num_hidden_layers=5))
    theirs = decoder_of(model)
    lengths = [37, 2, 300, 5, 90]
    docs = documents(lengths)
    ids, ends = torch.cat(docs), cumulative(lengths)
    positions = torch.cat(
        [torch.arange(e - n, e - 1) for n, e in zip(lengths, ends[1:], strict=True)]
    )
    out = model(ids, cu_seqlens=ends, masked_positions=positions, masked_labels=ids[positions + 1])
    out.loss_sum.backward()

    losses = [theirs(input_ids=d[None], labels=d[None]).loss * (len(d) - 1) for d in docs]
    torch.stack(losses).sum().backward()
    torch.testing.assert_close(out.loss_sum, torch.stack(losses).sum(), rtol=1e-5, atol=0)
    ours = dict(model.named_parameters())
    for name, parameter in theirs.named_parameters():
        name = name.replace("lm_head.", "head.")
        if "_proj" not in name:
            grad = ours[name].grad
        else:
            part = "qkv".index(name[name.index("_proj") - 1])
            grad = ours[f"{name.rpartition('.attn.')[0]}.attn.Wqkv.weight"].grad.chunk(3)[part]
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(grad, parameter.grad, rtol=0, atol=2e-5 * scale)


def test_a_later_token_changes_no_earlier_prediction():
    model = causal(SMALL)
    lengths = [300, 40]
    ids, ends = torch.cat(documents(lengths)), cumulative(lengths)
    before = model(ids, cu_seqlens=ends).logits
    for slot in (1, 63, 150, 299, 300, 339):
        changed = ids.clone()
        changed[slot] = (changed[slot] + 1) % SMALL.vocab_size
        after = model(changed, cu_seqlens=ends).logits
        assert torch.equal(after[:slot], before[:slot])
        assert not torch.equal(after[slot], before[slot])
    assert torch.equal(after[:300], before[:300])


# ---- a run


RUN = {
    "train_data__objective": "causal",
    "checkpoints__interval": "1ba",
    "evaluation__interval": "4ba",
    "duration": "4_000tok",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_run.make_corpus(tmp_path_factory.mktemp("corpus"), documents=60)


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "detour"
    assert tiny_run.train(tiny_run.settings(corpus, folder, **RUN)) == 0
    return folder


@pytest.fixture(scope="module")
def rest(corpus, run, tmp_path_factory):
    """The masked phase that follows."""
    folder = tmp_path_factory.mktemp("runs") / "rest"
    changes = {"duration": "1_000tok", "schedule": {"name": "constant"}}
    plain = tiny_run.settings(corpus, folder, start_from=str(run), **changes)
    plain["train_data"]["seed"] = 4
    path = tiny_run.write_yaml(folder.parent / "rest.yaml", plain)
    assert main(["check", str(path)]) == 0
    assert tiny_run.train(plain) == 0
    return folder


def test_a_killed_causal_run_goes_on_as_if_it_never_was(corpus, run, tmp_path):
    for step in (1, 5):
        folder = tmp_path / f"after{step}"
        shutil.copytree(run, folder, symlinks=True)
        for later, path in run_folder.checkpoints(folder).items():
            if later > step:
                path.unlink()
        run_folder.point_latest(run_folder.checkpoint_path(folder, step))
        assert tiny_run.train(tiny_run.settings(corpus, folder, **RUN)) == 0
        for kind in ("step", "evaluation"):
            expected = tiny_run.untimed(tiny_run.metrics(run, kind))
            assert tiny_run.untimed(tiny_run.metrics(folder, kind)) == expected
        assert tiny_run.same_training_state(tiny_run.read(folder), tiny_run.read(run))


def test_microbatches_change_no_loss(corpus, run, tmp_path):
    changes = RUN | {"batch__microbatch_rows": 1, "duration": "2_500tok"}
    plain = tiny_run.settings(corpus, tmp_path / "run", **changes)
    tiny_run.train(plain)
    losses = [r["loss"] for r in tiny_run.metrics(tmp_path / "run")]
    assert losses[:2] == pytest.approx([r["loss"] for r in tiny_run.metrics(run)][:2], rel=1e-5)


def test_records_say_what_they_are_of(corpus, run):
    """The loss at the end, by a model that reads the validation documents one at a time."""
    step = tiny_run.metrics(run)[-1]
    assert step["objective"] == "causal"
    assert step["predicted_tokens"] == step["step_tokens"] - 2 * step["documents"]
    assert not {"masked_tokens", "mask_rate"} & step.keys()

    config = decode(RunConfig, tiny_run.settings(corpus, run, **RUN), "test")
    state = {k.removeprefix("model."): v for k, v in tiny_run.read(run)["model"].items()}
    model = ModernBertForMaskedLM(config.model, causal=True).eval()
    model.load_state_dict(state)
    record = tiny_run.metrics(run, "evaluation")[-1]
    assert record["objective"] == "causal" and "masking_rate" not in record
    for source, score in record["sources"].items():
        losses, right = [], []
        for batch in validation_batches(
            config.train_data,
            source,
            load_tokenizer(config.tokenizer),
            vocab_size=256,
            masking_rate=None,
            max_tokens=1000,
            seed=config.seed,
        ):
            for ids in batch.input_ids.tensor_split(batch.cu_seqlens[1:].long())[: batch.documents]:
                with torch.no_grad():
                    logits = model(ids, cu_seqlens=torch.tensor([0, len(ids)]).int()).logits
                logits, targets = logits[:-2], ids[1:-1]
                losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
                right.append((logits.argmax(-1) == targets).float())
        assert score["predicted_tokens"] == torch.cat(losses).numel() > 100
        assert score["loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)
        assert score["accuracy"] == pytest.approx(float(torch.cat(right).mean()))


def test_a_run_does_not_change_its_objective(corpus, run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder, symlinks=True)
    changes = RUN | {"train_data__objective": "masked", "duration": "5_000tok"}
    with pytest.raises(ValueError, match=r"train_data\.objective: was causal, now masked") as told:
        tiny_run.train(tiny_run.settings(corpus, folder, **changes))
    assert "start_from" in str(told.value) and "allow_changed" not in str(told.value)


def test_a_checkpoint_that_is_older_than_the_key_is_masked():
    loader = Loader(replace(DATA, objective="masked"), BATCH, fake_tokenizer(), **AS_FAKE)
    now = loader.fingerprint
    older = {key: value for key, value in now.items() if key != "objective"}
    assert len(older) == len(now) - 1
    check_fingerprint(older, now, ())
    with pytest.raises(ValueError, match="objective: was masked, now causal"):
        check_fingerprint(older, now | {"objective": "causal"}, ())


def test_a_masked_phase_follows_and_knows_of_it(rest, tmp_path, capsys, caplog):
    assert "objective" not in tiny_run.metrics(rest)[-1]
    assert main(["release", str(rest), "--out", str(tmp_path / "out")]) == 0
    assert "causal" not in caplog.text, "the last phase was masked"
    card = next((tmp_path / "out").glob("*/README.md")).read_text()
    assert "causal ones in detour" in card and "fill-mask" in card


def test_a_spike_is_recorded_as_of_predicted_tokens(corpus, tmp_path):
    from composer.core import Callback

    class Poison(Callback):
        def after_train_batch(self, state, logger):
            if int(state.timestamp.batch) == 1:
                next(state.model.parameters()).grad[0, 0] = float("nan")

    folder = tmp_path / "run"
    plain = tiny_run.settings(corpus, folder, **RUN | {"duration": "2ba"})
    built = build_run(decode(RunConfig, plain, "test"))
    built.trainer.state.callbacks.insert(0, Poison())
    assert built.fit() == 0
    (seen,) = map(json.loads, (folder / "spikes.jsonl").read_text().splitlines())
    step = tiny_run.metrics(folder)[-1]
    assert seen["objective"] == step["objective"] == "causal"
    counts = [document["predicted_tokens"] for document in seen["documents"]]
    assert sum(counts) == step["predicted_tokens"]
    assert "masked_tokens" not in json.dumps(seen)


# ---- what is told


def test_check_tells_what_says_nothing_in_a_causal_phase(corpus, tmp_path, capsys):
    plain = tiny_run.settings(
        corpus,
        tmp_path / "run",
        **RUN,
        train_data__masking={
            "whole_words": True,
            "spans": True,
            "final_rate": 0.2,
            "over": "1_000tok",
        },
        evaluation__masking_rate=0.3,
    )
    config = decode(RunConfig, plain, "test")
    (doubt,) = examine(config, 1, resuming=False).doubts
    for key in ("final_rate", "over", "whole_words", "spans"):
        assert f"train_data.masking.{key}" in doubt
    assert "evaluation.masking_rate" in doubt and "masking.rate," not in doubt
    path = tiny_run.write_yaml(tmp_path / "a.yaml", plain)
    assert main(["check", str(path)]) == 0
    page = capsys.readouterr().out
    assert "causal: each ordinary token" in page and "whole_words" in page
    with pytest.raises(ConfigError, match=r"evaluation\.probes: ask for masked tokens"):
        decode(RunConfig, plain | {"evaluation": {"probes": {"interval": "2ba"}}}, "test")
    with pytest.raises(ConfigError, match=r"objective: .*train_data\.objective"):
        decode(RunConfig, plain | {"objective": "causal"}, "test")


def test_an_export_of_a_causal_phase_is_not_for_use(run, tmp_path, capsys, caplog):
    assert main(["export", str(run), "--out", str(tmp_path / "model")]) == 0
    assert "train a masked phase from it" in caplog.text
    assert read_checkpoint(tmp_path / "model").causal, "whoever reads the export is told again"
    assert main(["release", str(run), "--out", str(tmp_path / "out")]) == 0
    for card in (tmp_path / "out").glob("*/README.md"):
        text = card.read_text()
        assert "They are no encoder yet" in text and "Not as it is" in text
        assert "next-token loss (nats)" in text or "Not evaluated" in text
        assert not [word for word in ("fill-mask", "masked-LM", "pipeline(") if word in text]
    index = (tmp_path / "out" / "README.md").read_text()
    assert "| causal |" in index and "not to be used as they are" in index
    entries = json.loads((tmp_path / "out" / "index.json").read_text())
    assert {entry["objective"] for entry in entries} == {"causal"}


def test_a_report_says_that_losses_of_two_kinds_are_not_compared(run, rest, tmp_path, capsys):
    for options in ([], ["--compare"]):
        out = tmp_path / "page.html"
        capsys.readouterr()
        assert main(["report", str(run), str(rest), *options, "--out", str(out)]) == 0
        said = "detour: loss and accuracy are of next tokens"
        assert said in capsys.readouterr().out and said in out.read_text(encoding="utf-8")
        assert "nats per predicted token" in out.read_text(encoding="utf-8")
        if not options:
            page = out.read_text(encoding="utf-8")
            assert "Training in rest predicts 30% of the tokens and validation 15%, so" in page
            assert "Causal phases predict each next token in both." in page
    assert main(["report", str(run), "--out", str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    assert "nats per next token" in page and "masked token" not in page
    assert "Training predicts" not in page
    assert "Causal validation loss ends at" in page
