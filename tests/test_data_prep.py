import gzip
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from preparing import SCRIPTS, words, write_jsonl
from preparing import script as load

from tessera.data.sources.mds import MdsDocuments
from tessera.tokenizer import load_tokenizer

fork = multiprocessing.get_context("fork")


@pytest.fixture
def run(monkeypatch, capsys):
    """Call a script's main with arguments: (exit status, what it printed)."""

    def call(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, arguments)])
        status = module.main()
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return call


@pytest.fixture(scope="module")
def records():
    return [{"id": f"r{i}", "text": words(5 + i % 90, seed=i)} for i in range(300)]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory, records):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))
    module = load("train_tokenizer")
    argv = sys.argv
    sys.argv = ["", str(folder / "corpus.jsonl"), "--out", str(folder / "t"), "--vocab-size", "320"]
    try:
        assert module.main() == 0
    finally:
        sys.argv = argv
    return folder / "t"


def read_shards(folder, tokenizer):
    """{id: text} of a folder of shards; the ids in order."""
    source = MdsDocuments("any", folder)
    found = {}
    for shard in range(len(source.samples)):
        for sample in range(source.samples[shard]):
            name = source.document_id(shard, sample)
            assert name not in found
            found[name] = tokenizer.decode(source.document(shard, sample))
    return found


def texts_of(records):
    return {row["id"]: unicodedata.normalize("NFC", row["text"]) for row in records}


# ---- the scripts as people start them


@pytest.mark.parametrize("script", ["harvest.py", "train_tokenizer.py", "tokenize.py"])
def test_every_script_starts_beside_a_file_named_as_the_standard_librarys_tokenize(script):
    command = [sys.executable, script, "--help"]
    result = subprocess.run(command, cwd=SCRIPTS, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage:")


def test_two_processes_tokenize_from_the_folder_of_the_scripts(tmp_path, records, tokenizer_folder):
    corpus = write_jsonl(tmp_path / "corpus.jsonl", records)
    command = [sys.executable, "tokenize.py", f"web={corpus}", "--out", str(tmp_path / "data")]
    command += ["--tokenizer", str(tokenizer_folder), "--workers", "2", "--part-size", "20kb"]
    result = subprocess.run(command, cwd=SCRIPTS, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    tokenizer = load_tokenizer(tokenizer_folder)
    found = read_shards(tmp_path / "data/web/train", tokenizer)
    found |= read_shards(tmp_path / "data/web/validation", tokenizer)
    assert found == texts_of(records)


# ---- harvest


@pytest.fixture
def installation(tmp_path, monkeypatch):
    """A tiny Python installation with a package of each kind."""
    harvest = load("harvest")
    site, standard = tmp_path / "site-packages", tmp_path / "stdlib"
    monkeypatch.setattr(harvest, "SITE", site)
    monkeypatch.setattr(harvest, "STANDARD_LIBRARY", standard)
    licence = "# Licensed to everybody under the terms of the Example Licence 2.0.\n"
    for i in range(30):
        doc = f'"""{words(80, seed=i)}.\n\n{words(40, seed=100 + i)}\n"""\n'
        source = f"{licence}import os\n\n\ndef tile_{i}(row):\n    {doc}    return row * {i}\n"
        for folder in (site / "numpy", site / "composer", site / "requests_like", standard):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"module_{i:02}.py").write_text(source * 2)
    (site / "numpy" / "tests").mkdir()
    (site / "numpy" / "tests" / "test_x.py").write_text(f'"""SECRET {words(200)}"""\n')
    (site / "numpy" / "broken.py").write_text("def (:\n")
    (site / "requests_like" / "README.md").write_text("# A readme\n\n" + words(200, seed=999))
    info = site / "requests_like-1.0.dist-info"
    info.mkdir()
    description = f"Metadata-Version: 2.1\nName: requests_like\nVersion: 1.0\n\n{words(300)}"
    (info / "METADATA").write_text(description)
    return harvest


def harvested(folder):
    return {
        f"{path.parent.name}/{path.stem}": [json.loads(line) for line in path.open()]
        for path in sorted(folder.rglob("*.jsonl"))
    }


def test_harvest_is_the_same_each_time_without_duplicates_or_overlap(installation, run, tmp_path):
    for name in ("a", "b"):
        status, _ = run(installation, "--out", tmp_path / name)
        assert status == 0
    found, again = harvested(tmp_path / "a"), harvested(tmp_path / "b")
    assert found == again
    assert set(found) == {
        f"{kind}/{split}"
        for kind in ("web", "code", "science")
        for split in ("train", "validation")
    }
    for kind in ("web", "code", "science"):
        texts = [row["text"] for s in ("train", "validation") for row in found[f"{kind}/{s}"]]
        assert len(texts) == len(set(texts)) > 5
        ids = [row["id"] for s in ("train", "validation") for row in found[f"{kind}/{s}"]]
        assert len(ids) == len(set(ids))
    everything = json.dumps(found)
    assert "SECRET" not in everything
    assert str(tmp_path) not in everything
    web = found["web/train"] + found["web/validation"]
    assert {"requests_like/description", "requests_like/README.md"} <= {row["id"] for row in web}
    assert everything.count("terms of the Example Licence") <= installation.REPEATS_OF_A_LINE


def test_harvest_keeps_to_its_cap_and_does_nothing_the_second_time(installation, run, tmp_path):
    _, first = run(installation, "--out", tmp_path, "--mb", "0.005")
    assert first.count("documents") == 3
    for rows in (harvested(tmp_path)[f"{kind}/train"] for kind in ("web", "code", "science")):
        assert sum(len(row["text"]) for row in rows) < 0.005 * 1e6 + 24_000
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jsonl")}
    _, second = run(installation, "--out", tmp_path, "--mb", "0.005")
    assert second.count("up to date") == 3
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jsonl")}


@pytest.mark.slow
def test_harvest_finds_all_three_kinds_on_this_machine(run, tmp_path):
    status, printed = run(load("harvest"), "--out", tmp_path, "--mb", "0.3")
    assert status == 0
    for kind, rows in harvested(tmp_path).items():
        if kind.endswith("train"):
            assert sum(len(row["text"]) for row in rows) > 200_000, kind
            assert all(200 <= len(row["text"]) <= 24_000 for row in rows)
    assert "def " in harvested(tmp_path)["code/train"][3]["text"]
    assert "torch" in json.dumps(harvested(tmp_path)["science/train"])


# ---- tokenizer


def test_the_tokenizer_loads_in_transformers_with_modernberts_template(tokenizer_folder):
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer_folder)
    assert len(loaded) == 320
    assert loaded.model_max_length == 8192
    ids = loaded("tile row")["input_ids"]
    assert loaded.convert_ids_to_tokens([ids[0], ids[-1]]) == ["[CLS]", "[SEP]"]
    pair = loaded.convert_ids_to_tokens(loaded("tile", "row")["input_ids"])
    assert [pair[0], pair[-1], pair.count("[SEP]")] == ["[CLS]", "[SEP]", 2]
    masked = loaded("the [MASK] of")["input_ids"]
    assert masked[2] == loaded.mask_token_id, "[MASK] takes the space before it"
    assert set(loaded("a")) == {"input_ids", "attention_mask"}
    assert (
        loaded.decode(loaded.encode("na\u00efve \u96c5", add_special_tokens=False))
        == "na\u00efve \u96c5"
    )


def test_a_text_too_small_for_the_vocabulary_leaves_unused_tokens(run, tmp_path):
    corpus = write_jsonl(tmp_path / "c.jsonl", [{"text": "abab " * 50}])
    arguments = [corpus, "--out", tmp_path / "t", "--vocab-size", "320"]
    status, printed = run(load("train_tokenizer"), *arguments)
    assert status == 0
    loaded = load_tokenizer(tmp_path / "t")
    assert loaded.size == 320
    assert loaded.backend.token_to_id("[unused0]") is not None
    assert loaded.decode(loaded.encode_batch(["abab [unused0]"])[0]) == "abab [unused0]"
    assert "320 ids, a multiple of 64" in printed


def test_training_the_tokenizer_again_is_not_needed_or_must_be_asked_for(run, tmp_path, records):
    script = load("train_tokenizer")
    corpus = write_jsonl(tmp_path / "c.jsonl", records)
    arguments = [corpus, "--out", tmp_path / "t", "--vocab-size", "320"]
    run(script, *arguments)
    status, printed = run(script, *arguments)
    assert (status, "up to date" in printed) == (0, True)
    write_jsonl(corpus, records[:200])
    before = (tmp_path / "t" / "tokenizer.json").read_bytes()
    status, printed = run(script, *arguments)
    assert (status, "--overwrite" in printed) == (2, True)
    assert (tmp_path / "t" / "tokenizer.json").read_bytes() == before
    status, _ = run(script, *arguments, "--overwrite")
    assert status == 0
    assert (tmp_path / "t" / "tokenizer.json").read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{corpus}", "--vocab-size", "300"], "multiple of 64"),
        (["/no/corpus"], "/no/corpus does not exist"),
        (["{corpus}", "--text-column", "body"], "no column 'body'.*only id, text"),
        (["--check", "{tmp}/nothing"], "no such folder"),
    ],
)
def test_mistakes_with_the_tokenizer_are_one_message(run, tmp_path, records, arguments, message):
    corpus = write_jsonl(tmp_path / "c.jsonl", records)
    filled = [text.format(corpus=corpus, tmp=tmp_path) for text in arguments]
    status, printed = run(load("train_tokenizer"), *filled, "--out", tmp_path / "t")
    assert status == 2
    assert re.search(message, printed), printed
    assert not (tmp_path / "t").exists()


# ---- shards


@pytest.fixture
def tokenize(run, tokenizer_folder, tmp_path):
    script = load("tokenize")

    def call(*arguments, out="data", **options):
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        base = ["--out", tmp_path / out, "--tokenizer", tokenizer_folder, "--workers", "1"]
        return run(script, *arguments, *base, *flags)

    return call


def save_dataset(path, records):
    import datasets

    datasets.Dataset.from_list(records).save_to_disk(str(path))


def save_parquet(path, records):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path, row_group_size=37)


def save_csv(path, records):
    import csv

    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "text"])
        writer.writeheader()
        writer.writerows(records)


def save_compressed(path, records):
    import pyarrow

    content = "".join(json.dumps(row) + "\n" for row in records).encode()
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content))
    else:
        with pyarrow.output_stream(str(path), compression="zstd") as stream:
            stream.write(content)


def save_texts(path, records):
    path.mkdir()
    for row in records:
        (path / f"{row['id']}.txt").write_text(row["text"])


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("c.jsonl", write_jsonl),
        ("c.jsonl.gz", save_compressed),
        ("c.jsonl.zst", save_compressed),
        ("c.parquet", save_parquet),
        ("c.csv", save_csv),
        ("c", save_dataset),
        ("c", save_texts),
    ],
)
def test_every_format_gives_the_same_documents(
    tokenize, tmp_path, records, tokenizer_folder, name, save
):
    records = [*records[:120], {"id": "long", "text": 'a "quoted"\ntext, ' * 900}]
    save(tmp_path / name, records)
    status, printed = tokenize(tmp_path / name, part_size="5kb")
    assert status == 0, printed
    tokenizer = load_tokenizer(tokenizer_folder)
    train = read_shards(tmp_path / "data/c/train", tokenizer)
    validation = read_shards(tmp_path / "data/c/validation", tokenizer)
    assert not set(train) & set(validation)
    found = {key.removesuffix(".txt"): text for key, text in (train | validation).items()}
    assert found == texts_of(records)


def test_named_splits_are_kept_and_ids_default_to_places(
    tokenize, tmp_path, records, tokenizer_folder
):
    anonymous = [{"body": row["text"]} for row in records]
    write_jsonl(tmp_path / "web" / "train-00001.jsonl", anonymous[:100])
    write_jsonl(tmp_path / "web" / "train-00002.jsonl", anonymous[100:280])
    write_jsonl(tmp_path / "web" / "validation.jsonl", anonymous[280:])
    status, printed = tokenize(tmp_path / "web", text_column="body", part_size="4kb")
    assert status == 0, printed
    tokenizer = load_tokenizer(tokenizer_folder)
    train = read_shards(tmp_path / "data/web/train", tokenizer)
    texts = list(texts_of(records).values())
    assert list(train.values()) == texts[:280]
    assert list(read_shards(tmp_path / "data/web/validation", tokenizer).values()) == texts[280:]
    name, offset = list(train)[150].split("@")
    with open(tmp_path / "web" / name, "rb") as file:
        file.seek(int(offset))
        assert json.loads(file.readline()) == anonymous[150]


@pytest.mark.parametrize("part_size", ["1kb", "1234b", "7kb", "1mb"])
def test_the_cut_into_parts_loses_no_line_and_changes_no_split(
    tokenize, tmp_path, records, tokenizer_folder, part_size
):
    write_jsonl(tmp_path / "c.jsonl", records)
    tokenize(tmp_path / "c.jsonl", part_size=part_size, validation_share=0.2)
    tokenizer = load_tokenizer(tokenizer_folder)
    train = read_shards(tmp_path / "data/c/train", tokenizer)
    validation = read_shards(tmp_path / "data/c/validation", tokenizer)
    assert list(train) == [row["id"] for row in records if row["id"] not in validation]
    assert train | validation == texts_of(records)
    assert 0.1 < len(validation) / len(records) < 0.3
    tokenize(tmp_path / "c.jsonl", out="whole", validation_share=0.2)
    assert list(read_shards(tmp_path / "whole/c/validation", tokenizer)) == list(validation)


def test_a_line_that_begins_just_where_a_part_does_is_read_once(
    tokenize, tmp_path, tokenizer_folder
):
    rows = [{"id": f"{i:03}", "text": "tile row mosaic"} for i in range(60)]
    lines = [json.dumps(row).ljust(99) + "\n" for row in rows]
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "train.jsonl").write_text("".join(lines))
    tokenize(tmp_path / "c", part_size="1kb")
    found = read_shards(tmp_path / "data/c/train", load_tokenizer(tokenizer_folder))
    assert list(found) == [row["id"] for row in rows]


def test_empty_texts_are_left_out_and_counted(tokenize, tmp_path, records):
    rows = [*records[:20], {"id": "e", "text": ""}, {"id": "n", "text": None}]
    write_jsonl(tmp_path / "c" / "train.jsonl", rows)
    _, printed = tokenize(tmp_path / "c")
    summary = json.loads((tmp_path / "data/c/train/tessera.json").read_text())
    assert (summary["documents"], summary["empty_documents"]) == (20, 2)
    assert "2 empty left out" in printed


def test_a_second_run_does_nothing_and_other_options_are_refused(tokenize, tmp_path, records):
    write_jsonl(tmp_path / "c.jsonl", records)
    tokenize(tmp_path / "c.jsonl")
    index = tmp_path / "data/c/train/index.json"
    before = index.stat().st_mtime_ns
    status, printed = tokenize(tmp_path / "c.jsonl")
    assert (status, printed.count("up to date")) == (0, 2)
    status, printed = tokenize(tmp_path / "c.jsonl", shard_size="2kb")
    assert status == 2
    assert "was prepared with other shard_bytes; choose another --out" in printed
    assert index.stat().st_mtime_ns == before
    status, _ = tokenize(tmp_path / "c.jsonl", "--overwrite", shard_size="2kb")
    assert status == 0
    assert len(json.loads(index.read_text())["shards"]) > 3


def test_one_folder_has_one_tokenizer(tokenize, run, tmp_path, records):
    write_jsonl(tmp_path / "c.jsonl", records)
    tokenize(tmp_path / "c.jsonl")
    other = tmp_path / "other"
    run(load("train_tokenizer"), tmp_path / "c.jsonl", "--out", other, "--vocab-size", "384")
    status, printed = tokenize(tmp_path / "c.jsonl", tokenizer=other)
    assert status == 2
    assert "holds shards of another tokenizer" in printed


def test_files_of_others_are_not_touched(tokenize, tmp_path, records):
    write_jsonl(tmp_path / "c.jsonl", records)
    precious = tmp_path / "data/c/train/thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")
    status, printed = tokenize(tmp_path / "c.jsonl")
    assert status == 2
    assert "files that this script did not write" in printed
    assert precious.read_text() == "years of work"


@pytest.mark.parametrize("compression", ["", "zstd"])
def test_killed_at_any_part_it_goes_on_and_the_result_is_the_same(
    tokenize, tmp_path, records, tokenizer_folder, monkeypatch, compression
):
    write_jsonl(tmp_path / "c" / "train.jsonl", records)
    options = {"part_size": "2kb", "compression": compression}
    tokenize(tmp_path / "c", out="undisturbed", **options)

    import tessera.data.preparation.mds_writer as shard_writer

    finish = shard_writer.Path.rename
    written = []

    def counted(self, target):
        if Path(target).parent.name == ".parts":
            written.append(str(target))
            if len(written) == 3 and os.getpid() != test_process:
                os.kill(os.getpid(), signal.SIGKILL)
        return finish(self, target)

    test_process = os.getpid()
    monkeypatch.setattr(shard_writer.Path, "rename", counted)
    for _ in range(2):
        process = fork.Process(target=lambda: tokenize(tmp_path / "c", **options), daemon=True)
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        assert not (tmp_path / "data/c/train/index.json").exists()
    parts = len(list((tmp_path / "data/c/train/.parts").glob("??????")))
    assert parts == 4, "each run renames its plan and two parts, and dies at the third"
    written.clear()
    status, _ = tokenize(tmp_path / "c", **options)
    assert status == 0
    tokenizer = load_tokenizer(tokenizer_folder)
    found = read_shards(tmp_path / "data/c/train", tokenizer)
    assert found == texts_of(records)
    ours = (tmp_path / "data/c/train/index.json").read_bytes()
    assert ours == (tmp_path / "undisturbed/c/train/index.json").read_bytes()
    assert not (tmp_path / "data/c/train/.parts").exists()


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (
            '{"text": "a"}\nnot json\n',
            {},
            "no JSON in the line at byte 14.*mend or remove it",
        ),
        ('{"body": "a"}\n', {}, "no column 'text' at c.jsonl@0, only body; .*--text-column"),
        ('{"text": 3}\n', {}, "column 'text' at c.jsonl@0 is int, not text"),
        ('["a"]\n', {}, "only list"),
        ('{"text": "a"}\n', {"id_column": "key"}, "no column 'key'"),
        ('{"text": "a"}\n', {"shard_size": "4"}, "shard_size: expected a size such as"),
        ('{"text": "a"}\n', {"validation_share": "2"}, "validation_share: is in"),
        ('{"text": "a"}\n', {"compression": "zip"}, "zip"),
        ('{"text": "a"}\n', {"workers": "0"}, "workers: must be at least 1"),
    ],
)
def test_mistakes_are_one_message_and_leave_no_finished_folder(
    tokenize, tmp_path, lines, options, message
):
    (tmp_path / "c.jsonl").write_text(lines)
    status, printed = tokenize(tmp_path / "c.jsonl", **options)
    assert status == 2
    assert re.search(message, printed), printed
    assert not (tmp_path / "data/c/train/index.json").exists()


def test_a_column_may_differ_by_input_and_is_looked_at_before_anything_is_written(
    tokenize, run, tmp_path, records, tokenizer_folder
):
    news = write_jsonl(tmp_path / "news.jsonl", records)
    law = tmp_path / "law.parquet"
    save_parquet(law, [{"id": row["id"], "body": row["text"]} for row in records])
    status, printed = tokenize(news, f"acts={law}")
    assert status == 2
    assert f"{law}: no column 'text' at law.parquet#0, only id, body" in printed
    assert not (tmp_path / "data").exists()
    status, printed = tokenize(news, f"acts={law}", "--text-column", "laws=body")
    assert (status, "no input is named 'laws'; there are news, acts" in printed) == (2, True)
    status, printed = tokenize(news, f"acts={law}", "--text-column", "acts=body")
    assert status == 0, printed
    tokenizer = load_tokenizer(tokenizer_folder)
    for name in ("news", "acts"):
        found = read_shards(tmp_path / f"data/{name}/train", tokenizer)
        found |= read_shards(tmp_path / f"data/{name}/validation", tokenizer)
        assert found == texts_of(records)
    script = load("train_tokenizer")
    options = ["--out", tmp_path / "t", "--vocab-size", "320"]
    status, printed = run(script, news, law, *options)
    assert (status, "law.parquet: no column 'text'" in printed) == (2, True)
    assert not (tmp_path / "t").exists()
    assert run(script, news, law, *options, "--text-column", "law=body")[0] == 0


def test_what_is_printed_counts_the_input_once_and_nothing_when_nothing_is_done(
    tokenize, tmp_path, records
):
    corpus = write_jsonl(tmp_path / "c.jsonl", records * 10)
    _, printed = tokenize(corpus)
    assert f"{corpus.stat().st_size / 1e6:.1f} MB in" in printed
    _, printed = tokenize(corpus)
    assert "nothing to do" in printed and " MB in" not in printed


@pytest.mark.parametrize("left", ["nothing", "an unfinished plan", "no finished part"])
def test_a_run_that_was_stopped_early_is_not_in_the_way(tokenize, tmp_path, records, left):
    corpus = write_jsonl(tmp_path / "c.jsonl", records)
    parts = tmp_path / "data/c/train/.parts"
    (parts / "000000.unfinished").mkdir(parents=True)
    if left == "an unfinished plan":
        (parts / "plan.json.unfinished").write_text("{")
    if left == "no finished part":
        (parts / "plan.json").write_text('{"text_column": "body"}')
    status, printed = tokenize(corpus)
    assert status == 0, printed


def test_finished_parts_of_other_options_are_not_thrown_away_unasked(tokenize, tmp_path, records):
    corpus = write_jsonl(tmp_path / "c.jsonl", [*records, {"text": 3}])
    status, _ = tokenize(corpus, part_size="4kb")
    assert status == 2
    status, printed = tokenize(corpus, part_size="5kb")
    assert (status, "prepared with other part_bytes" in printed) == (2, True)
    write_jsonl(corpus, records)
    status, printed = tokenize(corpus, "--overwrite", part_size="5kb")
    assert status == 0, printed


LINES = b"".join(b'{"id": "%d", "text": "tile row mosaic"}\n' % i for i in range(400))


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        (LINES[:-1], 400),
        (LINES.replace(b"\n", b"\r\n"), 400),
        (b"\xef\xbb\xbf" + LINES, 400),
        (LINES + b'\n\n{"id": "s", "text": "half \\ud800 a pair"}\n', 401),
    ],
)
def test_lines_of_any_ending_are_read(tokenize, tmp_path, tokenizer_folder, content, documents):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "train.jsonl").write_bytes(content)
    assert tokenize(tmp_path / "c", part_size="2kb")[0] == 0
    assert (
        len(read_shards(tmp_path / "data/c/train", load_tokenizer(tokenizer_folder))) == documents
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.jsonl", b"", "no document in it has text for train"),
        ("c.csv", b"id,text\n", "no document in it has text for train"),
        ("c.jsonl", LINES, "raise --validation-share from 0.01"),
        ("c.jsonl", LINES + b'{"text": "caf\xe9"}\n', r"not UTF-8 in the line at byte \d+"),
        ("c.csv", b"id,text\na,caf\xe9\n", "c.csv: not UTF-8 .*iconv"),
        ("c.jsonl.gz", gzip.compress(LINES)[:-9], "c.jsonl.gz: cannot be read, .*cut short"),
    ],
)
def test_text_that_is_damaged_or_not_there_is_named(tokenize, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    status, printed = tokenize(tmp_path / name)
    assert status == 2
    assert re.search(message, printed), printed
    assert not list(tmp_path.glob("data/c/*/index.json"))


def test_a_byte_order_mark_is_no_part_of_a_columns_name(tokenize, tmp_path, records):
    text = "text,id\n" + "".join(f"{words(9, seed=i)},{i}\n" for i in range(300))
    (tmp_path / "c.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert tokenize(tmp_path / "c.csv", validation_share="0.2")[0] == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "holds no documents; readable are"),
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b"x"), "holds no documents; readable are"),
        (lambda path: (path.mkdir(), (path / "a.parquet").write_bytes(b"x")), "a.parquet"),
    ],
)
def test_inputs_that_cannot_be_read_are_named(tokenize, tmp_path, make, message):
    make(tmp_path / "web")
    status, printed = tokenize(tmp_path / "web")
    assert status == 2
    assert message in printed
    assert str(tmp_path / "web") in printed


def test_two_inputs_cannot_have_one_name(tokenize, tmp_path, records):
    write_jsonl(tmp_path / "a" / "c.jsonl", records)
    write_jsonl(tmp_path / "b" / "c.jsonl", records)
    status, printed = tokenize(tmp_path / "a" / "c.jsonl", tmp_path / "b" / "c.jsonl")
    assert (status, "write NAME=PATH" in printed) == (2, True)
    status, _ = tokenize(tmp_path / "a" / "c.jsonl", f"d={tmp_path / 'b' / 'c.jsonl'}")
    assert status == 0
    assert (tmp_path / "data/d/train/index.json").exists()
