"""`make fuzz` and `make soak` in short, and that both can find something."""

import faulthandler
import os
import random
import subprocess
import sys

import pytest
import tiny_run
from faults import edits, texts

FAULTS = tiny_run.REPOSITORY / "tests" / "faults"


def run(name, *options):
    done = subprocess.run(
        [sys.executable, str(FAULTS / name), *options],
        capture_output=True,
        text=True,
        env=tiny_run.environment(),
        timeout=800,
    )
    return done.returncode, done.stdout + done.stderr


def test_files_edited_at_random_are_read_as_before_or_refused():
    status, printed = run("fuzz.py", "--seed", "12", "--cases", "4", "--workers", "1")
    assert status == 0, printed
    assert "together" in printed


@pytest.mark.slow
def test_a_run_disturbed_at_random_is_the_run_that_was_left_alone():
    short = ["--minutes", "0.1", "--worlds", "1", "--starts", "1", "--duration", "22_000tok"]
    status, printed = run("soak.py", "--seed", "3", *short)
    assert status == 0, printed
    assert " 0 differing" in printed


def test_a_document_left_out_in_silence_would_be_found(tmp_path):
    texts.write_all(tmp_path / "texts")
    path = tmp_path / "texts" / "lines.jsonl"
    out = tmp_path / "out" / "train"
    out.mkdir(parents=True)
    for made, told in ((len(texts.ROWS), None), (len(texts.ROWS) - 1, "another reader finds 40")):
        (out / "tessera.json").write_text(f'{{"documents": {made}, "empty_documents": 0}}')
        (out / "index.json").write_text(f'{{"shards": [{{"samples": {made}}}]}}')
        found = texts.disagreement(path, tmp_path / "out", "")
        assert found is None if told is None else told in found


@pytest.mark.parametrize("name", ["lines.jsonl", "rows.parquet", "gzip.jsonl.gz"])
def test_every_edit_changes_the_file(tmp_path, name):
    texts.write_all(tmp_path / "texts")
    path = tmp_path / "texts" / name
    whole = path.read_bytes()
    for number in range(200):
        path.write_bytes(whole)
        edits.edit_file_bytes(random.Random(number), path)
        assert path.read_bytes() != whole


def test_a_process_that_hangs_or_dies_is_told_apart(tmp_path):
    from faults import forks

    folder = tmp_path / "case"
    folder.mkdir()
    assert forks.call(lambda: 2, folder)[0] == 2
    faulthandler.disable()  # what dies is meant to
    try:
        assert forks.call(lambda: os.kill(os.getpid(), 11) or 0, folder)[0] == 128 + 11
    finally:
        faulthandler.enable()
    assert forks.call(lambda: __import__("time").sleep(60) or 0, folder, seconds=0.3)[0] == -1
    status, printed = forks.call(lambda: 1 // 0, folder)
    assert status == 1 and "ZeroDivisionError" in printed
