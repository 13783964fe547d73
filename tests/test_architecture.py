"""The arrows of the README's map, executed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tessera

PACKAGE = Path(tessera.__file__).parent
PROJECT = PACKAGE.parent.parent

LEAVES = {
    "config", "schema", "batch", "quantities", "files", "retry", "paths", "object_store", "fetch",
    "tokenizer",
}  # fmt: skip
MAY_IMPORT = {
    "config": {"paths", "schema"},
    "schema": {"paths"},
    "paths": set(),
    "object_store": {"files", "paths"},
    "fetch": {"files", "paths", "object_store"},
    "batch": set(),
    "quantities": set(),
    "retry": set(),
    "files": {"quantities"},
    "tokenizer": {"files", "paths", "fetch"},
    "optim": LEAVES,
    "reporting": LEAVES,
    "model": LEAVES,
    "data": LEAVES,
    "checkpoints": LEAVES | {"model"},
    "evaluation": LEAVES | {"model", "data", "checkpoints"},
    "training": LEAVES | {"model", "data", "optim", "checkpoints", "evaluation", "reporting"},
    "planning": LEAVES | {"model", "data", "optim", "training"},
    "cli": LEAVES
    | {"model", "data", "optim", "checkpoints", "evaluation", "reporting", "training", "planning"},
    "data_prep": LEAVES | {"data"},
}
SOURCES = sorted(PACKAGE.rglob("*.py")) + sorted((PROJECT / "data_prep").glob("*.py"))


def part_of(file: Path) -> str:
    if file.is_relative_to(PACKAGE):
        return file.relative_to(PACKAGE).with_suffix("").parts[0]
    return "data_prep"


def imported_modules(file: Path):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}:{node.lineno}: imports are absolute here"
            yield node.lineno, node.module or ""
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(PROJECT)))
def test_imports_follow_the_arrows(file):
    part = part_of(file)
    if part == "__init__":
        return
    for line, module in imported_modules(file):
        if module == "tessera" or not module.startswith("tessera."):
            continue
        imported = module.split(".")[1]
        assert imported in MAY_IMPORT[part] | {part}, f"{part} may not import {imported}, {line=}"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(PROJECT)))
def test_composer_stays_behind_one_door(file):
    if part_of(file) != "training":
        names = {module.split(".")[0] for _, module in imported_modules(file)}
        assert "composer" not in names


INNER = {
    "data/sources": {"data.config", "data.sources"},
    "data/pipeline": {
        "data.config", "data.digest", "data.randomness", "data.sources", "data.pipeline",
    },
    "checkpoints/formats": {
        "checkpoints.checkpoint", "checkpoints.safe_files", "checkpoints.formats",
    },
    "model/attention": {"model.attention"},
}  # fmt: skip
"""What a folder may import of the part it lies in: what comes before it, never what uses it."""


@pytest.mark.parametrize("folder", INNER)
def test_imports_inside_a_part_run_one_way_too(folder):
    part = folder.split("/")[0]
    for file in (PACKAGE / folder).glob("*.py"):
        for line, module in imported_modules(file):
            name = module.removeprefix("tessera.")
            if name.split(".")[0] == part:
                allowed = any(name == a or name.startswith(f"{a}.") for a in INNER[folder])
                assert allowed, f"{file.name}:{line} may not import {module}"


def test_the_arrows_name_every_part_that_exists():
    parts = {part_of(file) for file in SOURCES} - {"__init__"}
    assert parts <= set(MAY_IMPORT), f"no arrow for {parts - set(MAY_IMPORT)}"


def test_a_yaml_is_judged_before_torch_is_imported():
    code = (
        "import sys, tessera.config, tessera.training.config, tessera.cli.main\n"
        "heavy = {'torch', 'composer', 'transformers', 'streaming', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
