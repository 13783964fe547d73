"""What a phase leaves out of its YAML is that of what it starts from."""

import shutil
import subprocess
import sys

import pytest
import tiny_run
import yaml

from tessera.cli.check import check
from tessera.config import ConfigError, load, to_plain
from tessera.planning.plan import Hardware
from tessera.training.config import RunConfig

ANNEAL = tiny_run.REPOSITORY / "yamls" / "anneal.yaml"
LEFT_OUT = ("model", "tokenizer")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_run.make_corpus(tmp_path_factory.mktemp("corpus"), documents=60)


@pytest.fixture(scope="module")
def first(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    more = {"model__local_rope_theta": 5000.0, "evaluation__at_end": False}
    assert tiny_run.train(tiny_run.settings(corpus, folder, duration="1ba", **more)) == 0
    return folder


def annealing(corpus, start_from, run_folder):
    return [
        f"start_from={start_from}",
        f"run_folder={run_folder}",
        "duration=1_000tok",
        "train_data.sources.web=null",
        f"train_data.sources.domain.local={corpus / 'code'}",
    ]


def layout(config):
    data = config.train_data
    return data.max_seq_len, data.row_tokens, data.lanes, config.batch.rows


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/latest"])
def test_annealing_continues_the_shape_tokenizer_and_lengths_of_any_run(
    corpus, first, tmp_path, place
):
    overrides = annealing(corpus, first / place, tmp_path / "anneal")
    config = load(RunConfig, ANNEAL, overrides)
    before = load(RunConfig, first / "config.yaml")
    assert config.model == before.model and config.model.local_rope_theta == 5000
    assert config.tokenizer == before.tokenizer
    assert layout(config) == layout(before) == (64, 128, 4, 4)
    checked = check(str(ANNEAL), overrides, Hardware(world_size=1))
    assert not checked.problems
    assert "model, tokenizer, train_data.max_seq_len" in checked.lines["starts from"]
    said = load(RunConfig, ANNEAL, [*overrides, "model.global_rope_theta=777", "batch.rows=8"])
    assert (said.model.global_rope_theta, said.batch.rows) == (777, 8)
    assert said.model.hidden_size == before.model.hidden_size


def test_a_file_and_a_folder_by_themselves_say_it_too(corpus, first, tmp_path):
    from tessera.checkpoints.exporter import export

    alone = shutil.copy(first / "checkpoints" / "latest", tmp_path / "alone.pt")
    config = load(RunConfig, ANNEAL, annealing(corpus, alone, tmp_path / "run"))
    assert layout(config) == (64, 128, 4, 4) and config.tokenizer == str(corpus / "tokenizer")
    export(first, tmp_path / "hf")
    config = load(RunConfig, ANNEAL, annealing(corpus, tmp_path / "hf", tmp_path / "run"))
    assert config.model.hidden_size == 32 and config.tokenizer == str(tmp_path / "hf")
    found = check(
        str(ANNEAL), annealing(corpus, tmp_path / "hf", tmp_path / "run"), Hardware(world_size=1)
    )
    assert "which says nothing of rows and batch" in found.lines["starts from"]
    assert any("1,000 tokens are less than one batch" in doubt for doubt in found.doubts)
    assert config.train_data.max_seq_len == 64


def test_a_run_that_has_begun_needs_nothing_of_what_it_started_from(corpus, first, tmp_path):
    origin, folder = tmp_path / "origin", tmp_path / "anneal"
    shutil.copytree(first, origin, symlinks=True)
    overrides = annealing(corpus, origin, folder)
    begun = load(RunConfig, ANNEAL, overrides)
    assert tiny_run.train(to_plain(begun)) == 0
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["model"]["hidden_size"] == 32 and saved["train_data"]["row_tokens"] == 128
    shutil.rmtree(origin)
    assert load(RunConfig, ANNEAL, overrides) == begun


def test_a_phase_that_is_only_planned_is_enough(corpus, tmp_path):
    plain = tiny_run.settings(corpus, tmp_path / "first")
    before = load(RunConfig, tiny_run.write_yaml(tmp_path / "first.yaml", plain))
    overrides = annealing(corpus, tmp_path / "first", tmp_path / "anneal")
    checked = check(str(ANNEAL), overrides, Hardware(world_size=1), [before])
    assert not checked.problems and layout(checked.config) == (64, 128, 4, 4)


def test_what_describes_itself_is_left_as_it_is(corpus, first, tmp_path):
    plain = tiny_run.settings(corpus, tmp_path / "second") | {"start_from": str(first)}
    config = load(RunConfig, tiny_run.write_yaml(tmp_path / "second.yaml", plain))
    assert config.model.local_rope_theta == 10_000, "a section with sizes is the whole model"


def test_what_is_no_checkpoint_is_told_the_way(corpus, first, tmp_path, monkeypatch):
    from tessera.checkpoints.release.revisions import release

    monkeypatch.chdir(tmp_path)
    release(first, tmp_path / "out")
    (revision,) = (path.parent for path in (tmp_path / "out").glob("*/restart"))
    for start, said in {
        revision / "restart": f"name the folder around both, {revision}",
        "org/name": "hf download org/name --local-dir name",
    }.items():
        checked = check(str(ANNEAL), annealing(corpus, start, "run"), Hardware(world_size=1))
        (problem,) = checked.problems
        assert said in problem


def test_without_start_from_a_model_is_required(corpus, tmp_path):
    plain = tiny_run.settings(corpus, tmp_path / "run")
    path = tiny_run.write_yaml(tmp_path / "p.yaml", {k: plain[k] for k in plain if k != "model"})
    with pytest.raises(ConfigError, match="model: missing, and required"):
        load(RunConfig, path)


def test_nothing_heavy_is_imported_to_read_a_run(corpus, first, tmp_path):
    code = (
        "import sys; from tessera.config import load; from tessera.training.config import RunConfig"
        "; load(RunConfig, sys.argv[1], sys.argv[2:]); assert 'torch' not in sys.modules"
    )
    overrides = annealing(corpus, first, tmp_path / "run")
    command = [sys.executable, "-c", code, str(ANNEAL), *overrides]
    subprocess.run(command, check=True, env=tiny_run.environment())


def test_damaged_checkpoints_are_said_before_training_finds_them(corpus, tmp_path):
    folder = tmp_path / "run"
    plain = tiny_run.settings(
        corpus, folder, duration="2ba", checkpoints__interval="1ba", evaluation__at_end=False
    )
    assert tiny_run.train(plain) == 0
    path = tiny_run.write_yaml(tmp_path / "run.yaml", plain | {"duration": "3ba"})
    newest = folder / "checkpoints" / "step00000002.pt"
    newest.write_bytes(newest.read_bytes()[:500])
    checked = check(str(path), [], Hardware(world_size=1))
    assert not checked.problems and "resumes after 1 steps" in checked.lines["starts from"]
    (doubt,) = (doubt for doubt in checked.doubts if "step00000002.pt" in doubt)
    assert "would be set aside, and step00000001.pt gone on from" in doubt
    (folder / "checkpoints" / "step00000001.pt").write_bytes(b"")
    problems = check(str(path), [], Hardware(world_size=1)).problems
    assert any("none of the checkpoints" in problem for problem in problems)
    assert newest.exists(), "a check sets nothing aside"


def test_a_cache_that_cannot_be_written_is_said(corpus, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    plain = tiny_run.settings(corpus, tmp_path / "run")
    plain["train_data"]["sources"]["web"] |= {
        "remote": str(corpus / "web"),
        "local": str(tmp_path / "file" / "cache"),
    }
    path = tiny_run.write_yaml(tmp_path / "run.yaml", plain)
    problems = check(str(path), [], Hardware(world_size=1)).problems
    (problem,) = (p for p in problems if p.startswith("train_data.sources.web.local"))
    assert "is a file, not a folder" in problem
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "file" / "cache"))
    overrides = ["start_from=s3://bucket/run"]
    problems = check(str(path), overrides, Hardware(world_size=1)).problems
    assert any(p.startswith("TESSERA_CACHE") and "is a file" in p for p in problems)


def test_a_key_written_as_an_option_is_told_how(corpus, tmp_path):
    path = tiny_run.write_yaml(tmp_path / "p.yaml", tiny_run.settings(corpus, tmp_path / "run"))
    with pytest.raises(ConfigError, match="keys of the YAML are written optimizer.lr=1e-3"):
        load(RunConfig, path, ["--optimizer.lr=1e-3"])
