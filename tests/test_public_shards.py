"""Token shards as others publish them: special tokens inside, raw files under a compressed index,
merged indexes, no hashes; and indexes that nobody should follow."""

import json
import logging
import shutil

import numpy as np
import pytest
from reference.data_fake_source import CLS, SEP, SIZE, fake_tokenizer
from test_source import open_source, read_all

from tessera.data.config import BatchConfig, DataConfig, SourceConfig
from tessera.data.loader import Loader
from tessera.data.pipeline.state import LoaderState
from tessera.data.preparation.mds_writer import write_shards
from tessera.data.sources.download import _may_be_absent
from tessera.data.sources.mds import MdsDocuments
from tessera.data.sources.mds_shard import parse_index
from tessera.data.sources.source import BadShard

DOCUMENTS = 40


@pytest.fixture(autouse=True)
def nothing_was_said_before(monkeypatch):
    monkeypatch.setattr("tessera.data.sources.special_tokens._said", set())
    monkeypatch.setattr("tessera.data.sources.download._FIRST_PAUSE_SECONDS", 0)


def chunks(count=DOCUMENTS, *, framed=True, longest=30):
    """Documents as Ettin's: [CLS] at the beginning, [SEP] at the end."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        content = rng.integers(5, SIZE, rng.integers(1, longest)).astype(np.uint32)
        made.append((f"d{i}", np.array([CLS, *content, SEP], np.uint32) if framed else content))
    return made


def publish(folder, documents, *, compression=None, shard_bytes=2000):
    from streaming import MDSWriter

    with MDSWriter(
        columns={"id": "str", "input_ids": "ndarray:uint32"},
        out=str(folder),
        compression=compression,
        hashes=[],
        size_limit=shard_bytes,
    ) as writer:
        for name, tokens in documents:
            writer.write({"id": name, "input_ids": tokens})
    return folder


def rows(local, steps=4, tokenizer=None, state=None, **source):
    """(the real tokens of some rows, segment by segment, whatever is masked)."""
    config = DataConfig(
        sources={"web": SourceConfig(local=str(local), split="", **source)},
        max_seq_len=64, row_tokens=128, lanes=2, waiting_pieces=4,
    )  # fmt: skip
    loader = Loader(
        config, BatchConfig(rows=2), tokenizer or fake_tokenizer(), vocab_size=SIZE, seed=1,
        state=state,
    )  # fmt: skip
    found = []
    for (_, _, _, made), _ in zip(loader.steps(), range(steps), strict=False):
        for row in made:
            ids = row.ids.copy()
            ids[row.positions] = row.labels
            starts = np.concatenate(([0], row.ends[:-1]))
            spans = list(zip(starts, row.ends, strict=True))[: row.documents]
            found += [ids[a:b].tolist() for a, b in spans]
    return found, loader


def write_manifest(folder, **content):
    (folder / "tessera.json").write_text(json.dumps(content))


def assert_framed_once(segments):
    assert segments
    for segment in segments:
        assert segment[0] == CLS and segment[-1] == SEP
        assert not {CLS, SEP} & set(segment[1:-1])


def test_special_tokens_that_shards_hold_are_taken_off_and_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = publish(tmp_path / "ettin", chunks())
    segments, _ = rows(folder)
    assert_framed_once(segments)
    stored = [tokens.tolist() for _, tokens in chunks()]
    assert all(segment in stored for segment in segments)
    assert caplog.text.count("hold [CLS] and [SEP] already: taken off") == 1


def test_what_a_manifest_says_of_special_tokens_is_honoured(tmp_path):
    folder = publish(tmp_path / "a", chunks())
    write_manifest(folder, tokenizer="fake", special_tokens="included")
    assert_framed_once(rows(folder)[0])
    write_manifest(folder, tokenizer="fake", special_tokens="none")
    segments, _ = rows(folder)
    assert all(segment[:2] == [CLS, CLS] for segment in segments), "taken at its word"
    write_manifest(folder, tokenizer="fake", special_tokens="some")
    with pytest.raises(ValueError, match="special_tokens is 'some'; it can be 'included'"):
        rows(folder)


def test_documents_without_special_tokens_are_left_alone(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    plain = chunks(framed=False)
    segments, _ = rows(publish(tmp_path / "a", plain))
    stored = [[CLS, *tokens.tolist(), SEP] for _, tokens in plain]
    assert segments and all(segment in stored for segment in segments)
    assert "taken off" not in caplog.text


def test_what_looks_like_another_tokenizers_special_tokens_is_said(tmp_path, caplog):
    strange = [(name, np.array([77, *tokens, 88], np.uint32)) for name, tokens in chunks()]
    rows(publish(tmp_path / "a", strange))
    assert "begin with token id 77 and end with 88, which are not this tokenizer's" in caplog.text


def test_prepared_shards_say_that_they_hold_none(tmp_path):
    plain = [(name, tokens) for name, tokens in chunks(framed=False)]
    write_shards(tmp_path / "a", plain, vocab_size=SIZE)
    assert json.loads((tmp_path / "a" / "tessera.json").read_text())["special_tokens"] == "none"


def test_validation_takes_them_off_too(tmp_path):
    from tessera.data.validation import validation_batches

    publish(tmp_path / "v" / "validation", chunks())
    config = DataConfig(
        sources={"web": SourceConfig(local=str(tmp_path / "v"))}, max_seq_len=64, row_tokens=128
    )
    batches = validation_batches(
        config, "web", fake_tokenizer(), vocab_size=SIZE, masking_rate=0.1, max_tokens=500, seed=0
    )
    for batch in batches:
        ids = batch.input_ids.tolist()
        ends = batch.cu_seqlens.tolist()
        for a, b in zip(ends, ends[1:], strict=False):
            assert ids[a:b].count(CLS) <= 1 and ids[a:b].count(SEP) <= 1


# ---- raw files under an index of compressed ones


def raw_under_compressed_index(folder):
    """As Ettin's folders are: the index names shard.00000.mds.zstd, the folder has the raw one."""
    from streaming.base.compression import decompress

    publish(folder / "zstd", chunks(), compression="zstd")
    (folder / "raw").mkdir()
    for packed in (folder / "zstd").glob("*.zstd"):
        raw = decompress("zstd", packed.read_bytes())
        (folder / "raw" / packed.name.removesuffix(".zstd")).write_bytes(raw)
    shutil.copy(folder / "zstd" / "index.json", folder / "raw" / "index.json")
    assert not list((folder / "raw").glob("*.zstd"))
    return folder / "raw"


def test_raw_shards_are_fetched_where_the_compressed_ones_are_missing(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    remote = raw_under_compressed_index(tmp_path)
    source = open_source(tmp_path / "cache", remote, split="")
    assert len(source.samples) > 1
    found = read_all(source)
    assert [name for name, _ in found] == [name for name, _ in chunks()]
    assert caplog.text.count("the raw shards are fetched instead") == 1


def test_a_folder_of_both_kinds_is_read_wherever_either_is(tmp_path):
    remote = raw_under_compressed_index(tmp_path)
    first = "shard.00000.mds"
    shutil.copy(tmp_path / "zstd" / f"{first}.zstd", remote / f"{first}.zstd")
    (remote / first).unlink()
    for order in (1, -1):
        source = open_source(tmp_path / f"cache{order}", remote, split="")
        numbers = range(len(source.samples))[::order]
        assert sum(len(source.document(n, 0)) > 0 for n in numbers) == len(source.samples)


def test_a_shard_that_is_in_neither_form_is_named_at_once(tmp_path):
    remote = raw_under_compressed_index(tmp_path)
    (remote / "shard.00001.mds").unlink()
    source = open_source(tmp_path / "cache", remote, split="")
    source.document(0, 0)
    with pytest.raises(BadShard, match="cannot be fetched from"):
        source.document(1, 0)


def test_the_same_folder_on_local_disk_reads_as_it_is(tmp_path):
    folder = raw_under_compressed_index(tmp_path)
    assert len(read_all(MdsDocuments("web", folder))) == DOCUMENTS
    assert MdsDocuments("web", folder).lacking() is None


@pytest.mark.parametrize("from_remote", [False, True])
def test_merged_indexes_with_sub_folders_work(tmp_path, from_remote):
    documents = chunks()
    entries = []
    for name, part in (("web/a", documents[:20]), ("code", documents[20:])):
        publish(tmp_path / "m" / name, part)
        for entry in json.loads((tmp_path / "m" / name / "index.json").read_text())["shards"]:
            entry["raw_data"]["basename"] = f"{name}/{entry['raw_data']['basename']}"
            entries.append(entry)
    (tmp_path / "m" / "index.json").write_text(json.dumps({"version": 2, "shards": entries}))
    local = tmp_path / ("cache" if from_remote else "m")
    source = open_source(local, tmp_path / "m" if from_remote else None, split="")
    assert [name for name, _ in read_all(source)] == [name for name, _ in documents]


# ---- what an index may not say


@pytest.mark.parametrize(
    "name",
    ["../escaped.mds", "/tmp/escaped.mds", "a/../../escaped.mds", "index.json", ".tessera/x.mds"],
)
@pytest.mark.parametrize("kind", ["raw_data", "zip_data"])
def test_file_names_that_leave_the_folder_are_refused_before_anything_is_written(
    tmp_path, name, kind
):
    remote = publish(tmp_path / "remote", chunks(), compression="zstd")
    index = json.loads((remote / "index.json").read_text())
    index["shards"][1][kind]["basename"] = name
    (remote / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="names the file .*, which is no place for a shard"):
        open_source(tmp_path / "cache" / "inner", remote, split="")
    written = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert written <= {"index.lock"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bytes": 2**40}, "a shard has less than 4 GiB"),
        ({"bytes": -1}, "a shard has less than 4 GiB"),
        ({"bytes": 10}, "documents cannot be in the 10 bytes"),
    ],
)
def test_sizes_that_no_shard_has_are_refused(tmp_path, change, message):
    folder = publish(tmp_path / "a", chunks())
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["raw_data"] |= change
    with pytest.raises(ValueError, match=message):
        parse_index(json.dumps(index), "here")


@pytest.mark.parametrize("compression", ["zstd", "gz", "bz2", "br", "snappy"])
def test_a_shard_that_decompresses_without_end_is_stopped(tmp_path, compression):
    from streaming.base.compression import compress

    remote = publish(tmp_path / "remote", chunks(), compression=compression)
    assert len(read_all(open_source(tmp_path / "fine", remote, split=""))) == DOCUMENTS
    index = json.loads((remote / "index.json").read_text())
    zipped = index["shards"][0]["zip_data"]
    bomb = compress(compression, b"\0" * (64 << 20))
    (remote / zipped["basename"]).write_bytes(bomb)
    zipped["bytes"] = len(bomb)
    (remote / "index.json").write_text(json.dumps(index))
    source = open_source(tmp_path / "cache", remote, split="")
    with pytest.raises(BadShard, match="decompresses to more than the .* bytes that the index"):
        source.document(0, 0)
    assert sum(p.stat().st_size for p in (tmp_path / "cache").rglob("*") if p.is_file()) < 1 << 20


# ---- lengths asked for


def test_documents_outside_the_lengths_asked_for_are_passed_over_and_counted(tmp_path):
    folder = publish(tmp_path / "a", chunks(400))
    segments, loader = rows(folder, 20, min_document_tokens=10, max_document_tokens=20)
    lengths = {len(segment) - 2 for segment in segments}
    assert lengths == set(range(10, 21)), "[CLS] and [SEP] are not counted"
    batch = next(iter(loader))
    counts = batch.state.passed_over()["web"]
    assert counts["outside_length"] > 0 and counts["empty"] == 0


def test_a_folder_may_be_two_sources_by_length(tmp_path):
    folder = publish(tmp_path / "a", chunks(400))
    whole = {tuple(s) for s in rows(folder, 60)[0]}
    long = {tuple(s) for s in rows(folder, 60, min_document_tokens=15)[0]}
    short = {tuple(s) for s in rows(folder, 60, max_document_tokens=14)[0]}
    assert long | short == whole and not long & short


def test_bounds_are_in_the_fingerprint_only_where_they_are_set(tmp_path):
    folder = publish(tmp_path / "a", chunks(400))
    _, plain = rows(folder, 1)
    _, bounded = rows(folder, 1, min_document_tokens=10)
    assert not [key for key in plain.fingerprint if "document_tokens" in key]
    extra = bounded.fingerprint.keys() - plain.fingerprint.keys()
    assert extra == {"sources.web.min_document_tokens"}
    state = next(iter(plain)).state
    with pytest.raises(ValueError, match="sources.web.min_document_tokens: was absent, now 10"):
        rows(folder, 1, state=state, min_document_tokens=10)


def test_a_run_with_bounds_goes_on_where_it_was(tmp_path):
    folder = publish(tmp_path / "a", chunks(400))
    bounds = {"min_document_tokens": 10}
    expected, loader = rows(folder, 8, **bounds)
    batches = iter(loader)
    state = [next(batches).state for _ in range(3)][-1]
    state = LoaderState.from_json(json.loads(json.dumps(state.to_json())))
    first, _ = rows(folder, 3, **bounds)
    rest, _ = rows(folder, 5, state=state, **bounds)
    assert first + rest == expected


def test_bounds_that_leave_nothing_are_said(tmp_path):
    folder = publish(tmp_path / "a", chunks())
    with pytest.raises(ValueError, match="outside min_document_tokens.*widen these"):
        rows(folder, min_document_tokens=1000)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"min_document_tokens": 0}, "min_document_tokens must be at least 1"),
        ({"min_document_tokens": 9, "max_document_tokens": 8}, "is above max_document_tokens 8"),
    ],
)
def test_bounds_that_mean_nothing_are_refused(bounds, message):
    with pytest.raises(ValueError, match=message):
        SourceConfig(local="x", **bounds)


@pytest.mark.parametrize(("code", "absent"), [("404", True), ("NoSuchKey", True), ("500", False)])
def test_a_missing_object_of_s3_counts_as_absent(code, absent):
    from botocore.exceptions import ClientError

    error = ClientError({"Error": {"Code": code}}, "HeadObject")
    assert _may_be_absent(error) is absent


def test_documents_of_which_only_some_are_framed_are_said(tmp_path, caplog):
    mixed = [(name, tokens if i % 2 else tokens[1:-1]) for i, (name, tokens) in enumerate(chunks())]
    rows(publish(tmp_path / "mixed", mixed))
    assert "some of its documents hold [CLS] and [SEP] and others do not" in caplog.text
