"""What is read, what is left out, and what is said of it: every kind of file, no tokenizer."""

import bz2
import gzip
import json

import pytest

from tessera.data.preparation.formats.discovery import discover, kind_of, split_of
from tessera.data.preparation.formats.records import Reading
from tessera.data.preparation.inputs import parse_inputs
from tessera.data.preparation.notes import DAMAGED, HALF_PAIRS, LONG_RECORDS, NULS, Notes
from tessera.data.preparation.places import PlaceError
from tessera.data.preparation.text_files import cut_into_parts, read_part

ROWS = [{"id": f"r{i}", "text": f"document {i}, gr\u00f6\u00dfer"} for i in range(40)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def read(address, notes=None, part_bytes=200, **reading):
    """{id: text} of all splits of an input."""
    reading = Reading(**reading)
    [source] = parse_inputs([f"x={address}"])
    found = {}
    for files in source.found.splits.values():
        for part in cut_into_parts(files, source.root, part_bytes, reading):
            for name, text in read_part(part, reading, notes):
                assert name not in found, "read twice"
                found[name] = text
    return found


TEXTS = {row["id"]: row["text"] for row in ROWS}


# ---- formats and endings


def arrow(path, file_format):
    import pyarrow

    table = pyarrow.Table.from_pylist(ROWS)
    make = pyarrow.ipc.new_file if file_format else pyarrow.ipc.new_stream
    with pyarrow.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def zstd(content):
    import pyarrow

    return pyarrow.compress(content, codec="zstd", asbytes=True)


CSV = "id,text\n" + "".join(f'{row["id"]},"{row["text"]}"\n' for row in ROWS)
TSV = "id\ttext\n" + "".join(f"{row['id']}\t{row['text']}\n" for row in ROWS)
ARRAY = json.dumps(ROWS, ensure_ascii=False)
SPREAD = "\n".join(json.dumps(row, indent=2) for row in ROWS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.jsonl", LINES.encode()),
        ("c.JSONL", LINES.encode()),
        ("c.ndjson", LINES.encode()),
        ("c.json", LINES.encode()),
        ("c.json", ARRAY.encode()),
        ("c.json", json.dumps(ROWS, indent=1).encode()),
        ("c.json", SPREAD.encode()),
        ("c.json.gz", gzip.compress(LINES.encode())),
        ("c.json.gz", gzip.compress(ARRAY.encode())),
        ("c.Jsonl.GZ", gzip.compress(LINES.encode())),
        ("c.ndjson.zst", zstd(LINES.encode())),
        ("c.jsonl.bz2", bz2.compress(LINES.encode())),
        ("c.csv", CSV.encode()),
        ("c.CSV.gz", gzip.compress(CSV.encode())),
        ("c.tsv", TSV.encode()),
        ("c.tsv.zst", zstd(TSV.encode())),
    ],
)
def test_every_ending_and_compression_is_read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == TEXTS
    assert read(tmp_path) == TEXTS


@pytest.mark.parametrize("file_format", [False, True])
def test_arrow_streams_and_files_are_read(tmp_path, file_format):
    arrow(tmp_path / "c.arrow", file_format)
    assert read(tmp_path) == TEXTS


def test_compressed_texts_are_documents(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("Gr\u00f6\u00dfe".encode()))
    (tmp_path / "B.MD").write_text("# title")
    assert read(tmp_path) == {"B.MD": "# title", "a.txt.gz": "Gr\u00f6\u00dfe"}


def test_a_json_array_larger_than_a_block_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("tessera.data.preparation.formats.records._BLOCK", 64)
    (tmp_path / "c.json").write_text(ARRAY)
    assert read(tmp_path) == TEXTS
    (tmp_path / "c.json").write_text(ARRAY[:-30])
    with pytest.raises(ValueError, match=r"c\.json: no JSON in record 39"):
        read(tmp_path)


def test_a_mixed_folder_is_read_whole_and_the_rest_is_listed_by_ending(tmp_path):
    (tmp_path / "a.jsonl").write_text(LINES)
    (tmp_path / "e.txt").write_text("a text")
    for name in ("x.pdf", "y.pdf", "z.docx.gz", "LICENSE", ".DS_Store", "README.md"):
        (tmp_path / name).write_text("x")
    assert read(tmp_path) == TEXTS | {"e.txt": "a text"}
    lines = "\n".join(discover(str(tmp_path)).lines())
    assert "left out 2 unreadable files (.pdf): x.pdf, y.pdf" in lines
    assert "left out 1 unreadable files (.gz): z.docx.gz" in lines
    assert "left out 1 unreadable files (without an ending): LICENSE" in lines
    assert "left out 1 hidden files: .DS_Store" in lines
    assert "left out 1 files that describe the data beside it: README.md" in lines


def test_texts_called_readme_are_documents_where_texts_are_all_there_is(tmp_path):
    for name in ("README.md", "b.md"):
        (tmp_path / name).write_text(name)
    assert set(read(tmp_path)) == {"README.md", "b.md"}


@pytest.mark.parametrize("name", ["a.parquet.gz", "a.mds", "a", "a.gz", "jsonl"])
def test_what_cannot_be_read_has_no_kind(name):
    assert kind_of(name) is None


# ---- links


def test_links_are_followed_loops_end_and_no_file_is_read_twice(tmp_path):
    far, here = tmp_path / "far", tmp_path / "here"
    far.mkdir()
    here.mkdir()
    (far / "n.jsonl").write_text(LINES)
    (here / "own.txt").write_text("own")
    (here / "one.jsonl").symlink_to(far / "n.jsonl")
    assert read(here) == TEXTS | {"own.txt": "own"}
    (here / "one.jsonl").unlink()
    (here / "news").symlink_to(far)
    (far / "back").symlink_to(here)
    (here / "again").symlink_to(far)
    found = discover(str(here))
    assert read(here) == TEXTS | {"own.txt": "own"}
    assert "left out 1 files that a link reaches a second time" in "\n".join(found.lines()), found


def test_a_link_to_nowhere_is_the_users_to_mend(tmp_path):
    (tmp_path / "a.jsonl").write_text(LINES)
    (tmp_path / "x.jsonl").symlink_to("/nowhere/x.jsonl")
    with pytest.raises(PlaceError, match=r"x\.jsonl: a link to /nowhere/x\.jsonl, which does not"):
        discover(str(tmp_path))


# ---- splits


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00001.parquet", "train"),
        ("validation_0.jsonl", "validation"),
        ("valid.jsonl", "validation"),
        ("x/y/val/1.jsonl", "validation"),
        ("dev2.csv", "validation"),
        ("c4-train.00001-of-01024.json.gz", "train"),
        ("TEST.jsonl", "test"),
        ("train/test-1.jsonl", "test"),
        ("train/validation.jsonl", "validation"),
        ("trainer.jsonl", None),
        ("contest/latest.jsonl", None),
        ("pr\u00e4val\u00e4.jsonl", None),
        ("devices/a.jsonl", None),
    ],
)
def test_a_split_is_named_by_a_word_of_a_folder_or_file(name, split):
    assert split_of(name) == split


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(LINES)


def splits(folder, **options):
    found = discover(str(folder), **options)
    return {split: [f.name for f in files] for split, files in found.splits.items()}, found


def test_test_and_validation_are_never_mixed_into_training(tmp_path):
    put(tmp_path, "data/train-0.jsonl", "data/validation-0.jsonl", "data/test-0.jsonl", "o.jsonl")
    by_split, found = splits(tmp_path)
    assert by_split == {"train": ["data/train-0.jsonl"], "validation": ["data/validation-0.jsonl"]}
    said = "\n".join(found.lines())
    assert "left out 1 files called test" in said and "data/test-0.jsonl" in said
    assert "left out 1 files beside those called train" in said and "o.jsonl" in said
    by_split, _ = splits(tmp_path, ignore_split_names=True)
    assert len(by_split[""]) == 4


def test_files_beside_a_validation_file_are_trained_on_and_test_is_not(tmp_path):
    put(tmp_path, "a.jsonl", "b.jsonl", "dev.jsonl", "test.jsonl")
    by_split, _ = splits(tmp_path)
    assert by_split == {"train": ["a.jsonl", "b.jsonl"], "validation": ["dev.jsonl"]}


def test_files_without_a_name_are_shared_out_but_test_is_left_out(tmp_path):
    put(tmp_path, "a.jsonl", "test.jsonl")
    by_split, found = splits(tmp_path)
    assert by_split == {"": ["a.jsonl"]}
    assert "called test" in "\n".join(found.lines())


def test_training_files_alone_come_with_the_way_to_train_without_validation(tmp_path):
    put(tmp_path, "train.jsonl", "test.jsonl")
    by_split, found = splits(tmp_path)
    assert by_split == {"train": ["train.jsonl"]}
    assert "validation_split: null" in "\n".join(found.lines())


def test_a_folder_of_tests_alone_is_refused_with_the_way_out(tmp_path):
    put(tmp_path, "test.jsonl")
    with pytest.raises(PlaceError, match="called test .*--ignore-split-names"):
        discover(str(tmp_path))
    assert splits(tmp_path / "test.jsonl")[0] == {"": ["test.jsonl"]}, "it was named itself"


def test_a_glob_names_what_it_matches(tmp_path):
    put(tmp_path, "a/1.jsonl", "a/2.jsonl", "b/3.jsonl", "b/4.txt")
    assert set(splits(f"{tmp_path}/*/*.jsonl")[0][""]) == {"a/1.jsonl", "a/2.jsonl", "b/3.jsonl"}
    assert set(splits(f"{tmp_path}/**/4.txt")[0][""]) == {"b/4.txt"}
    with pytest.raises(PlaceError, match="holds no documents"):
        discover(f"{tmp_path}/*.csv")


def test_variables_and_the_home_folder_mean_what_they_do_in_a_shell(tmp_path, monkeypatch):
    put(tmp_path, "c.jsonl")
    monkeypatch.setenv("CORPORA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read("$CORPORA/c.jsonl") == read("~/c.jsonl") == TEXTS
    with pytest.raises(PlaceError, match="variable MISSPELT is not set"):
        read("$MISSPELT/c.jsonl")


def test_an_address_holds_no_credentials():
    with pytest.raises(PlaceError, match="credentials do not belong"):
        read("https://user:secret@example.org/c.jsonl")


# ---- encodings


TEXT = "\u00dcber die Stra\u00dfe"


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.tsv", "a.json", "a.txt.gz"])
@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("utf-8-sig", None),
        ("latin-1", r"not UTF-8 .*byte 0xdc.*--encoding latin-1"),
        ("utf-16", r"is UTF-16 by its byte order mark; name it by --encoding utf-16"),
        ("utf-32", r"is UTF-32 by its byte order mark"),
    ],
)
def test_every_format_is_utf8_or_what_was_said_or_is_refused(tmp_path, name, encoding, message):
    content = {
        "txt": TEXT,
        "csv": f"id,text\na.txt,{TEXT}\n",
        "tsv": f"id\ttext\na.txt\t{TEXT}\n",
    }.get(name.split(".")[1], json.dumps({"id": "a.txt", "text": TEXT}, ensure_ascii=False) + "\n")
    content = content.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    if message is None:
        assert list(read(tmp_path / name).values()) == [TEXT]
        return
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        read(tmp_path / name)
    assert list(read(tmp_path / name, encoding=encoding).values()) == [TEXT]


def test_utf16_without_a_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes("plain words".encode("utf-16-le"))
    with pytest.raises(ValueError, match="holds NUL characters: it is UTF-16 without"):
        read(tmp_path / "a.txt")
    assert read(tmp_path / "a.txt", encoding="utf-16-le") == {"a.txt": "plain words"}


def test_what_is_odd_about_a_text_is_counted_with_its_place(tmp_path):
    texts = ["\ufeffmark", "da\ufffdmaged", "damaged \ufffd again", "n\0l", "half \ud800 pair"]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    notes = Notes()
    found = list(read(tmp_path / "c.jsonl", notes, part_bytes=10**6).values())
    assert found == ["mark", *texts[1:4], "half ? pair"]
    places = {what: (count, place.split("@")[0]) for what, (count, place) in notes.found.items()}
    expected = {DAMAGED: (2, "c.jsonl"), NULS: (1, "c.jsonl"), HALF_PAIRS: (1, "c.jsonl")}
    assert places == expected


def test_an_encoding_nobody_knows_is_named():
    with pytest.raises(ValueError, match="--encoding latin-99: no such encoding"):
        parse_inputs(["x"], encodings=["latin-99"])
    with pytest.raises(ValueError, match="no input is named 'y'; there are x"):
        parse_inputs(["x"], encodings=["y=latin-1"])


# ---- tables


def table(path, rows, delimiter=","):
    path.write_text("".join(delimiter.join(row) + "\n" for row in [["id", "text"], *rows]))
    return path


def numbered(stray=None, count=300):
    return [
        [str(i), f'"sentence {i}' if stray and i in stray else f"sentence {i}"]
        for i in range(1, count + 1)
    ]


def test_a_tsv_is_unquoted_and_says_so_where_it_looks_quoted(tmp_path):
    rows = numbered(stray=range(7, 300, 100))
    found = read(table(tmp_path / "q.tsv", rows, "\t"))
    assert list(found.values()) == [text for _, text in rows]
    notes = Notes()
    quoted = [[str(i), f'"a {i}"'] for i in range(9)]
    read(table(tmp_path / "q.tsv", quoted, "\t"), notes)
    assert [count for count, _ in notes.found.values()] == [9]
    assert "--quoting strict" in notes.lines()[0] and "q.tsv, line 2" in notes.lines()[0]
    assert read(tmp_path / "q.tsv", quoting="strict")["3"] == "a 3"


@pytest.mark.parametrize(
    ("stray", "message"),
    [
        ({150}, "q.csv: the record at line 151: a quote is not closed"),
        ({7, 107}, "q.csv: the record at line 8: .*expected after"),
    ],
)
def test_a_stray_quote_in_a_csv_is_refused_with_its_line(tmp_path, stray, message):
    path = table(tmp_path / "q.csv", numbered(stray))
    with pytest.raises(ValueError, match=message + ".*--quoting none"):
        read(path)
    assert len(read(path, quoting="none")) == 300


@pytest.mark.parametrize("first", [1, 7])
def test_rows_that_a_pair_of_quotes_swallowed_are_noticed(tmp_path, first):
    rows = numbered({first})
    rows[106][1] += '"'
    path = table(tmp_path / "q.csv", rows)
    with pytest.raises(ValueError, match=f"from line {first + 1} to line 108.*a stray quote"):
        read(path)
    assert len(read(path, quoting="trust")) == 300 - 107 + first


def test_long_records_that_are_right_are_read_and_counted(tmp_path):
    text = '"' + "\n".join(f"verse {i}, with a comma" for i in range(30)) + '"'
    path = table(tmp_path / "q.csv", [*numbered(), ["poem", text]])
    notes = Notes()
    assert read(path, notes)["poem"].count("\n") == 29
    assert notes.found[LONG_RECORDS][0] == 1


@pytest.mark.parametrize("row", [["5", "a", "b"], ["5"]])
@pytest.mark.parametrize("name", ["q.csv", "q.tsv"])
def test_a_row_of_other_length_is_refused_with_its_line(tmp_path, name, row):
    path = table(tmp_path / name, [*numbered()[:5], row], "\t" if name == "q.tsv" else ",")
    with pytest.raises(ValueError, match=rf"{name}: line 7 has {len(row)} cells, .* 2 columns"):
        read(path)


# ---- columns


def test_a_dotted_column_is_found_inside_and_a_wrong_one_is_answered_with_the_right_name(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"data": {"text": f"t{i}", "n": i}, "meta": {"id": f"m{i}"}} for i in range(9)]
    (tmp_path / "n.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "n.parquet")
    for name in ("n.jsonl", "n.parquet"):
        found = read(tmp_path / name, text="data.text", id="meta.id")
        assert found == {f"m{i}": f"t{i}" for i in range(9)}
        with pytest.raises(ValueError, match="no column 'text' at .*such as data.text or meta.id"):
            read(tmp_path / name)
        with pytest.raises(ValueError, match="is dict, not text.*such as data.text"):
            read(tmp_path / name, text="data")
    dotted = {"data.text": "flat", "data": {"text": "nested"}}
    (tmp_path / "n.jsonl").write_text(json.dumps(dotted))
    assert list(read(tmp_path / "n.jsonl", text="data.text").values()) == ["flat"]


def test_a_huge_row_of_a_parquet_file_is_not_read_with_a_thousand_others(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"text": "x" * 10_000_000}] * 12
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "n.parquet")
    from tessera.data.preparation.formats import records

    seen = []
    real = pyarrow.parquet.ParquetFile.iter_batches

    def spy(self, batch_size, **options):
        seen.append(batch_size)
        return real(self, batch_size, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", spy)
        assert len(list(records.records(str(tmp_path / "n.parquet"), Reading(), Notes()))) == 12
    assert seen and max(seen) <= records._BYTES_AT_ONCE // 10_000


def test_a_column_that_is_named_twice_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text,text\nhello,1\nx,y\n")
    with pytest.raises(ValueError, match="line 1 names the column 'text' twice"):
        read(tmp_path / "a.csv")


def test_the_text_column_is_named_once(tmp_path):
    (tmp_path / "a.jsonl").write_text(LINES)
    with pytest.raises(ValueError, match="--text-column is given twice for 'x': a and b"):
        parse_inputs([f"x={tmp_path / 'a.jsonl'}"], ["x=a", "x=b"])
