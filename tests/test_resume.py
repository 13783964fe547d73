import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_run

from tessera.training import run_folder

WHOLE_RUN = {
    "checkpoints__interval": "1ba",
    "evaluation__interval": "4ba",
    "batch__warmup": {"initial_rows": 2, "increment_rows": 2, "over": "1_500tok"},
    "duration": "5_000tok",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_run.make_corpus(tmp_path_factory.mktemp("corpus"), documents=60)


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    """A run that was never interrupted, with a checkpoint after every step."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert tiny_run.train(tiny_run.settings(corpus, folder, **WHOLE_RUN)) == 0
    records = tiny_run.metrics(folder)
    assert len({record["rows"] for record in records}) == 2, "no batch-size warmup to cross"
    assert max(records[-1]["source_epochs"].values()) > 0, "no epoch to cross"
    return folder


def interrupted(undisturbed: Path, folder: Path, step: int) -> Path:
    """The folder as a kill after `step`, and in the middle of writing the next, leaves it."""
    shutil.copytree(undisturbed, folder, symlinks=True)
    for later, path in run_folder.checkpoints(folder).items():
        if later > step:
            path.unlink()
    run_folder.point_latest(run_folder.checkpoint_path(folder, step))
    (folder / "checkpoints" / ".step.pt.writing").write_bytes(b"half")
    return folder


def assert_same_run(folder: Path, undisturbed: Path) -> None:
    for kind in ("step", "evaluation"):
        expected = tiny_run.untimed(tiny_run.metrics(undisturbed, kind))
        assert tiny_run.untimed(tiny_run.metrics(folder, kind)) == expected
    assert tiny_run.same_training_state(tiny_run.read(folder), tiny_run.read(undisturbed))


def test_resuming_after_any_step_changes_nothing(corpus, undisturbed, tmp_path):
    last = max(run_folder.checkpoints(undisturbed))
    assert last >= 10
    for step in random.Random(0).sample(range(1, last), 5):
        folder = interrupted(undisturbed, tmp_path / f"after{step}", step)
        assert tiny_run.train(tiny_run.settings(corpus, folder, **WHOLE_RUN)) == 0
        assert_same_run(folder, undisturbed)
        assert not list((folder / "checkpoints").glob(".*writing"))


def test_dropout_is_part_of_what_is_repeated(corpus, undisturbed, tmp_path):
    plain = tiny_run.settings(
        corpus, tmp_path / "dry", **WHOLE_RUN, model__attention_output_dropout=0.0
    )
    tiny_run.train(plain)
    with_dropout, without = (tiny_run.metrics(f)[0] for f in (undisturbed, tmp_path / "dry"))
    assert with_dropout["digest"] == without["digest"]
    assert with_dropout["loss"] != without["loss"], "dropout was off, so nothing was shown above"


@pytest.mark.parametrize("harm", ["cut in half", "emptied", "a byte flipped", "not a checkpoint"])
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_it_used(
    harm, corpus, undisturbed, tmp_path, capsys
):
    folder = interrupted(undisturbed, tmp_path / "run", 6)
    path = run_folder.checkpoint_path(folder, 6)
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "cut in half": whole[:middle],
            "emptied": b"",
            "a byte flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "not a checkpoint": b"PK" * 1000,
        }[harm]
    )
    assert tiny_run.train(tiny_run.settings(corpus, folder, **WHOLE_RUN)) == 0
    assert "step00000006.pt" in capsys.readouterr().err
    assert (folder / "checkpoints" / "step00000006.pt.damaged").exists()
    assert_same_run(folder, undisturbed)


def test_a_folder_of_damaged_checkpoints_is_not_begun_anew(corpus, undisturbed, tmp_path):
    folder = interrupted(undisturbed, tmp_path / "run", 1)
    run_folder.checkpoint_path(folder, 1).write_bytes(b"")
    before = (folder / "metrics.jsonl").read_bytes()
    for _ in range(2):  # nor by a second try
        with pytest.raises(ValueError, match="none of its 1 checkpoints can be read"):
            tiny_run.train(tiny_run.settings(corpus, folder, **WHOLE_RUN))
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_latest_is_only_a_hint(corpus, undisturbed, tmp_path):
    folder = interrupted(undisturbed, tmp_path / "run", 5)
    (folder / "checkpoints" / "latest").unlink()
    assert tiny_run.train(tiny_run.settings(corpus, folder, **WHOLE_RUN)) == 0
    assert_same_run(folder, undisturbed)


def test_a_complete_phase_is_left_as_it_is(corpus, undisturbed, capsys):
    def times():
        found = {path: path.lstat().st_mtime_ns for path in undisturbed.rglob("*")}
        return {path: time for path, time in found.items() if path.name != ".lock"}

    before = times()
    assert tiny_run.train(tiny_run.settings(corpus, undisturbed, **WHOLE_RUN)) == 0
    assert "complete already" in capsys.readouterr().out
    assert times() == before


def test_a_complete_phase_says_what_was_changed_in_vain(corpus, undisturbed, capsys):
    changed = tiny_run.settings(corpus, undisturbed, **WHOLE_RUN, optimizer__lr=1e-9)
    assert tiny_run.train(changed) == 0
    told = capsys.readouterr()
    assert "complete already" in told.out
    assert re.search(
        r"not trained again; give .* run_folder.*\n  optimizer.lr: \S+ -> 1e-09\n", told.err
    )
    with pytest.raises(ValueError, match="another configuration(.|\n)*seed: was .*, is 99"):
        tiny_run.train(tiny_run.settings(corpus, undisturbed, **WHOLE_RUN, seed=99))


def test_a_complete_phase_says_so_before_torch_is_imported(corpus, undisturbed, tmp_path):
    script = (
        "import sys\n"
        "sys.path[:0] = sys.argv[1:2]\n"
        "sys.modules['torch'] = None\n"
        "import main\n"
        "sys.exit(main.main(*sys.argv[2:]))\n"
    )
    plain = tiny_run.settings(corpus, undisturbed, **WHOLE_RUN)
    yaml_path = tiny_run.write_yaml(tmp_path / "run.yaml", plain)
    command = [sys.executable, "-c", script, str(tiny_run.REPOSITORY), str(yaml_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "complete already" in done.stdout
    changed = subprocess.run([*command, "optimizer.lr=1e-9"], capture_output=True, text=True)
    assert changed.returncode != 0 and "torch" in changed.stderr, "another configuration is not it"


def test_microbatches_of_another_size_see_the_same_data(corpus, undisturbed, tmp_path):
    folder = interrupted(undisturbed, tmp_path / "run", 6)
    plain = tiny_run.settings(corpus, folder, **WHOLE_RUN, batch__microbatch_rows=1)
    assert tiny_run.train(plain) == 0
    for one, other in zip(tiny_run.metrics(folder), tiny_run.metrics(undisturbed), strict=True):
        assert (one["digest"], one["tokens"], one["lr"]) == (
            other["digest"],
            other["tokens"],
            other["lr"],
        )
        assert one["loss"] == pytest.approx(other["loss"], abs=2e-5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 4}, "seed: was 3, is 4"),
        ({"model__local_attention": 8}, "model.local_attention: was 16, is 8"),
        ({"train_data__lanes": 8}, "train_data.lanes"),
        ({"train_data__row_tokens": 256}, "train_data.row_tokens"),
    ],
)
def test_what_a_phase_must_keep_cannot_be_changed_under_it(
    change, named, corpus, undisturbed, tmp_path
):
    folder = interrupted(undisturbed, tmp_path / "run", 4)
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=named):
        tiny_run.train(tiny_run.settings(corpus, folder, **{**WHOLE_RUN, **change}))
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_settings_that_may_change_are_those_of_the_new_yaml(corpus, undisturbed, tmp_path, capsys):
    folder = interrupted(undisturbed, tmp_path / "run", 4)
    changed = {"optimizer__lr": 0.002, "optimizer__weight_decay": 3e-6}
    assert tiny_run.train(tiny_run.settings(corpus, folder, **{**WHOLE_RUN, **changed})) == 0
    assert "changed since: optimizer.lr: 0.01 -> 0.002" in capsys.readouterr().out
    peaks = {record["max_lr"] for record in tiny_run.metrics(folder)[4:]}
    assert peaks == {0.002}
    assert {r["weight_decay"] for r in tiny_run.metrics(folder)[4:]} == {3e-6}


def test_moments_that_another_optimizer_left_are_said_to_be_lost(
    corpus, undisturbed, tmp_path, capsys
):
    folder = interrupted(undisturbed, tmp_path / "run", 4)
    other = {"optimizer": {"name": "adamw", "lr": 0.002}}
    assert tiny_run.train(tiny_run.settings(corpus, folder, **{**WHOLE_RUN, **other})) == 0
    said = capsys.readouterr().out
    assert "(weights alone: it holds no state of AdamW (StableAdamW))" in said
    assert "changed since: optimizer.name: stable_adamw -> adamw" in said


def test_two_runs_do_not_share_a_folder(corpus, undisturbed, tmp_path, monkeypatch):
    folder = interrupted(undisturbed, tmp_path / "run", 4)
    # These locks are a process's, so another process has to hold one.
    script = "import sys; from pathlib import Path; from tessera.training import run_folder; "
    script += (
        "held = run_folder.lock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(tiny_run.REPOSITORY / "src")},
    )
    assert other.stdout.readline() == b"held\n"
    plain = tiny_run.settings(corpus, folder, **WHOLE_RUN)
    monkeypatch.setattr(run_folder, "PATIENCE_SECONDS", 0.5)
    with pytest.raises(ValueError, match="is in use: another run is training there"):
        tiny_run.train(plain)
    other.kill()
    other.communicate()
    assert tiny_run.train(plain) == 0, "a killed run's lock must not outlive it"


def test_a_signal_puts_an_evaluation_off_and_the_next_start_makes_up_for_it(
    corpus, undisturbed, tmp_path
):
    plain = tiny_run.settings(corpus, tmp_path / "run", **WHOLE_RUN)
    assert tiny_run.train_until(plain, 4) == 75
    assert tiny_run.metrics(tmp_path / "run")[-1]["step"] == 4
    assert tiny_run.metrics(tmp_path / "run", "evaluation") == []
    assert tiny_run.train(plain) == 0
    assert_same_run(tmp_path / "run", undisturbed)


def wait_for(condition, process, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def test_a_real_kill_changes_nothing(corpus, undisturbed, tmp_path):
    folder = tmp_path / "run"
    yaml_path = tiny_run.write_yaml(
        tmp_path / "run.yaml", tiny_run.settings(corpus, folder, **WHOLE_RUN)
    )
    process = tiny_run.start(yaml_path)
    wait_for(lambda: len(run_folder.checkpoints(folder)) >= 4, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    saved = max(run_folder.checkpoints(folder))
    assert saved < max(run_folder.checkpoints(undisturbed)), "killed too late to show anything"
    assert tiny_run.train(tiny_run.settings(corpus, folder, **WHOLE_RUN)) == 0
    assert_same_run(folder, undisturbed)
