"""What a path means, for every key and option that takes one."""

import os
import subprocess
import sys
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import tiny_run

from tessera.cli.main import main
from tessera.config import ConfigError, decode, load
from tessera.paths import (
    LOCAL,
    RUN,
    SHARDS,
    SOURCE,
    STORE,
    Place,
    cache_folder,
    cached,
    expand,
    join,
    named_path,
    safe_names,
)
from tessera.training.config import RunConfig


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("UNSET", raising=False)
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("runs/x", "runs/x"),
        ("/runs/x", "/runs/x"),
        ("~/x", "{tmp}/home/x"),
        ("$SCRATCH/x", "{tmp}/scratch/x"),
        ("${SCRATCH}2/x", "{tmp}/scratch2/x"),
        ("runs/~x", "runs/~x"),
        ("runs/100$", "runs/100$"),
        ("file:///data/x", "/data/x"),
    ],
)
def test_a_local_path_is_expanded(written, meant, scratch):
    assert LOCAL.parse(written) == meant.format(tmp=scratch)
    assert RUN.parse(written) == SOURCE.parse(written) == SHARDS.parse(written)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("$UNSET/x", "variable UNSET is not set"),
        ("$EMPTY/x", "variable EMPTY is empty"),
        ("x/${UNSET}", "variable UNSET is not set"),
        ("x/${UNSET:-y}", "written \\$NAME"),
        ("~nobody-of-this-name/x", "no home folder of '~nobody-of-this-name'"),
        ("s4://b/x", "unknown scheme 's4'"),
        ("s3:/b/x", "cannot serve here|expected s3://bucket/folder"),
        ("s3:b/x", "expected s3://, or ./s3:b/x for such a file"),
        ("s3://", "cannot serve here|expected s3://bucket/folder"),
        ("", "expected a path"),
        (7, "expected a path"),
    ],
)
@pytest.mark.parametrize("place", [LOCAL, RUN, SOURCE, SHARDS, STORE])
def test_what_means_nothing_is_refused_wherever_it_stands(written, said, place, scratch):
    with pytest.raises(ValueError, match=said):
        place.parse(written)


@pytest.mark.parametrize(
    ("place", "written"),
    [
        (LOCAL, "s3://b/x"),
        (RUN, "gs://b/x"),
        (RUN, "hf://b/x"),
        (STORE, "runs/x"),
        (SOURCE, "https://host/x"),
        (SHARDS, "az://b/x"),
        (RUN, "s3://b/../x"),
        (RUN, "s3://b//x"),
    ],
)
def test_a_place_that_cannot_serve_is_refused(place: Place, written):
    with pytest.raises(ValueError, match="expected|parts"):
        place.parse(written)


def test_a_remote_place_has_one_spelling():
    assert RUN.parse("S3://bucket/Run/") == "s3://bucket/Run"


@pytest.mark.parametrize(
    "written", ["s3://AKIA:secret@b/x", "s3://b/x?X-Amz-Signature=secret", "az://b/x?sig=secret"]
)
def test_credentials_in_a_path_are_refused_and_not_repeated(written):
    with pytest.raises(ValueError, match="credentials") as refused:
        SOURCE.parse(written)
    assert "secret@" not in str(refused.value) and "=secret" not in str(refused.value)


def test_names_that_lead_out_of_a_folder_are_refused():
    assert safe_names(["a/b.json", "..c"], "there") == ["a/b.json", "..c"]
    for name in ("../x", "a/../../x", "/etc/x", "a//b", "a\\b", "a\0b", ""):
        with pytest.raises(ValueError, match="there: holds an object"):
            safe_names([name], "there")


def test_the_cache_is_where_the_variable_says(scratch, monkeypatch):
    monkeypatch.setenv("TESSERA_CACHE", "$SCRATCH/cache")
    assert cached("runs", "s3://b/r").parent == scratch / "scratch" / "cache" / "runs"
    assert cached("runs", "s3://b/r") != cached("runs", "s3://b-r")
    monkeypatch.setenv("TESSERA_CACHE", "s3://b/x")
    with pytest.raises(ValueError, match="TESSERA_CACHE: 's3://b/x'"):
        cache_folder()


def test_a_cache_that_others_may_write_to_is_refused(scratch, monkeypatch):
    monkeypatch.delenv("TESSERA_CACHE", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    assert cache_folder().parent == scratch and cache_folder().stat().st_mode & 0o077 == 0
    cache_folder().chmod(0o777)
    with pytest.raises(ValueError, match="others may write there"):
        cache_folder()
    (scratch / f"tessera-cache-{os.getuid()}").rmdir()
    (scratch / f"tessera-cache-{os.getuid()}").symlink_to(scratch)
    with pytest.raises(ValueError, match="others may write there"):
        cache_folder()


def test_an_input_may_have_a_name(scratch):
    assert named_path("news=~/x") == f"news={scratch}/home/x"
    assert named_path("data/dt=2024") == "data/dt=2024"
    assert named_path("$SCRATCH/dt=1") == f"{scratch}/scratch/dt=1"


def path_keys(kind: object, key: str = ""):
    """Every key of a configuration that takes a path."""
    if typing.get_origin(kind) is typing.Annotated:
        yield key
    elif isinstance(kind, type) and is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        for field in fields(kind):
            yield from path_keys(hints[field.name], f"{key}.{field.name}".strip("."))
    else:
        named = ".any" if typing.get_origin(kind) is dict else ""
        for inner in typing.get_args(kind):
            yield from path_keys(inner, key + named)


KEYS = sorted(set(path_keys(RunConfig)))


def test_these_keys_take_paths():
    assert KEYS == [
        "checkpoints.remote",
        "evaluation.sources.any.local",
        "evaluation.sources.any.remote",
        "initial_weights.tile",
        "run_folder",
        "start_from.checkpoint",
        "tokenizer",
        "train_data.sources.any.local",
        "train_data.sources.any.remote",
    ]


def with_value(key: str, value: str, tmp_path: Path) -> dict:
    plain = tiny_run.settings(tmp_path, tmp_path / "run")
    plain["evaluation"] = {"sources": {"any": {"local": "x"}}}
    plain["train_data"]["sources"]["any"] = {"local": "x"}
    *path, last = key.split(".")
    section = plain
    for part in path:
        section = section.setdefault(part, {})
    section[last] = value
    return plain


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", ["s4://b/x", "$UNSET/x", "~no-such-user-here/x", "s3:/b/x"])
def test_a_yaml_is_refused_by_key(key, value, scratch):
    path = tiny_run.write_yaml(scratch / "run.yaml", with_value(key, value, scratch))
    with pytest.raises(ConfigError) as refused:
        load(RunConfig, path)
    assert f"  {key}: " in str(refused.value)


@pytest.mark.parametrize("key", [key for key in KEYS if key != "checkpoints.remote"])
@pytest.mark.parametrize("value", ["~/x", "$SCRATCH/x", "${SCRATCH}/x"])
def test_a_yaml_expands_every_key(key, value, scratch):
    path = tiny_run.write_yaml(scratch / "run.yaml", with_value(key, value, scratch))
    section = load(RunConfig, path)
    for part in key.split("."):
        section = section[part] if isinstance(section, dict) else getattr(section, part)
    assert section == expand(value) and section.startswith(str(scratch))


def test_all_mistakes_are_said_at_once(scratch):
    plain = with_value("tokenizer", "s4://b/x", scratch)
    plain["run_folder"] = "$UNSET/x"
    plain["start_from"] = "~no-such-user-here"
    with pytest.raises(ConfigError, match="3 problems"):
        decode(RunConfig, plain, "run.yaml")


def test_a_variable_that_is_no_path_is_refused_and_a_key_still_is_one(scratch):
    plain = tiny_run.settings(scratch, scratch / "run", run_name="${SCRATCH}")
    path = tiny_run.write_yaml(scratch / "run.yaml", plain)
    with pytest.raises(ConfigError, match=r"run_name: .*\$\{oc.env:SCRATCH\}"):
        load(RunConfig, path)
    tiny_run.write_yaml(path, {**plain, "run_name": "${run_folder}-1"})
    assert load(RunConfig, path).run_name == f"{scratch}/run-1"
    overridden = load(RunConfig, path, ["run_folder=${SCRATCH}/r", "run_name=x"])
    assert overridden.run_folder == f"{scratch}/scratch/r"


def test_extends_is_a_path_too(scratch):
    (scratch / "home").mkdir()
    tiny_run.write_yaml(scratch / "home" / "base.yaml", tiny_run.settings(scratch, scratch / "r"))
    (scratch / "run.yaml").write_text("extends: ~/base.yaml\nseed: 9\n")
    assert load(RunConfig, scratch / "run.yaml").seed == 9
    (scratch / "run.yaml").write_text("extends: $UNSET/base.yaml\n")
    with pytest.raises(ConfigError, match="UNSET is not set"):
        load(RunConfig, scratch / "run.yaml")


@pytest.mark.parametrize("place", ["s4://b/x", "$UNSET/x", "~no-such-user-here/x", "s3:/b/x"])
@pytest.mark.parametrize(
    "command",
    [
        ["check", "PLACE"],
        ["export", "PLACE", "--out", "x"],
        ["export", "there", "--out", "PLACE"],
        ["import", "there", "--out", "PLACE"],
        ["import", "PLACE", "--out", "x.pt"],
        ["import", "there", "--out", "x.pt", "--model", "PLACE"],
        ["merge", "PLACE", "there", "--out", "x.pt"],
        ["merge", "there", "there", "--out", "PLACE"],
        ["release", "PLACE", "--out", "x"],
        ["release", "there", "--out", "PLACE"],
        ["report", "PLACE"],
        ["report", "there", "--out", "PLACE"],
        ["evaluate", "PLACE", "--fill", "x"],
        ["evaluate", "there", "--config", "PLACE"],
        ["batches", "PLACE"],
        ["data", "inspect", "PLACE"],
        ["data", "inspect", "there", "--tokenizer", "PLACE"],
        ["data", "convert", "PLACE", "--column", "x", "--tokenizer", "there", "--out", "x"],
        ["data", "convert", "there", "--column", "x", "--tokenizer", "PLACE", "--out", "x"],
        ["data", "convert", "there", "--column", "x", "--tokenizer", "there", "--out", "PLACE"],
        ["import", "there", "--out", "x.pt", "--extend-tokenizer", "PLACE"],
        ["init", "PLACE", "--out", "x.yaml"],
        ["init", "there", "--out", "PLACE"],
    ],
    ids=" ".join,
)
def test_a_command_refuses_a_place_and_makes_no_folder(command, place, scratch, capsys):
    (scratch / "there").mkdir()
    before = sorted(os.listdir(scratch))
    assert main([word.replace("PLACE", place) for word in command]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and place in said
    assert sorted(os.listdir(scratch)) == before


@pytest.mark.parametrize("key", ["tokenizer", "start_from"])
def test_a_place_that_means_nothing_is_one_problem(key, scratch, capsys):
    path = tiny_run.write_yaml(scratch / "run.yaml", with_value(key, "$UNSET/x", scratch))
    assert main(["check", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.count(f"  {key}: ") == 1 and "UNSET is not set" in said


@pytest.mark.parametrize("place", ["file://host/x", "file://x"])
def test_a_file_address_has_no_host(place):
    with pytest.raises(ValueError, match="expected file:///folder"):
        LOCAL.parse(place)
    assert LOCAL.parse("file:///x") == "/x"


@pytest.mark.parametrize("script", ["tokenize", "clean", "train_tokenizer", "harvest"])
def test_preparation_refuses_a_place_and_makes_no_folder(script, scratch):
    path = tiny_run.REPOSITORY / "data_prep" / f"{script}.py"
    option, more = ("--work", ["x=there"]) if script == "clean" else ("--out", [])
    for place in ("s4://b/x", "$UNSET/x"):
        command = [sys.executable, str(path), *more, option, place]
        done = subprocess.run(command, capture_output=True, text=True, env=tiny_run.environment())
        assert done.returncode == 2 and place.split("/")[0] in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    assert not {"s4:", "$UNSET"} & set(os.listdir(scratch))


def test_places_are_judged_before_torch_is_imported(scratch):
    path = tiny_run.write_yaml(scratch / "run.yaml", with_value("run_folder", "s4://b/x", scratch))
    script = "import sys; sys.modules['torch'] = None; sys.modules['boto3'] = None\n"
    script += "import main; sys.exit(main.leave_after(lambda: main.main(*sys.argv[1:])))"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        env={
            **tiny_run.environment(),
            "PYTHONPATH": f"{tiny_run.REPOSITORY}:{tiny_run.REPOSITORY}/src",
        },
    )
    assert done.returncode == 2 and "run_folder: 's4://b/x'" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("place", "path"), [("", "a/b"), ("x/", "x/a/b"), ("/", "/a/b"), ("s3://x", "s3://x/a/b")]
)
def test_names_are_joined_to_any_place(place, path):
    assert join(place, "a", "b") == path
