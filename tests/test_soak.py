"""A real run, ended again and again at random moments, is the run that was left alone."""

import json
import random
import signal
import time

import psutil
import pytest
import tiny_run

from tessera.training import run_folder

pytestmark = pytest.mark.slow

RUN = {
    "duration": "40_000tok",
    "checkpoints": {"interval": "1ba", "keep": 3, "milestones": ["9_000tok"]},
    "evaluation__interval": "10ba",
    "train_data__masking": {"rate": 0.4, "final_rate": 0.2, "over": "30_000tok"},
    "batch": {
        "rows": 8,
        "microbatch_rows": 2,
        "warmup": {"initial_rows": 4, "increment_rows": 4, "over": "20_000tok"},
    },
}
ENDS = 6
STABLE_ADAMW = {"name": "stable_adamw", "lr": 0.01, "weight_decay": 1e-5}
MUON = {"name": "muon", "lr": 0.01}


def records_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def wait_for_a_moment(process, folder, dice):
    """Some steps after it began to write; every other time, while a checkpoint is written."""
    metrics = folder / "metrics.jsonl"

    def size():
        return metrics.stat().st_size if metrics.exists() else 0

    def writing():
        return any((folder / "checkpoints").glob(".step*.writing"))

    before, last = size(), time.monotonic() + 300
    while size() == before and process.poll() is None and time.monotonic() < last:
        time.sleep(0.01)
    time.sleep(dice.random() / 2)
    last = time.monotonic() + 2 * dice.randint(0, 1)
    while not writing() and process.poll() is None and time.monotonic() < last:
        pass


def end(process, how):
    """Send SIGKILL to all of it, to the launcher or to a rank, or SIGTERM to a rank."""
    top = psutil.Process(process.pid)
    ranks = [child for child in top.children() if "main.py" in " ".join(child.cmdline())] or [top]
    everything = [*top.children(recursive=True), top]
    victims = {"everything": everything, "the launcher": [top]}.get(how, [ranks[-1]])
    for victim in victims:
        victim.send_signal(signal.SIGTERM if how == "asked" else signal.SIGKILL)


@pytest.mark.parametrize(
    ("worlds", "optimizer"), [([1], MUON), ([1, 2, 4], STABLE_ADAMW)], ids=["one rank", "1, 2, 4"]
)
def test_a_run_ended_again_and_again_is_the_run_that_was_left_alone(worlds, optimizer, tmp_path):
    dice = random.Random(0)
    corpus = tiny_run.make_corpus(tmp_path / "corpus", documents=60)
    alone, folder = tmp_path / "alone", tmp_path / "run"
    settings = {**RUN, "optimizer": optimizer}
    assert tiny_run.train(tiny_run.settings(corpus, alone, **settings)) == 0
    yaml_path = tiny_run.write_yaml(
        tmp_path / "run.yaml", tiny_run.settings(corpus, folder, **settings)
    )
    for number in range(ENDS):
        world = worlds[number % len(worlds)]
        process = tiny_run.start(yaml_path, ranks=world if world > 1 else None)
        wait_for_a_moment(process, folder, dice)
        assert process.poll() is None, process.communicate()[0]
        end(process, ("everything", "a rank", "everything", "the launcher", "asked")[number % 5])
        process.communicate(timeout=300)
        assert process.returncode not in (0, 2)
    process = tiny_run.start(yaml_path)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output

    records, expected = tiny_run.untimed(records_of(folder)), tiny_run.untimed(records_of(alone))
    assert run_folder.checkpoints(folder).keys() == run_folder.checkpoints(alone).keys()
    if worlds == [1]:
        assert records == expected
        for step in run_folder.checkpoints(alone):
            states = (tiny_run.read(path, step) for path in (folder, alone))
            assert tiny_run.same_training_state(*states), step
        return
    assert len(records) == len(expected)
    for one, other in zip(records, expected, strict=True):
        rounded = ("loss", "grad_norm", "sources")
        assert {k: v for k, v in one.items() if k not in rounded} == {
            k: v for k, v in other.items() if k not in rounded
        }
        if one["kind"] == "step":
            assert one["loss"] == pytest.approx(other["loss"], abs=5e-3)
