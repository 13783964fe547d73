import json
import shutil

import pytest
import tiny_run
import torch

from tessera.config import ConfigError
from tessera.training import run_folder

FIRST = {"duration": "3_000tok", "optimizer__lr": 0.01, "schedule": {"name": "constant"}}
SECOND = {
    "duration": "2_000tok",
    "seed": 9,
    "train_data__max_seq_len": 96,
    "train_data__row_tokens": 192,
    "model__global_rope_theta": 20_000.0,
    "optimizer__lr": 0.003,
    "optimizer__weight_decay": 4e-6,
    "schedule": {"name": "one_minus_sqrt", "floor": 0.1},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_run.make_corpus(tmp_path_factory.mktemp("corpus"), documents=60)


@pytest.fixture(scope="module")
def first(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "phase1"
    tiny_run.train(tiny_run.settings(corpus, folder, **FIRST))
    return folder


def second(corpus, folder, first, **changes):
    every = {"start_from": str(first), **SECOND, **changes}
    return tiny_run.settings(corpus, folder, **every)


def test_what_a_phase_starts_from_is_read_once(corpus, first, tmp_path, monkeypatch):
    from tessera.checkpoints import reader
    from tessera.training import trainer

    read = []

    def counted(path, **more):
        read.append(str(path))
        return reader_of_all(path, **more)

    reader_of_all = reader.read_checkpoint
    monkeypatch.setattr(reader, "read_checkpoint", counted)
    monkeypatch.setattr(trainer, "read_checkpoint", counted)
    assert tiny_run.train(second(corpus, tmp_path / "phase2", first, duration="200tok")) == 0
    assert read == [str(first)]


def test_a_phase_carries_weights_and_moments_over_and_nothing_else(corpus, first, tmp_path):
    folder = tmp_path / "phase2"
    # One step at a rate of next to nothing: what is saved after it is what was carried over.
    frozen = {
        "schedule": {"name": "constant", "warmup": "2_000tok"},
        "checkpoints__interval": "1ba",
    }
    assert tiny_run.train(second(corpus, folder, first, **frozen)) == 0
    before, after = tiny_run.read(first), tiny_run.read(folder, 1)
    for name, weight in before["model"].items():
        assert torch.allclose(weight, after["model"][name], rtol=0, atol=1e-10), name

    old, new = (state["optimizers"]["StableAdamW"] for state in (before, after))
    steps = [int(state["param_groups"][0]["step"]) for state in (old, new)]
    assert steps[1] == steps[0] + 1, "the optimizer's own count goes on"
    name = "model.model.layers.1.attn.Wqkv.weight"
    squares = [state["state"][name]["exp_avg_sq"] for state in (old, new)]
    beta = 0.98 * (1 - 0.98 ** (steps[1] - 1)) / (1 - 0.98 ** steps[1])
    assert (squares[1] >= 0.999 * beta * squares[0]).all(), (
        "moments shrink by beta, and grow by g^2"
    )

    record = tiny_run.metrics(folder)[0]
    assert record["step"] == 1 and record["tokens"] == record["step_tokens"]
    assert record["first_row"] == 0 and record["digest"] != tiny_run.metrics(first)[0]["digest"]


def test_the_settings_in_force_are_those_of_the_new_yaml(corpus, first, tmp_path, capsys):
    folder = tmp_path / "phase2"
    assert tiny_run.train(second(corpus, folder, first)) == 0
    records = tiny_run.metrics(folder)
    assert records[0]["lr"] == 0.003
    assert {r["max_lr"] for r in records} == {0.003}
    assert {r["weight_decay"] for r in records} == {4e-6}
    assert records[0]["decay_of_step"] == pytest.approx(4e-6)
    groups = tiny_run.read(folder)["optimizers"]["StableAdamW"]["param_groups"]
    assert {g["max_lr"] for g in groups} == {0.003}
    assert sorted(g["weight_decay"] for g in groups) == [0.0, 4e-6]
    assert "in force: peak lr 0.003, weight decay 4e-06, max_lr 0.003" in capsys.readouterr().out


def test_the_optimizer_itself_holds_the_new_settings(corpus, first, tmp_path):
    from tessera.config import decode
    from tessera.training.config import RunConfig
    from tessera.training.run import build_run

    folder = tmp_path / "phase2"
    begun = second(corpus, folder, first, checkpoints__interval="1ba", duration="1ba")
    chosen = {"lr": 0.003, "weight_decay": 4e-6, "betas": [0.8, 0.9], "eps": 1e-5}
    resumed = {**begun, "optimizer": {"name": "stable_adamw", **chosen}, "duration": "2ba"}
    for plain, betas, eps in ((begun, (0.9, 0.98), 1e-6), (resumed, (0.8, 0.9), 1e-5)):
        run = build_run(decode(RunConfig, plain, "test"))
        (optimizer,) = run.trainer.state.optimizers
        decays = [group["weight_decay"] for group in optimizer.param_groups]
        assert sorted(decays) == [0.0, 4e-6]
        for group in optimizer.param_groups:
            found = (
                group["initial_lr"],
                group["max_lr"],
                group["beta1"],
                group["beta2"],
                group["eps"],
            )
            assert found == (0.003, 0.003, *betas, eps)
        moments = [state["exp_avg_sq"] for state in optimizer.state.values()]
        assert all(moment.any() for moment in moments), "and the moments it continues from"
        assert run.fit() == 0


def test_the_rate_is_exact_at_every_step(corpus, first, tmp_path):
    folder = tmp_path / "phase2"
    tiny_run.train(second(corpus, folder, first))
    done = 0
    for record in tiny_run.metrics(folder):
        expected = 0.003 * (0.1 + 0.9 * (1 - (min(1.0, done / 2000)) ** 0.5))
        assert record["lr"] == pytest.approx(expected, rel=1e-12)
        done = record["tokens"]


def test_a_phase_begun_from_another_resumes_itself(corpus, first, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "phase2"
    phase1 = tmp_path / "phase1"
    shutil.copytree(first, phase1, symlinks=True)
    changes = {"checkpoints__interval": "1ba"}
    tiny_run.train(second(corpus, whole, phase1, **changes))
    shutil.copytree(whole, folder, symlinks=True)
    for step, path in run_folder.checkpoints(folder).items():
        if step > 2:
            path.unlink()
    shutil.rmtree(phase1)  # it has done its part
    assert tiny_run.train(second(corpus, folder, phase1, **changes)) == 0
    assert tiny_run.untimed(tiny_run.metrics(folder)) == tiny_run.untimed(tiny_run.metrics(whole))
    one, other = (tiny_run.read(f)["model"] for f in (whole, folder))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_weights_alone_by_choice_or_need(corpus, first, tmp_path, capsys):
    fresh = {"checkpoint": str(first), "optimizer": False}
    tiny_run.train(second(corpus, tmp_path / "a", first, start_from=fresh))
    assert "weights alone, as start_from.optimizer says" in capsys.readouterr().out
    other = {"name": "adamw", "lr": 0.001}
    tiny_run.train(second(corpus, tmp_path / "b", first, optimizer=other))
    assert "weights alone: it holds no state of AdamW (StableAdamW)" in capsys.readouterr().out
    asked = second(corpus, tmp_path / "c", first, optimizer=other)
    (said,) = doubts(asked)
    assert "trained with stable_adamw, this phase with adamw: it begins with the weights" in said
    meant = {"checkpoint": str(first), "optimizer": False}
    assert doubts({**asked, "start_from": meant}) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model__num_hidden_layers": 3}, "model.num_hidden_layers: 3 here, 2 in"),
        ({"model__hidden_size": 64}, "model.hidden_size: 64 here, 32 in"),
        ({"start_from": "runs/nowhere"}, "start_from: 'runs/nowhere' does not exist"),
        ({"model__vocab_size": 128}, "model.vocab_size: 128 rows cannot hold the 255 tokens"),
        ({"train_data__sources__web__local": "data/nowhere"}, "train_data.sources.web"),
        ({"tokenizer": "./nowhere"}, "tokenizer"),
        ({"evaluation__sources": {"web": {"local": "data/nowhere"}}}, "evaluation.sources.web: "),
        ({"train_data__max_seq_len": 512}, "max_seq_len 512 is larger than row_tokens"),
    ],
)
def test_a_wrong_chain_is_refused_before_anything_is_written(
    changes, named, corpus, first, tmp_path
):
    folder = tmp_path / "phase2"
    with pytest.raises(ConfigError) as error:
        tiny_run.train(second(corpus, folder, first, **changes))
    assert named in str(error.value)
    assert not folder.exists()


def test_a_phase_does_not_start_from_itself(corpus, first, tmp_path):
    for path in (first, first / "checkpoints" / "latest"):
        with pytest.raises(ConfigError, match="start_from: '.*' is this phase's own run_folder"):
            tiny_run.train(second(corpus, first, path))


def doubts(plain):
    from tessera.config import decode
    from tessera.training.config import RunConfig
    from tessera.training.preflight import examine

    found = examine(decode(RunConfig, plain, "test"), 1, resuming=False)
    assert not found.problems
    return found.doubts


def test_a_phase_that_would_read_the_same_rows_again_is_warned_of(corpus, first, tmp_path, capsys):
    again = second(corpus, tmp_path / "again", first, seed=3)
    (said,) = doubts(again)
    assert "train_data.seed: " in said and "read web, code with the same seed, 3" in said
    assert tiny_run.train(again) == 0, "it may be meant"
    assert said in capsys.readouterr().err
    assert doubts({**again, "train_data": {**again["train_data"], "seed": 4}}) == []
    data = again["train_data"]
    fresh = {name: {**s, "split": "validation"} for name, s in data["sources"].items()}
    assert doubts({**again, "train_data": {**data, "sources": fresh}}) == []


def test_a_phase_that_would_start_from_an_unfinished_one_is_warned_of(corpus, tmp_path):
    unfinished = tmp_path / "phase1"
    tiny_run.train(
        tiny_run.settings(corpus, unfinished, **{**FIRST, "checkpoints__interval": "1ba"})
    )
    for step, path in run_folder.checkpoints(unfinished).items():
        if step > 2:
            path.unlink()
    run_folder.point_latest(run_folder.checkpoint_path(unfinished, 2))
    for newest in (unfinished, unfinished / "checkpoints" / "latest"):
        (said,) = doubts(second(corpus, tmp_path / "phase2", newest))
        assert (
            "is at 1,0" in said
            and "of 3,000 tokens. This one starts from there all the same" in said
        )
    chosen = run_folder.checkpoint_path(unfinished, 2)
    assert doubts(second(corpus, tmp_path / "phase2", chosen)) == []


def test_another_tokenizer_is_refused(corpus, first, tmp_path):
    other = tiny_run.make_corpus(tmp_path / "other", documents=8)
    shutil.rmtree(other / "tokenizer")
    tiny_run.make_tokenizer(other / "tokenizer", words=200)
    tokenizer = str(other / "tokenizer")
    with pytest.raises(ConfigError) as error:
        tiny_run.train(second(corpus, tmp_path / "phase2", first, tokenizer=tokenizer))
    assert "train_data.sources.web: the shards" in str(error.value)
    assert f"tokenizer: {tokenizer} is not the one that" in str(error.value)


def test_all_phases_in_order_may_be_started_again_anywhere(corpus, tmp_path):
    """The documented loop: `for phase in ...; do composer main.py $phase || exit; done`."""
    chain = [
        tiny_run.settings(corpus, tmp_path / "p1", **FIRST),
        second(corpus, tmp_path / "p2", tmp_path / "p1"),
        second(corpus, tmp_path / "p3", tmp_path / "p2" / "checkpoints" / "latest"),
    ]
    for _ in range(2):
        assert [tiny_run.train(plain) for plain in chain] == [0, 0, 0]
    final = json.loads(tiny_run.read(tmp_path / "p3")["callbacks"]["RunRecord"]["run_config"])
    assert final["start_from"] == str(tmp_path / "p2" / "checkpoints" / "latest")
