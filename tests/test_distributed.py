"""Runs on several processes: elastic, sharded, and by two launchers as on two nodes."""

import shutil
import socket
import subprocess
import sys

import pytest
import tiny_run
import torch

from tessera.checkpoints import load_model
from tessera.checkpoints.exporter import export
from tessera.checkpoints.reader import read_checkpoint
from tessera.training import run_folder

pytestmark = pytest.mark.slow

RUN = {"duration": "8ba", "checkpoints__interval": "4ba", "batch__microbatch_rows": 1}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_run.make_corpus(tmp_path_factory.mktemp("corpus"), documents=60)


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory):
    """The run of one process that all others are compared with."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    assert tiny_run.train(tiny_run.settings(corpus, folder, **RUN)) == 0
    return folder


def launch(plain, tmp_path, ranks):
    yaml_path = tiny_run.write_yaml(tmp_path / "run.yaml", plain)
    process = tiny_run.start(yaml_path, ranks=ranks)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output


def assert_same_data_and_nearly_same_losses(folder, alone):
    records, expected = tiny_run.metrics(folder), tiny_run.metrics(alone)
    assert len(records) == len(expected)
    for one, other in zip(records, expected, strict=True):
        for key in ("step", "tokens", "lr", "digest", "masked_tokens", "source_tokens", "rows"):
            assert one[key] == other[key], (key, one["step"])
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
    scores = [tiny_run.metrics(f, "evaluation")[-1]["sources"] for f in (folder, alone)]
    for source, score in scores[0].items():
        assert score["masked_tokens"] == scores[1][source]["masked_tokens"]
        assert score["loss"] == pytest.approx(scores[1][source]["loss"], abs=1e-3)


def halfway(folder, copy):
    shutil.copytree(folder, copy, symlinks=True)
    run_folder.checkpoint_path(copy, 8).unlink()
    return copy


def test_a_run_begun_on_two_ranks_continues_on_one_and_on_four(corpus, alone, tmp_path):
    two = tmp_path / "two"
    launch(tiny_run.settings(corpus, two, **RUN), tmp_path, 2)
    assert_same_data_and_nearly_same_losses(two, alone)
    one = halfway(two, tmp_path / "one")
    assert tiny_run.train(tiny_run.settings(corpus, one, **RUN)) == 0
    assert_same_data_and_nearly_same_losses(one, alone)
    four = halfway(two, tmp_path / "four")
    launch(tiny_run.settings(corpus, four, **RUN), tmp_path, 4)
    assert_same_data_and_nearly_same_losses(four, alone)


@pytest.mark.skipif(
    torch.__version__ < "2.8", reason="gloo cannot average, and gradients come out as sums"
)
@pytest.mark.parametrize("optimizer", ["stable_adamw", "adamw", "muon"])
def test_sharded_training_is_the_same_training(corpus, tmp_path, optimizer):
    # So few validation tokens that of one source the second rank has none.
    chosen = {"name": optimizer, "lr": 0.01, "weight_decay": 1e-5, "clip_norm": 0.5}
    run = {
        **RUN,
        "evaluation__max_tokens": 150,
        "optimizer": chosen,
        "z_loss": 1e-3,
        "train_data__masking": {"final_rate": 0.1, "over": "2_000tok"},
        "compute__activation_checkpointing": True,
    }
    alone, sharded = tmp_path / "alone", tmp_path / "sharded"
    assert tiny_run.train(tiny_run.settings(corpus, alone, **run)) == 0
    plain = tiny_run.settings(corpus, sharded, **run, compute__sharding="fsdp")
    launch(plain, tmp_path, 2)
    assert_same_data_and_nearly_same_losses(sharded, alone)

    resumed = halfway(sharded, tmp_path / "resumed")
    launch({**plain, "run_folder": str(resumed)}, tmp_path, 2)
    assert_same_data_and_nearly_same_losses(resumed, alone)
    last = [tiny_run.metrics(folder)[-1]["loss"] for folder in (sharded, resumed)]
    assert last[0] == last[1]

    exported = export(read_checkpoint(sharded), tmp_path / "model")  # compares logits itself
    theirs, ours = (load_model(path).state_dict() for path in (exported, sharded))
    assert all(torch.equal(weight, ours[name]) for name, weight in theirs.items())

    whole = halfway(sharded, tmp_path / "whole")
    assert tiny_run.train(tiny_run.settings(corpus, whole, **run)) == 0
    assert_same_data_and_nearly_same_losses(whole, alone)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def node(number, port, yaml_path):
    """One of two launchers of one rank each, as on two nodes."""
    command = [sys.executable, "-m", "composer.cli.launcher", "-n", "1", "--world_size", "2"]
    command += ["--node_rank", str(number), "--base_rank", str(number)]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    return subprocess.Popen(
        [*command, str(tiny_run.REPOSITORY / "main.py"), str(yaml_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=tiny_run.environment(),
    )


def test_two_nodes_train_and_one_goes_on_when_the_other_dies(corpus, alone, tmp_path):
    import time

    import psutil

    folder = tmp_path / "run"
    plain = tiny_run.settings(corpus, folder, **{**RUN, "duration": "100_000ba"})
    yaml_path = tiny_run.write_yaml(tmp_path / "run.yaml", plain)
    port = free_port()
    nodes = [node(number, port, yaml_path) for number in (0, 1)]
    end = time.monotonic() + 300
    while 8 not in run_folder.checkpoints(folder):
        assert all(n.poll() is None for n in nodes) and time.monotonic() < end
        time.sleep(0.05)
    for process in [*psutil.Process(nodes[1].pid).children(recursive=True), nodes[1]]:
        process.kill()
    output, _ = nodes[0].communicate(timeout=120)
    nodes[1].communicate()
    assert nodes[0].returncode not in (0, 2, 75)
    assert "another rank is gone without a word" in output

    for later, path in run_folder.checkpoints(folder).items():
        if later > 4:
            path.unlink()
    plain["duration"] = RUN["duration"]
    assert tiny_run.train(plain) == 0
    assert_same_data_and_nearly_same_losses(folder, alone)


def test_a_mistake_is_one_message_under_the_launcher_too(corpus, tmp_path):
    plain = tiny_run.settings(corpus, tmp_path / "run", start_from=str(tmp_path / "nowhere"))
    yaml_path = tiny_run.write_yaml(tmp_path / "run.yaml", plain)
    process = tiny_run.start(yaml_path, ranks=2)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 2
    assert output.count("does not exist; run the phase before this one") == 1
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()
