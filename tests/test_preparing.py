"""From text to shards as people start it: killed workers, huge documents, bad disks, no torch."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from preparing import SCRIPTS, call, contents, make_records, make_tokenizer, words, write_jsonl
from tiny_run import REPOSITORY

from tessera.data.preparation.executors.local import TasksLost, in_processes
from tessera.data.preparation.long_texts import PIECE_CHARACTERS, encode_long
from tessera.data.preparation.notes import CUT_WORDS, Notes
from tessera.tokenizer import load_tokenizer

HEAVY = ("torch", "transformers", "composer", "streaming", "datasets", "pyarrow", "datatrove")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "t")


# ---- what it costs to start


def test_the_small_path_imports_nothing_heavy(tmp_path, tokenizer):
    corpus = write_jsonl(tmp_path / "c.jsonl", make_records())
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['tokenize.py', {str(corpus)!r}, '--tokenizer', {str(tokenizer)!r},\n"
        f"            '--out', {str(tmp_path / 'out')!r}]\n"
        "try:\n"
        f"    runpy.run_path({str(SCRIPTS / 'tokenize.py')!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        f"heavy = {HEAVY} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    ).replace(f"{HEAVY} &", f"set({HEAVY}) &")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/c/train/index.json").exists()


PREPARATION = REPOSITORY / "src" / "tessera" / "data" / "preparation"
MODULES = sorted(str(path.relative_to(PREPARATION)) for path in PREPARATION.rglob("*.py"))


@pytest.mark.parametrize("module", MODULES)
def test_no_module_of_preparation_imports_torch(module):
    if "datatrove" in module:
        pytest.importorskip("datatrove")
    name = ".".join(["tessera.data.preparation", *Path(module).with_suffix("").parts])
    name = name.removesuffix(".__init__")
    allowed = {"datatrove"} if "datatrove" in module else set()
    code = (
        f"import sys, {name}\n"
        f"heavy = (set({HEAVY}) - {allowed | {'nothing'}}) & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["tokenize", "train_tokenizer"])
def test_help_is_there_at_once_and_a_tiny_input_in_seconds(name, tmp_path):
    begin = time.monotonic()
    assert call(name, "--help").returncode == 0
    assert time.monotonic() - begin < 3


# ---- killed workers


class Deadly:
    """Work whose process is killed at some items: as often as a file says."""

    def __init__(self, folder, deadly):
        self.folder, self.deadly = folder, deadly

    def start(self):
        pass

    def do(self, item):
        with open(self.folder / f"{item}", "a") as file:
            file.write("x")
        if len((self.folder / f"{item}").read_text()) <= self.deadly.get(item, 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "bad":
            raise ValueError("line 3 is no JSON")
        if item == "ours":
            raise KeyError("a defect")


def test_a_killed_worker_is_noticed_and_its_task_run_again_once(tmp_path):
    items = [f"part {i}" for i in range(8)]
    begin = time.monotonic()
    done = list(in_processes(items, Deadly(tmp_path, {"part 3": 1}), 2))
    assert sorted(done) == list(range(8))
    assert time.monotonic() - begin < 60
    assert (tmp_path / "part 3").read_text() == "xx"


def test_a_task_that_kills_its_worker_twice_is_named_and_all_others_are_done(tmp_path):
    items = [f"part {i}" for i in range(8)]
    done = []
    with pytest.raises(TasksLost, match="1 tasks were lost twice .*killed.*: part 3. Finished"):
        for place in in_processes(items, Deadly(tmp_path, {"part 3": 9}), 2):
            done.append(place)
    assert sorted(done) == [0, 1, 2, 4, 5, 6, 7]
    assert (tmp_path / "part 3").read_text() == "xx"


def test_a_mistake_in_the_input_is_told_as_it_is_and_ours_with_its_traceback(tmp_path):
    with pytest.raises(ValueError, match="^line 3 is no JSON$"):
        list(in_processes(["a", "bad", "b"], Deadly(tmp_path, {}), 2))
    with pytest.raises(RuntimeError, match="KeyError: 'a defect'"):
        list(in_processes(["ours"], Deadly(tmp_path, {}), 2))


def children_of(pid):
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found += [int(entry.name), *children_of(int(entry.name))]
    return found


def test_workers_and_parents_killed_at_random_change_no_byte(tmp_path, tokenizer):
    records = [{"id": f"r{i}", "text": words(600, seed=i)} for i in range(3000)]
    corpus = write_jsonl(tmp_path / "c.jsonl", records)
    arguments = [corpus, "--tokenizer", tokenizer, "--part-size", "150kb", "--shard-size", "100kb"]
    arguments += ["--validation-share", "0.1"]
    whole = call("tokenize", *arguments, "--out", tmp_path / "whole", "--workers", 1)
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, str(SCRIPTS / "tokenize.py"), *map(str, arguments)]
    command += ["--out", str(tmp_path / "killed")]
    rng = np.random.default_rng(1)
    killed = 0
    for workers in (2, 3, 2, 3, 2):
        process = subprocess.Popen([*command, "--workers", str(workers)], stderr=subprocess.PIPE)
        deadline = time.monotonic() + rng.uniform(2.0, 5.0)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
        process.stderr.close()
    process = subprocess.Popen([*command, "--workers", "2"], stderr=subprocess.PIPE)
    while process.poll() is None and not killed < 0:
        parts = tmp_path / "killed/c/train/.parts"
        workers = [pid for pid in children_of(process.pid) if _is_worker(pid)]
        if parts.exists() and len(workers) > 1:
            os.kill(workers[-1], signal.SIGKILL)
            killed += 1
            break
        time.sleep(0.02)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert killed, "nothing was killed, so this proves nothing"
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def _is_worker(pid):
    """Whether it is a child of the fork server, rather than that server or a tracker."""
    try:
        return "forkserver" in Path(f"/proc/{pid}/cmdline").read_text() and not children_of(pid)
    except OSError:
        return False


# ---- long documents


def test_a_long_text_has_the_token_ids_of_the_whole(tokenizer):
    loaded = load_tokenizer(tokenizer)
    text = words(120_000, seed=7) + "\n" + words(200_000, seed=8)
    assert len(text) > 2 * PIECE_CHARACTERS
    notes = Notes()
    found = encode_long(text, loaded, notes, "x")
    np.testing.assert_array_equal(found, loaded.encode_batch([text])[0])
    assert not notes.found


def test_a_word_of_a_million_letters_is_cut_between_tokens(tokenizer):
    loaded = load_tokenizer(tokenizer)
    text = "mosaic" * (PIECE_CHARACTERS // 4)
    notes = Notes()
    found = encode_long(text, loaded, notes, "c.jsonl@7")
    np.testing.assert_array_equal(found, loaded.encode_batch([text])[0])
    assert not notes.found


def test_a_word_without_a_boundary_is_cut_and_said():
    class OneTokenAText:
        def encode_batch(self, texts):
            return [np.array([len(text)]) for text in texts]

    notes = Notes()
    found = encode_long("x" * (3 * PIECE_CHARACTERS), OneTokenAText(), notes, "c.jsonl@7")
    assert found.tolist() == [PIECE_CHARACTERS] * 3
    assert notes.found == {CUT_WORDS: (2, "c.jsonl@7")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["c.jsonl", "c.txt", "c.jsonl.gz", "c.parquet", "c.csv"])
def test_a_document_of_100_mb_takes_less_than_2_gb(tmp_path, tokenizer, name):
    text = (words(20_000, seed=3) + "\n") * 750
    assert len(text.encode()) > 70_000_000
    code = (
        "import json, sys, gzip, csv\n"
        "from pathlib import Path\n"
        "path, text = Path(sys.argv[1]), sys.stdin.buffer.read().decode()\n"
        "if path.suffix == '.txt': path.write_text(text)\n"
        "elif path.suffix == '.gz': path.write_bytes(gzip.compress(json.dumps({'text': text})"
        ".encode(), 1))\n"
        "elif path.suffix == '.csv':\n"
        "    csv.writer(path.open('w')).writerows([['id', 'text'], ['a', text]])\n"
        "elif path.suffix == '.parquet':\n"
        "    import pyarrow, pyarrow.parquet\n"
        "    pyarrow.parquet.write_table(pyarrow.table({'text': [text]}), path)\n"
        "else: path.write_text(json.dumps({'text': text}))\n"
    )
    (tmp_path / "in").mkdir()
    corpus = tmp_path / "in" / f"train{name[1:]}"
    subprocess.run([sys.executable, "-c", code, corpus], input=text.encode(), check=True)
    probe = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], capture_output=True, text=True)\n"
        "print(done.stderr, file=sys.stderr)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
        "sys.exit(done.returncode)\n"
    )
    command = [sys.executable, "-c", probe, sys.executable, str(SCRIPTS / "tokenize.py")]
    command += [str(corpus.parent), "--tokenizer", str(tokenizer), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 2_000_000, "kilobytes at its peak"


# ---- bad surroundings


def test_a_full_disk_is_one_message_and_what_is_finished_stays(tmp_path, tokenizer):
    corpus = write_jsonl(tmp_path / "c.jsonl", make_records(1000))
    arguments = [corpus, "--tokenizer", tokenizer, "--out", tmp_path / "out", "--part-size", "9kb"]
    limited = (
        "import resource, runpy, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        f"sys.argv = ['tokenize.py', *{list(map(str, arguments))!r}, '--workers', '1']\n"
        f"runpy.run_path({str(SCRIPTS / 'tokenize.py')!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and "finished work is kept" in done.stderr
    done = call("tokenize", *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/c/train/tessera.json").read_text())["documents"] > 900


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--out", "/proc/no/such"], "/proc/no"),
        (["--validation-share", "many", "--part-size", "x"], "2 problems"),
        (["--tokenizer", "/no/such/tokenizer"], "no such folder"),
        (["--compression", "lzma"], "--compression lzma: one of zstd"),
        (["--encoding", "latin-99"], "no such encoding"),
    ],
)
def test_a_bad_option_is_one_message(tmp_path, tokenizer, option, message):
    corpus = write_jsonl(tmp_path / "c.jsonl", make_records(20))
    arguments = [corpus, "--tokenizer", tokenizer, "--out", tmp_path / "out", *option]
    done = call("tokenize", *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr


def test_what_was_left_out_and_noticed_is_said_and_kept(tmp_path, tokenizer):
    write_jsonl(tmp_path / "c" / "train.jsonl", [*make_records(9), {"text": "a \ufffd"}])
    write_jsonl(tmp_path / "c" / "dev.jsonl", make_records(9))
    write_jsonl(tmp_path / "c" / "test.jsonl", make_records(9))
    (tmp_path / "c" / "paper.pdf").write_text("x")
    done = call("tokenize", tmp_path / "c", "--tokenizer", tokenizer, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "1 files called test" in done.stderr and "(.pdf): paper.pdf" in done.stderr
    assert "1 hold U+FFFD" in done.stdout and "the first is train.jsonl@" in done.stdout
    summary = json.loads((tmp_path / "out/c/train/tessera.json").read_text())
    assert len(summary["left_out"]) == 2 and len(summary["noted"]) == 1


def test_each_input_is_read_once(tmp_path, tokenizer, monkeypatch):
    from preparing import script

    from tessera.data.preparation import tokenizing
    from tessera.data.preparation.formats import records

    corpus = write_jsonl(tmp_path / "c.jsonl", make_records(300))
    seen = []
    real = tokenizing.read_part
    monkeypatch.setattr(tokenizing, "read_part", lambda *a: (seen.append(a[0]), real(*a))[1])
    argv = ["", str(corpus), "--tokenizer", str(tokenizer), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*argv, "--workers", "1", "--part-size", "9kb"])
    assert script("tokenize").main() == 0
    assert records and len(seen) == len(set(seen)) == -(-corpus.stat().st_size // 9000)
    for split in ("train", "validation"):
        assert (tmp_path / "out/c" / split / "index.json").exists()


# ---- a YAML says the same

RECIPES = sorted((SCRIPTS / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_every_recipe_is_a_configuration_with_licences_and_sizes(recipe):
    from tessera.config import load
    from tessera.data.preparation.config import CleanConfig, TokenizeConfig

    config = load(CleanConfig if recipe.stem == "clean" else TokenizeConfig, recipe)
    kinds = {name.split("_")[0] for name in config.sources}
    assert kinds >= {"web", "code", "science"}
    for source in config.sources.values():
        assert source.path.startswith("hf://datasets/") and source.licence and source.tokens


def test_the_rules_of_the_recipe_are_there():
    pytest.importorskip("datatrove")
    from tessera.config import load
    from tessera.data.preparation.cleaning.corpus import check_filters
    from tessera.data.preparation.config import CleanConfig

    config = load(CleanConfig, SCRIPTS / "recipes" / "clean.yaml")
    assert len(config.sources["web"].filters) == 5
    check_filters(config)


def test_there_are_recipes():
    assert {"pretrain", "clean"} <= {path.stem for path in RECIPES}


def test_a_yaml_makes_the_shards_of_the_command_line(tmp_path, tokenizer):
    web = write_jsonl(tmp_path / "web.jsonl", make_records())
    law = write_jsonl(tmp_path / "law.jsonl", [{"body": r["text"]} for r in make_records(99)])
    arguments = ["--tokenizer", tokenizer, "--part-size", "9kb", "--validation-share", "0.2"]
    told = ["--text-column", "acts=body", "--out", tmp_path / "told"]
    done = call("tokenize", web, f"acts={law}", *arguments, *told)
    assert done.returncode == 0, done.stderr
    (tmp_path / "c.yaml").write_text(
        f"out: {tmp_path}/nowhere\ntokenizer: {tokenizer}\npart_size: 9kb\nvalidation_share: 0.3\n"
        f"sources:\n  web: {{path: {web}, licence: CC0}}\n  acts: {{path: {law}}}\n"
    )
    options = ["--config", tmp_path / "c.yaml", "sources.acts.text_column=body"]
    options += ["validation_share=0.2", "--out", tmp_path / "read", "--workers", "1"]
    done = call("tokenize", *options)
    assert done.returncode == 0, done.stderr
    read, said = contents(tmp_path / "read"), contents(tmp_path / "told")
    assert read.keys() == said.keys()
    different = {name.rpartition("/")[2] for name in read if read[name] != said[name]}
    assert different == {"tessera.json"}, "only the licence differs"
    assert json.loads(read["web/train/tessera.json"])["licence"] == "CC0"


def test_every_mistake_in_a_yaml_is_told_at_once_with_what_was_meant(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "ouT: x\nshard_size: big\nsources:\n  web: {pth: a, quoting: strickt}\n"
        "executor: {name: slrm, taskz: 3}\n"
    )
    done = call("tokenize", "--config", tmp_path / "c.yaml")
    assert done.returncode == 2
    for words_of_it in (
        "did you mean 'out'?",
        "shard_size: expected a size",
        "did you mean 'path'?",
        "did you mean 'slurm'?",
        "did you mean 'tasks'?",
        "sources.web.path: missing",
    ):
        assert words_of_it in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    done = call("tokenize", "--config", tmp_path / "c.yml")
    assert (done.returncode, "did you mean" in done.stderr) == (2, True)
    done = call("tokenize", "--config", tmp_path / "c.yaml", "--text-column", "x")
    assert (done.returncode, "sources.NAME.text_column" in done.stderr) == (2, True)
