"""Probes of a model in training: what they measure, and that they leave no trace in it."""

import json
import random
import shutil
import signal

import numpy as np
import pytest
import tiny_run
import torch
from judging import make_texts

from tessera.checkpoints import load_model
from tessera.config import decode
from tessera.data.validation import validation_batches
from tessera.evaluation.predictions import Predictions, predictions, question
from tessera.model.scoring import answers
from tessera.tokenizer import load_tokenizer
from tessera.training import run_folder
from tessera.training.config import RunConfig
from tessera.training.run import build_run

SHORT = 24
RUN = {
    "duration": "3_000tok",
    "checkpoints__interval": "2ba",
    "evaluation__interval": "5ba",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    make_texts(folder / "texts", rows=40)
    return tiny_run.make_corpus(folder, documents=60)


def probes(corpus, **changes):
    labelled = {split: str(corpus / "texts" / f"{split}.jsonl") for split in ("train", "test")}
    asked = {
        "interval": "800tok",
        "max_tokens": 500,
        "short": SHORT,
        "distances": [20, 40],
        "names": 4,
        "linear_probe": labelled,
    }
    return {"evaluation__probes": {**asked, **changes}}


def settings(corpus, folder, **changes):
    return tiny_run.settings(corpus, folder, **{**RUN, **probes(corpus), **changes})


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "probed"
    pytest.importorskip("sklearn")
    assert tiny_run.train(settings(corpus, folder)) == 0
    return folder


def untimed(records):
    return [
        {k: v for k, v in record.items() if k not in ("seconds", "time_share")}
        for record in records
    ]


def test_probes_come_at_token_intervals_and_at_the_end(run):
    steps, found = tiny_run.metrics(run), tiny_run.metrics(run, "probes")
    passed = [0, *(step["tokens"] for step in steps)]
    due = [
        step["step"]
        for step, before in zip(steps, passed, strict=False)
        if step["tokens"] // 800 > before // 800
    ]
    assert [record["step"] for record in found] == sorted({*due, steps[-1]["step"]})
    assert len(found) >= 3
    for record in found:
        assert record["position"].keys() == {"0-63"}
        assert record["recall"].keys() == {"without_mention", "20", "40"}
        assert 0 <= record["linear_probe"]["accuracy"] <= 1
        assert record["seconds"] > 0 and 0 < record["time_share"] < 1


def test_values_are_those_of_the_model_that_was_saved(corpus, run):
    record = tiny_run.metrics(run, "probes")[-1]
    config = decode(RunConfig, settings(corpus, run), "test")
    tokenizer = load_tokenizer(config.tokenizer)
    model = load_model(run)
    parts = []
    with torch.inference_mode():
        for source in ("web", "code"):
            for batch in validation_batches(
                config.train_data,
                source,
                tokenizer,
                vocab_size=256,
                masking_rate=0.15,
                max_tokens=500,
                seed=config.seed,
            ):
                asked = question(batch, SHORT, tokenizer.pad_id)
                parts.append(predictions(asked, [answers(model, b) for b in asked.batches]))
    whole = Predictions.joined(parts)
    position, context = record["position"]["0-63"], record["context"]
    assert position["masked_tokens"] == whole.losses.size > 50
    assert position["loss"] == pytest.approx(whole.losses.mean(), rel=1e-5)
    assert position["accuracy"] == pytest.approx(whole.right.mean())
    beyond = ~np.isnan(whole.short)
    assert context["masked_tokens"] == beyond.sum() > 10
    assert context["loss"] == pytest.approx(whole.losses[beyond].mean(), rel=1e-5)
    short = whole.short[beyond].mean()
    assert context[f"loss_with_{SHORT}_tokens"] == pytest.approx(short, rel=1e-5)
    assert context["gain"] == pytest.approx(short - whole.losses[beyond].mean(), abs=1e-5)


def test_they_leave_no_trace_in_training(corpus, run, tmp_path):
    plain = tiny_run.settings(corpus, tmp_path / "plain", **RUN)
    assert tiny_run.train(plain) == 0
    for kind in ("step", "evaluation"):
        mine, theirs = (tiny_run.metrics(folder, kind) for folder in (run, tmp_path / "plain"))
        assert tiny_run.untimed(mine) == tiny_run.untimed(theirs)
    one, other = tiny_run.read(run), tiny_run.read(tmp_path / "plain")
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, other["model"][name]), name
    moments = (state["optimizers"]["StableAdamW"]["state"] for state in (one, other))
    for mine, theirs in zip(*(m.values() for m in moments), strict=True):
        for slot, value in mine.items():
            assert not torch.is_tensor(value) or torch.equal(value, theirs[slot])


def test_no_generator_is_drawn_from(corpus, tmp_path):
    pytest.importorskip("sklearn")
    from composer.core import Callback

    from tessera.training.callbacks.probes import Probes

    plain = settings(corpus, tmp_path / "run", duration="2ba")
    built = build_run(decode(RunConfig, plain, "test"))
    state = built.trainer.state
    (asked,) = [c for c in state.callbacks if isinstance(c, Probes)]
    seen = []

    class Look(Callback):
        def batch_end(self, state, logger):
            before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
            asked._report(state)
            assert torch.equal(torch.get_rng_state(), before[0])
            assert (np.random.get_state()[1] == before[1]).all()
            assert random.getstate() == before[2]
            assert state.model.training
            seen.append(int(state.timestamp.batch))

    state.callbacks.append(Look())
    assert built.fit() == 0
    assert seen == [1, 2]


def test_the_same_values_come_after_a_resume(corpus, run, tmp_path):
    folder = tmp_path / "resumed"
    shutil.copytree(run, folder, symlinks=True)
    steps = sorted(run_folder.checkpoints(folder))
    for later in steps[2:]:
        run_folder.checkpoint_path(folder, later).unlink()
    run_folder.point_latest(run_folder.checkpoint_path(folder, steps[1]))
    assert tiny_run.train(settings(corpus, folder)) == 0
    found = untimed(tiny_run.metrics(folder, "probes"))
    assert found == untimed(tiny_run.metrics(run, "probes"))
    assert [r["step"] for r in found][0] <= steps[1] < found[-1]["step"]


def test_a_signal_puts_probes_off_and_the_next_start_makes_up_for_them(corpus, run, tmp_path):
    from composer.core import Callback

    plain = settings(corpus, tmp_path / "run")
    first = tiny_run.metrics(run, "probes")[0]["step"]
    built = build_run(decode(RunConfig, plain, "test"))

    class Signal(Callback):
        def after_train_batch(self, state, logger):
            if int(state.timestamp.batch) == first - 1:
                built.stop.signal = signal.SIGTERM

    built.trainer.state.callbacks.insert(0, Signal())
    assert built.fit() == 75
    assert tiny_run.metrics(tmp_path / "run", "probes") == []
    assert tiny_run.train(plain) == 0
    mine, theirs = (untimed(tiny_run.metrics(f, "probes")) for f in (tmp_path / "run", run))
    assert mine == theirs


def test_a_run_from_before_there_were_probes_is_continued(corpus, tmp_path):
    pytest.importorskip("sklearn")
    plain = tiny_run.settings(corpus, tmp_path / "run", duration="2ba")
    assert tiny_run.train(plain) == 0
    path = run_folder.checkpoint_path(tmp_path / "run", 2)
    contents = torch.load(path, weights_only=False)
    record = contents["state"]["callbacks"]["RunRecord"]
    progress = json.loads(record["progress"])
    assert progress.pop("probes_owed") is False
    record["progress"] = json.dumps(progress)
    torch.save(contents, path)
    more = tiny_run.settings(corpus, tmp_path / "run", duration="4ba", **probes(corpus))
    assert tiny_run.train(more) == 0
    assert tiny_run.metrics(tmp_path / "run", "probes")[-1]["step"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"compute__sharding": "fsdp"}], ids=["ddp", "fsdp"])
def test_on_two_ranks_the_values_are_the_same(corpus, run, tmp_path, more):
    if more and torch.__version__ < "2.8":
        pytest.skip("gloo cannot average before torch 2.8")
    folder = tmp_path / "two"
    plain = settings(corpus, folder, batch__microbatch_rows=1, **more)
    plain["evaluation"]["probes"]["max_tokens"] = 150  # of one source the second rank has no row
    yaml_path = tiny_run.write_yaml(tmp_path / "run.yaml", plain)
    process = tiny_run.start(yaml_path, ranks=2)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    alone = settings(corpus, tmp_path / "alone", batch__microbatch_rows=1)
    alone["evaluation"]["probes"]["max_tokens"] = 150
    assert tiny_run.train(alone) == 0
    mine, theirs = (tiny_run.metrics(f, "probes") for f in (folder, tmp_path / "alone"))
    assert [r["step"] for r in mine] == [r["step"] for r in theirs]
    for one, other in zip(mine, theirs, strict=True):
        for part in ("position", "context", "recall"):
            assert flat(one[part]) == pytest.approx(flat(other[part]), abs=2e-3)
        assert one["linear_probe"]["accuracy"] == pytest.approx(
            other["linear_probe"]["accuracy"], abs=0.1
        )


def flat(part, prefix=""):
    found = {}
    for name, value in part.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {name: value}
    return {f"{prefix}{k}" if "." not in k else k: v for k, v in found.items()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"distances": [5, 4000]}, "none of 5, 4000 lies between 19"),
        ({"linear_probe": {"train": "nowhere.jsonl", "test": "x.jsonl"}}, "no such file"),
        ({"nams": 3}, "did you mean 'names'?"),
        ({"short": 2}, "short: must be at least 8"),
    ],
)
def test_mistakes_are_said_before_a_run(corpus, tmp_path, capsys, change, says):
    from tessera.cli.main import main

    plain = tiny_run.settings(corpus, tmp_path / "run", **RUN, **probes(corpus, **change))
    yaml_path = tiny_run.write_yaml(tmp_path / "run.yaml", plain)
    assert main(["check", str(yaml_path)]) == 2
    said = capsys.readouterr().err
    assert says in said and "evaluation.probes" in said
