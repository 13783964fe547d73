"""The loader: every document once an epoch, in rows that say where everything came from."""

import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from reference.data_fake_source import (
    CLS,
    MASK,
    PAD,
    SEP,
    FakeSource,
    corpus,
    fake_tokenizer,
    open_broken,
    open_fake,
)

from tessera.batch import IGNORED
from tessera.cli.batches import batch_lines
from tessera.data.config import BatchConfig, DataConfig, MaskingConfig, SourceConfig
from tessera.data.loader import Loader, LoaderState, merge_states
from tessera.data.pipeline.masking import mask, vocabulary
from tessera.data.randomness import Draws
from tessera.data.sources.source import BadShard
from tessera.quantities import ByteSize

TOKENIZER = fake_tokenizer()


SOURCES = {
    "web": SourceConfig(local="documents=300", weight=0.6),
    "code": SourceConfig(local="documents=50,longest=200", weight=0.4),
}


def data_config(**changes):
    plain = {"sources": SOURCES, "max_seq_len": 32, "row_tokens": 128, "lanes": 8, "seed": 1}
    return DataConfig(**(plain | {"waiting_pieces": 12, "block_documents": 100} | changes))


def one_source(source, **changes):
    return data_config(sources={source.name: SourceConfig(local="")}, **changes), (
        lambda *_: source
    )


def make_loader(config=None, batch=None, open_source=open_fake, **more):
    settings = {"vocab_size": 512, "seed": 1, "open_source": open_source} | more
    return Loader(config or data_config(), batch or BatchConfig(rows=8), TOKENIZER, **settings)


def rows_of(loader, steps):
    return [row for *_, rows in islice(loader.steps(), steps) for row in rows]


def original(row):
    ids = row.ids.copy()
    ids[row.positions] = row.labels
    return ids


def segments(row):
    return np.split(original(row), row.ends)[: row.documents]


def pieces_by_epoch(loader, source, steps):
    """{epoch: {(shard, sample): {piece: content}}}, and the first epoch not yet complete."""
    found, incomplete = {}, {}
    for row in rows_of(loader, steps):
        (stream,) = loader.streams(row.lane)
        for (_, document, piece), segment in zip(row.pieces, segments(row), strict=True):
            position = stream.positions([document])
            place = tuple(int(x[0]) for x in stream.order.locate(position))
            epoch = int(position[0]) // stream.order.documents
            pieces = found.setdefault(epoch, {}).setdefault(place, {})
            assert piece not in pieces, "a piece came twice in an epoch"
            pieces[piece] = segment[1:-1]
            assert (segment[0], segment[-1]) == (CLS, SEP)
        unread = [stream.epoch(row.state.cursors[0])]
        unread += [
            int(stream.positions([document])[0]) // stream.order.documents
            for _, document, _ in row.state.waiting
        ]
        incomplete[row.lane] = min(unread)
    return found, min(incomplete.values())


def assert_each_epoch_is_whole(source, found, complete):
    everything = {
        (shard, n): source.document(shard, n)
        for shard, lengths in enumerate(source.lengths_of)
        for n, length in enumerate(lengths)
        if length
    }
    assert complete >= 2, "no epoch was completed, so this proves little"
    for epoch in range(complete):
        assert found[epoch].keys() == everything.keys()
        for place, pieces in found[epoch].items():
            content = np.concatenate([pieces[n] for n in range(len(pieces))])
            assert np.array_equal(content, everything[place])


@pytest.mark.parametrize("canonical_nodes", [1, 4])
def test_every_document_comes_exactly_once_an_epoch(canonical_nodes):
    special = (0, 1, 30, 31, 60, 61, 5000)
    rest = corpus("web", 80, shards=3).lengths_of
    source = FakeSource("web", (special, *rest))
    config, opener = one_source(source, canonical_nodes=canonical_nodes)
    found, complete = pieces_by_epoch(make_loader(config, open_source=opener), source, 90)
    assert_each_epoch_is_whole(source, found, complete)


@pytest.mark.parametrize("documents", [1, 3])
def test_a_source_may_have_fewer_documents_than_lanes(documents):
    source = FakeSource("web", ((40,) * documents,))
    config, opener = one_source(source, canonical_nodes=4)
    found, complete = pieces_by_epoch(make_loader(config, open_source=opener), source, 12)
    assert_each_epoch_is_whole(source, found, complete)


def test_a_document_of_a_million_tokens_becomes_consecutive_pieces():
    source = FakeSource("web", ((1_000_000, 5, 5, 5),))
    config, opener = one_source(source, max_seq_len=1024, row_tokens=8192, lanes=2)
    rows = rows_of(make_loader(config, BatchConfig(rows=2), opener), 130)
    long = [s[1:-1] for row in rows for s in segments(row) if len(s) > 10]
    assert sum(map(len, long)) > 900_000
    assert sum(row.tokens for row in rows) / 8192 / len(rows) > 0.99


def test_segments_tile_the_row_and_padding_is_its_own():
    source = FakeSource("web", ((100,),))
    config, opener = one_source(source, long_documents="truncate", row_tokens=100, lanes=1)
    (row,) = rows_of(make_loader(config, BatchConfig(rows=1), opener), 1)
    assert row.ends.tolist() == [32, 64, 96, 100]
    assert row.ids[96:].tolist() == [PAD] * 4
    config = replace(config, row_tokens=127)
    (row,) = rows_of(make_loader(config, BatchConfig(rows=1), opener), 1)
    assert row.ends.tolist() == [32, 64, 96, 127]
    assert not np.isin(row.positions, np.arange(96, 127)).any()


def test_a_batch_says_what_its_rows_hold():
    config, batch = data_config(), BatchConfig(rows=8, microbatch_rows=3)
    rows = rows_of(make_loader(config), 3)[16:]
    got = next(islice(make_loader(config, batch), 2, None))
    assert [m.rows.tolist() for m in got.microbatches] == [[16, 17, 18], [19, 20, 21], [22, 23]]
    ids = torch.cat([m.input_ids for m in got.microbatches])
    assert ids.tolist() == np.concatenate([row.ids for row in rows]).tolist()
    labels = torch.cat([m.labels() for m in got.microbatches])
    expected = np.full(len(ids), IGNORED)
    for n, row in enumerate(rows):
        expected[row.positions + n * 128] = row.labels
    assert labels.tolist() == expected.tolist()
    for m in got.microbatches:
        lengths = torch.diff(m.cu_seqlens)
        assert m.cu_seqlens[0] == 0 and m.cu_seqlens[-1] == m.input_ids.numel()
        assert lengths.min() >= 0 and lengths.max() <= m.max_seqlen == 32
        assert m.tokens == (m.input_ids != PAD).sum()
        assert m.masked_tokens == (m.masked_labels != IGNORED).sum()
    assert got.documents == sum(row.documents for row in rows)
    assert sum(got.source_tokens.values()) == got.tokens == sum(row.tokens for row in rows)
    assert got.wait_seconds > 0


def test_masks_are_those_of_the_rows_number():
    loader = make_loader()
    words = vocabulary(TOKENIZER, whole_words=False)
    for row in rows_of(loader, 3):
        seen, positions, labels = mask(original(row), words, 0.3, Draws("masks", 1, row.number))
        assert np.array_equal(row.ids, seen)
        assert np.array_equal(row.positions, positions)
        assert np.array_equal(row.labels, labels)


def test_shapes_repeat():
    batch = BatchConfig(rows=8, microbatch_rows=4)
    shapes = Counter(
        (len(m.input_ids), len(m.masked_positions))
        for got in islice(make_loader(batch=batch), 60)
        for m in got.microbatches
    )
    assert len(shapes) <= 4
    assert shapes.most_common(1)[0][1] > 60


def test_shares_of_the_tokens_follow_the_weights():
    lines = list(batch_lines(data_config(), BatchConfig(rows=8), TOKENIZER, **AUDIT, steps=120))
    tokens = Counter()
    for line in lines:
        tokens += Counter(line["source_tokens"])
    assert abs(tokens["web"] / tokens.total() - 0.6) < 0.01
    assert lines[-1]["source_epochs"]["code"] >= 2


def test_rows_keep_the_shares_from_the_first_batch_on():
    """Though one source has documents ten times as long, which fit rows better."""
    rng = np.random.default_rng(0)
    sources = {
        "books": FakeSource("books", (tuple(rng.integers(500, 1000, 4000).tolist()),)),
        "notes": FakeSource("notes", (tuple(rng.integers(30, 100, 40000).tolist()),)),
    }
    config = data_config(
        sources=dict.fromkeys(sources, SourceConfig(local="")),
        max_seq_len=1024,
        row_tokens=8192,
        lanes=48,
        waiting_pieces=256,
    )
    settings = AUDIT | {"open_source": lambda name, *_: sources[name], "steps": 6}
    for line in batch_lines(config, BatchConfig(rows=48), TOKENIZER, **settings):
        assert abs(line["source_tokens"]["books"] / line["tokens"] - 0.5) < 0.006


AUDIT = {"vocab_size": 512, "seed": 1, "open_source": open_fake}


def test_the_audit_does_not_depend_on_ranks_or_microbatches():
    one, four = (
        list(
            batch_lines(
                data_config(),
                BatchConfig(rows=8, microbatch_rows=microbatch),
                TOKENIZER,
                **AUDIT,
                world_size=world_size,
                steps=6,
                with_ids=True,
            )
        )
        for world_size, microbatch in [(1, 1), (4, 2)]
    )
    assert one == four
    names = [name for line in one for row in line["ids"].values() for name in row]
    assert len(names) == sum(line["documents"] for line in one)
    source, document, piece = names[0]
    assert source in ("web", "code") and document.startswith(f"{source}-") and piece == 0


def test_a_digest_changes_with_anything_in_the_batch():
    def digests(**changes):
        lines = batch_lines(
            data_config(**changes), BatchConfig(rows=8), TOKENIZER, **AUDIT, steps=5
        )
        return [line["digest"] for line in lines]

    first = digests()
    assert len(set(first)) == 5
    for changes in [{"seed": 2}, {"masking": MaskingConfig(rate=0.31)}, {"max_seq_len": 31}]:
        assert not set(first) & set(digests(**changes))


def test_a_source_with_weight_zero_is_not_opened():
    def refuse_code(name, *rest):
        assert name != "code"
        return open_fake(name, *rest)

    sources = {
        "web": SourceConfig(local="documents=30"),
        "code": SourceConfig(local="", weight=0),
    }
    batch = next(iter(make_loader(data_config(sources=sources), open_source=refuse_code)))
    assert batch.source_tokens.keys() == {"web"}


@pytest.mark.parametrize("world_size", [1, 2, 8])
def test_skipped_rows_are_left_out_and_the_others_stay_as_they_are(world_size):
    everything = {row.number: row.digest.tolist() for row in rows_of(make_loader(), 12)}
    config = data_config(skip_rows=("17-18", "20", "32-47"))
    gone = {17, 18, 20, *range(32, 48)}
    loaders = [make_loader(config, rank=r, world_size=world_size) for r in range(world_size)]
    kept = {row.number: row.digest.tolist() for one in loaders for row in rows_of(one, 9)}
    assert len(kept) == 72 and not kept.keys() & gone
    assert all(kept[number] == everything[number] for number in kept if number in everything)
    assert set(range(60)) - gone <= kept.keys()


def test_a_bad_shard_stops_the_run_and_is_named():
    config, opener = one_source(corpus("web", 100, bad={2}))
    with pytest.raises(BadShard, match=r"source 'web', shard 2, 2\.mds: damaged; mend it"):
        rows_of(make_loader(config, open_source=opener), 50)


def test_a_bad_shard_can_be_skipped_and_stays_skipped_on_resume(caplog):
    source = corpus("web", 100, bad={2})
    config, opener = one_source(source, on_bad_shard="skip")
    loader = make_loader(config, open_source=opener)
    batches = list(islice(loader, 60))
    assert "skipping 25 documents: source 'web', shard 2" in caplog.text
    lanes = batches[29].state.lanes
    assert all(state.cursors[0].bad_shards == (2,) for state in lanes.values())
    assert sum(state.cursors[0].bad_documents for state in lanes.values()) > 25
    source.bad.clear()  # mended while the run was down
    resumed = make_loader(config, open_source=opener, state=batches[29].state)
    for before, after in zip(batches[30:], resumed, strict=False):
        assert torch.equal(before.row_digests, after.row_digests)


def test_a_source_of_nothing_but_empty_documents_is_an_error_not_a_hang():
    config, opener = one_source(FakeSource("web", ((0,) * 40,)))
    with pytest.raises(ValueError, match="source 'web': .* empty or unreadable"):
        rows_of(make_loader(config, open_source=opener), 1)


def test_empty_documents_are_counted():
    source = FakeSource("web", ((0, 20) * 50,))
    config, opener = one_source(source)
    state = list(islice(make_loader(config, open_source=opener), 20))[-1].state
    read = sum(lane.cursors[0].document for lane in state.lanes.values())
    counted = state.passed_over()["web"]
    assert abs(counted["empty"] / read - 0.5) < 0.1
    assert counted["unreadable"] == 0
    (*_, line) = batch_lines(
        config, BatchConfig(rows=8), TOKENIZER, **(AUDIT | {"open_source": opener}), steps=20
    )
    assert line["passed_over"] == {"web": counted}


def test_a_token_the_model_does_not_know_is_named():
    with pytest.raises(ValueError, match=r"model.vocab_size 499 is smaller than the tokenizer"):
        make_loader(vocab_size=499)
    source = corpus("web", 20, longest=40)
    source.document = lambda shard, sample: np.full(3, 600 if sample == 2 else 9, np.uint16)
    config, opener = one_source(source)
    with pytest.raises(ValueError, match=r"source 'web', document 'web-\d-2': token id 600"):
        rows_of(make_loader(config, open_source=opener), 3)
    source.document = lambda shard, sample: np.full(3, 2**16 + 9, np.uint32)
    with pytest.raises(ValueError, match=r"source 'web', document 'web-.*': token ids from 65545"):
        rows_of(make_loader(config, open_source=opener), 1)
    source.document = lambda shard, sample: np.full(3, 9, np.int64)
    assert rows_of(make_loader(config, open_source=opener), 1)[0].labels.tolist()[0] == 9


def test_shards_of_another_tokenizer_are_refused():
    config, opener = one_source(corpus("web", 20, tokenizer_fingerprint="other"))
    with pytest.raises(ValueError, match="source 'web' was prepared with another tokenizer"):
        make_loader(config, open_source=opener)


def test_shards_are_asked_for_before_they_are_read():
    source = corpus("web", 400, shards=40)
    config, opener = one_source(source, block_documents=50, canonical_nodes=2)
    read, document = [], source.document

    def watched(shard, sample):
        read.append(shard)
        assert any(shard in asked for asked in source.asked)
        return document(shard, sample)

    source.document = watched
    rows_of(make_loader(config, open_source=opener), 30)
    assert len(set(read)) == 40


def test_ranks_of_a_node_read_only_the_shards_of_its_group():
    source = corpus("web", 400, shards=40)
    config, opener = one_source(source, canonical_nodes=2)
    read = [set(), set()]
    for rank in range(4):  # data ranks 0 and 2 are on one node, 1 and 3 on the other
        node = read[rank % 2]
        source.document = lambda shard, sample, node=node: (
            node.add(shard),
            np.full(20, 9, np.uint16),
        )[1]
        rows_of(make_loader(config, open_source=opener, rank=rank, world_size=4), 60)
    assert len(read[0] | read[1]) == 40
    assert max(map(len, read)) <= 21 and len(read[0] & read[1]) <= 1


@pytest.mark.parametrize("limit, ranks, warned", [(2000, 1, True), (2000, 4, False)])
def test_a_cache_too_small_for_what_is_read_at_a_time_is_said(caplog, limit, ranks, warned):
    cached = SourceConfig(
        local="documents=400,shards=40", remote="r", cache_limit=ByteSize(limit * 9)
    )
    config = data_config(sources={"web": cached}, canonical_nodes=4, block_documents=50)
    make_loader(config, rank=0, world_size=ranks)
    assert ("source 'web': about" in caplog.text) == warned
    if warned:
        largest = int(caplog.text.split("at most ")[1])
        caplog.clear()
        make_loader(replace(config, block_documents=largest))
        assert not caplog.text


def test_a_long_document_is_in_memory_once_however_many_of_its_pieces_wait():
    source = FakeSource("web", ((200_000,) * 8,))
    config, opener = one_source(source, lanes=1)
    loader = make_loader(config, BatchConfig(rows=1), opener)
    state = next(iter(loader)).state
    for start in (None, state):
        loader = make_loader(config, BatchConfig(rows=1), opener, state=start)
        tracemalloc.start()
        batches = iter(loader)
        next(batches)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < 3 * 200_000 * 2


@pytest.mark.parametrize("world_size", [1, 2])
def test_workers_make_the_same_rows(world_size):
    batch = BatchConfig(rows=8, microbatch_rows=2)
    for rank in range(world_size):
        ranks = {"rank": rank, "world_size": world_size}
        alone = list(islice(make_loader(batch=batch, **ranks), 12))
        helped = iter(make_loader(data_config(workers=2), batch, **ranks))
        for a, b in zip(alone, islice(helped, 12), strict=True):
            assert torch.equal(a.row_digests, b.row_digests)
            assert a.state.lanes == b.state.lanes
            assert [m.rows.tolist() for m in a.microbatches] == [
                m.rows.tolist() for m in b.microbatches
            ]
        helped.close()


def test_an_error_in_a_worker_is_raised_as_it_is():
    with pytest.raises(BadShard, match=r"source 'web', shard 0, 0\.mds: damaged; mend it"):
        list(islice(make_loader(data_config(workers=2), open_source=open_broken), 20))


def children(pid):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True)
    return [int(child) for child in listed.stdout.split()]


def wait_until(happened, seconds=20):
    end = time.monotonic() + seconds
    while not happened() and time.monotonic() < end:
        time.sleep(0.05)
    return happened()


def workers_of(pid):
    return {child for child in children(pid) if b"tessera.data.pipeline.workers" in cmdline(child)}


@pytest.fixture
def own_workers():
    """A function: the workers that this test started and that are alive; not those of others."""
    before = workers_of(os.getpid())
    return lambda: workers_of(os.getpid()) - before


def test_a_worker_that_is_killed_is_reported(own_workers):
    batches = iter(make_loader(data_config(workers=1)))
    next(batches)
    (worker,) = own_workers()
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"worker 0 .* \(killed by signal 9\).* out of memory"):
        for _ in range(1000):
            next(batches)


def cmdline(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


TRAINER = """
import sys, threading, time
sys.path[:0] = {path!r}
from reference.data_fake_source import {opener}
from test_loader import data_config, make_loader
batches = iter(make_loader(data_config(workers=2), open_source={opener}))
first = threading.Thread(target=next, args=[batches])
first.start()
first.join({seconds})
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("opener, seconds", [("open_fake", 60), ("open_stuck", 4)])
def test_workers_end_when_their_trainer_is_killed(opener, seconds):
    """Whether they wait for it to take rows, or for a document."""
    script = TRAINER.format(path=sys.path, opener=opener, seconds=seconds)
    trainer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert trainer.stdout.readline() == b"ready\n"
    workers = workers_of(trainer.pid)
    assert len(workers) == 2
    trainer.kill()
    trainer.wait()
    assert wait_until(lambda: not any(b"workers" in cmdline(pid) for pid in workers))


def test_no_process_is_left_when_the_batches_are_let_go(own_workers):
    batches = iter(make_loader(data_config(workers=2)))
    next(batches)
    assert len(own_workers()) == 2
    batches.close()
    assert not own_workers()


def test_states_of_ranks_merge_into_the_state_of_one():
    one = next(islice(make_loader(), 4, None)).state
    loaders = [make_loader(rank=rank, world_size=4) for rank in range(4)]
    shares = [loader.state_after(next(islice(loader, 4, None))) for loader in loaders]
    assert merge_states(shares) == one
    assert LoaderState.from_json(one.to_json()) == one
    assert MASK not in one.lanes[0].drawn


@pytest.mark.parametrize("world_size", [1, 2])
def test_how_often_a_source_was_read_is_a_fraction(world_size):
    """The documents whose every piece is in a row so far, beside those that are empty."""
    loaders = [make_loader(rank=rank, world_size=world_size) for rank in range(world_size)]
    opened = {name: open_fake(name, source, "train", 0) for name, source in SOURCES.items()}
    pieces = {
        f"{name}-{shard}-{n}": -(-length // 30)
        for name, source in opened.items()
        for shard, lengths in enumerate(source.lengths_of)
        for n, length in enumerate(lengths)
    }
    seen = Counter()
    fractions = []
    for batches in zip(*loaders, strict=True):
        if max(epoch for batch in batches for epoch in batch.source_epochs.values()) > 0:
            break
        seen.update(name for batch in batches for row in batch.names() for _, name, _ in row)
        states = merge_states(batch.state for batch in batches)
        for source, passed in states.passed_over().items():
            finished = sum(batch.finished_documents[source] for batch in batches)
            whole = [n for n in seen if n.startswith(source) and seen[n] == pieces[n]]
            assert finished == len(whole) + passed["empty"]
            assert batches[0].source_documents[source] == opened[source].samples.sum()
            fractions.append(finished / batches[0].source_documents[source])
    assert max(fractions) > 0.4, "too little was read for this to say anything"
