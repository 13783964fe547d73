"""Tokens that check says a source has are those that training gets out of one reading of it."""

import json
import shutil

import numpy as np
import pytest
from tiny_run import SPECIAL, WORDS, make_tokenizer

from tessera.data.config import BatchConfig, DataConfig, SourceConfig
from tessera.data.loader import Loader
from tessera.data.preparation.mds_writer import write_shards
from tessera.data.sources.source import open_source
from tessera.data.supply import epochs_by_length, readings
from tessera.quantities import Duration
from tessera.tokenizer import load_tokenizer

LENGTHS = [0, 1, 30, 62, 63, 124, 125, 400, 5000, *np.arange(3, 90).tolist()]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("supply")
    make_tokenizer(folder / "tokenizer")
    tokenizer = load_tokenizer(folder / "tokenizer")
    for name, framed in (("bare", False), ("framed", True)):
        documents = []
        for number, length in enumerate(LENGTHS):
            tokens = 5 + np.random.default_rng(number).integers(0, WORDS, length)
            if framed:
                tokens = np.concatenate(([tokenizer.cls_id], tokens, [tokenizer.sep_id]))
            documents.append((f"{number}", tokens.astype(np.uint16)))
        write_shards(
            folder / name / "train",
            documents,
            vocab_size=WORDS + len(SPECIAL),
            tokenizer_fingerprint=tokenizer.fingerprint,
            shard_bytes=2048,
        )
    (folder / "framed" / "train" / "tessera.json").unlink()
    return folder


def data_of(sources, **more):
    more = {"max_seq_len": 64, "row_tokens": 256, "lanes": 1, "waiting_pieces": 16} | more
    return DataConfig(sources=sources, **more)


def read(corpus, data, duration="1e6tok"):
    tokenizer = load_tokenizer(corpus / "tokenizer")
    frame = tokenizer.cls_id, tokenizer.sep_id
    opened = {n: open_source(n, s, s.split, None) for n, s in data.sources.items()}
    return readings(data, BatchConfig(rows=1), Duration.parse(duration), frame, opened)


def trained_in_one_epoch(corpus, data):
    """Tokens and segments of each source's first epoch, counted in the rows of the loader."""
    tokenizer = load_tokenizer(corpus / "tokenizer")
    loader = Loader(data, BatchConfig(rows=1), tokenizer, vocab_size=256, seed=1)
    documents = [stream.order.documents for stream in loader.streams(0)]
    tokens, segments, waiting = [0] * len(documents), [0] * len(documents), True
    steps = loader.steps()
    while waiting:
        _, _, _, (row,) = next(steps)
        lengths = np.diff(row.ends, prepend=0)
        for (source, document, _), length in zip(row.pieces, lengths.tolist(), strict=False):
            if document < documents[source]:
                tokens[source] += length
                segments[source] += 1
        left = any(document < documents[source] for source, document, _ in row.state.waiting)
        begun = zip(row.state.cursors, documents, strict=True)
        waiting = left or any(cursor.document < count for cursor, count in begun)
    loader.close()
    return tokens, segments


@pytest.mark.parametrize("name", ["bare", "framed"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"long_documents": "truncate"},
        {"bounds": {"min_document_tokens": 62}},
        {"bounds": {"max_document_tokens": 400, "min_document_tokens": 2}},
        {"max_seq_len": 256},
    ],
    ids=str,
)
def test_a_reading_counts_the_tokens_that_training_reads(corpus, name, more):
    more = dict(more)
    source = SourceConfig(local=str(corpus / name), **more.pop("bounds", {}))
    data = data_of({name: source}, **more)
    (reading,) = read(corpus, data)
    ((tokens,), (segments,)) = trained_in_one_epoch(corpus, data)
    assert (reading.supply.tokens, reading.supply.pieces) == (tokens, segments)
    assert reading.supply.is_exact and reading.epochs == pytest.approx(1e6 / tokens)


def test_a_mixture_wants_its_shares_and_a_shared_folder_is_read_by_both(corpus):
    local = str(corpus / "bare")
    data = data_of(
        {
            "short": SourceConfig(local=local, weight=3, max_document_tokens=400),
            "long": SourceConfig(local=local, weight=1, min_document_tokens=400),
        }
    )
    short, long = read(corpus, data, "400_000tok")
    assert (short.wanted, long.wanted) == (300_000, 100_000)
    assert long.over(400) == pytest.approx(5000 / 5400) and short.over(400) == 0
    tokens, _ = trained_in_one_epoch(corpus, data)
    assert [short.supply.tokens, long.supply.tokens] == tokens
    epochs = dict(epochs_by_length([short, long]))
    stored = sum(n for n in LENGTHS if n < 400)
    both = (short.epochs * (stored + 400) + long.epochs * 400) / (stored + 400)
    assert epochs == pytest.approx({0: both, 4096: long.epochs})


def test_a_duration_in_steps_or_segments_wants_the_tokens_it_takes(corpus):
    data = data_of({"bare": SourceConfig(local=str(corpus / "bare"))})
    assert read(corpus, data, "10ba")[0].wanted == 10 * 256
    (tokens,), (segments,) = trained_in_one_epoch(corpus, data)
    assert read(corpus, data, f"{segments}sp")[0].wanted == pytest.approx(tokens)


def test_what_is_not_here_is_told_by_the_manifest_or_not_known_and_nothing_is_written(
    corpus, tmp_path
):
    remote = shutil.copytree(corpus / "bare", tmp_path / "store")
    source = SourceConfig(local=str(tmp_path / "cache"), remote=f"s3://nowhere{remote}")
    frame, one = (1, 2), (BatchConfig(rows=1), Duration.parse("1e6tok"))
    (nothing,) = readings(data_of({"a": source}), *one, frame, {})
    assert (nothing.supply.tokens, nothing.epochs) == (None, None)
    assert "no tessera.json is here" in nothing.supply.known_from
    assert not (tmp_path / "cache").exists()

    cache = tmp_path / "cache" / "train"
    cache.mkdir(parents=True)
    for name in ("index.json", "tessera.json"):
        shutil.copy(corpus / "bare" / "train" / name, cache)
    (told,) = readings(data_of({"a": source}, max_seq_len=8192, row_tokens=8192), *one, frame, {})
    assert told.supply.known_from == "tessera.json" and told.over(1024) is None
    exact = sum(LENGTHS) + 2 * (len(LENGTHS) - 1)
    assert told.supply.tokens == exact
    longer = SourceConfig(local=source.local, remote=source.remote, min_document_tokens=70)
    (bounded,) = readings(data_of({"a": longer}), *one, frame, {})
    assert bounded.supply.tokens is None and "lengths asked for" in bounded.supply.known_from

    shard = next((corpus / "bare" / "train").glob("*.mds"))
    shutil.copy(shard, cache)
    (part,) = readings(data_of({"a": source}), *one, frame, {})
    shards = len(json.loads((cache / "index.json").read_text())["shards"])
    assert part.supply.known_from == f"1 of {shards} shards" and part.supply.tokens > 0
    assert sorted(p.name for p in cache.iterdir()) == ["index.json", shard.name, "tessera.json"]
