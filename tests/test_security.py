"""The rows of SECURITY.md that no other file shows; and that every row names a test."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
import yaml
from test_public_shards import chunks, publish
from test_source import open_source

from tessera.cli.main import main
from tessera.config import ConfigError, load
from tessera.tokenizer import load_tokenizer
from tessera.training.config import RunConfig

TRACE = "hostile-code-ran"
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIA-not-to-be-told",
    "AWS_SECRET_ACCESS_KEY": "aws-not-to-be-told",
    "HF_TOKEN": "hf_not-to-be-told",
    "WANDB_API_KEY": "wandb-not-to-be-told",
}
TESTS = Path(__file__).parent


def named_tests():
    table = (tiny_run.REPOSITORY / "SECURITY.md").read_text()
    return re.findall(r"`(test_\w+\.py)::(test_\w+)`", table)


def test_every_row_names_a_test_that_exists():
    rows = [
        line
        for line in (tiny_run.REPOSITORY / "SECURITY.md").read_text().splitlines()
        if line.startswith("| ") and "shown by" not in line
    ]
    assert len(rows) > 15
    for row in rows:
        assert re.search(r"`test_\w+\.py::test_\w+` \|$", row), row
    for file, name in named_tests():
        assert re.search(rf"^def {name}\(", (TESTS / file).read_text(), re.MULTILINE), name


def test_a_yaml_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bomb = f"run_folder: !!python/object/apply:os.system ['touch {TRACE}']\n"
    (tmp_path / "bomb.yaml").write_text(bomb)
    with pytest.raises(ConfigError, match="bomb.yaml: not valid YAML"):
        load(RunConfig, tmp_path / "bomb.yaml")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load(RunConfig, tiny_run.write_yaml(tmp_path / "a.yaml", {}), [bomb.replace(": ", "=", 1)])
    assert not (tmp_path / TRACE).exists()
    yaml.unsafe_load(bomb)
    assert (tmp_path / TRACE).exists(), "the bomb is none"


def test_a_link_out_of_a_cache_is_not_followed(tmp_path):
    remote, outside, cache = (tmp_path / name for name in ("remote", "outside", "cache"))
    publish(remote / "part", chunks())
    index = json.loads((remote / "part" / "index.json").read_text())
    for shard in index["shards"]:
        shard["raw_data"]["basename"] = f"part/{shard['raw_data']['basename']}"
    (remote / "index.json").write_text(json.dumps(index))
    outside.mkdir()
    cache.mkdir()
    (cache / "part").symlink_to(outside)
    with pytest.raises(ValueError, match="is a link that leads out of the cache"):
        open_source(cache, remote, split="").document(0, 0)
    assert not any(outside.iterdir())
    (cache / "part").unlink()
    assert len(open_source(cache, remote, split="").document(0, 0))
    publish(remote / "train", chunks())
    (cache / "train").symlink_to(outside)  # the folder of a split itself
    with pytest.raises(ValueError, match="is a link that leads out of the cache"):
        open_source(cache, remote, split="train")
    assert not any(outside.iterdir())


def test_no_code_of_others_is_asked_for():
    """Nothing says true; and what transformers loads for a stranger's folder says false, so that it
    does not ask on a terminal either."""
    sources = [*(tiny_run.REPOSITORY / "src").rglob("*.py")]
    sources += [*(tiny_run.REPOSITORY / "data_prep").glob("*.py")]
    said = [line for path in sources for line in path.read_text().splitlines()]
    said = [line for line in said if "trust_remote_code" in line]
    assert len(said) >= 3
    assert all("trust_remote_code=False" in line for line in said), said


@pytest.mark.slow
def test_code_beside_a_model_is_neither_run_nor_asked_for(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    auto = {"AutoConfig": "evil.Config", "AutoModelForMaskedLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto}))
    (folder / "evil.py").write_text(f"open({str(tmp_path / TRACE)!r}, 'w')")
    tiny_run.make_tokenizer(folder / "t")
    for path in (folder / "t").iterdir():
        path.rename(folder / path.name)
    code = "import sys; from tessera.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "evaluate", str(folder), "--fill", "w1 [MASK]"],
        input="y\n" * 10,
        capture_output=True,
        text=True,
        env=tiny_run.environment() | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 2, done
    assert "Do you wish to run" not in done.stdout + done.stderr
    assert not (tmp_path / TRACE).exists()


def test_code_beside_a_tokenizer_is_never_run(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)  # whoever asks, fails
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    auto = {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Evil", "auto_map": auto})
    )
    (folder / "evil.py").write_text(f"open({str(tmp_path / TRACE)!r}, 'w')")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_tokenizer(folder)
    assert not (tmp_path / TRACE).exists()


@pytest.mark.slow
def test_secrets_reach_no_file_and_no_output(tmp_path, monkeypatch, capfd):
    for name, value in {**SECRETS, "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    corpus = tiny_run.make_corpus(tmp_path / "corpus", documents=30)
    run = tmp_path / "run"
    plain = tiny_run.settings(
        corpus, run, duration="3ba", logging__wandb={"project": "p"}, logging__tensorboard=True
    )
    path = tiny_run.write_yaml(tmp_path / "phase.yaml", plain)
    process = tiny_run.start(path)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert main(["report", str(run)]) == 0
    assert main(["export", str(run), "--out", str(tmp_path / "model")]) == 0
    assert main(["release", str(run), "--out", str(tmp_path / "release")]) == 0
    assert main(["check", str(path)]) == 0
    output = printed + "".join(capfd.readouterr())
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert {"report.html", "README.md", "config.yaml", "metrics.jsonl"} <= {p.name for p in files}
    for secret in SECRETS.values():
        assert secret not in output
        assert [p for p in files if secret.encode() in p.read_bytes()] == []
