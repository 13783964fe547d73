import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import tiny_run

from tessera.training import run_folder

LONG = {"duration": "400_000tok", "checkpoints__interval": "1000ba"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_run.make_corpus(tmp_path_factory.mktemp("corpus"), documents=60)


def started(corpus, tmp_path, *, ranks=None, script=None, steps=5, **changes):
    """A run that has done some steps of many."""
    folder = tmp_path / "run"
    plain = tiny_run.settings(corpus, folder, **{**LONG, **changes})
    yaml_path = tiny_run.write_yaml(tmp_path / "run.yaml", plain)
    more = {} if script is None else {"script": script}
    process = tiny_run.start(yaml_path, ranks=ranks, **more)
    end = time.monotonic() + 600
    while not (folder / "metrics.jsonl").exists() or len(tiny_run.metrics(folder)) < steps:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "the run does not get going"
        time.sleep(0.05)
    return process, folder, plain


def ranks_of(process):
    children = psutil.Process(process.pid).children(recursive=True)
    return sorted((c for c in children if c.name().startswith("python")), key=lambda c: c.pid)


def finish(process, seconds=600):
    output, _ = process.communicate(timeout=seconds)
    return output


def gone(processes, seconds=60):
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not alive


def test_a_signal_ends_a_run_after_the_step_with_everything_saved(corpus, tmp_path):
    process, folder, plain = started(corpus, tmp_path)
    process.send_signal(signal.SIGUSR1)
    output = finish(process)
    assert process.returncode == 75
    assert "SIGUSR1: finishing this step, then saving" in output
    assert "stopped by a signal, with everything saved" in output
    (saved,) = run_folder.checkpoints(folder)
    assert saved == tiny_run.metrics(folder)[-1]["step"], "a step was trained and not saved"

    # From there it goes on to the same end as a run that was left alone.
    short = {**plain, "duration": f"{saved + 3}ba"}
    short["schedule"] = {"name": "constant", "warmup": "0ba"}
    twin = {**short, "run_folder": str(tmp_path / "twin")}
    assert [tiny_run.train(short), tiny_run.train(twin)] == [0, 0]
    digests = [[r["digest"] for r in tiny_run.metrics(f)] for f in (folder, tmp_path / "twin")]
    assert digests[0] == digests[1] and len(digests[0]) == saved + 3


def test_a_file_named_stop_does_what_a_signal_does(corpus, tmp_path):
    from composer.core import Callback

    from tessera.config import decode
    from tessera.training.config import RunConfig
    from tessera.training.run import build_run

    folder = tmp_path / "run"
    run = build_run(decode(RunConfig, tiny_run.settings(corpus, folder, duration="9ba"), "test"))

    class Wish(Callback):
        def batch_start(self, state, logger):
            if int(state.timestamp.batch) == 2:
                (folder / "stop").touch()

    run.trainer.state.callbacks.insert(0, Wish())
    assert run.fit() == 75
    assert list(run_folder.checkpoints(folder)) == [3]
    assert not (folder / "stop").exists()
    (folder / "stop").touch()  # while it starts
    assert tiny_run.train(tiny_run.settings(corpus, folder, duration="9ba")) == 75
    (folder / "stop").touch()
    os.utime(folder / "stop", (0, 0))  # a wish that came when nobody trained is forgotten
    assert tiny_run.train(tiny_run.settings(corpus, folder, duration="9ba")) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize(("when", "status"), [("working", 75), ("leaving", 3)])
def test_a_signal_at_any_other_moment_ends_with_a_status_that_is_understood(number, when, status):
    script = (
        "import atexit, sys, time\n"
        "from tessera.training.shutdown import leave_after\n"
        "def wait(): print('ready', flush=True); time.sleep(30)\n"
        "when = sys.argv[1]\n"
        "atexit.register(wait) if when == 'leaving' else None\n"
        "leave_after(lambda: wait() if when == 'working' else 3)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, when],
        stdout=subprocess.PIPE,
        text=True,
        env=tiny_run.environment(),
    )
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    child.communicate(timeout=20)
    assert child.returncode == status


def test_a_signal_before_the_first_step_ends_at_once(corpus, tmp_path):
    from tessera.training.shutdown import StopRequest

    stop = StopRequest()
    stop.install()
    try:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    finally:
        stop.uninstall()
    assert os.waitstatus_to_exitcode(status) == 75


def test_the_second_signal_stops_at_once_but_an_echo_does_not(monkeypatch):
    from tessera.training import shutdown

    left = []
    monkeypatch.setattr(shutdown.os, "_exit", left.append)
    stop = shutdown.StopRequest()
    stop.training = True
    stop._handle(signal.SIGINT, None)
    stop._handle(signal.SIGTERM, None)  # what a launcher passes on, moments later
    assert stop.signal == signal.SIGINT and not left
    monkeypatch.setattr(shutdown, "ECHO_SECONDS", -1.0)
    stop._handle(signal.SIGINT, None)
    assert left == [130]


@pytest.mark.slow
def test_a_signal_to_the_launcher_saves_and_asks_to_be_started_again(corpus, tmp_path):
    process, folder, _ = started(corpus, tmp_path, ranks=2)
    process.send_signal(signal.SIGTERM)
    finish(process)
    assert process.returncode == 75
    assert list(run_folder.checkpoints(folder)) == [tiny_run.metrics(folder)[-1]["step"]]


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_them_all(corpus, tmp_path):
    process, folder, _ = started(corpus, tmp_path, ranks=2)
    ranks_of(process)[1].send_signal(signal.SIGUSR1)
    finish(process)
    assert process.returncode == 75
    assert list(run_folder.checkpoints(folder)) == [tiny_run.metrics(folder)[-1]["step"]]


def test_a_rank_whose_launcher_died_before_it_began_does_not_begin(tmp_path):
    rank = tmp_path / "rank.py"
    rank.write_text(
        "import os, sys, time\n"
        "from tessera.training.shutdown import leave_after\n"
        "while os.getppid() == int(sys.argv[1]) and len(sys.argv) > 2: time.sleep(0.01)\n"
        "leave_after(lambda: print('began', flush=True) or 0)\n"
    )
    launcher = (
        "import os, subprocess, sys\n"
        "more = ['orphan'] if 'orphan' in sys.argv else []\n"
        "command = [sys.executable, os.environ['SCRIPT'], str(os.getpid()), *more]\n"
        "child = subprocess.Popen(command, start_new_session='apart' in sys.argv)\n"
        "more or child.wait()\n"
    )
    kinds = {("its group",): True, ("apart", "rank.py"): True, ("orphan", "apart"): False}
    for how, begins in kinds.items():
        done = subprocess.run(
            [sys.executable, "-c", launcher, *how],
            capture_output=True,  # until the rank, too, has closed its end
            text=True,
            env={**tiny_run.environment(), "LOCAL_WORLD_SIZE": "1", "SCRIPT": str(rank)},
        )
        assert ("began" in done.stdout) == begins
        assert ("the launcher is gone" in done.stderr) != begins


@pytest.mark.slow
def test_a_killed_launcher_leaves_no_rank_behind(corpus, tmp_path):
    process, folder, plain = started(corpus, tmp_path, ranks=2)
    ranks = ranks_of(process)
    process.kill()
    assert gone(ranks)
    process.communicate()
    assert list(run_folder.checkpoints(folder)) == [tiny_run.metrics(folder)[-1]["step"]]
    run_folder.lock(folder).release()


@pytest.mark.slow
def test_a_killed_rank_takes_the_job_down(corpus, tmp_path):
    process, _, _ = started(corpus, tmp_path, ranks=2)
    ranks = ranks_of(process)
    begin = time.monotonic()
    ranks[1].kill()
    output = finish(process)
    assert process.returncode not in (0, 2, 75)
    assert gone(ranks) and time.monotonic() - begin < 60
    assert "another rank is gone without a word" in output


@pytest.mark.slow
def test_a_failing_ranks_own_error_comes_first(corpus, tmp_path):
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    process, folder, _ = started(corpus, tmp_path, ranks=2, script=script)
    output = finish(process)
    assert process.returncode == 1
    assert "an injected defect" in output
    assert "onnection" not in output.partition("an injected defect")[0]
    assert "an injected defect" in (folder / "failure-rank1.txt").read_text()


FAILING = f"""
import os, sys
sys.path.insert(0, {str(tiny_run.REPOSITORY)!r})
from main import main
from tessera.training.shutdown import leave_after

def work():
    if os.environ["RANK"] == "1":
        import tessera.training.run
        from tessera.training.callbacks.train_step import TrainStep

        recorded = TrainStep.batch_end
        def fail(self, state, logger):
            recorded(self, state, logger)
            if self.clock.steps == 20:
                raise KeyError("an injected defect")
        TrainStep.batch_end = fail
    return main(*sys.argv[1:])

leave_after(work)
"""
