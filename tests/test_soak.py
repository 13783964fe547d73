"""A real run, ended again and again at random moments, is the run that was left alone."""

import json
import random

import pytest
import tiny_run
from faults import events, soak

from tessera.training import run_folder

pytestmark = pytest.mark.slow

ENDS = 6
HOW = (
    events.kill_everything,
    events.kill_a_rank,
    events.kill_everything,
    events.kill_the_launcher,
    events.ask_a_rank,
)
STABLE_ADAMW = {"name": "stable_adamw", "lr": 0.01, "weight_decay": 1e-5}
MUON = {"name": "muon", "lr": 0.01}
SETTINGS = {
    **soak.RUN,
    "duration": "40_000tok",
    "checkpoints": {"interval": "1ba", "keep": 3, "milestones": ["9_000tok"]},
}


def records_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("worlds", "optimizer"), [([1], MUON), ([1, 2, 4], STABLE_ADAMW)], ids=["one rank", "1, 2, 4"]
)
def test_a_run_ended_again_and_again_is_the_run_that_was_left_alone(worlds, optimizer, tmp_path):
    dice = random.Random(0)
    corpus = tiny_run.make_corpus(tmp_path / "corpus", documents=60)
    alone, folder = tmp_path / "alone", tmp_path / "run"
    settings = {**SETTINGS, "optimizer": optimizer}
    assert tiny_run.train(tiny_run.settings(corpus, alone, **settings)) == 0
    yaml_path = tiny_run.write_yaml(
        tmp_path / "run.yaml", tiny_run.settings(corpus, folder, **settings)
    )
    for number in range(ENDS):
        world = worlds[number % len(worlds)]
        process = tiny_run.start(yaml_path, ranks=world if world > 1 else None)
        run = events.Running(process, folder, None, dice)
        run.wait_for_a_moment()
        assert process.poll() is None, process.communicate()[0]
        HOW[number % len(HOW)](run)
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
        assert soak.same(one, other, exact=False), (one, other)
