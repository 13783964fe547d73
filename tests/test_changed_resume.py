"""What may change between two starts of a phase: it goes on exactly, or says what it does instead.

The table in `src/tessera/training/README.md` has a row for each of these. The mixture has a file of
its own, `test_mixture_change.py`; other numbers of ranks are in `test_distributed.py`.
"""

import logging
import shutil
from dataclasses import replace

import pytest
import tiny_run

from tessera.cli.check import describe
from tessera.config import ConfigError, decode
from tessera.training import run_folder
from tessera.training.config import RunConfig
from tessera.training.resume import read, resumable

WHOLE_RUN = {
    "checkpoints__interval": "1ba",
    "batch__warmup": {"initial_rows": 2, "increment_rows": 2, "over": "1_000tok"},
    "evaluation__at_end": False,
    "duration": "5_000tok",
}
STEP = 6
"""After both warm-ups, before the decay."""
SCHEDULE = {"name": "warmup_stable_decay", "warmup": "1_000tok", "decay": "1_000tok"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_run.make_corpus(tmp_path_factory.mktemp("corpus"), documents=60)


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert tiny_run.train(tiny_run.settings(corpus, folder, **WHOLE_RUN)) == 0
    done = tiny_run.metrics(folder)[STEP - 1]
    assert done["rows"] == 4 and 1_000 < done["tokens"] < 3_000
    return folder


@pytest.fixture
def interrupted(undisturbed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder, symlinks=True)
    (folder / "checkpoints" / "complete.yaml").unlink()
    for later, path in run_folder.checkpoints(folder).items():
        if later > STEP:
            path.unlink()
    run_folder.point_latest(run_folder.checkpoint_path(folder, STEP))
    return folder


def settings(corpus, folder, **changes):
    return tiny_run.settings(corpus, folder, **{**WHOLE_RUN, **changes})


def changes_of(plain, folder):
    saved = read(run_folder.checkpoint_path(folder, STEP))
    return resumable(decode(RunConfig, plain, "test"), saved)


def test_a_setting_that_never_had_an_effect_is_no_change(corpus, undisturbed):
    """Runs have stored a `clip_norm` of what stands beside Muon, which clipped nothing."""
    saved = read(run_folder.checkpoint_path(undisturbed, STEP))
    muon = {"name": "muon", "lr": 0.01, "rest": {"name": "adamw", "clip_norm": 1.0}}
    stored = {**saved.run_config, "optimizer": muon}
    plain = settings(corpus, undisturbed, optimizer={"name": "muon", "lr": 0.01})
    assert resumable(decode(RunConfig, plain, "test"), replace(saved, run_config=stored)) == []


def records(folder):
    return tiny_run.untimed(tiny_run.metrics(folder))


@pytest.mark.parametrize(
    "change",
    [
        {"duration": "7_000tok"},
        {"duration": "4_000tok"},
        {"schedule": {**SCHEDULE, "decay": "2_000tok", "floor": 0.1}},
    ],
    ids=["longer", "shorter", "another decay"],
)
def test_before_the_decay_a_change_of_length_is_as_if_it_had_been_so_from_the_start(
    change, corpus, interrupted, tmp_path
):
    assert tiny_run.train(settings(corpus, interrupted, **change)) == 0
    assert tiny_run.train(settings(corpus, tmp_path / "twin", **change)) == 0
    assert records(interrupted) == records(tmp_path / "twin")
    states = tiny_run.read(interrupted), tiny_run.read(tmp_path / "twin")
    assert tiny_run.same_training_state(*states)


def test_what_does_not_reach_the_numbers_changes_none(corpus, undisturbed, interrupted):
    change = {
        "schedule": {**SCHEDULE, "warmup": "500tok"},  # over already
        "train_data__workers": 2,
        "train_data__prefetch_rows": 3,
        "checkpoints__keep": 2,
        "evaluation__masking_rate": 0.2,
        "logging__tensorboard": True,
    }
    plain = settings(corpus, interrupted, **change)
    assert not any("the next step" in line for line in changes_of(plain, interrupted))
    assert tiny_run.train(plain) == 0
    assert records(interrupted) == records(undisturbed)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"optimizer__lr": 0.004}, "lr 0.01 -> 0.004"),
        ({"batch__rows": 8}, "a batch of 4 -> 8 rows"),
        (
            {"batch__warmup": {"initial_rows": 2, "increment_rows": 2, "over": "4_000tok"}},
            "a batch of 4 -> 2 rows",
        ),
        ({"schedule": {**SCHEDULE, "warmup": "4_000tok"}}, "lr 0.01 -> "),
    ],
    ids=["lr", "batch", "warm-up of the batch", "warm-up"],
)
def test_what_changes_the_next_step_is_said_in_numbers_and_done(
    change, said, corpus, undisturbed, interrupted, capsys
):
    plain = settings(corpus, interrupted, **change)
    page = describe(decode(RunConfig, plain, "test"), "run.yaml", 1)
    (line,) = [line for line in page.splitlines() if "the next step: " in line]
    assert said in line
    assert tiny_run.train(plain) == 0
    assert f"changed since: {line.strip()}" in capsys.readouterr().out
    step, before = tiny_run.metrics(interrupted)[STEP], tiny_run.metrics(undisturbed)[STEP]
    assert (step["lr"], step["rows"]) != (before["lr"], before["rows"])
    for name, value in (("lr", step["lr"]), ("rows", step["rows"])):
        if value != before[name]:
            assert f"-> {value:.4g}" in line


def test_masks_and_rows_that_change_together_are_said(corpus, interrupted):
    """Rows of twice the tokens are taken to have been so all along: the rate is further on."""
    masking = {"rate": 0.3, "final_rate": 0.1, "over": "5_000tok"}
    change = {"train_data__allow_changed": ["masking", "row_tokens"]}
    plain = settings(corpus, interrupted, train_data__masking=masking, **change)
    rows = read(run_folder.checkpoint_path(interrupted, STEP)).data["rows"]
    rate = 0.3 - 0.2 * rows * 128 / 5_000
    assert f"masks 0.3 -> {rate:.4g} of the tokens" in changes_of(plain, interrupted)[-1]
    plain["train_data"]["row_tokens"] = 256
    assert f"0.3 -> {0.3 - 0.2 * rows * 256 / 5_000:.4g} of" in changes_of(plain, interrupted)[-1]


def test_a_shorter_phase_than_what_is_done_is_complete(corpus, interrupted, capsys):
    short = {"duration": "1_000tok", "schedule": {"name": "constant"}}
    plain = settings(corpus, interrupted, **short)
    assert "nothing: complete already" in describe(decode(RunConfig, plain, "test"), "run.yaml", 1)
    assert tiny_run.train(plain) == 0
    assert "complete" in capsys.readouterr().out


def test_a_precision_that_a_cpu_has_not_is_refused_by_key(corpus, interrupted):
    plain = settings(corpus, interrupted, compute__precision="amp_bf16")
    assert "compute.precision: auto -> amp_bf16" in changes_of(plain, interrupted)
    with pytest.raises(ConfigError, match=r"compute.precision: amp_bf16 needs a GPU"):
        tiny_run.train(plain)
    assert "compute.precision: auto -> fp32" in changes_of(
        settings(corpus, interrupted, compute__precision="fp32"), interrupted
    )


def test_another_sequence_length_is_asked_for_and_says_what_it_leaves_out(
    corpus, interrupted, caplog
):
    """Documents have up to 90 tokens: at length 128 none has a second piece any more."""
    plain = settings(corpus, interrupted, train_data__max_seq_len=128)
    with pytest.raises(ValueError, match=r"train_data.max_seq_len: was 64, now 128; pieces"):
        tiny_run.train(plain)
    data = read(run_folder.checkpoint_path(interrupted, STEP)).data
    second = {number: 0 for number in range(len(data["sources"]))}
    for lane in data["lanes"].values():
        flat = lane["waiting"]
        for source, piece in zip(flat[::3], flat[2::3], strict=True):
            second[source] += piece > 0
    assert sum(second.values()) > 0
    plain["train_data"]["allow_changed"] = ["max_seq_len"]
    with caplog.at_level(logging.WARNING):
        assert tiny_run.train(plain) == 0
    said = [message for message in caplog.messages if "that waited are left out" in message]
    expected = [
        f"source '{data['sources'][n]}': {count} pieces" for n, count in second.items() if count
    ]
    assert [message.split(" that waited")[0] for message in said] == expected
