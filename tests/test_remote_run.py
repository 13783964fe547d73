"""A run folder in an object store is a run folder: nothing is lost with the disk.

The server speaks S3 on loopback; `reference/s3.py` stands before it and makes the trouble.
"""

import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
import tiny_run
from reference.s3 import BUCKET, S3

from tessera.config import decode
from tessera.training import run_folder
from tessera.training.config import RunConfig
from tessera.training.remote.uploader import NICE

PLACE = f"s3://{BUCKET}/runs/tiny"
SHORT = {
    "checkpoints__interval": "1ba",
    "evaluation__interval": "4ba",
    "batch__warmup": {"initial_rows": 2, "increment_rows": 2, "over": "1_500tok"},
    "duration": "5_000tok",
}
ELASTIC = {
    "batch__rows": 4,
    "train_data__lanes": 4,
    "batch__warmup": None,
    "evaluation__at_end": False,
}
LONG = {  # longer than any test takes, and few enough objects for the server
    "duration": "400_000_000tok",
    "checkpoints__interval": "5ba",
    "checkpoints__keep": 2,
    "evaluation__interval": None,
    "evaluation__at_end": False,
}
NODES = {"world_size": 2, "master_addr": "127.0.0.1", "master_port": 29617}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_run.make_corpus(tmp_path_factory.mktemp("corpus"), documents=60)


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    """The same run on a local disk, never interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert tiny_run.train(tiny_run.settings(corpus, folder, **SHORT)) == 0
    return folder


def settings(corpus: Path, **changes) -> dict:
    place = changes.pop("run_folder", PLACE)
    chosen = {**SHORT, "checkpoints__lease_seconds": 4, **changes}
    return tiny_run.settings(corpus, place, **chosen)


def folder_of(plain: dict) -> Path:
    return decode(RunConfig, plain, "test").folder


def pointed(s3: S3) -> list[int]:
    """The steps of the checkpoints in the store that have a pointer."""
    names = [Path(key) for key in s3.names() if "/checkpoints/step" in key]
    return sorted(int(p.stem.removeprefix("step")) for p in names if p.suffix == ".json")


def metrics_of(s3: S3, kind: str = "step") -> list[dict]:
    lines = s3.read("runs/tiny/metrics.jsonl").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def assert_same_run(s3: S3, undisturbed: Path, tmp_path: Path) -> None:
    """What is in the store is the undisturbed run, bit for bit."""
    for kind in ("step", "evaluation"):
        expected = tiny_run.untimed(tiny_run.metrics(undisturbed, kind))
        assert tiny_run.untimed(metrics_of(s3, kind)) == expected
    last = max(run_folder.checkpoints(undisturbed))
    assert pointed(s3)[-1] == last
    path = run_folder.checkpoint_path(tmp_path / "brought", last)
    path.parent.mkdir(parents=True)
    path.write_bytes(s3.read(f"runs/tiny/checkpoints/{path.name}"))
    assert same_state(tiny_run.read(path.parent.parent, last), tiny_run.read(undisturbed))


def same_state(one: dict, other: dict) -> bool:
    """As tiny_run's, without what says where and how a run is kept."""
    for state in (one, other):
        record = state["callbacks"]["RunRecord"]
        config = json.loads(record["run_config"])
        record["run_config"] = json.dumps(
            {k: v for k, v in config.items() if k not in {"checkpoints", "run_name"}}
        )
    return tiny_run.same_training_state(one, other)


def wait_for(condition, process, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def test_a_run_in_a_store_is_the_run_on_a_disk(s3, corpus, undisturbed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = settings(corpus)
    assert tiny_run.train(plain) == 0
    assert_same_run(s3, undisturbed, tmp_path)
    assert not (tmp_path / "s3:").exists()
    assert pointed(s3) == sorted(run_folder.checkpoints(undisturbed))
    names = {key.removeprefix("runs/tiny/") for key in s3.names()}
    assert {"config.yaml", "metrics.jsonl", "checkpoints/complete.yaml", "lease.json"} <= names
    assert len(run_folder.checkpoints(folder_of(plain))) == 2, "a cache keeps two"
    for key in s3.names():
        assert b"secret-of-tests" not in s3.read(key) and b"key-of-tests" not in s3.read(key)


def test_a_complete_phase_says_so_without_its_disk(s3, corpus, capsys):
    plain = settings(corpus, duration="300tok", evaluation__at_end=False)
    plain["schedule"] = {"name": "constant"}
    plain["batch"].pop("warmup")
    assert tiny_run.train(plain) == 0
    shutil.rmtree(folder_of(plain))
    writes = [request for request in s3.requests if request.method == "PUT"]
    import main

    path = tiny_run.write_yaml(corpus / "complete.yaml", plain)
    assert main.main(str(path)) == 0
    assert "complete already, in s3://" in capsys.readouterr().out
    assert [request for request in s3.requests if request.method == "PUT"] == writes


def killed_after(s3, corpus, tmp_path, steps: int, **changes) -> dict:
    """A run that was killed with -9, and its disk gone, after so many checkpoints were up."""
    s3.judge = lambda request: None
    plain = settings(corpus, **changes)
    process = tiny_run.start(tiny_run.write_yaml(tmp_path / "run.yaml", plain))
    wait_for(lambda: len(pointed(s3)) >= steps, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    shutil.rmtree(folder_of(plain))
    return plain


@pytest.mark.slow
def test_a_fresh_node_goes_on_bit_for_bit(s3, corpus, undisturbed, tmp_path):
    plain = killed_after(s3, corpus, tmp_path, 1)
    assert pointed(s3)[-1] < max(run_folder.checkpoints(undisturbed)), "killed too late"
    assert tiny_run.train(plain) == 0
    assert_same_run(s3, undisturbed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_fresh_node_of_another_size_sees_the_same_rows(ranks, s3, corpus, undisturbed, tmp_path):
    plain = killed_after(s3, corpus, tmp_path, 3, **ELASTIC)
    twin = tiny_run.settings(corpus, tmp_path / "twin", **{**SHORT, **ELASTIC})
    assert tiny_run.train(twin) == 0
    process = tiny_run.start(tiny_run.write_yaml(tmp_path / "again.yaml", plain), ranks=ranks)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert_same_rows(s3, tmp_path / "twin")


def start_nodes(path: Path, disks: Path) -> list:
    """Two launchers of a rank each, each with a disk of its own."""
    place = [f"--{name}={value}" for name, value in NODES.items()]
    return [
        tiny_run.launch(
            ["-n", "1", *place, f"--node_rank={node}", f"--base_rank={node}"],
            *(str(tiny_run.REPOSITORY / "main.py"), str(path)),
            cwd=path.parent,
            TESSERA_CACHE=str(disks / f"node{node}"),
        )
        for node in range(2)
    ]


def finish(processes: list, status: int = 0) -> None:
    for process in processes:
        said, _ = process.communicate(timeout=600)
        assert process.returncode == status, said


def assert_same_rows(s3: S3, twin: Path) -> None:
    """What another number of ranks keeps: rows, batches and rates; losses to rounding."""
    for one, other in zip(metrics_of(s3), tiny_run.metrics(twin), strict=True):
        for key in ("digest", "tokens", "lr", "step", "rows"):
            assert one[key] == other[key]
        assert one["loss"] == pytest.approx(other["loss"], abs=2e-5)


@pytest.mark.slow
def test_two_nodes_have_a_disk_each(s3, corpus, tmp_path):
    """Each node fetches what it resumes from into its own cache."""
    plain = killed_after(s3, corpus, tmp_path, 3, **ELASTIC)
    finish(start_nodes(tiny_run.write_yaml(tmp_path / "again.yaml", plain), tmp_path))
    assert all((tmp_path / f"node{node}" / "runs").is_dir() for node in range(2))
    assert [record["step"] for record in metrics_of(s3)] == list(range(1, pointed(s3)[-1] + 1))


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_a_node_that_dies_during_an_upload_comes_back_with_an_empty_disk(
    dead, s3, corpus, tmp_path
):
    """Node 0 uploads: with it an upload is cut off in the middle of an object."""
    longer = {**ELASTIC, "duration": "40_000tok", "checkpoints__keep": 3}
    plain = settings(corpus, **longer)
    twin = tiny_run.settings(corpus, tmp_path / "twin", **{**SHORT, **longer})
    assert tiny_run.train(twin) == 0
    path = tiny_run.write_yaml(tmp_path / "run.yaml", plain)
    nodes = start_nodes(path, tmp_path)
    uploads: list[str] = []

    def third_is_slow(request):
        if request.method == "PUT" and request.key.endswith(".pt"):
            uploads.append(request.path)
            return 3.0 if len(uploads) > 2 else None
        return None

    s3.judge = third_is_slow
    wait_for(lambda: len(uploads) > 2, nodes[0])
    nodes[dead].send_signal(signal.SIGKILL)
    said, _ = nodes[1 - dead].communicate(timeout=600)
    assert nodes[1 - dead].returncode in (1, 75), said
    s3.judge = lambda request: None
    newest = pointed(s3)[-1]
    pointer = json.loads(s3.read(f"runs/tiny/checkpoints/step{newest:08d}.json"))
    content = s3.read(f"runs/tiny/checkpoints/step{newest:08d}.pt")
    assert pointer["sha256"] == hashlib.sha256(content).hexdigest()
    assert newest < max(run_folder.checkpoints(tmp_path / "twin")), "killed too late"
    shutil.rmtree(tmp_path / f"node{dead}")
    finish(start_nodes(path, tmp_path))
    assert_same_rows(s3, tmp_path / "twin")


@pytest.mark.slow
def test_a_second_launcher_is_refused_and_takes_over_when_the_first_is_dead(
    s3, corpus, tmp_path, monkeypatch
):
    plain = settings(corpus, **LONG)
    path = tiny_run.write_yaml(tmp_path / "run.yaml", plain)
    first = tiny_run.start(path)
    wait_for(lambda: len(pointed(s3)) >= 2, first)
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "other-disk"))
    second = tiny_run.start(path)
    said, _ = second.communicate(timeout=600)
    assert second.returncode == 2 and "is in use: another run, on" in said, said
    assert first.poll() is None, "the first goes on"
    family = [first, *psutil.Process(first.pid).children(recursive=True)]
    for process in family:  # not dead for its machine, silent for the others
        process.send_signal(signal.SIGSTOP)
    third = tiny_run.start(path)
    before = pointed(s3)[-1]
    wait_for(lambda: pointed(s3)[-1] > before + 1, third)
    for process in family:
        process.send_signal(signal.SIGCONT)
    said, _ = first.communicate(timeout=600)
    assert first.returncode == 1 and "taken over by a run on" in said, said
    third.send_signal(signal.SIGTERM)
    said, _ = third.communicate(timeout=600)
    assert third.returncode == 75, said
    steps = [record["step"] for record in metrics_of(s3)]
    assert steps == list(range(1, len(steps) + 1)), "two runs wrote"


@pytest.mark.slow
def test_a_stop_object_stops_a_run(s3, corpus, tmp_path):
    plain = settings(corpus, **LONG)
    process = tiny_run.start(tiny_run.write_yaml(tmp_path / "run.yaml", plain))
    wait_for(lambda: len(pointed(s3)) >= 2, process)
    s3.client().put_object(Bucket=BUCKET, Key="runs/tiny/stop", Body=b"")
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 75, said
    assert pointed(s3)[-1] == metrics_of(s3)[-1]["step"]
    assert "runs/tiny/stop" not in s3.names()


@pytest.mark.parametrize("seconds", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_a_store_that_fails_for_a_while_does_not_stop_training(
    seconds, s3, corpus, undisturbed, tmp_path, capfd
):
    """It answers everything with 503, the renewals of the lease too."""
    begun: list[float] = []

    def shut_for_a_while(request):
        if request.method in {"PUT", "POST"} and "/checkpoints/step" in request.path:
            begun.append(time.monotonic())
        return 503 if begun and 0 < time.monotonic() - begun[0] < seconds else None

    s3.judge = shut_for_a_while
    assert tiny_run.train(settings(corpus)) == 0
    assert len(begun) > 1
    assert_same_run(s3, undisturbed, tmp_path)
    said = capfd.readouterr().err
    assert "NOT UPLOADED (s3://" in said and "takes uploads again" in said


@pytest.mark.slow
def test_a_store_that_stays_away_ends_the_run_with_status_1_and_keeps_the_local_one(
    s3, corpus, tmp_path
):
    plain = settings(corpus, checkpoints__upload_minutes=0.05, duration="1_000tok")
    plain["schedule"] = {"name": "constant"}
    plain["batch"].pop("warmup")
    s3.judge = lambda r: 503 if r.method != "GET" and "/checkpoints/" in r.path else None
    process = tiny_run.start(tiny_run.write_yaml(tmp_path / "run.yaml", plain))
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 1 and "THE LAST CHECKPOINT IS NOT UPLOADED" in said, said
    assert "Traceback" not in said
    assert pointed(s3) == [] and run_folder.checkpoints(folder_of(plain))
    s3.judge = lambda request: None
    assert tiny_run.train(plain) == 0, "the same machine brings it up"
    assert pointed(s3)[-1] == metrics_of(s3)[-1]["step"]


@pytest.mark.slow
def test_a_kill_during_an_upload_never_leaves_a_pointer_to_half_an_object(s3, corpus, tmp_path):
    """Killed at many moments of an upload: what is pointed to is whole each time."""
    longer = {"duration": "40_000tok", "checkpoints__keep": 3, "evaluation__interval": None}
    twin = tiny_run.settings(corpus, tmp_path / "twin", **{**SHORT, **longer})
    assert tiny_run.train(twin) == 0
    plain = settings(corpus, **longer)
    path = tiny_run.write_yaml(tmp_path / "run.yaml", plain)
    killed = 0
    for round_number, verdict in enumerate(["half", "drop", 0.5, 1.0, 0.2]):
        seen: list[str] = []

        def judge(request, verdict=verdict, seen=seen):
            if request.method == "PUT" and request.key.endswith(".pt"):
                seen.append(request.key)
                return verdict if len(seen) > 1 else None
            return None

        s3.judge = judge
        process = tiny_run.start(path)
        end = time.monotonic() + 600
        while len(seen) < 2 and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.1 * round_number)
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        s3.judge = lambda request: None
        for step in pointed(s3):
            name = f"runs/tiny/checkpoints/step{step:08d}"
            pointer, content = json.loads(s3.read(f"{name}.json")), s3.read(f"{name}.pt")
            assert pointer["sha256"] == hashlib.sha256(content).hexdigest()
        shutil.rmtree(folder_of(plain), ignore_errors=True)  # a complete run makes none
    assert killed > 2
    assert tiny_run.train(plain) == 0
    assert_same_run(s3, tmp_path / "twin", tmp_path)
    whole = {f"step{step:08d}" for step in pointed(s3)}
    assert {Path(k).stem for k in s3.names() if k.endswith(".pt")} == whole, "litter"


@pytest.mark.slow
def test_a_damaged_object_is_passed_over(s3, corpus, undisturbed, tmp_path, capfd):
    plain = killed_after(s3, corpus, tmp_path, 4)
    newest = pointed(s3)[-1]
    key = f"runs/tiny/checkpoints/step{newest:08d}.pt"
    content = bytearray(s3.read(key))
    content[len(content) // 2] ^= 1
    s3.client().put_object(Bucket=BUCKET, Key=key, Body=bytes(content))
    assert tiny_run.train(plain) == 0
    assert "is damaged" in capfd.readouterr().err
    assert_same_run(s3, undisturbed, tmp_path)


def test_retention_is_kept_in_the_store(s3, corpus, tmp_path):
    plain = settings(corpus, checkpoints__keep=2, checkpoints__milestones=["1_000tok"])
    assert tiny_run.train(plain) == 0
    pins = json.loads(s3.read("runs/tiny/checkpoints/pinned.json"))
    assert pins and set(pins) <= set(pointed(s3))
    assert pointed(s3)[-1] == metrics_of(s3)[-1]["step"]
    assert len(set(pointed(s3)) - set(pins)) <= 2, "uploads that lag leave some out"


def test_a_cache_that_vanishes_under_a_run_is_no_loss(s3, corpus, undisturbed, tmp_path):
    from composer.core import Callback

    from tessera.training.run import build_run

    plain = settings(corpus)
    before = {process.pid for process in psutil.Process().children()}
    run = build_run(decode(RunConfig, plain, "test"))

    priorities = set()

    class Clear(Callback):
        def batch_start(self, state, logger):
            if int(state.timestamp.batch) in (3, 6):
                shutil.rmtree(folder_of(plain))
                (process,) = [p for p in psutil.Process().children() if p.pid not in before]
                threads = [thread.id for thread in process.threads()]
                priorities.update(os.getpriority(os.PRIO_PROCESS, n) for n in threads)

    run.trainer.state.callbacks.insert(0, Clear())
    assert run.fit() == 0
    last = tiny_run.untimed(tiny_run.metrics(undisturbed))
    assert tiny_run.untimed(metrics_of(s3)) == last
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert priorities == {own, NICE}, "uploads give way to steps, the lease to nobody"


@pytest.mark.slow
def test_a_local_folder_beside_a_store_is_resumed_from_the_store(s3, corpus, undisturbed, tmp_path):
    folder = tmp_path / "local"
    plain = settings(corpus, checkpoints__remote=PLACE, run_folder=str(folder))
    process = tiny_run.start(tiny_run.write_yaml(tmp_path / "run.yaml", plain))
    wait_for(lambda: len(pointed(s3)) >= 3, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    shutil.rmtree(folder)
    assert tiny_run.train(plain) == 0
    assert_same_run(s3, undisturbed, tmp_path)
    assert sorted(run_folder.checkpoints(folder))[-1] == pointed(s3)[-1]


@pytest.mark.slow
def test_two_histories_are_not_mixed(s3, corpus, undisturbed, tmp_path):
    killed_after(s3, corpus, tmp_path, 2)
    folder = tmp_path / "other"
    shutil.copytree(undisturbed, folder, symlinks=True)
    (folder / "checkpoints" / "complete.yaml").unlink()
    plain = settings(corpus, checkpoints__remote=PLACE, run_folder=str(folder), duration="6_000tok")
    with pytest.raises(ValueError, match="both hold checkpoints, and nothing says which"):
        tiny_run.train(plain)
