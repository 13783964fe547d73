"""The same bytes from every executor, number of tasks and workers, and after kills."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from preparing import SCRIPTS, call, contents, make_tokenizer, words, write_jsonl
from reference import fake_slurm


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Arguments for two sources, and the shards that one process makes of them."""
    folder = tmp_path_factory.mktemp("corpus")
    tokenizer = make_tokenizer(folder / "tokenizer")
    records = [{"id": f"r{i}", "text": words(50 + i % 400, seed=i) * 8} for i in range(400)]
    write_jsonl(folder / "web.jsonl", records)
    write_jsonl(folder / "code" / "train.jsonl", records[:90])
    write_jsonl(folder / "code" / "valid.jsonl", records[90:120])
    arguments = [folder / "web.jsonl", folder / "code", "--tokenizer", tokenizer]
    arguments += ["--part-size", "320kb", "--shard-size", "160kb", "--validation-share", "0.1"]
    done = call("tokenize", *arguments, "--out", folder / "whole", "--workers", 1)
    assert done.returncode == 0, done.stderr
    return arguments, shards(folder / "whole")


def shards(folder):
    return {name: data for name, data in contents(folder).items() if not name.startswith("logs/")}


@pytest.mark.parametrize("workers", [2, 5])
def test_processes_of_this_machine_change_no_byte(corpus, tmp_path, workers):
    arguments, whole = corpus
    done = call("tokenize", *arguments, "--out", tmp_path / "out", "--workers", workers)
    assert done.returncode == 0, done.stderr
    assert shards(tmp_path / "out") == whole


# ---- Slurm, by a stand-in


@pytest.fixture
def slurm(tmp_path):
    pytest.importorskip("datatrove")
    return fake_slurm.install(tmp_path / "slurm")


def slurm_call(arguments, out, environment, *more):
    options = ["--executor", "slurm", "--config", out.parent / "slurm.yaml"]
    poll = "executor: {poll_seconds: 0.5}\n"
    sources, rest = arguments[:2], arguments[2:]
    listed = "".join(
        f"  {Path(source).name.split('.')[0]}: {{path: {source}}}\n" for source in sources
    )
    (out.parent / "slurm.yaml").write_text(f"sources:\n{listed}{poll}")
    return call("tokenize", *rest, "--out", out, *options, *more, **environment)


@pytest.mark.parametrize(("tasks", "workers"), [pytest.param(2, 2, marks=pytest.mark.slow), (5, 1)])
def test_jobs_of_slurm_change_no_byte(corpus, tmp_path, slurm, tasks, workers):
    arguments, whole = corpus
    more = ["--tasks", tasks, "--workers", workers]
    done = slurm_call(arguments, tmp_path / "out", slurm, *more)
    assert done.returncode == 0, done.stderr
    assert shards(tmp_path / "out") == whole
    script = next((tmp_path / "out/logs").glob("*/launch_script.slurm")).read_text()
    assert f"%{workers}" in script and "launch_pickled_pipeline" in script
    done = slurm_call(arguments, tmp_path / "out", slurm, *more)
    assert (done.returncode, "nothing to do" in done.stdout) == (0, True)


def test_a_mistake_in_the_input_comes_back_from_the_cluster(corpus, tmp_path, slurm):
    arguments, _ = corpus
    lines = '{"text": "tile row"}\n' * 2000
    (tmp_path / "bad.jsonl").write_text(lines + "no json\n" + lines)
    done = slurm_call([tmp_path / "bad.jsonl", arguments[1], *arguments[2:]], tmp_path / "o", slurm)
    assert done.returncode == 2, done.stderr
    assert "bad.jsonl: no JSON in the line at byte 42,000" in done.stderr
    assert "Traceback" not in done.stderr


DEADLY = """
import os, pathlib, signal, sys
import tessera.data.preparation.tokenizing as tokenizing
real = tokenizing.Tokenizing.do
def do(self, task):
    mark = pathlib.Path(os.environ["DEADLY_MARKS"]) / "mark"
    seen = mark.read_text() if mark.exists() else ""
    if task.number == 2 and len(seen) < int(os.environ["DEADLY_TIMES"]):
        mark.write_text(seen + "x")
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, task)
tokenizing.Tokenizing.do = do
"""


@pytest.fixture
def deadly(tmp_path):
    """An environment in which some task's process is killed, as often as asked."""
    folder = tmp_path / "deadly"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(DEADLY)

    def environment(times):
        path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        return {"PYTHONPATH": path, "DEADLY_MARKS": str(folder), "DEADLY_TIMES": str(times)}

    return environment


@pytest.mark.parametrize(
    ("executor", "times"),
    [
        ("local", 1),
        ("local", 9),
        pytest.param("slurm", 1, marks=pytest.mark.slow),
        pytest.param("slurm", 9, marks=pytest.mark.slow),
    ],
)
def test_a_task_that_is_killed_is_run_again_once_and_then_named(
    corpus, tmp_path, slurm, deadly, executor, times
):
    arguments, whole = corpus
    out = tmp_path / "out"
    if executor == "slurm":
        done = slurm_call(arguments, out, slurm | deadly(times), "--tasks", "4")
    else:
        options = ["--out", out, "--workers", "2"]
        done = call("tokenize", *arguments, *options, **deadly(times))
    assert len((tmp_path / "deadly/mark").read_text()) >= min(times, 2)
    if times == 9:
        assert done.returncode == 2, done.stderr
        assert "lost twice" in done.stderr and "web.jsonl from 640000 to 960000" in done.stderr
        assert "Traceback" not in done.stderr
        options = ["--out", out, "--workers", "2"]
        done = call("tokenize", *arguments, *options)
    assert done.returncode == 0, done.stderr
    assert shards(out) == whole


@pytest.mark.slow
def test_a_second_call_waits_for_the_jobs_of_the_first(corpus, tmp_path, slurm):
    arguments, whole = corpus
    environment = {**os.environ, **slurm}
    options = ["--executor", "slurm", "--tasks", "2", "--workers", "1", "--out", tmp_path / "out"]
    command = [sys.executable, SCRIPTS / "tokenize.py", *arguments, *options]
    first = subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("out/logs/*/submitted.json")):
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    done = slurm_call(arguments, tmp_path / "out", slurm)
    assert done.returncode == 0, done.stderr
    assert "which an earlier call submitted" in done.stderr
    assert shards(tmp_path / "out") == whole
    jobs = [path for path in (tmp_path / "slurm/state").glob("*.sh")]
    arrays = [path for path in jobs if "launch_pickled_pipeline" in path.read_text()]
    assert len(arrays) == 1


def test_where_there_is_no_slurm_it_is_said(corpus, tmp_path):
    pytest.importorskip("datatrove")
    arguments, _ = corpus
    options = ["--executor", "slurm", "--out", tmp_path / "out"]
    done = call("tokenize", *arguments, *options, PATH="/usr/bin:/bin")
    assert (done.returncode, "there is no sbatch here" in done.stderr) == (2, True), done.stderr


# ---- Ray


@pytest.mark.slow
@pytest.mark.parametrize("times", [0, 1, 9])
def test_a_local_ray_cluster_changes_no_byte_and_names_what_is_killed(
    corpus, tmp_path, deadly, times
):
    pytest.importorskip("ray")
    arguments, whole = corpus
    out = tmp_path / "out"
    options = ["--out", out, "--executor", "ray", "--tasks", "5", "--workers", "2"]
    environment = {"RAY_TMPDIR": "/tmp/tessera-ray", **(deadly(times) if times else {})}
    done = call("tokenize", *arguments, *options, timeout=500, **environment)
    if times == 9:
        assert done.returncode == 2, done.stderr
        assert "lost twice" in done.stderr and "web.jsonl from 640000 to 960000" in done.stderr
        done = call("tokenize", *arguments, "--out", out, "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert shards(out) == whole
    assert json.loads((out / "web/train/tessera.json").read_text())["documents"] > 300


@pytest.mark.slow
def test_a_node_of_a_ray_cluster_that_dies_changes_no_byte(corpus, tmp_path):
    """Two nodes on this machine; one is killed while it works."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    arguments, whole = corpus
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        other = cluster.add_node(num_cpus=1)
        out = tmp_path / "out"
        options = ["--out", out, "--executor", "ray", "--tasks", "8"]
        command = [sys.executable, SCRIPTS / "tokenize.py", *arguments, *options]
        environment = {**os.environ, "RAY_ADDRESS": cluster.address}
        with subprocess.Popen(
            list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True
        ) as run:
            deadline = time.monotonic() + 300
            while not list(out.glob("*/*/.parts/0*")):
                assert time.monotonic() < deadline and run.poll() is None
                time.sleep(0.1)
            cluster.remove_node(other, allow_graceful=False)
            _, said = run.communicate(timeout=400)
        assert run.returncode == 0, said
    finally:
        cluster.shutdown()
    assert shards(out) == whole


@pytest.mark.slow
def test_cleaning_on_ray_and_slurm_gives_the_same_text(tmp_path):
    pytest.importorskip("datatrove")
    pytest.importorskip("ray")
    records = [{"id": f"r{i}", "text": words(60, seed=i % 250)} for i in range(300)]
    corpus = write_jsonl(tmp_path / "c.jsonl", records)
    arguments = [corpus, "--part-size", "20kb", "--filters", "gopher_repetition"]
    done = call("clean", *arguments, "--out", tmp_path / "here", "--workers", 1)
    assert done.returncode == 0, done.stderr
    ray = {"RAY_TMPDIR": "/tmp/tessera-ray"}
    options = ["--out", tmp_path / "ray", "--executor", "ray", "--tasks", 3]
    done = call("clean", *arguments, *options, timeout=500, **ray)
    assert done.returncode == 0, done.stderr
    slurm = fake_slurm.install(tmp_path / "slurm")
    (tmp_path / "slurm.yaml").write_text(
        json.dumps({"sources": {"c": {"path": str(corpus)}}, "executor": {"poll_seconds": 0.5}})
    )
    filters = "sources.c.filters.gopher_repetition={}"
    options = ["--config", tmp_path / "slurm.yaml", filters, "--part-size", "20kb"]
    options += ["--out", tmp_path / "slurm-out", "--executor", "slurm", "--tasks", 3]
    done = call("clean", *options, timeout=500, **slurm)
    assert done.returncode == 0, done.stderr

    def text(folder):
        return {n: c for n, c in contents(folder).items() if n.endswith(".zst")}

    assert text(tmp_path / "here") == text(tmp_path / "ray") == text(tmp_path / "slurm-out")
    assert len(text(tmp_path / "here")) > 6
