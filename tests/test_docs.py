"""The site's pages are held to the code, without what builds the site."""

import ast
import functools
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
import yaml
from tiny_run import REPOSITORY

from tessera.config import load
from tessera.data.preparation.config import CleanConfig, TokenizeConfig
from tessera.evaluation.suites import SuiteConfig
from tessera.training.config import RunConfig

SPEC = importlib.util.spec_from_file_location("assembly", REPOSITORY / "docs" / "assembly.py")
assembly = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(assembly)
PAGES = sorted(path.relative_to(assembly.PAGES).as_posix() for path in assembly.PAGES.rglob("*.md"))
SCHEMAS = (RunConfig, SuiteConfig, TokenizeConfig, CleanConfig)
FILES = (".py", ".md", ".yaml", ".json", ".jsonl", ".safetensors")
KEYS = {schema: assembly.all_keys(schema) for schema in SCHEMAS}
TEXTS = {name: (assembly.PAGES / name).read_text() for name in PAGES}


whole_page = functools.cache(assembly.assemble)


def prose(text):
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def batched(lines, count):
    return (lines[at : at + count] for at in range(0, len(lines), count))


def spans(text):
    return re.findall(r"`([^`\n]+)`", prose(text))


def blocks(kind):
    for name, text in TEXTS.items():
        for number, block in enumerate(re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)):
            yield pytest.param(block, id=f"{name} {number}")


def is_key(dotted, keys):
    """Whether a key, with names of the user's in it, is one of a schema's."""
    patterns = (re.escape(key).replace(r"\*", r"[^.]+") for key in keys)
    return any(re.fullmatch(pattern, dotted) for pattern in patterns)


# ---- what is where


def test_the_navigation_names_every_page_once():
    def pages_in(nav):
        for entry in nav:
            for value in entry.values():
                yield from pages_in(value) if isinstance(value, list) else [value]

    config = yaml.safe_load((REPOSITORY / "docs" / "mkdocs.yml").read_text())
    assert sorted(pages_in(config["nav"])) == PAGES


@pytest.mark.parametrize("name", PAGES)
def test_links_of_a_page_lead_somewhere(name):
    text = whole_page(name)
    links = re.findall(r"\]\(([^)\s]+)\)", prose(text))
    inside = [link for link in links if not re.match(r"https?:", link)]
    assert not [link for link in links if link.startswith("http:")]
    for link in inside:
        file, _, anchor = link.partition("#")
        path = (assembly.PAGES / name).parent / file if file else assembly.PAGES / name
        if "pictures/" in file and not path.exists():
            picture = Path(file).name  # brought from beside a README when the site is built
            assert list((REPOSITORY / "benchmarks").rglob(picture)), link
            continue
        assert path.resolve().is_relative_to(assembly.PAGES), f"{link} leaves the site"
        assert path.is_file(), link
        if anchor:
            target = whole_page(path.resolve().relative_to(assembly.PAGES).as_posix())
            titles = [title for _, _, title in assembly._headings(target.splitlines())]
            assert anchor in map(assembly.slug, titles), link


def test_links_of_the_readmes_lead_somewhere():
    for file in (REPOSITORY / path for path in assembly.pages_of_files()):
        for link in re.findall(r"\]\(([^)\s]+)\)", prose(file.read_text())):
            if not re.match(r"https?:|#", link):
                assert (file.parent / link.partition("#")[0]).exists(), f"{file}: {link}"


def test_a_section_is_brought_from_beside_its_code():
    text = (
        "# One\n\na\n\n## Two\n\nb\n\n```\n## no heading\n```\n\n### Three\n\nc\n\n## Four\n\nd\n"
    )
    assert assembly.section(text, "two") == "b\n\n```\n## no heading\n```\n\n### Three\n\nc"
    assert assembly.section(text, None).startswith("a\n\n## Two")
    with pytest.raises(ValueError, match="five"):
        assembly.section(text, "five")
    operating = assembly.assemble("operating.md")
    assert "## Exit status" in operating and "| 75 |" in operating
    assert "](security.md)" in assembly.assemble("index.md")


# ---- what is said of keys


@pytest.mark.parametrize("schema", SCHEMAS)
def test_the_reference_has_every_key_and_says_what_it_means(schema):
    text = assembly.keys_of(schema)
    for key in KEYS[schema]:
        last = key.rpartition(".")[2]
        assert last in ("*", "name") or f"| `{last}` |" in text, key
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    if schema is RunConfig:
        untold = [row for row in rows if row.endswith("|  |")]
        assert not untold, "these keys have no docstring in their dataclass"
    assert len(rows) > 15
    titles = [line for line in text.splitlines() if line.startswith("### ")]
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize("name", PAGES)
def test_keys_that_a_page_names_exist(name):
    sections = {key.partition(".")[0] for key in KEYS[RunConfig] if "." in key}
    for span in spans(TEXTS[name]):
        match = re.match(r"([a-z_]+)((?:\.[\w*-]+)+)(?=$|[ :=])", span)
        if match and match[1] in sections and not match[2].endswith(FILES):
            dotted = (match[1] + match[2]).removesuffix(".extends")
            assert any(is_key(dotted, keys) for keys in KEYS.values()), span


@pytest.mark.parametrize("block", list(blocks("bash")))
def test_overrides_on_command_lines_are_keys(block):
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:2] in (["composer", "main.py"], ["tessera", "check"]):
            for word in words[2:]:
                key, equals, _ = word.partition("=")
                assert not equals or is_key(key, KEYS[RunConfig]), word


@pytest.fixture
def beside_the_yamls(tmp_path, monkeypatch):
    (tmp_path / "yamls").symlink_to(REPOSITORY / "yamls")
    for path in (REPOSITORY / "yamls").iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", list(blocks("yaml")))
def test_a_yaml_of_a_page_is_right(block, beside_the_yamls):
    path = beside_the_yamls / "mine.yaml"
    path.write_text(block)
    schema = SuiteConfig if block.startswith("tasks:") else RunConfig
    load(schema, path)


def test_files_that_pages_name_are_there():
    found = 0
    for name, text in TEXTS.items():
        for span in spans(text):
            match = re.match(r"(yamls|src|tests|data_prep|benchmarks|docs)/[\w./-]*", span)
            if match and "*" not in span and match[0] != "docs/site/":
                assert (REPOSITORY / match[0]).exists(), f"{name}: {match[0]}"
                found += 1
    assert found > 20


# ---- what is said of messages


def messages():
    """Every text of the code; what is put into it at run time is left out."""
    for path in [*REPOSITORY.glob("src/**/*.py"), *REPOSITORY.glob("data_prep/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "\0".join(
                    str(part.value) if isinstance(part, ast.Constant) else ""
                    for part in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_messages_quoted_are_those_of_the_code():
    whole = "\n".join(messages())
    rows = re.findall(r"^\| (`.*?) \| ", TEXTS["troubleshooting.md"], re.MULTILINE)
    assert len(rows) > 30
    for row in rows:
        for span in re.findall(r"`([^`]+)`", row):
            for part in span.split("..."):
                assert len(part.strip()) < 4 or part.strip() in whole, span


# ---- slow: the site, and a journey


@pytest.mark.slow
def test_the_site_is_built_without_a_dead_link(tmp_path):
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mkdocs", "build", "--strict"),
            *("-f", str(REPOSITORY / "docs" / "mkdocs.yml"), "-d", str(tmp_path / "site")),
        ],
        capture_output=True,
        text=True,
        env=tiny_run.environment(),
    )
    assert done.returncode == 0, done.stderr
    keys = (tmp_path / "site" / "reference" / "keys.html").read_text()
    assert "microbatch_rows" in keys


TEXT_OF = {
    "own-text.md": {"news.jsonl": 300, "books/one.jsonl": 300},
    "language.md": {"corpora/hindi/one.jsonl": 300, "corpora/english/one.jsonl": 300},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXT_OF)
def test_a_journey_from_text_to_a_model_is_as_told(name, tmp_path):
    """The first block of a page, word for word; vocabulary and steps are smaller."""
    for link in ("data_prep", "yamls", "main.py"):
        (tmp_path / link).symlink_to(REPOSITORY / link)
    files = sorted((REPOSITORY / "src" / "tessera").rglob("*.py"))
    pages = ["\n".join(page) for f in files for page in batched(f.read_text().splitlines(), 40)]
    for path, documents in TEXT_OF[name].items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        chosen, pages = pages[:documents], pages[documents:]
        lines = [json.dumps({"text": page}) for page in chosen]
        (tmp_path / path).write_text("\n".join(lines))
    (block,) = re.findall(r"```bash\n(.*?)```", TEXTS[name], re.DOTALL)[:1]
    block = re.sub(r"--vocab-size \d+", "--vocab-size 1024", block).replace(
        "source .venv/bin/activate", ""
    )
    block = re.sub(
        r"composer main.py (\S+)",
        r"python main.py \1 duration=3ba schedule.warmup=0ba schedule.decay=0ba "
        "evaluation.max_tokens=500 evaluation.interval=null checkpoints.interval=null",
        block,
    )
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for command, words in {"python": "", "tessera": "-m tessera.cli.main"}.items():
        script = bin_folder / command
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        script.chmod(0o755)
    environment = tiny_run.environment()
    environment["PATH"] = f"{bin_folder}:{environment['PATH']}"
    done = subprocess.run(
        [shutil.which("bash"), "-ec", block],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if "tessera export" in block:
        assert (tmp_path / "my-model" / "model.safetensors").is_file()
