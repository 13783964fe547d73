"""The loader over real shards: a cache smaller than the corpus, damage, nodes, processes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import data_rank
from reference.data_fake_source import fake_tokenizer

from tessera.data.config import BatchConfig, DataConfig, SourceConfig
from tessera.data.digest import batch_digest, digest_sum
from tessera.data.loader import Loader, LoaderState
from tessera.data.preparation.mds_writer import write_shards
from tessera.quantities import ByteSize

SHARDS = 24
SHARD_BYTES = 16_384


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder with about 24 shards under `train`."""
    folder = tmp_path_factory.mktemp("corpus")
    write(folder / "train", documents=1250)
    assert SHARDS - 4 < len(shards(folder)) < SHARDS + 4
    return folder


def write(folder, documents, seed=0):
    rng = np.random.default_rng(seed)
    made = [
        (f"{folder.parent.name}-{n}", rng.integers(5, 500, rng.integers(1, 300)).astype(np.uint16))
        for n in range(documents)
    ]
    write_shards(
        folder, made, vocab_size=500, tokenizer_fingerprint="fake", shard_bytes=SHARD_BYTES
    )


def shards(folder):
    return sorted((folder / "train").glob("*.mds"))


def disk_bytes(folder):
    """Of the shards, while others fetch and evict: files may vanish under our hands."""
    total = 0
    for shard in shards(folder):
        with contextlib.suppress(FileNotFoundError):
            total += shard.stat().st_size
    return total


def make_loader(local, remote=None, *, limit=None, rank=0, world_size=1, state=None, **changes):
    source = SourceConfig(
        local=str(local),
        remote=None if remote is None else str(remote),
        cache_limit=None if limit is None else ByteSize(limit),
    )
    plain = {"max_seq_len": 64, "row_tokens": 512, "lanes": 16, "waiting_pieces": 24}
    plain |= {"block_documents": 60}
    return Loader(
        DataConfig(sources={"web": source}, **(plain | changes)),
        BatchConfig(rows=16),
        fake_tokenizer(),
        vocab_size=512,
        seed=1,
        rank=rank,
        world_size=world_size,
        state=state,
    )


def test_a_cache_smaller_than_the_corpus_changes_nothing_but_the_disk(corpus, tmp_path):
    limit = 8 * SHARD_BYTES
    whole = list(islice(make_loader(corpus), 30))
    assert whole[-1].source_epochs["web"] >= 1
    loader = make_loader(tmp_path, corpus, limit=limit)
    for expected, got in zip(whole[:15], loader, strict=False):
        assert torch.equal(expected.row_digests, got.row_digests)
        assert disk_bytes(tmp_path) <= limit
    loader.close()
    resumed = make_loader(tmp_path, corpus, limit=limit, state=got.state)
    for expected, again in zip(whole[15:], resumed, strict=False):
        assert torch.equal(expected.row_digests, again.row_digests)
    assert len(shards(tmp_path)) < len(shards(corpus))


def test_two_nodes_fetch_half_of_the_shards_each(corpus, tmp_path):
    fetched = []
    for node in range(2):
        local = tmp_path / f"node{node}"
        for rank in (node, node + 2):  # as data_rank numbers the ranks of two nodes
            loader = make_loader(local, corpus, rank=rank, world_size=4, canonical_nodes=2)
            batches = list(islice(loader, 30))
            assert batches[-1].source_epochs["web"] >= 1
            loader.close()
        fetched.append({shard.name for shard in shards(local)})
    total = len(shards(corpus))
    assert len(fetched[0] | fetched[1]) == total
    assert all(abs(len(some) - total / 2) <= 1 for some in fetched)


def test_a_damaged_shard_is_named_or_skipped(tmp_path):
    write(tmp_path / "train", documents=600)
    damaged = shards(tmp_path)[3]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match=f"source 'web'.*{damaged.name}.*on_bad_shard: skip"):
        list(islice(make_loader(tmp_path), 30))
    loader = make_loader(tmp_path, on_bad_shard="skip")
    batches = list(islice(loader, 20))
    again = make_loader(tmp_path, on_bad_shard="skip", state=batches[9].state)
    for expected, got in zip(batches[10:], again, strict=False):
        assert torch.equal(expected.row_digests, got.row_digests)


@pytest.fixture
def two_sources(tmp_path):
    write(tmp_path / "web" / "train", documents=300)
    write(tmp_path / "code" / "train", documents=40, seed=1)
    return tmp_path


def launch(folder, ranks, steps, workers):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    script = Path(data_rank.__file__)
    composer = Path(sys.executable).parent / "composer"
    command = [composer, "-n", ranks, script, folder, steps, workers]
    return subprocess.Popen(
        list(map(str, command)), env=environment, start_new_session=True, stdout=subprocess.DEVNULL
    )


def lines(folder):
    digests = folder / "digests.txt"
    return digests.read_text().splitlines() if digests.exists() else []


@pytest.mark.slow
def test_killed_processes_resume_on_other_numbers_of_ranks(two_sources):
    """With the launcher that training uses, killed at moments of the machine's choosing."""
    expected = [
        f"{batch.step} {batch.global_rows} {batch_digest(digest_sum(batch.row_digests.numpy()))}"
        for batch in islice(data_rank.make_loader(two_sources), 400)
    ]
    seen = {}
    for restart, (ranks, workers) in enumerate([(2, 0), (4, 2), (1, 0), (2, 2), (4, 0)]):
        before = len(lines(two_sources))
        process = launch(two_sources, ranks, 400, workers)
        wanted = before + 5 + 7 * restart
        while len(lines(two_sources)) < wanted and process.poll() is None:
            time.sleep(0.01)
        assert process.poll() is None, "it ended by itself, so this proves nothing"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for line in lines(two_sources):
        step = int(line.split()[0])
        assert line == expected[step]
        seen[step] = line
    assert sorted(seen) == list(range(len(seen))) and len(seen) > 40
    state = LoaderState.from_json(json.loads((two_sources / "state.json").read_text()))
    assert state.step in (len(seen), len(seen) - 1)
