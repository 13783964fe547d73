"""The learning rate that a resumed phase would jump to is said in numbers."""

import pytest
import tiny_run

from tessera.cli.check import describe
from tessera.config import decode, to_plain
from tessera.training import run_folder
from tessera.training.config import RunConfig
from tessera.training.rate_jump import RateJump, find_jump

DECAYED = {
    "duration": "1_000tok",
    "schedule": {
        "name": "warmup_stable_decay",
        "warmup": "100tok",
        "decay": "200tok",
        "floor": 0.02,
    },
    "optimizer": {"name": "stable_adamw", "lr": 1.5e-3},
}
LR = 1.5e-3


def phase(tmp_path, **changes):
    return decode(
        RunConfig, tiny_run.settings(tmp_path, tmp_path / "run", **{**DECAYED, **changes}), "test"
    )


def progress(tokens, lr):
    return {"tokens": tokens, "steps": tokens // 100, "documents": tokens // 10, "lr": lr}


def test_extending_a_decayed_phase_jumps_from_the_floor_to_the_peak(tmp_path):
    before = to_plain(phase(tmp_path))
    longer = phase(tmp_path, duration="2_000tok")
    assert find_jump(longer, before, progress(1000, 3e-5)) == RateJump(3e-5, LR)


@pytest.mark.parametrize("tokens", [0, 50, 100, 400, 800, 900, 950, 999])
def test_the_same_configuration_never_jumps(tokens, tmp_path):
    config = phase(tmp_path)
    last = LR * config.schedule.multiplier(max(0, tokens - 50), 1000)
    assert find_jump(config, to_plain(config), progress(tokens, last)) is None


@pytest.mark.parametrize(
    ("changes", "jumps"),
    [
        ({"duration": "2_000tok"}, False),  # on the plateau, before as after
        ({"optimizer": {"name": "stable_adamw", "lr": 1.4e-3}}, False),
        ({"optimizer": {"name": "stable_adamw", "lr": 1.5e-4}}, True),
        ({"optimizer": {"name": "stable_adamw", "lr": 1.5e-2}}, True),
        ({"schedule": {"name": "constant"}}, False),
        ({"schedule": {"name": "constant", "warmup": "500tok"}}, False),
        ({"duration": "10sp", "schedule": {"name": "linear"}}, True),
    ],
)
def test_changes_on_the_plateau(changes, jumps, tmp_path):
    found = find_jump(phase(tmp_path, **changes), to_plain(phase(tmp_path)), progress(500, LR))
    assert (found is not None) is jumps


def test_a_drop_that_was_planned_is_no_jump(tmp_path):
    plan = {**DECAYED["schedule"], "drop_at": "400tok", "drop_to": 0.1}
    config = phase(tmp_path, schedule=plan)
    assert find_jump(config, to_plain(config), progress(420, LR)) is None


def test_a_record_that_cannot_be_read_is_compared_by_its_rate_alone(tmp_path):
    longer = phase(tmp_path, duration="2_000tok")
    assert find_jump(longer, {"run_folder": 7}, progress(1000, 3e-5)) == RateJump(3e-5, LR)
    assert find_jump(longer, {}, {"tokens": 1000}) is None, "older records have no rate"


def test_check_and_main_name_both_rates_and_the_checkpoint_before_the_decay(tmp_path, capsys):
    corpus = tiny_run.make_corpus(tmp_path / "corpus", documents=60)
    folder = tmp_path / "run"
    decayed = {
        "duration": "4_000tok",
        "schedule": {**DECAYED["schedule"], "decay": "1_500tok", "warmup": "500tok"},
        "optimizer": DECAYED["optimizer"],
        "checkpoints": {"interval": "1ba", "keep": 1},
        "evaluation": {"at_end": False},
    }
    assert tiny_run.train(tiny_run.settings(corpus, folder, **decayed)) == 0
    (pinned,) = run_folder.pinned(folder)
    longer = tiny_run.settings(corpus, folder, **{**decayed, "duration": "8_000tok"})
    capsys.readouterr()

    path = tiny_run.write_yaml(tmp_path / "longer.yaml", longer)
    page = describe(decode(RunConfig, longer, "test"), str(path), 1)
    stopped = tiny_run.metrics(folder)[-1]["lr"]
    said = f"jumps from {stopped:.3g}, where the checkpoint of step"
    assert said in page and "to 0.0015 at the next step" in page
    assert str(run_folder.checkpoint_path(folder, pinned)) in page

    assert tiny_run.train(longer) == 0
    assert said in capsys.readouterr().err


def test_a_duration_shorter_than_what_is_done_is_said_with_the_rate(tmp_path, capfd):
    corpus = tiny_run.make_corpus(tmp_path / "corpus", documents=40)
    folder = tmp_path / "run"
    whole = tiny_run.settings(corpus, folder, **{**DECAYED, "duration": "4_000tok"})
    assert tiny_run.train_until(whole, 4) == 75
    short = {**whole, "duration": "1_000tok"}
    said = "the phase counts as complete, at a learning rate of 0.0015"
    assert said in describe(decode(RunConfig, short, "test"), "test", 1)
    capfd.readouterr()
    assert tiny_run.train(short) == 0
    assert said in capfd.readouterr().err
    assert said not in describe(decode(RunConfig, whole, "test"), "test", 1)
