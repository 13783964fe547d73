import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tessera.data.preparation.mds_writer as shard_writer
from tessera.data.preparation.mds_writer import PARTS, publish, write_part, write_shards
from tessera.data.sources.mds_shard import Shard, columns, parse_index
from tessera.tokenizer import token_dtype


def make_documents(count=50, *, vocab_size=8192, longest=400, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest, count)
    return [(f"doc-{i}", rng.integers(0, vocab_size, n)) for i, n in enumerate(lengths)]


def open_shard(path, entry):
    with open(path, "rb") as file:
        return Shard(file, entry)


def read_folder(folder):
    """(id, tokens) of every document through our reader."""
    index = parse_index((folder / "index.json").read_bytes(), str(folder))
    found = []
    for entry in index.shards:
        shard = open_shard(folder / entry.raw.basename, entry)
        found += [(shard.document_id(i), shard.tokens(i)) for i in range(entry.samples)]
    return found


def assert_same(found, expected):
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (name, left), (_, right) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(left, right, err_msg=name)


def test_dtype_is_the_smallest_that_holds_the_vocabulary():
    assert token_dtype(65_536) == np.uint16
    assert token_dtype(65_537) == np.uint32
    assert columns(65_537) == {"id": "str", "input_ids": "ndarray:uint32"}


@pytest.mark.parametrize("vocab_size", [8192, 256_000])
def test_streamings_own_reader_and_ours_find_the_documents_that_were_written(tmp_path, vocab_size):
    from streaming.base.format import reader_from_json

    documents = make_documents(vocab_size=vocab_size)
    summary = write_shards(tmp_path, documents, vocab_size=vocab_size, shard_bytes=5000)

    entries = json.loads((tmp_path / "index.json").read_text())["shards"]
    assert len(entries) == summary["shards"] > 3
    theirs = []
    for entry in entries:
        reader = reader_from_json(str(tmp_path), None, entry)
        items = [reader.get_item(i) for i in range(entry["samples"])]
        theirs += [(item["id"], item["input_ids"]) for item in items]
    assert theirs[0][1].dtype == token_dtype(vocab_size)
    assert_same(theirs, documents)
    assert_same(read_folder(tmp_path), documents)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    lengths=st.lists(st.integers(1, 300) | st.just(70_000), min_size=1, max_size=12),
    shard_bytes=st.integers(1000, 200_000),
    names=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
def test_any_lengths_and_ids_survive_any_shard_size(tmp_path, lengths, shard_bytes, names):
    shutil.rmtree(tmp_path / "x", ignore_errors=True)
    documents = [(f"{names}{i}", np.arange(n) % 60_000) for i, n in enumerate(lengths)]
    summary = write_shards(tmp_path / "x", documents, vocab_size=60_000, shard_bytes=shard_bytes)
    assert summary["documents"] == len(lengths)
    assert_same(read_folder(tmp_path / "x"), documents)
    index = parse_index((tmp_path / "x" / "index.json").read_bytes(), "")
    assert all(shard.samples for shard in index.shards), "an empty shard"


def write_foreign(folder, mds_columns, samples):
    from streaming import MDSWriter

    with MDSWriter(columns=mds_columns, out=str(folder)) as writer:
        for sample in samples:
            writer.write(sample)
    return parse_index((folder / "index.json").read_bytes(), "foreign").shards[0]


@pytest.mark.parametrize("encoding", ["ndarray:int64", "ndarray:uint32", "ndarray"])
def test_shards_that_others_wrote_are_read_whatever_else_they_hold(tmp_path, encoding):
    documents = [
        np.arange(n, dtype=np.uint32 if "64" not in encoding else np.int64) for n in (5, 300)
    ]
    entry = write_foreign(
        tmp_path,
        {"attention": "ndarray:int8", "count": "int", "input_ids": encoding, "zz": "bytes"},
        [
            {"attention": np.ones(n + 1, np.int8), "count": n, "input_ids": tokens, "zz": b"x" * n}
            for n, tokens in enumerate(documents)
        ],
    )
    shard = open_shard(tmp_path / entry.raw.basename, entry)
    assert shard.lengths.tolist() == [5, 300]
    for i, tokens in enumerate(documents):
        np.testing.assert_array_equal(shard.tokens(i), tokens)
    assert shard.document_id(0) == ""


@pytest.mark.parametrize(
    ("mds_columns", "sample", "message"),
    [
        ({"text": "str"}, {"text": "a"}, "no column 'input_ids', only text"),
        ({"input_ids": "bytes"}, {"input_ids": b"ab"}, "'bytes', not an ndarray of integers"),
        ({"input_ids": "ndarray:float32"}, {"input_ids": np.ones(3, "f4")}, "float32', not an"),
        ({"input_ids": "ndarray:int64:3"}, {"input_ids": np.ones(3, "i8")}, "of any length"),
        ({"input_ids": "ndarray"}, {"input_ids": np.ones(3, "f4")}, "not integers of one kind"),
        ({"input_ids": "ndarray:int64"}, {"input_ids": np.ones((2, 2), "i8")}, "one-dimensional"),
    ],
)
def test_other_columns_are_refused_by_name(tmp_path, mds_columns, sample, message):
    entry = write_foreign(tmp_path, mds_columns, [sample])
    with pytest.raises(ValueError, match=message):
        open_shard(tmp_path / entry.raw.basename, entry)


def test_lengths_are_those_of_the_documents_and_empty_ones_are_left_out_and_counted(tmp_path):
    documents = make_documents(40)
    documents[3] = ("empty", np.array([], np.int64))
    summary = write_shards(tmp_path, documents, vocab_size=8192)
    entry = parse_index((tmp_path / "index.json").read_bytes(), "").shards[0]
    kept = [len(tokens) for _, tokens in documents if len(tokens)]
    assert open_shard(tmp_path / entry.raw.basename, entry).lengths.tolist() == kept
    assert (summary["documents"], summary["empty_documents"]) == (39, 1)
    assert summary["tokens"] == sum(kept)
    assert summary == json.loads((tmp_path / "tessera.json").read_text())


def test_percentiles_are_numpys(tmp_path):
    documents = make_documents(997, longest=5000, seed=3)
    summary = write_shards(tmp_path, documents, vocab_size=8192)
    lengths = [len(tokens) for _, tokens in documents]
    for percent in (1, 10, 25, 50, 75, 90, 99):
        expected = np.percentile(lengths, percent, method="inverted_cdf")
        assert summary["document_tokens"][f"p{percent}"] == expected


def test_a_token_beyond_the_vocabulary_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="document 'bad' holds token id 100"):
        write_shards(tmp_path, [("bad", np.array([1, 100]))], vocab_size=100)
    assert not (tmp_path / "index.json").exists()


def break_file(path, change):
    content = bytearray(path.read_bytes())
    content = change(content) or content
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-7], "truncated or altered: .* bytes instead of"),
        (lambda content: content.__setitem__(-5, content[-5] ^ 1), "xxh64 hash differs"),
    ],
)
def test_a_damaged_shard_is_noticed_when_opened(tmp_path, change, message):
    write_shards(tmp_path, make_documents(), vocab_size=8192)
    entry = parse_index((tmp_path / "index.json").read_bytes(), "").shards[0]
    path = tmp_path / entry.raw.basename
    open_shard(path, entry)
    break_file(path, change)
    with pytest.raises(ValueError, match=message):
        open_shard(path, entry)


@pytest.mark.parametrize(
    ("position", "message"),
    [
        (0, "does not count the 50 documents"),
        (11, "table of offsets"),
        (8, "is damaged"),
        (-1, None),
    ],
)
def test_without_hashes_a_damaged_table_is_noticed_all_the_same(tmp_path, position, message):
    write_shards(tmp_path, make_documents(), vocab_size=8192)
    index = json.loads((tmp_path / "index.json").read_text())
    index["shards"][0]["raw_data"]["hashes"] = {}
    entry = parse_index(json.dumps(index), "").shards[0]
    path = tmp_path / entry.raw.basename
    break_file(path, lambda content: content.__setitem__(position, content[position] ^ 0x80))
    if message is None:  # a token is another one: nothing but a hash can tell
        assert open_shard(path, entry).samples == 50
        return
    with pytest.raises(ValueError, match=message):
        open_shard(path, entry)


@pytest.mark.parametrize("byte", range(0, 240, 7))
def test_no_damage_to_the_headers_escapes_as_anything_but_an_error(tmp_path, byte):
    """Reading past a column or the file would be a crash, or another document's tokens."""
    documents = make_documents(8, longest=30)
    write_shards(tmp_path, documents, vocab_size=8192)
    index = json.loads((tmp_path / "index.json").read_text())
    index["shards"][0]["raw_data"]["hashes"] = {}
    entry = parse_index(json.dumps(index), "").shards[0]
    path = tmp_path / entry.raw.basename
    break_file(path, lambda content: content.__setitem__(byte, content[byte] ^ 0xFF))
    try:
        shard = open_shard(path, entry)
    except ValueError:
        return
    expected = [len(tokens) for _, tokens in documents]
    assert shard.lengths.tolist() == expected
    assert [len(shard.tokens(i)) for i in range(8)] == expected


def test_documents_outlive_the_shard_they_came_from(tmp_path):
    documents = make_documents(3)
    write_shards(tmp_path, documents, vocab_size=8192)
    tokens = read_folder(tmp_path)[1][1]
    (tmp_path / "shard.00000.mds").unlink()
    np.testing.assert_array_equal(tokens, documents[1][1])


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 2}', '{"shards": [{"format": "csv"}]}']
)
def test_a_damaged_index_is_named(text):
    with pytest.raises(ValueError, match=r"/data/index\.json is not an index of MDS shards"):
        parse_index(text, "/data/index.json")


def test_fingerprint_follows_the_documents_and_not_their_packaging(tmp_path):
    documents = make_documents()

    def fingerprint(name, documents, **options):
        write_shards(tmp_path / name, documents, vocab_size=8192, shard_bytes=9000, **options)
        return parse_index((tmp_path / name / "index.json").read_bytes(), "").fingerprint

    first = fingerprint("a", documents)
    assert fingerprint("again", documents) == first
    assert fingerprint("other order", documents[::-1]) != first
    assert fingerprint("other documents", make_documents(seed=1)) != first


class Killed(BaseException):
    pass


def test_a_killed_writer_leaves_nothing_that_looks_whole_and_the_next_one_finishes(tmp_path):
    documents = make_documents()

    def some():
        yield from documents[:30]
        raise Killed

    with pytest.raises(Killed):
        write_shards(tmp_path, some(), vocab_size=8192, shard_bytes=5000)
    assert not (tmp_path / "index.json").exists()
    assert not (tmp_path / PARTS / "00000").exists()
    write_shards(tmp_path, documents, vocab_size=8192, shard_bytes=5000)
    assert_same(read_folder(tmp_path), documents)
    assert not (tmp_path / PARTS).exists()


@pytest.mark.parametrize("moment", range(12))
def test_publishing_that_is_killed_can_be_repeated(tmp_path, monkeypatch, moment):
    documents = make_documents(60)
    parts = [tmp_path / PARTS / f"{i:05}" for i in range(3)]
    for i, part in enumerate(parts):
        write_part(part, documents[20 * i : 20 * i + 20], vocab_size=8192, shard_bytes=3000)

    steps = iter(range(100))

    def dying(step):
        def call(*arguments, **options):
            if next(steps) == moment:
                raise Killed
            return step(*arguments, **options)

        return call

    arguments = {"vocab_size": 8192, "tokenizer_fingerprint": "f"}
    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.rename", dying(shard_writer.Path.rename))
        patched.setattr(shutil, "rmtree", dying(shutil.rmtree))
        try:
            publish(tmp_path, parts, **arguments)
        except Killed:
            pass
        else:
            pytest.fail(f"there was no step {moment}")
    finished = (tmp_path / "index.json").exists()
    if not finished:
        publish(tmp_path, parts, **arguments)
    assert_same(read_folder(tmp_path), documents)
    names = sorted(name for name in os.listdir(tmp_path) if name.startswith("shard"))
    assert names == [f"shard.{i:05}.mds" for i in range(len(names))]


def test_a_finished_part_is_not_written_again(tmp_path):
    part = tmp_path / PARTS / "00000"
    write_part(part, make_documents(5), vocab_size=8192)

    def never():
        raise AssertionError("read again")
        yield

    write_part(part, never(), vocab_size=8192)
    assert json.loads((part / "index.json").read_text())["shards"][0]["samples"] == 5
