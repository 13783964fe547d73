"""What the READMEs tell people to type exists, and what they tell them to run runs."""

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
from tiny_run import REPOSITORY

from tessera.checkpoints import graphs
from tessera.cli.main import parser
from tessera.config import load
from tessera.training.config import RunConfig

FILES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "data_prep" / "README.md",
    REPOSITORY / "src" / "tessera" / "training" / "README.md",
    REPOSITORY / "yamls" / "cluster" / "README.md",
    REPOSITORY / "benchmarks" / "README.md",
    *sorted((REPOSITORY / "docs" / "pages").rglob("*.md")),
]
STARTS = ("tessera", "make", "composer", "python")


def blocks(kind, files=FILES):
    """Code blocks of a kind, each with the file it stands in."""
    for file in files:
        for block in re.findall(rf"```{kind}\n(.*?)```", file.read_text(), flags=re.DOTALL):
            yield file.name, block


def commands():
    """Each command of shell blocks and of the text, continued lines joined, comments left out.

    Of one in a sentence only its name and options are looked at: the rest may be left out.
    """
    found = {}
    for name, block in [*blocks("bash"), *blocks("")]:
        for line in block.replace("\\\n", " ").splitlines():
            found[line] = (name, True)
    for file in FILES:
        prose = re.sub(r"```.*?```", "", file.read_text(), flags=re.DOTALL)
        for span in re.findall(r"`([^`\n]+)`", prose):
            found.setdefault(span, (file.name, False))
    for line, (name, is_whole) in found.items():
        if line.split(" ")[0] in STARTS and " " in line and "..." not in line.split("#")[0]:
            words = shlex.split(line.rstrip("& "), comments=True)
            yield pytest.param(words, is_whole, id=f"{name}: {' '.join(words)[:60]}")


def is_synopsis(words):
    return any(word[0] in "[|" or word == "..." or word.isupper() for word in words)


@functools.cache
def told_by(script):
    """What a script says of its options; those of benchmarks would import torch first."""
    if script.startswith("benchmarks/"):
        return "".join(path.read_text() for path in (REPOSITORY / "benchmarks").glob("*.py"))
    command = [sys.executable, str(REPOSITORY / script), "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("words", "is_whole"), list(commands()))
def test_a_command_of_a_readme_exists(words, is_whole):
    options = [option for word in words for option in re.findall(r"^--[\w-]+", word)]
    if words[0] == "make":
        targets = set(
            re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        )
        asked = set(words[1 : words.index("&&")] if "&&" in words else words[1:])
        asked = {word for word in asked if "=" not in word}
        assert asked - {"|"} <= targets
    elif words[0] == "tessera":
        (choices,) = [a for a in parser()._actions if a.dest == "==SUPPRESS=="]
        command = choices.choices[words[1]]
        if is_whole and not is_synopsis(words):
            parser().parse_args(words[1:])
        else:
            inner = [a.choices[words[2]] for a in command._actions if isinstance(a.choices, dict)]
            told = "".join(part.format_help() for part in [command, *inner])
            written = [option for word in words for option in re.findall(r"--[\w-]+", word)]
            assert all(option in told for option in written)
    elif words[0] == "python":
        assert (REPOSITORY / words[1]).is_file()
        assert all(option in told_by(words[1]) for option in options)
    else:
        paths = [w for w in words if w.endswith(".yaml") and "$" not in w and not w.isupper()]
        theirs = [path for path in paths if not path.startswith("mine")]
        assert all((REPOSITORY / path).is_file() for path in theirs)


def test_the_yaml_of_ones_own_data_is_right(tmp_path):
    ((_, text),) = blocks("yaml", [REPOSITORY / "README.md"])
    for name in ("phase1.yaml", "models", "data"):
        (tmp_path / name).symlink_to(REPOSITORY / "yamls" / name)
    (tmp_path / "mine.yaml").write_text(text)
    config = load(RunConfig, tmp_path / "mine.yaml")
    assert set(config.train_data.sources) == {"news", "books"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with what the examples name: a run, its YAML, and the model it became."""
    from tessera.checkpoints import export

    folder = tmp_path_factory.mktemp("examples")
    corpus = tiny_run.make_corpus(folder / "corpus", documents=30)
    plain = tiny_run.settings(corpus, folder / "run", duration="2ba")
    assert tiny_run.train(plain) == 0
    export(folder / "run", folder / "my-model")
    tiny_run.write_yaml(folder / "phase.yaml", {**plain, "run_folder": "run"})
    return folder


def examples():
    """The Python of all pages; what imports another framework for long is slow."""
    for name, block in blocks("python"):
        heavy = "Trainer" in block or "sentence_transformers" in block
        first = block.strip().splitlines()[-1][:40]
        yield pytest.param(block, marks=[pytest.mark.slow] * heavy, id=f"{name}: {first}")


@pytest.mark.parametrize("block", list(examples()))
def test_the_python_of_a_readme_runs(block, trained, monkeypatch, capsys):
    for package, used_by in (
        ("accelerate", "Trainer"),
        ("sentence_transformers",) * 2,
        ("onnxruntime",) * 2,
    ):
        if used_by in block:
            pytest.importorskip(package)
    monkeypatch.chdir(trained)
    if "onnxruntime" in block:
        graphs.export_with_graphs(Path("my-model"), Path("served"), ["int8"], encoder_only=True)
    exec(compile(block, "an example", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    if "output.logits.shape" in block:
        assert re.search(r"torch\.Size\(\[\d+, 256\]\)", printed)
    if "hidden.mean" in block:
        assert re.search(r"\(1, \d+\)", printed)
    if "exit status" in block:
        assert "exit status 0" in printed


def test_the_map_names_what_is_there():
    text = (REPOSITORY / "README.md").read_text()
    table = text[text.index("| to change | open |") : text.index("[CONTRIBUTING.md]")]
    for path in re.findall(r"`(src/[\w./]+)`", table):
        assert (REPOSITORY / path).exists(), path
    source = REPOSITORY / "src" / "tessera"
    for folder in (p for p in source.rglob("*") if p.is_dir() and (p / "__init__.py").exists()):
        assert f"{folder.name}/" in text, f"the map has no phrase for {folder}"
        rooms = [p for p in Path(folder).iterdir() if p.suffix == ".py" and p.name[0] != "_"]
        assert len(rooms) <= 13, f"{folder} has {len(rooms)} rooms"


def test_the_larger_demo_is_beside_the_small_one():
    """`make -n` says what would be done, and does nothing."""

    def told(*words):
        command = ["make", "-n", "-B", *words]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)

    small, large = told("demo").stdout, told("demo", "DEMO_MB=200").stdout
    assert "--mb 12 --out data/demo/text" in small and "main.py yamls/demo/phase3.yaml" in small
    assert "--mb 200 --out data/demo-large/text" in large
    assert "main.py yamls/demo/large/phase3.yaml" in large
    assert "demo-large" not in small and "runs/demo/" not in large
    refused = told("demo-eval", "DEMO_MB=200")
    assert refused.returncode == 2 and "leave out DEMO_MB" in refused.stderr
