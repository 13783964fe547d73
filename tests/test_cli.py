"""The command line as scripts see it: what it prints, and with which status it ends."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml
from tiny_run import REPOSITORY, make_corpus, settings, train, write_yaml

from tessera.cli.main import main
from tessera.config import ConfigError
from tessera.data.preparation.mds_writer import write_shards

SHORT = {"schedule": {"name": "constant"}, "evaluation": {"at_end": False}, "checkpoints": {}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def yaml_path(corpus, tmp_path):
    return write_yaml(tmp_path / "phase.yaml", settings(corpus, tmp_path / "run"))


def refused(capsys, *arguments):
    """The message of a command that ends with status 2; no traceback, nothing on stdout.

    But for `check`, which shows what the YAML says before what is wrong with it.
    """
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err and (not printed.out or arguments[0] == "check")
    return printed.err


def test_check_shows_what_would_run(yaml_path, capsys):
    assert main(["check", str(yaml_path), "--world-size", "2"]) == 0
    shown = capsys.readouterr().out
    for expected in ("parameters", "8,000 real tokens", "4 rows, 512 token slots", "web 60%"):
        assert expected in shown
    assert not (yaml_path.parent / "run").exists(), "checking writes nothing"


def test_check_warns_of_a_tokenizer_that_frames_text_otherwise(corpus, tmp_path, capsys):
    folder = shutil.copytree(corpus / "tokenizer", tmp_path / "bare")
    parts = json.loads((folder / "tokenizer.json").read_text())
    parts["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(parts))
    plain = settings(corpus, tmp_path / "run", tokenizer=str(folder))
    assert main(["check", str(write_yaml(tmp_path / "a.yaml", plain))]) == 0
    shown = capsys.readouterr().out.splitlines()[-1]
    assert shown.startswith("warning") and "frames a text x as 'x', training as" in shown


def test_check_holds_the_duration_against_the_tokens_there_are(yaml_path, capsys):
    assert main(["check", str(yaml_path)]) == 0
    shown = capsys.readouterr().out
    assert "warning" not in shown
    (line,) = [line.split() for line in shown.splitlines() if line.split()[0] == "web"]
    assert line[1:3] == ["60.0%", "4.8k"] and float(line[4]) < 1
    assert main(["check", str(yaml_path), "duration=1e12tok"]) == 0
    warnings = capsys.readouterr().out.partition("warning")[2].splitlines()
    named = [warning.split()[0] for warning in warnings]
    assert named == ["train_data.sources.web:", "train_data.sources.code:"]
    assert all("Up to 4 readings" in w and "arxiv.org/abs/2305.16264" in w for w in warnings)


def test_a_yaml_for_ones_own_shards_is_ready_to_check_and_train(corpus, tmp_path, capsys):
    out = tmp_path / "mine.yaml"
    arguments = ["--out", str(out), "--run-folder", str(tmp_path / "run"), "--size", "tiny"]
    assert main(["init", str(corpus), *arguments]) == 0
    said = capsys.readouterr().out
    assert "22.5k tokens in 2 sources, read 4 times" in said and f"tessera check {out}" in said
    assert "22.5k tokens are too few to pretrain" in said
    assert main(["check", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "warning" not in shown
    sources = [
        line.split() for line in shown.splitlines() if line.split()[:1] in (["web"], ["code"])
    ]
    assert [line[4] for line in sources] == ["4.00", "4.00"]
    assert train({**yaml.safe_load(out.read_text()), "duration": "2ba", **SHORT}) == 0
    capsys.readouterr()
    assert "exists already" in refused(capsys, "init", corpus, *arguments)
    empty = ["--out", str(tmp_path / "other.yaml")]
    assert "holds no finished shards" in refused(capsys, "init", tmp_path / "run", *empty)


def test_check_of_several_phases_shows_them_as_one_run(corpus, tmp_path, capsys):
    first = settings(corpus, tmp_path / "one")
    second = settings(corpus, tmp_path / "two", start_from=str(tmp_path / "one"), seed=4)
    second["optimizer"]["lr"] = 0.002
    paths = [str(write_yaml(tmp_path / f"{n}.yaml", p)) for n, p in enumerate((first, second))]
    assert main(["check", *paths, "batch.microbatch_rows=1", "--gpu", "4090"]) == 0
    shown = capsys.readouterr().out
    (tokens,) = [line.split() for line in shown.splitlines() if line.startswith("tokens")]
    assert tokens == ["tokens", "8k", "8k"]
    assert f"weights and optimizer of {tmp_path / 'one'}" in shown and "lr 0.01 -> 0.002" in shown
    assert "epochs over all phases: web 0.86" in shown and "█" in shown
    second["model"]["hidden_size"] = 64
    write_yaml(tmp_path / "1.yaml", second)
    assert "model.hidden_size: 64 here, 32 in" in refused(capsys, "check", *paths)


def test_what_several_yamls_lack_is_said_once(corpus, tmp_path, capsys):
    plain = settings(corpus, tmp_path / "one", tokenizer=str(tmp_path / "nowhere"))
    paths = [str(write_yaml(tmp_path / f"{n}.yaml", plain)) for n in range(2)]
    said = refused(capsys, "check", *paths)
    assert said.count("nowhere") == 2 - 1 and "1.yaml: the same 1 problem" in said


def test_check_speaks_json(yaml_path, capsys):
    assert main(["check", str(yaml_path), "--json", "--gpu", "h100", "--price", "2"]) == 0
    (phase,) = json.loads(capsys.readouterr().out)["phases"]
    plan = phase["plan"]
    assert phase["problems"] == phase["warnings"] == []
    assert plan["price"] == 2 * plan["gpu_hours"] and plan["tokens"] == 8000
    assert plan["mixture"]["sources"]["web"]["tokens_wanted"] == 4800
    assert plan["memory"]["total"] == sum(v for k, v in plan["memory"].items() if k != "total")
    assert main(["check", str(yaml_path), "--json", "tokenizer=./nowhere"]) == 2
    (phase,) = json.loads(capsys.readouterr().out)["phases"]
    assert "no such folder" in phase["problems"][0] and phase["plan"] is not None


def test_a_phase_that_does_not_fit_a_gpu_is_told_what_would(yaml_path, capsys):
    large = ["model.hidden_size=4096", "model.num_hidden_layers=64"]
    arguments = ["check", str(yaml_path), *large, "train_data.row_tokens=8192", "--gpu", "4090"]
    assert main(arguments) == 0
    assert "a RTX 4090 24 GB has 24.0 GiB; not even 1 fits" in capsys.readouterr().out
    assert "--gpu 4080: unknown; one of a100-40" in refused(
        capsys, "check", yaml_path, "--gpu", "4080"
    )


def test_mistakes_of_value_and_missing_files_are_said_together(yaml_path, capsys):
    said = refused(
        capsys,
        *("check", yaml_path, "batch.rows=0", "train_data.sources.web.local=/nowhere"),
        *("tokenizer=./nor-here", "start_from=gone.pt"),
    )
    for expected in (
        "rows: must be at least 1",
        "/nowhere",
        "nor-here",
        "'gone.pt' does not exist",
    ):
        assert said.count(expected) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("optimizer.lr=2", "optimizer.lr: 2 is far above"),
        ("optimizer={name: muon, rest: {lr: 9}}", "optimizer.rest.lr: 9 is far above"),
        (
            "optimizer={name: adamw, lr: 5e-3, weight_decay: 10}",
            "optimizer.weight_decay: 10 takes 5.0% of a weight away at every step",
        ),
        ("model.vocab_size=512", "model.vocab_size: 512 rows for the 255 tokens of"),
        ("batch.microbatch_rows=99", "batch.microbatch_rows: 99 at a time, of the"),
        (
            "evaluation.interval=9_999_999tok",
            "evaluation.interval: '9999999tok' is longer than duration",
        ),
        ("checkpoints.interval=9_999_999tok", "checkpoints.interval: '9999999tok'"),
        ("evaluation.probes.interval=1ba", "evaluation.probes.short: 512 tokens are no less than"),
    ],
)
def test_what_is_hardly_meant_is_said(yaml_path, capsys, change, says):
    assert main(["check", str(yaml_path), change]) == 0
    assert says in capsys.readouterr().out.partition("warning")[2]


def test_a_validation_split_that_is_one_document_is_said(corpus, tmp_path, capsys):
    local = shutil.copytree(corpus, tmp_path / "corpus")
    shutil.rmtree(local / "web" / "validation")
    documents = [("long", np.full(3000, 7, np.uint16)), ("short", np.full(30, 7, np.uint16))]
    write_shards(
        local / "web" / "validation", documents, vocab_size=255, tokenizer_fingerprint=None
    )
    assert (
        main(["check", str(write_yaml(tmp_path / "a.yaml", settings(local, tmp_path / "r")))]) == 0
    )
    assert "one of the 2 validation documents of 'web' holds 99%" in capsys.readouterr().out


def test_a_missing_source_is_said_once(yaml_path, capsys):
    said = refused(capsys, "check", yaml_path, "train_data.sources.web.local=/nowhere")
    assert said.count("/nowhere") == 1


def test_check_refuses_whole_words_where_nobody_can_tell_them(yaml_path, capsys):
    said = refused(capsys, "check", yaml_path, "train_data.masking.whole_words=true")
    assert "train_data.masking.whole_words: the tokens of" in said


def test_check_tells_what_an_interrupted_phase_would_resume_from(corpus, tmp_path, capsys):
    plain = settings(corpus, tmp_path / "run", evaluation__at_end=False)
    assert train({**plain, "duration": "4ba", "schedule": {"name": "constant"}}) == 0
    plain["schedule"] = {"name": "constant"}
    capsys.readouterr()
    longer = str(write_yaml(tmp_path / "a.yaml", plain))
    assert main(["check", longer]) == 0
    shown = capsys.readouterr().out
    assert "step00000004.pt: resumes after 4 steps" in shown and "duration: 4ba -> " in shown
    assert main(["check", longer, "duration=4ba"]) == 0
    assert "complete already" in capsys.readouterr().out
    assert "seed: was 3, is 4" in refused(capsys, "check", longer, "seed=4")

    after = settings(corpus, tmp_path / "next", start_from=str(tmp_path / "run"))
    assert main(["check", str(write_yaml(tmp_path / "b.yaml", after))]) == 0
    shown = capsys.readouterr().out.splitlines()[-1]
    assert shown.split()[:2] == ["warning", "train_data.seed:"]


def test_check_reports_all_that_the_files_say_is_wrong(corpus, tmp_path, capsys):
    broken = tmp_path / "corpus"
    shutil.copytree(corpus, broken)
    shutil.rmtree(broken / "code" / "train")
    summary = broken / "web" / "train" / "tessera.json"
    facts = json.loads(summary.read_text())
    summary.write_text(json.dumps({**facts, "tokenizer": "another"}))
    plain = settings(broken, tmp_path / "run", start_from=str(tmp_path / "nowhere"))
    said = refused(capsys, "check", write_yaml(tmp_path / "a.yaml", plain), "--world-size", "3")
    for expected in (
        "batch.rows: 4 rows do not divide among 3 ranks",
        "train_data.lanes: 3 ranks do not divide 4 lanes",
        "made with another tokenizer",
        "code/train does not exist",
        "start_from: ",
    ):
        assert expected in said
    assert not (tmp_path / "run").exists()


def test_shards_that_are_not_as_the_index_says_are_named_before_training(corpus, tmp_path, capsys):
    local = tmp_path / "corpus"
    shutil.copytree(corpus, local)
    index = json.loads((local / "web/train/index.json").read_text())
    first = local / "web/train" / index["shards"][0]["raw_data"]["basename"]
    first.unlink()
    (validation,) = (local / "code/validation").glob("*.mds")
    os.truncate(validation, 100)
    yaml_path = write_yaml(tmp_path / "a.yaml", settings(local, tmp_path / "run"))
    said = refused(capsys, "check", yaml_path)
    assert f"train_data.sources.web: {first.parent}: 1 of the" in said
    assert f"do not exist: {first.name}; copy them again" in said
    assert f"have another size: {validation.name} (100 bytes instead of" in said
    assert said.count("train_data.sources.") == 2
    capsys.readouterr()
    assert main(["check", str(yaml_path), "train_data.on_bad_shard=skip"]) == 0


def test_a_problem_names_the_file_its_key_came_from(corpus, tmp_path, capsys):
    (tmp_path / "deep").mkdir()
    base = write_yaml(tmp_path / "deep" / "base.yaml", settings(tmp_path / "no", tmp_path / "run"))
    (tmp_path / "own.yaml").write_text("extends: deep/base.yaml\n")
    said = refused(capsys, "check", str(tmp_path / "own.yaml"))
    assert f"train_data.sources.web (from {base}): source 'web': " in said
    override = f"train_data.sources.web.local={tmp_path / 'nor-here'}"
    said = refused(capsys, "check", str(tmp_path / "own.yaml"), override)
    assert "train_data.sources.web: source 'web': " in said


def test_a_wrong_tokenizer_is_said_once_a_source(corpus, tmp_path, capsys):
    local = tmp_path / "corpus"
    shutil.copytree(corpus, local)
    for summary in local.glob("web/*/tessera.json"):
        summary.write_text(json.dumps({**json.loads(summary.read_text()), "tokenizer": "another"}))
    yaml_path = write_yaml(tmp_path / "a.yaml", settings(local, tmp_path / "run"))
    assert refused(capsys, "check", yaml_path).count("made with another tokenizer") == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("train_data.max_seq_len=256", "larger than row_tokens 128"),
        ("model.vocab_size=200", "model.vocab_size: 200 rows cannot hold the 255"),
        ("tokenizer=nowhere/at/all", "no such folder"),
        ("batch.rows=two", "batch.rows: expected a whole number"),
        ("schedule.warmup=3ba", "cannot be compared with duration"),
        ("optimzer.lr=3", "did you mean 'optimizer'?"),
    ],
)
def test_a_mistake_gets_one_message_that_names_the_key(yaml_path, capsys, change, says):
    assert says in refused(capsys, "check", yaml_path, change)


def test_batches_are_the_same_lines_for_any_number_of_ranks(yaml_path, capsys):
    shown = []
    for world_size in ("1", "2", "4"):
        arguments = ["batches", str(yaml_path), "--steps", "5", "--ids", "--world-size", world_size]
        assert main(arguments) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] == shown[2]
    lines = [json.loads(line) for line in shown[0].splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert len({line["digest"] for line in lines}) == 5
    assert all(len(line["ids"]) == line["rows"] == 4 for line in lines)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (["--world-size", "0"], "--world-size must be at least 1; got 0"),
        (["--world-size", "3"], "cannot run on 3 ranks"),
        (["--steps", "-1"], "--steps must be at least 1; got -1"),
        (["--start-from", "nowhere.pt"], "nowhere.pt: there is no such file"),
    ],
)
def test_an_option_of_batches_that_cannot_be_is_refused(yaml_path, capsys, option, says):
    assert says in refused(capsys, "batches", yaml_path, *option)


def test_doctor_says_why_a_backend_is_missing(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "sdpa: ready" in shown
    assert "torch 2." in shown and "flash" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "nowhere.pt", "--out", "x"],
        ["import", "nowhere.pt", "--out", "x.pt"],
        ["merge", "a.pt", "b.pt", "--out", "x.pt"],
        ["release", "nowhere", "--out", "x"],
        ["report", "nowhere"],
        ["evaluate", "nowhere"],
        ["evaluate", "nowhere", "--fill", "a [MASK]"],
        ["batches", "nowhere.yaml"],
        ["check", "nowhere.yaml"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_is_not_there_is_named_and_nothing_is_written(
    tmp_path, monkeypatch, capsys, arguments
):
    monkeypatch.chdir(tmp_path)
    assert refused(capsys, *arguments).startswith("tessera: ")
    assert not list(tmp_path.iterdir())


def test_a_text_without_a_mask_is_refused_before_losses_are_computed(
    yaml_path, capsys, monkeypatch
):
    def nothing_to_fill(model, texts):
        raise ConfigError(f"'{texts[0]}' has no [MASK] to fill")

    monkeypatch.setattr("tessera.evaluation.fill_mask.fill_masks", nothing_to_fill)
    (yaml_path.parent / "model").mkdir()
    model = yaml_path.parent / "model"
    arguments = ("evaluate", model, "--config", yaml_path, "--fill", "no mask here")
    assert "'no mask here' has no [MASK] to fill" in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["chek", "a.yaml"], "chek: no such command; did you mean 'check'?"),
        (["frobnicate"], "no such command; one of init, check, doctor"),
        (["check", "a.yaml", "--optimizer.lr", "1e-3"], "are written optimizer.lr=1e-3"),
        (["check", "a.yaml", "--optimizer.lr=1e-3"], "are written optimizer.lr=1e-3"),
    ],
)
def test_what_was_meant_is_said_of_words_that_are_no_command_or_option(capsys, arguments, says):
    assert says in refused(capsys, *arguments)


def test_main_explains_itself():
    script = str(REPOSITORY / "main.py")
    asked = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
    assert (asked.returncode, asked.stderr) == (0, "")
    assert "composer main.py yamls/phase1.yaml" in asked.stdout
