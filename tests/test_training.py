import errno
import gzip
import io
import json
import math
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_run
import torch

from tessera.files import write_whole
from tessera.training import run_folder
from tessera.training.callbacks import checkpointer
from tessera.training.callbacks.progress import Step
from tessera.training.callbacks.spikes import SpikeGuard, ranges
from tessera.training.config import RunConfig, SpikeConfig
from tessera.training.shutdown import TrainingStopped


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_run.make_corpus(tmp_path_factory.mktemp("corpus"), documents=60)


def build(plain):
    from tessera.config import decode
    from tessera.training.config import RunConfig
    from tessera.training.run import build_run

    return build_run(decode(RunConfig, plain, "test"))


def before_each_step(run, act):
    """Call `act(step, model)` when the gradients of a step are there, before it is judged."""
    from composer.core import Callback

    class Meddler(Callback):
        def after_train_batch(self, state, logger):
            act(int(state.timestamp.batch) + 1, state.model)

    run.trainer.state.callbacks.insert(0, Meddler())
    return run


def test_a_model_learns(corpus, tmp_path):
    plain = tiny_run.settings(
        corpus, tmp_path / "run", duration="150ba", model__hidden_size=64, optimizer__lr=0.02
    )
    assert tiny_run.train(plain) == 0
    records = tiny_run.metrics(tmp_path / "run")
    assert records[0]["loss"] == pytest.approx(math.log(256), abs=0.1)
    (evaluation,) = tiny_run.metrics(tmp_path / "run", "evaluation")
    for source, score in evaluation["sources"].items():
        assert score["loss"] < math.log(250) - 0.5, source


def test_a_run_folder_says_what_was_run(corpus, tmp_path):
    from tessera.config import load, to_plain
    from tessera.training.config import RunConfig

    plain = tiny_run.settings(corpus, tmp_path / "run", duration="2ba")
    tiny_run.train(plain)
    resolved = load(RunConfig, tmp_path / "run" / "config.yaml")
    assert resolved.batch.rows == 4 and resolved.duration.value == 2
    record = {
        name: json.loads(text)
        for name, text in tiny_run.read(tmp_path / "run")["callbacks"]["RunRecord"].items()
    }
    assert record["run_config"] == to_plain(resolved)
    assert record["model_config"] == to_plain(resolved.model)
    assert "tokenizer.json" in record["tokenizer_files"]
    assert record["progress"]["steps"] == 2 and record["progress"]["rows"] == 8
    assert record["data"]["rows"] == 8
    read = [step["source_tokens"] for step in tiny_run.metrics(tmp_path / "run")]
    sums = {source: sum(tokens[source] for tokens in read) for source in ("web", "code")}
    assert record["progress"]["source_tokens"] == sums


def test_a_checkpoint_holds_nothing_that_needs_unpickling(corpus, tmp_path):
    tiny_run.train(tiny_run.settings(corpus, tmp_path / "run", duration="1ba"))
    state = tiny_run.read(tmp_path / "run")  # through the allowlist
    assert {"model", "optimizers", "callbacks", "timestamp"} <= set(state)


def steps_left(folder):
    return list(run_folder.checkpoints(folder))


def test_keep_deletes_the_oldest_but_never_milestones_or_the_start_of_a_decay(corpus, tmp_path):
    from tessera.config import load
    from tessera.planning.disk import disk_of
    from tessera.training.config import RunConfig

    folder = tmp_path / "run"
    plain = tiny_run.settings(
        corpus,
        folder,
        duration="12ba",
        schedule={"name": "warmup_stable_decay", "decay": "5ba"},
        checkpoints={"interval": "2ba", "keep": 2, "milestones": ["3ba"]},
    )
    assert tiny_run.train(plain) == 0
    assert steps_left(folder) == [3, 7, 10, 12]
    assert disk_of(load(RunConfig, folder / "config.yaml"), None).checkpoints == 4
    flat = load(RunConfig, folder / "config.yaml", ["schedule.decay=0ba"])
    assert disk_of(flat, None).checkpoints == 3, "no decay begins"
    assert (folder / "checkpoints" / "latest").resolve().name == "step00000012.pt"


def test_a_milestone_is_kept_even_if_the_run_was_killed_as_it_was_saved(
    corpus, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    keep = {"interval": "1ba", "keep": 1, "milestones": ["3ba"]}
    plain = tiny_run.settings(corpus, folder, duration="6ba", checkpoints=keep)

    def killed_after(path, content):
        write_whole(path, content)
        if path.name == "step00000003.pt":
            raise KeyboardInterrupt

    run = build(plain)
    monkeypatch.setattr(checkpointer, "write_whole", killed_after)
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    run.close()
    monkeypatch.undo()
    assert steps_left(folder) == [2, 3]
    assert tiny_run.train(plain) == 0
    assert steps_left(folder) == [3, 6]


def test_a_milestone_that_cannot_be_saved_is_not_passed_over(corpus, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    keep = {"interval": "2ba", "milestones": ["3ba"]}
    plain = tiny_run.settings(corpus, folder, duration="6ba", checkpoints=keep)
    run = build(plain)
    save = torch.save
    monkeypatch.setattr(
        torch, "save", lambda c, file: no_space() if "00000003" in file.name else save(c, file)
    )
    with pytest.raises(TrainingStopped, match="could not be written"):
        run.fit()
    monkeypatch.undo()
    assert tiny_run.train(plain) == 0
    assert steps_left(folder) == [2, 3, 4, 6]


def test_keep_counts_the_checkpoints_of_processes_before(corpus, tmp_path):
    folder = tmp_path / "run"
    keep = {"interval": "1ba", "keep": 2}
    for duration in ("3ba", "5ba"):
        tiny_run.train(tiny_run.settings(corpus, folder, duration=duration, checkpoints=keep))
    assert steps_left(folder) == [4, 5]


def test_a_damaged_checkpoint_does_not_count_as_kept(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for step in (1, 2, 3):
        with run_folder.checkpoint_path(tmp_path, step).open("wb") as file:
            torch.save({"step": step}, file)
    run_folder.checkpoint_path(tmp_path, 3).write_bytes(b"torn")
    run_folder.prune(tmp_path, 1)
    assert steps_left(tmp_path) == [2, 3], "the last good one must stay"


def no_space(*arguments, **settings):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_during_a_save_leaves_the_checkpoint_before(
    corpus, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "run"
    run = build(tiny_run.settings(corpus, folder, duration="6ba", checkpoints__interval="1ba"))
    save = torch.save

    def fill_up(contents, file):
        if "step00000003" in file.name or "step00000004" in file.name:
            file.write(b"half of it")
            no_space()
        save(contents, file)

    monkeypatch.setattr(torch, "save", fill_up)
    assert run.fit() == 0
    assert steps_left(folder) == [1, 2, 5, 6]
    assert capsys.readouterr().err.count("CHECKPOINT NOT WRITTEN") == 2
    assert not list((folder / "checkpoints").glob(".*.writing"))


def test_a_disk_that_stays_full_stops_the_run(corpus, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    run = build(tiny_run.settings(corpus, folder, duration="9ba", checkpoints__interval="1ba"))
    monkeypatch.setattr(torch, "save", no_space)
    with pytest.raises(
        TrainingStopped, match="the checkpoint could not be written .*No space left"
    ):
        run.fit()
    assert tiny_run.metrics(folder)[-1]["step"] == 3
    run_folder.lock(folder).release()


def test_a_checkpoint_that_does_not_fit_says_what_the_disk_said(
    corpus, tmp_path, monkeypatch, capsys
):
    # What torch raises itself, once its file has refused, speaks of positions in a zip file.
    run = build(tiny_run.settings(corpus, tmp_path / "run", duration="2ba"))
    monkeypatch.setattr(
        checkpointer,
        "write_whole",
        lambda path, write: write(Full()) if path.suffix == ".pt" else None,
    )
    with pytest.raises(TrainingStopped, match=r"OSError: \[Errno 28\] No space left on device"):
        run.fit()


class Full(io.BytesIO):
    """A file on a disk that is soon full."""

    def write(self, data):
        if self.tell() + len(data) > 100_000:
            no_space()
        return super().write(data)


@pytest.mark.parametrize("kind", ["file", "link to nothing", "file above", "read-only"])
def test_a_run_folder_that_cannot_be_is_one_message(kind, corpus, tmp_path, monkeypatch):
    from tessera.config import ConfigError

    folder = tmp_path / "run"
    if kind == "file":
        folder.write_text("something")
    elif kind == "link to nothing":
        folder.symlink_to(tmp_path / "nothing")
    elif kind == "file above":
        folder = tmp_path / "file" / "run"
        folder.parent.write_text("something")
    else:
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ConfigError) as error:
        tiny_run.train(tiny_run.settings(corpus, folder, duration="1ba"))
    expected = {
        "file": f"run_folder: {folder} is a file, not a folder",
        "link to nothing": f"run_folder: {folder} is a link to nothing, not a folder",
        "file above": f"run_folder: {folder.parent} is a file, not a folder",
        "read-only": f"run_folder: {tmp_path} may not be written to",
    }[kind]
    assert "1 problem" in str(error.value) and expected in str(error.value)


def test_latest_never_dangles(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step in (1, 2):
        write_whole(run_folder.checkpoint_path(tmp_path, step), b"x")
        run_folder.point_latest(run_folder.checkpoint_path(tmp_path, step))
        assert (folder / "latest").read_bytes() == b"x"
    assert sorted(path.name for path in folder.iterdir()) == [
        "latest",
        "step00000001.pt",
        "step00000002.pt",
    ]


def poison(at):
    def act(step, model):
        if step in at:
            next(model.parameters()).grad[0, 0] = float("nan")

    return act


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(corpus, tmp_path):
    folder = tmp_path / "run"
    plain = tiny_run.settings(corpus, folder, duration="6ba", checkpoints__interval="1ba")
    assert before_each_step(build(plain), poison({3})).fit() == 0
    records = tiny_run.metrics(folder)
    assert [record["skipped"] for record in records] == [None, None, "non-finite", *[None] * 3]
    assert records[2]["grad_norm"] is None and records[2]["loss"] is not None

    before, after, later = (tiny_run.read(folder, step) for step in (2, 3, 4))
    for part in ("model", "optimizers"):
        assert tiny_run.same_training_state(
            {**after, "callbacks": before["callbacks"], "timestamp": before["timestamp"]}, before
        ), part
    name = "model.head.dense.weight"
    assert not torch.equal(after["model"][name], later["model"][name])
    assert all(torch.isfinite(w).all() for w in later["model"].values())

    (seen,) = map(json.loads, (folder / "spikes.jsonl").read_text().splitlines())
    assert (seen["step"], seen["why"], seen["action"]) == (3, "non-finite", "skip")
    assert seen["digest"] == records[2]["digest"] and seen["rows"] == ["8-11"]
    assert [m["rows"] for m in seen["microbatches"]] == [["8-9"], ["10-11"]]


def test_what_was_seen_names_every_document_with_its_loss(corpus, tmp_path):
    from itertools import islice

    from tessera.cli.batches import batch_lines
    from tessera.config import decode
    from tessera.tokenizer import load_tokenizer
    from tessera.training.config import RunConfig

    folder = tmp_path / "run"
    plain = tiny_run.settings(corpus, folder, duration="3ba")
    assert before_each_step(build(plain), poison({2})).fit() == 0
    (seen,) = map(json.loads, (folder / "spikes.jsonl").read_text().splitlines())
    record = tiny_run.metrics(folder)[1]

    config = decode(RunConfig, plain, "test")
    lines = batch_lines(
        config.train_data,
        config.batch,
        load_tokenizer(config.tokenizer),
        vocab_size=config.model.vocab_size,
        seed=config.seed,
        with_ids=True,
    )
    (line,) = islice(lines, 1, 2)
    expected = {(row, *name) for row, names in line["ids"].items() for name in names}
    named = [(d["row"], d["source"], d["id"], d["piece"]) for d in seen["documents"]]
    assert set(named) == expected and len(named) == len(expected) == record["documents"]

    losses = [d["loss"] for d in seen["documents"]]
    assert losses == sorted(losses, reverse=True), "the first to look at comes first"
    sums: dict[str, list[float]] = {"web": [0.0, 0], "code": [0.0, 0]}
    for document in seen["documents"]:
        sums[document["source"]][0] += document["loss"] * document["masked_tokens"]
        sums[document["source"]][1] += document["masked_tokens"]
    for source, (loss, masked) in sums.items():
        assert seen["source_losses"][source] == pytest.approx(loss / masked)
    loss, masked = (sum(part) for part in zip(*sums.values(), strict=True))
    assert masked == record["masked_tokens"]
    assert loss / masked == pytest.approx(record["loss"], rel=1e-6), "dropout included"


def test_a_document_whose_loss_is_not_finite_comes_first():
    from tessera.training.callbacks.spikes import Suspect, summary

    def suspect(name, loss):
        return Suspect(row=0, source="web", id=name, piece=0, masked_tokens=1, loss=loss)

    seen = summary([suspect("a", 2.0), suspect("b", math.nan), suspect("c", 3.0)])
    assert [(d["id"], d["loss"]) for d in seen["documents"]] == [("b", None), ("c", 3), ("a", 2)]
    assert seen["source_losses"] == {"web": None}


def test_a_loss_that_is_not_finite_never_reaches_the_weights(corpus, tmp_path):
    run = build(tiny_run.settings(corpus, tmp_path / "run", duration="3ba"))

    def act(step, model):
        if step == 2:
            run.trainer.state.model.losses[0] = torch.tensor(float("inf"))

    assert before_each_step(run, act).fit() == 0
    records = tiny_run.metrics(tmp_path / "run")
    assert [record["skipped"] for record in records] == [None, "non-finite", None]
    assert records[1]["loss"] is None


def test_a_run_that_only_skips_is_stopped(corpus, tmp_path):
    from tessera.training.callbacks.spikes import SpikeError

    folder = tmp_path / "run"
    plain = tiny_run.settings(corpus, folder, duration="20ba", spikes__patience_steps=4)
    with pytest.raises(SpikeError, match="stopped before step 6 changed the weights: non-finite"):
        before_each_step(build(plain), poison(range(3, 20))).fit()
    assert tiny_run.metrics(folder)[-1]["step"] == 5


def test_a_run_stopped_by_a_spike_goes_on_without_the_rows_it_names(corpus, tmp_path):
    from tessera.training.callbacks.spikes import SpikeError

    folder = tmp_path / "run"
    plain = tiny_run.settings(
        corpus, folder, duration="8ba", checkpoints__interval="2ba", spikes__non_finite="stop"
    )
    with pytest.raises(SpikeError) as error:
        before_each_step(build(plain), poison({6})).fit()
    assert "train_data.skip_rows=['20-23']" in str(error.value)
    assert steps_left(folder) == [2, 4]
    plain["train_data"]["skip_rows"] = ["20-23"]
    assert tiny_run.train(plain) == 0
    records = tiny_run.metrics(folder)
    assert [record["step"] for record in records] == list(range(1, 9))
    assert [record["first_row"] for record in records] == [0, 4, 8, 12, 16, 24, 28, 32]


def usual(loss, grad_norm=1.0, masked_tokens=10):
    return Step(
        loss=loss,
        grad_norm=grad_norm,
        masked_tokens=masked_tokens,
        tokens=30,
        slots=32,
        documents=2,
        rows=np.arange(2),
        digest="",
        source_tokens={},
        source_epochs={},
        flops=1.0,
        wait_seconds=0.0,
        stop_signal=None,
    )


def test_a_spike_is_judged_by_the_usual_losses_before_it():
    guard = SpikeGuard(SpikeConfig(window_steps=40, threshold=8.0, action="skip"))
    noise = np.random.default_rng(0).normal(2.0, 0.05, 100)
    assert [guard.judge(usual(loss)) for loss in noise] == [None] * 100
    verdict = guard.judge(usual(3.0))
    assert (verdict.why, verdict.action) == ("spike", "skip")
    assert 2.1 < verdict.limit < 2.8
    assert guard.judge(usual(2.1)) is None
    assert 3.0 not in guard.losses, "a skipped loss is not a usual one"


def test_a_slow_fall_and_an_early_jump_are_no_spikes():
    guard = SpikeGuard(SpikeConfig(window_steps=40))
    losses = [9.0, 12.0, *np.linspace(9, 2, 200)]
    assert [guard.judge(usual(loss)) for loss in losses] == [None] * 202


def test_a_guard_continues_from_its_state_as_if_nothing_had_happened():
    losses = np.random.default_rng(1).normal(2.0, 0.3, 120)
    config = SpikeConfig(window_steps=20, threshold=2.0, action="skip")
    whole = SpikeGuard(config)
    verdicts = [whole.judge(usual(loss)) for loss in losses]
    assert sum(v is not None for v in verdicts) > 2
    first = SpikeGuard(config)
    for loss in losses[:60]:
        first.judge(usual(loss))
    second = SpikeGuard.from_progress(config, json.loads(json.dumps({"spikes": first.state()})))
    assert [second.judge(usual(loss)) for loss in losses[60:]] == verdicts[60:]


def test_rows_are_named_as_skip_rows_takes_them():
    assert ranges([5, 3, 4, 9, 11, 10]) == ["3-5", "9-11"]
    assert ranges([7]) == ["7-7"]


def test_gradients_are_clipped_to_the_norm_asked_for(corpus, tmp_path):
    norms = {}

    def run_with(clip):
        folder = tmp_path / str(clip)
        plain = tiny_run.settings(
            corpus, folder, duration="1ba", checkpoints__interval="1ba", optimizer__clip_norm=clip
        )
        tiny_run.train(plain)
        moments = tiny_run.read(folder)["optimizers"]["StableAdamW"]["state"].values()
        norms[clip] = sum(float(m["exp_avg"].double().square().sum()) for m in moments) ** 0.5
        return tiny_run.metrics(folder)[0]["grad_norm"]

    logged = run_with(None)
    assert run_with(0.01) == logged, "the norm is logged as it was"
    assert norms[None] == pytest.approx(logged)
    assert norms[0.01] == pytest.approx(0.01, rel=1e-4)


def test_activation_checkpointing_changes_nothing(corpus, tmp_path, monkeypatch):
    from tessera.model import modernbert

    again = []
    checkpoint = modernbert.checkpoint
    monkeypatch.setattr(
        modernbert,
        "checkpoint",
        lambda layer, *rest, **how: again.append(layer) or checkpoint(layer, *rest, **how),
    )
    found = {}
    for name, layers in {"none": False, "all": True, "second": [1]}.items():
        again.clear()
        changes = {"compute__activation_checkpointing": layers}
        plain = tiny_run.settings(corpus, tmp_path / name, duration="3ba", **changes)
        assert plain["model"].get("attention_output_dropout", 0.1) > 0
        assert tiny_run.train(plain) == 0
        microbatches = 3 * 2
        assert len(again) == {"none": 0, "all": 2, "second": 1}[name] * microbatches
        found[name] = tiny_run.untimed(tiny_run.metrics(tmp_path / name))
    assert found["none"] == found["all"] == found["second"]


def test_sharding_is_layer_by_layer_and_keeps_tied_weights_together(tmp_path):
    """What is known of it where no process can try it; test_distributed.py is for where one can."""
    from tessera.config import decode
    from tessera.training.config import RunConfig
    from tessera.training.mlm import ShardableEncoder
    from tessera.training.trainer import parallelism

    plain = tiny_run.settings(tmp_path, tmp_path / "run", compute__sharding="fsdp")
    config = decode(RunConfig, plain, "test")
    with torch.device("meta"):
        encoder = ShardableEncoder(config.model)
    chosen = parallelism(config)
    assert chosen.fsdp2.state_dict_type == "full", "a checkpoint is whole, whoever reads it"
    units = [module for module in encoder.modules() if encoder.fsdp_wrap_fn(module)]
    assert units == list(encoder.model.layers)
    inside = {id(weight) for unit in units for weight in unit.parameters()}
    assert id(encoder.decoder.weight) == id(encoder.model.embeddings.tok_embeddings.weight)
    assert id(encoder.decoder.weight) not in inside

    plain["compute"]["sharding"] = "none"
    assert parallelism(decode(RunConfig, plain, "test")) is None


@pytest.fixture
def sharded():
    """What spreads a model over one rank, as a configuration says, at a precision of Composer's."""
    from composer.distributed.fsdp2 import prepare_fully_shard
    from composer.distributed.fsdp2_utils import generate_composer_model_policy
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh

    from tessera.config import decode
    from tessera.training.trainer import parallelism

    def spread(model, plain, precision):
        chosen = parallelism(decode(RunConfig, plain, "test")).fsdp2
        chosen.device_mesh = init_device_mesh("cpu", (1,))
        prepare_fully_shard(model, chosen, precision, generate_composer_model_policy(model))
        return model

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield spread
    distributed.destroy_process_group()


@pytest.mark.skipif(torch.__version__ < "2.8", reason="sharding without a GPU")
def test_sharded_bfloat16_computes_what_it_does_unsharded(corpus, tmp_path, sharded):
    from composer.core import Precision

    plain = tiny_run.settings(corpus, tmp_path / "run", compute__sharding="fsdp")
    batch = first_validation_batch(plain)
    seen = {}
    for name in ("whole", "sharded"):
        model = trained_model(plain)
        if name == "sharded":
            model = sharded(model, plain, Precision.AMP_BF16)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(batch)
            model.loss(outputs, batch).backward()
        gradients = {
            name: weight.grad.full_tensor() if hasattr(weight.grad, "full_tensor") else weight.grad
            for name, weight in model.named_parameters()
        }
        seen[name] = outputs.loss_sum.item(), gradients
    assert seen["sharded"][0] == seen["whole"][0]
    for name, gradient in seen["whole"][1].items():
        assert gradient.dtype == torch.float32
        assert torch.equal(seen["sharded"][1][name], gradient), name


@pytest.mark.skipif(torch.__version__ < "2.8", reason="sharding without a GPU")
def test_looking_at_a_spike_leaves_no_old_weights_behind(corpus, tmp_path, sharded):
    from composer.core import Precision
    from torch.distributed.tensor import DTensor

    plain = tiny_run.settings(corpus, tmp_path / "run", compute__sharding="fsdp")
    batch = first_validation_batch(plain)
    model = sharded(trained_model(plain), plain, Precision.FP32)
    model.model.set_reshard_after_forward(False, recurse=False)  # of the root, as in older torch
    with torch.no_grad():
        before = model.token_losses(batch)
        assert all(isinstance(weight, DTensor) for weight in model.parameters())
        for weight in model.parameters():
            weight.mul_(1.5)
        assert not torch.equal(model.token_losses(batch), before)


def trained_model(plain):
    from tessera.config import decode
    from tessera.training.mlm import MaskedLanguageModel, ShardableEncoder

    config = decode(RunConfig, plain, "test")
    encoder = ShardableEncoder(config.model)
    encoder.initialize(config.seed)
    return MaskedLanguageModel(encoder, config.seed).train()


def first_validation_batch(plain):
    from tessera.config import decode
    from tessera.data.validation import validation_batches
    from tessera.tokenizer import load_tokenizer

    config = decode(RunConfig, plain, "test")
    batches = validation_batches(
        config.train_data,
        "web",
        load_tokenizer(config.tokenizer),
        vocab_size=config.model.vocab_size,
        masking_rate=0.3,
        max_tokens=500,
        seed=config.seed,
    )
    return next(iter(batches))


@pytest.mark.skipif(torch.__version__ >= "2.8", reason="there it works: see test_distributed.py")
def test_sharding_that_gloo_cannot_do_is_refused(corpus, tmp_path):
    from tessera.config import ConfigError

    with pytest.raises(ConfigError, match=r"compute\.sharding: fsdp .* needs torch 2\.8 "):
        build(tiny_run.settings(corpus, tmp_path / "run", compute__sharding="fsdp"))


def test_the_watchdog_shows_where_a_step_hangs(corpus, tmp_path):
    folder = tmp_path / "run"
    run = build(tiny_run.settings(corpus, folder, duration="2ba", watchdog_minutes=0.5 / 60))

    def the_culprit(step, model):
        if step == 2:
            time.sleep(1.5)

    assert before_each_step(run, the_culprit).fit() == 0
    stacks = (folder / "stacks-rank0.txt").read_text()
    assert "the_culprit" in stacks and "Timeout" in stacks


def test_a_mistake_is_one_message_and_known_before_torch(tmp_path):
    plain = tiny_run.settings(tmp_path, tmp_path / "run", batch__row=3, optimizer__lr=-1.0)
    yaml_path = tiny_run.write_yaml(tmp_path / "run.yaml", plain)
    script = (
        "import runpy, sys\n"
        "path, sys.argv = sys.argv[1], sys.argv[1:]\n"
        "try:\n    runpy.run_path(path, run_name='__main__')\n"
        "finally:\n    print('torch imported:', 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tiny_run.REPOSITORY / "main.py"), str(yaml_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "torch imported: False" in done.stdout
    assert "batch.row: unknown 'row'; did you mean 'rows'?" in done.stderr
    assert "optimizer.lr: must be positive" in done.stderr
    assert "Traceback" not in done.stderr


def test_ranks_that_do_not_divide_the_batch_are_refused_before_torch(monkeypatch, tmp_path):
    from tessera.config import ConfigError, decode
    from tessera.training.config import RunConfig

    plain = tiny_run.settings(tmp_path, tmp_path / "run", batch__rows=6)
    config = decode(RunConfig, plain, "test")
    config.check_world(2)
    with pytest.raises(ConfigError) as error:
        config.check_world(4)
    assert "batch.rows: 6 rows do not divide among 4 ranks" in str(error.value)


def test_every_attention_backend_can_be_asked_for():
    from typing import get_args, get_type_hints

    from tessera.model.attention.backends import BACKENDS
    from tessera.training.config import ComputeConfig

    assert set(get_args(get_type_hints(ComputeConfig)["attention"])) == {"auto", *BACKENDS}


@pytest.mark.parametrize(("threads", "used"), [(None, 1), (2, 2)], ids=["of OpenMP", "of the YAML"])
def test_threads_are_those_that_were_asked_for(threads, used, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    from tessera.config import decode
    from tessera.training.run import build_run

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as torch reads the variable when it starts
    monkeypatch.setattr("tessera.training.trainer._cores", lambda: 7)
    try:
        plain = tiny_run.settings(corpus, tmp_path / "run", compute__threads=threads)
        build_run(decode(RunConfig, plain, "test")).close()
        assert torch.get_num_threads() == used
    finally:
        torch.set_num_threads(before)


def test_rows_that_were_trained_on_cannot_be_left_out_unsaid(corpus, tmp_path, capsys):
    folder = tmp_path / "run"
    plain = tiny_run.settings(corpus, folder, duration="3ba", evaluation__at_end=False)
    assert tiny_run.train(plain) == 0
    plain["duration"] = "5ba"
    plain["train_data"]["skip_rows"] = ["5", "14-15"]
    assert tiny_run.train(plain) == 0
    warned = capsys.readouterr().err
    assert "train_data.skip_rows: 5 had been trained on when step00000003.pt was saved" in warned
    assert "14-15" not in warned, "those came later, and were left out"
    plain["duration"] = "6ba"
    assert tiny_run.train(plain) == 0
    assert "had been trained on" not in capsys.readouterr().err, "said once is enough"


def test_a_run_folder_says_how_the_run_ended(corpus, tmp_path):
    folder = tmp_path / "run"
    plain = tiny_run.settings(corpus, folder, duration="2ba", evaluation__at_end=False)
    run = build(plain)

    def fail(step, model):
        assert not (folder / "ended.json").exists()
        if step == 2:
            raise RuntimeError("a cosmic ray")

    with pytest.raises(RuntimeError):
        before_each_step(run, fail).fit()
    ended = json.loads((folder / "ended.json").read_text())
    assert (ended["how"], ended["step"]) == ("RuntimeError: a cosmic ray", 1)
    assert tiny_run.train(plain) == 0
    assert json.loads((folder / "ended.json").read_text())["how"] == "complete"


def test_with_several_ranks_stacks_are_printed_before_the_others_give_up(monkeypatch, tmp_path):
    from contextlib import ExitStack

    from tessera.config import decode
    from tessera.training.trainer import watchdog

    config = decode(RunConfig, tiny_run.settings(tmp_path, tmp_path), "test")
    with ExitStack() as closing:
        assert next(watchdog(config, closing))._seconds == 30 * 60
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert next(watchdog(config, closing))._seconds < 10 * 60


@pytest.mark.slow
def test_where_the_time_of_some_steps_goes_is_told_once(corpus, tmp_path):
    folder = tmp_path / "run"
    plain = tiny_run.settings(
        corpus, folder, duration="5ba", compute={"trace": {"after_steps": 1, "steps": 2}}
    )
    assert tiny_run.train(plain) == 0
    with gzip.open(folder / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    steps = [event["name"] for event in events if event["name"].startswith("ProfilerStep#")]
    assert sorted(set(steps)) == ["ProfilerStep#2", "ProfilerStep#3"]
    assert "aten::mm" in (folder / "trace.txt").read_text()
