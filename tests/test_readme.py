"""What the READMEs tell people to type exists, and what they tell them to run runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
from tiny_run import REPOSITORY

from tessera.cli.main import parser
from tessera.config import load
from tessera.training.config import RunConfig

FILES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "data_prep" / "README.md",
    REPOSITORY / "src" / "tessera" / "training" / "README.md",
]


def blocks(kind, files=FILES):
    """Code blocks of a kind, each with the file it stands in."""
    for file in files:
        for block in re.findall(rf"```{kind}\n(.*?)```", file.read_text(), flags=re.DOTALL):
            yield file.name, block


def commands():
    """Each command of the shell blocks, continued lines joined and comments left out."""
    for name, block in [*blocks("bash"), *blocks("")]:
        for line in block.replace("\\\n", " ").splitlines():
            if line.split(" ")[0] in ("tessera", "make", "composer", "python"):
                words = shlex.split(line, comments=True)
                yield pytest.param(words, id=f"{name}: {' '.join(words)[:60]}")


def is_synopsis(words):
    return any(word[0] in "[|" or word == "..." or word.isupper() for word in words)


@pytest.mark.parametrize("words", list(commands()))
def test_a_command_of_a_readme_exists(words):
    if words[0] == "make":
        targets = set(
            re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        )
        asked = set(words[1 : words.index("&&")] if "&&" in words else words[1:])
        asked = {word for word in asked if "=" not in word}
        assert asked - {"|"} <= targets
    elif words[0] == "tessera":
        if is_synopsis(words):
            (choices,) = [a for a in parser()._actions if a.dest == "==SUPPRESS=="]
            options = choices.choices[words[1]].format_help()
            for word in words:
                for option in re.findall(r"--[\w-]+", word):
                    assert option in options
        else:
            parser().parse_args(words[1:])
    elif words[0] == "python":
        script = REPOSITORY / words[1]
        assert script.is_file()
        help_text = subprocess.run(
            [sys.executable, str(script), "--help"], capture_output=True, text=True, check=True
        ).stdout
        for word in words:
            for option in re.findall(r"^--[\w-]+", word):
                assert option in help_text, option
    else:
        paths = [w for w in words if w.endswith(".yaml") and "$" not in w and not w.isupper()]
        assert all((REPOSITORY / path).is_file() for path in paths)


def test_the_yaml_of_ones_own_data_is_right(tmp_path):
    ((_, text),) = blocks("yaml", [REPOSITORY / "README.md"])
    for name in ("phase1.yaml", "models", "data"):
        (tmp_path / name).symlink_to(REPOSITORY / "yamls" / name)
    (tmp_path / "mine.yaml").write_text(text)
    config = load(RunConfig, tmp_path / "mine.yaml")
    assert set(config.train_data.sources) == {"news", "books"}


def test_the_python_of_the_readme_runs(tmp_path):
    from tessera.checkpoints import export

    corpus = tiny_run.make_corpus(tmp_path / "corpus", documents=20)
    run = tmp_path / "run"
    plain = tiny_run.settings(corpus, run, duration="1ba", evaluation__at_end=False)
    assert tiny_run.train(plain) == 0
    export(run, tmp_path / "my-model")
    (block,) = [block for _, block in blocks("python", [REPOSITORY / "README.md"])]
    done = subprocess.run(
        [sys.executable, "-c", block],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=tiny_run.environment(),
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"torch\.Size\(\[\d+, 256\]\)", done.stdout)


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
