"""What benchmarks refuse, what they train again, and where their numbers go."""

import json
import sys

import pytest
from tiny_run import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import demo_settings
import gpu
import merging
import options
import scaling
import train_step
import trainings
from prediction import STATED

from tessera.cli.arguments import load_run_config

RATES = "optimizer.lr=1e-3 >> optimizer.lr="


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository whose demo is said to be prepared, with a checkpoint of phase 2."""
    for name in ("yamls", "main.py"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    for source in ("web", "code", "science"):
        (tmp_path / "data/demo" / source / "train").mkdir(parents=True)
        (tmp_path / "data/demo" / source / "train/index.json").write_text(source)
    (tmp_path / "data/demo/.prepared").touch()
    checkpoint = tmp_path / "runs/demo/phase2/checkpoints/step00000074.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("weights")
    (tmp_path / "results").mkdir()
    for module in (trainings, merging):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(trainings, "RESULTS", tmp_path / "results")
    return tmp_path


def tables(root, *asked):
    """What the table of options was asked, with runs in the fixture's folder."""
    words = ["--runs", str(root / "runs/options"), *asked]
    known = options.OPTIONS
    return trainings.parse(
        "", known, "options", options.check, seeds=[17, 18], threads=1, arguments=words
    )


@pytest.mark.parametrize(
    ("module", "asked", "said"),
    [
        (options, ["--tokens", "0"], "--tokens: must be a whole number, at least 1; got 0"),
        (options, ["--tokens", "-5"], "--tokens: must be a whole number, at least 1; got -5"),
        (options, ["--tokens", "9000"], "too few for two phases"),
        (options, ["--threads", "x"], "--threads: must be a whole number, at least 1; got x"),
        (options, ["--seeds", "1", "1"], "--seeds 1 1: one of them is there twice"),
        (options, ["--try", "foo"], "--try 'foo': is written --try NAME='KEY=VALUE ...'"),
        (options, ["--try", "=a=1"], "is written --try NAME="),
        (options, ["--try", "x=optimzer.lr=1"], "did you mean 'optimizer'?"),
        (options, ["--try", "x=seed=3"], "--try 'x': seed=3: seed is the table's own"),
        (options, ["--try", "x=optimizer.lr=1", "--try", "x=a=2"], "'x=...' is there twice"),
        (options, ["--try", "x=train_data.objective=causal"], "--try 'x': trains with"),
        (options, ["--try", "x=seed.a=1 >> seed.a=1"], "seed is the table's own"),
        (options, ["--try", f"x={RATES}none"], "optimizer.lr"),
        (
            options,
            ["--try", "x=train_data.objective=masked >> train_data.objective=causal"],
            "a causal loss is not comparable with one of masked tokens",
        ),
        (options, ["--out", "/nowhere/x.json"], "--out /nowhere/x.json: there is no folder"),
        (options, ["--out", "/tmp"], "--out /tmp: is a folder"),
        (options, ["--runs", "main.py"], "is a file; name a folder"),
        (demo_settings, ["--tokens", "0"], "at least 1; got 0"),
        (demo_settings, ["--try", "x"], "--try 'x': is written"),
        (demo_settings, ["--try", "x=a.b=1"], "--try 'x': a: unknown 'a'"),
        (demo_settings, ["--try", "x=train_data.objective=causal"], "a causal loss"),
        (demo_settings, ["--try", f"x={RATES}1"], "--try 'x': '>>'"),
        (merging, ["--groups", "0"], "--groups: must be a whole number, at least 1; got 0"),
        (merging, ["--decays", "1"], "--decays: must be a whole number, at least 2; got 1"),
        (merging, ["--tokens", "10"], "--tokens 10: no 20 checkpoints (--every) fit"),
        (merging, ["--tokens", "5000"], "3 checkpoints (--last) take as many steps of up to"),
        (merging, ["--last", "9", "--every", "3"], "--last 9: a decay has --every 3"),
        (merging, ["--start", "runs/none"], "there is no runs/none yet; run `make demo` first"),
        (merging, ["--start", "yamls"], "with neither a Hugging Face model"),
        (merging, ["--out", "/nowhere/x.json"], "there is no folder /nowhere"),
        (train_step, ["--set", "foo=3"], "--set foo=3: KEY=N, N a whole number, KEY one of"),
        (train_step, ["--set", "num_hidden_layers"], "--set num_hidden_layers: KEY=N"),
        (train_step, ["--set", "num_hidden_layers=x"], "--set num_hidden_layers=x: KEY=N"),
        (train_step, ["--set", "num_hidden_layers=0"], "num_hidden_layers must be at least 1"),
        (train_step, ["--set", "hidden_size=7"], "hidden_size 7 does not divide into 4"),
        (train_step, ["--set", "vocab_size=4"], "the first 5 are special tokens; at least 6"),
        (train_step, ["--slots", "5"], "--slots: must be a whole number, at least 64; got 5"),
        (train_step, ["--min-length", "600"], "--min-length 600 is over --max-length 512"),
        (train_step, ["--rounds", "0"], "--rounds: must be a whole number, at least 1; got 0"),
        (train_step, ["--minutes", "0"], "--minutes must be positive; got 0"),
        (train_step, ["--attention", "foo"], "--attention foo: unknown backend 'foo'"),
        (train_step, ["--device", "abacus"], "--device abacus: cpu, or a GPU"),
        (train_step, ["--device", "cuda:99"], "--device cuda:99: there are"),
        (train_step, ["--lengths", "shards", "--config", "no.yaml"], "no.yaml: no such file"),
        (train_step, ["--config", "no.yaml"], "add --lengths shards"),
        (train_step, ["--out", "README.md"], "--out README.md: holds something else"),
        (train_step, ["--out", "README.md/x.json"], "README.md is a file"),
    ],
)
def test_what_makes_no_sense_is_said_at_once(module, asked, said, root, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(SystemExit) as ended:
        module.main(asked)
    printed = capsys.readouterr()
    assert ended.value.code == 2 and printed.out == ""
    assert said in printed.err.splitlines()[-1] and "Traceback" not in printed.err


def test_a_call_by_its_defaults_makes_sense(root, monkeypatch):
    monkeypatch.chdir(root)
    for module in (options, demo_settings):
        known = getattr(module, "OPTIONS", None) or module.SETTINGS
        for overrides in known.values():
            module.check(overrides, 17, 400_000)
    assert merging.parse([]).start == "runs/demo/phase2"
    detour = options.OPTIONS["causal detour"]
    assert tables(root, "--try", f"other={detour}").settings["other"] == detour


def test_a_run_is_found_again_by_all_that_it_was_asked(root, monkeypatch):
    trained = []
    monkeypatch.setattr(trainings, "train", lambda folder, *_: trained.append(folder))
    asked = tables(root)

    def phase(overrides, *, name="recipe", seed=17, tokens=400_000):
        overrides = f"{options.growth(tokens)} {overrides}"
        return trainings.one_phase(asked, name, overrides, seed, tokens, options.YAML)

    folder = phase("")
    assert folder.parent == root / "runs/options" and folder.name.startswith("recipe-17-400000-")
    record = {"kind": "evaluation", "tokens": 400_001, "sources": {"web": {"loss": 4.0}}}
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    assert phase("") == folder and phase("optimizer.lr=1.5e-3") == folder  # as the YAML has it
    assert trained == [folder] and trainings.last_losses(folder, 400_000) == {"web": 4.0}
    others = [phase("optimizer.lr=0.5"), phase("", seed=18), phase("", tokens=500_000)]
    asked.threads = 2
    others.append(phase(""))
    asked.threads = 1
    (root / "data/demo/web/train/index.json").write_text("another text")
    others.append(phase(""))
    assert trained == [folder, *others] and len(set(trained)) == 6
    assert phase("", name="../a / b").parent == root / "runs/options"


def test_decays_of_another_checkpoint_are_others(root, monkeypatch):
    monkeypatch.setattr(merging, "train", lambda *_: None)
    checkpoints = root / "runs/demo/phase2/checkpoints"
    folders = [merging.decay(100, merging.parse([]))]
    assert merging.decay(100, merging.parse([])) == folders[0]
    copy = root / "runs/copy/checkpoints"
    copy.mkdir(parents=True)
    (copy / "step00000074.pt").write_text("weights")
    folders.append(merging.decay(100, merging.parse(["--start", "runs/copy"])))
    folders.append(merging.decay(100, merging.parse(["--every", "10"])))
    (checkpoints / "step00000075.pt").write_text("later weights")
    folders.append(merging.decay(100, merging.parse([])))
    assert len(set(folders)) == 4


def test_a_causal_loss_is_not_held_against_a_masked_one(tmp_path):
    end = {"kind": "evaluation", "tokens": 10, "sources": {"web": {"loss": 3.0}}}
    metrics = tmp_path / "metrics.jsonl"
    assert not trainings.is_finished(tmp_path, 10)
    metrics.write_text(json.dumps(end) + "\n")
    assert trainings.last_losses(tmp_path, 10) == {"web": 3.0}
    with pytest.raises(SystemExit, match="without a validation loss at 11 tokens"):
        trainings.last_losses(tmp_path, 11)
    metrics.write_text(json.dumps(end | {"objective": "causal"}) + "\n")
    assert trainings.is_finished(tmp_path, 10)
    with pytest.raises(SystemExit, match="is causal, not comparable"):
        trainings.last_losses(tmp_path, 10)


def test_only_the_default_table_is_written_to_the_results(root, tmp_path, capsys):
    default = tables(root)
    assert default.out == root / "results/options.json"
    assert tables(root, "--tokens", "400_000").out == default.out
    others = [
        tables(root, "--only", "muon", "--tokens", "1_000_000"),
        tables(root, "--only", "muon"),
        tables(root, "--try", "x=optimizer.lr=1"),
    ]
    assert len({each.out for each in others}) == 3
    for each in others:
        assert each.out.parent == root / "runs/options" and each.out.name.startswith("options-")
    assert merging.parse([]).out == root / "results/merging.json"
    short = merging.parse(["--groups", "1", "--runs", str(root / "runs/merging")])
    assert short.out.parent == root / "runs/merging"
    stated = tables(root, "--only", "muon", "--out", str(tmp_path / "mine.json"))
    trainings.write(stated, {"tokens": 1})
    assert f"written to {tmp_path / 'mine.json'}" in capsys.readouterr().out
    assert json.loads((tmp_path / "mine.json").read_text()) == {"tokens": 1}


def test_pieces_in_small_do_not_stand_for_those_in_full(tmp_path):
    small, full = ({p.name: p for p in gpu.pieces(tmp_path, tiny=tiny)} for tiny in (True, False))
    for piece in small.values():
        ended = {"status": 0, "seconds": 1.0, "command": piece.command}
        (tmp_path / f"{piece.name}.ended.json").write_text(json.dumps(ended))
    assert all(gpu._ended(piece, tmp_path)["status"] == 0 for piece in small.values())
    done = [name for name, piece in full.items() if gpu._ended(piece, tmp_path)]
    assert done == ["machine"]  # the same command, which has no size
    elsewhere = ["/opt/python", *(w.replace(str(tmp_path), "/mnt") for w in ended["command"][1:])]
    assert gpu._same(elsewhere, ended["command"])


def test_a_step_that_no_variant_could_take_is_a_failure(tmp_path, capsys):
    import torch

    asked = ["--device", "cpu", "--threads", str(torch.get_num_threads()), "--slots", "64"]
    asked += ["--only-ours", "--minutes", "1e-6", "--out", str(tmp_path / "step.json")]
    assert train_step.main(asked) == 1
    assert "out of time" in capsys.readouterr().out
    (entry,) = json.loads((tmp_path / "step.json").read_text())["entries"].values()
    assert [variant["failed"] for variant in entry["variants"]] == ["out of time"]


def test_the_examples_of_scaling_name_what_there_is():
    shown = [line.split("--set ")[1] for line in scaling.__doc__.splitlines() if "--set " in line]
    assert shown and all(each.partition("=")[0] in STATED for each in shown)


def test_another_setting_has_the_config_it_asked_for():
    asked = trainings.settings("train_data.masking.over={tokens}tok", 17, 5)
    assert "train_data.masking.over=5tok" in asked and asked[-2:] == ["duration=5tok", "seed=17"]
    config = load_run_config(str(REPOSITORY / options.YAML), trainings.settings("", 3, 10**6))
    assert (config.seed, config.evaluation.at_end) == (3, True)
