"""`tessera train`: ranks of one machine, whose own last line is the last."""

import os
import signal
import subprocess
import sys
import time

import pytest
import tiny_run

NOISE = ("Waiting up to", "Traceback", "crashed", "exited with code", "Killing")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_run.make_corpus(tmp_path_factory.mktemp("corpus"), documents=60)


def train(corpus, tmp_path, *options, **changes):
    plain = tiny_run.settings(corpus, tmp_path / "run", evaluation__at_end=False, **changes)
    yaml_path = tiny_run.write_yaml(tmp_path / "run.yaml", plain)
    process = subprocess.Popen(
        [sys.executable, "-m", "tessera.cli.main", "train", str(yaml_path), *options],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
        env=tiny_run.environment(), start_new_session=True,
    )  # fmt: skip
    tiny_run.STARTED.append(process)
    return process


def test_a_mistake_is_said_before_anything_starts(corpus, tmp_path):
    process = train(corpus, tmp_path, "-n", "2", "batch.rows=3")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and "rows" in output and len(output.splitlines()) <= 4


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["1", "2"])
def test_ctrl_c_and_a_good_end_show_the_runs_own_line_alone(corpus, tmp_path, ranks):
    process = train(corpus, tmp_path, "-n", ranks, duration="200_000tok")
    folder = tmp_path / "run"
    while not (folder / "metrics.jsonl").exists() or len(tiny_run.metrics(folder)) < 3:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert output.splitlines()[-1].endswith(
        "stopped by a signal, with everything saved; start it again"
    )
    assert not any(noise in output for noise in NOISE), output
    done = len(tiny_run.metrics(folder))

    process = train(corpus, tmp_path, "-n", ranks, duration=f"{done + 2}ba")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert output.splitlines()[-1].endswith(f"complete, in {folder}")
    assert not any(noise in output for noise in NOISE), output


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_others_with_status_1(corpus, tmp_path):
    import psutil

    process = train(corpus, tmp_path, "-n", "2", duration="400_000tok")
    folder = tmp_path / "run"
    while not (folder / "metrics.jsonl").exists() or len(tiny_run.metrics(folder)) < 3:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    ranks = [
        child
        for child in psutil.Process(process.pid).children()
        if child.environ().get("LOCAL_RANK") == "1"
    ]
    ranks[0].kill()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "another rank is gone without a word" in output
