import contextlib
import errno
import json
import logging
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tessera.data.preparation.mds_writer import write_shards
from tessera.data.sources.cache import ShardCache
from tessera.data.sources.locks import STATE, CacheError
from tessera.data.sources.mds import MdsDocuments
from tessera.data.sources.source import BadShard

fork = multiprocessing.get_context("fork")
DOCUMENTS = 400
SHARD_BYTES = 10_000


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """The same documents in raw and compressed shards, of about the same size."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 200, DOCUMENTS)
    documents = [(f"doc-{i}", rng.integers(0, 8192, n)) for i, n in enumerate(lengths)]
    root = tmp_path_factory.mktemp("corpora")
    for name, compression in (("raw", None), ("zstd", "zstd:3")):
        write_shards(
            root / name / "train",
            documents,
            vocab_size=8192,
            tokenizer_fingerprint="abc",
            shard_bytes=SHARD_BYTES,
            compression=compression,
        )
    return root, documents


@pytest.fixture
def remote(corpora, tmp_path):
    """A copy of the raw corpus that a test may damage."""
    shutil.copytree(corpora[0] / "raw", tmp_path / "remote")
    return tmp_path / "remote"


@pytest.fixture(autouse=True)
def no_pauses_between_attempts(monkeypatch):
    monkeypatch.setattr("tessera.data.sources.download._FIRST_PAUSE_SECONDS", 0)


@pytest.fixture(autouse=True)
def shared_memory_is_left_alone():
    before = set(os.listdir("/dev/shm"))
    yield
    ours = {name for name in set(os.listdir("/dev/shm")) - before if not name.startswith("pym-")}
    assert not {name for name in ours if name[:1].isdigit()}, "Streaming's shared memory is used"


def open_source(local, remote=None, **options):
    options.setdefault("attempts", 1)
    options = {"split": "train", "vocab_size": 8192} | options
    return MdsDocuments("web", local, remote=None if remote is None else str(remote), **options)


def read_all(source):
    return [
        (source.document_id(shard, sample), source.document(shard, sample))
        for shard in range(len(source.samples))
        for sample in range(source.samples[shard])
    ]


def assert_same(found, expected):
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (_, left), (_, right) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(left, right)


def shards_in(folder):
    folder = folder if folder.name == "train" else folder / "train"
    return sorted(path.name for path in folder.glob("*.mds"))


def disk_bytes(folder):
    """Shards and what is staged, while others write: files may vanish under our hands."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += 0 if name.endswith(".json") else os.stat(f"{parent}/{name}").st_size
    return total


def run_forked(*functions):
    """Run each in a process of its own; all must end well."""
    processes = [fork.Process(target=function, daemon=True) for function in functions]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(processes)


# ---- local folders


def test_a_local_folder_gives_its_documents_and_is_not_written_to(corpora):
    root, documents = corpora
    source = open_source(root / "raw")
    assert_same(read_all(source), documents)
    assert source.tokenizer_fingerprint == "abc"
    assert source.shard_bytes.sum() == sum(
        path.stat().st_size for path in (root / "raw").rglob("*.mds")
    )
    assert not (root / "raw" / "train" / STATE).exists()


def test_compressed_shards_are_readable_where_they_are(corpora, tmp_path):
    shutil.copytree(corpora[0] / "zstd", tmp_path / "local")
    compressed = {path.name for path in (tmp_path / "local").rglob("*.zstd")}
    source = open_source(tmp_path / "local")
    assert_same(read_all(source), corpora[1])
    assert {path.name for path in (tmp_path / "local").rglob("*.zstd")} == compressed


def test_only_so_many_shards_are_mapped_and_any_order_of_reading_works(corpora, monkeypatch):
    monkeypatch.setattr("tessera.data.sources.mds._open_shards", lambda: 2)
    source = open_source(corpora[0] / "raw")
    first = np.cumsum([0, *source.samples])
    for number in np.random.default_rng(0).permutation(DOCUMENTS):
        shard = int(np.searchsorted(first, number, "right")) - 1
        tokens = source.document(shard, int(number - first[shard]))
        np.testing.assert_array_equal(tokens, corpora[1][number][1])
        assert len(source._open) <= 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "does not exist; prepare the data first"),
        (lambda folder: (folder / "index.json").unlink(), "has no index.json"),
        (lambda folder: (folder / "index.json").write_text("{"), "is not an index of MDS shards"),
        (lambda folder: (folder / "index.json").write_text('{"shards": []}'), "no documents"),
        (lambda folder: (folder / "tessera.json").write_text("{"), "tessera.json"),
    ],
)
def test_a_folder_without_data_is_reported_with_source_and_cure(remote, change, message):
    change(remote / "train")
    with pytest.raises(ValueError, match=message) as caught:
        open_source(remote)
    assert "source 'web'" in str(caught.value)
    assert str(remote / "train") in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: os.truncate(path, 5000), "truncated or altered: 5000 bytes"),
        (lambda path: path.write_bytes(b"\1" * path.stat().st_size), "hash differs"),
    ],
)
def test_a_bad_local_shard_is_named_and_the_others_stay_readable(remote, change, message):
    path = remote / "train" / "shard.00002.mds"
    change(path)
    source = open_source(remote)
    with pytest.raises(BadShard, match=message) as caught:
        source.document(2, 0)
    assert caught.value.shard == 2
    for part in ("source 'web'", str(path), "train_data.on_bad_shard: skip"):
        assert part in str(caught.value)
    assert len(source.document(3, 0))


def test_token_ids_beyond_the_vocabulary_are_no_bad_shard_but_a_wrong_tokenizer(corpora):
    source = open_source(corpora[0] / "raw", vocab_size=100)
    with pytest.raises(ValueError, match="vocabulary has 100; use the tokenizer") as caught:
        source.document(0, 0)
    assert not isinstance(caught.value, BadShard)


def test_shards_of_untokenised_text_are_refused_before_any_is_read(corpora, tmp_path):
    index = json.loads((corpora[0] / "raw/train/index.json").read_text())
    for entry in index["shards"]:
        entry |= {"column_names": ["text"], "column_encodings": ["str"], "column_sizes": [None]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="no column 'input_ids', only text; tokenize the text"):
        open_source(tmp_path, split="")


def test_running_out_of_descriptors_is_not_blamed_on_a_shard(corpora, monkeypatch):
    source = open_source(corpora[0] / "raw")

    def exhausted(*arguments, **options):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("tessera.data.sources.mds.Shard", exhausted)
    with pytest.raises(OSError, match="Too many open files"):
        source.document(0, 0)


# ---- caches


@pytest.mark.parametrize("kind", ["raw", "zstd"])
def test_a_remote_is_read_once_and_then_not_needed(corpora, tmp_path, kind, caplog):
    root, documents = corpora
    shutil.copytree(root / kind, tmp_path / "remote")
    source = open_source(tmp_path / "local", tmp_path / "remote")
    assert shards_in(tmp_path / "local") == []
    assert_same(read_all(source), documents)
    assert source.tokenizer_fingerprint == "abc"
    assert not list((tmp_path / "local").rglob("*.zstd"))
    shutil.rmtree(tmp_path / "remote")
    assert_same(read_all(open_source(tmp_path / "local")), documents)


def test_the_index_of_the_remote_must_be_the_one_the_cache_was_filled_from(remote, tmp_path):
    source = open_source(tmp_path / "local", remote)
    source.document(0, 0)
    shutil.rmtree(remote / "train")
    write_shards(remote / "train", [("other", np.arange(9))], vocab_size=8192)
    with pytest.raises(ValueError, match="have changed since .* set `local` to a new folder"):
        open_source(tmp_path / "local", remote)


def test_a_remote_without_index_is_reported_even_if_the_cache_has_one(remote, tmp_path):
    open_source(tmp_path / "local", remote)
    with pytest.raises(ValueError, match="cannot read .*nowhere/train/index.json.*correct"):
        open_source(tmp_path / "local", remote.parent / "nowhere")


def test_a_remote_out_of_reach_does_not_stop_a_run_whose_cache_is_filled(
    remote, tmp_path, monkeypatch, caplog
):
    first = open_source(tmp_path / "local", remote)
    documents = read_all(first)

    def unreachable(*arguments):
        raise ConnectionError("network is down")

    monkeypatch.setattr(
        "streaming.base.storage.download.LocalDownloader._download_file_impl", unreachable
    )
    again = open_source(tmp_path / "local", remote)
    assert_same(read_all(again), documents)
    assert "network is down" in caplog.text
    shutil.rmtree(tmp_path / "local")
    with pytest.raises(ValueError, match="network is down"):
        open_source(tmp_path / "local", remote)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "cannot be fetched from .*remote/train"),
        (lambda path: os.truncate(path, 5000), "Checksum failure"),
        (lambda path: path.write_bytes(b"\1" * path.stat().st_size), "Checksum failure"),
    ],
)
@pytest.mark.parametrize("kind", ["raw", "zstd"])
def test_a_bad_remote_shard_is_tried_again_then_named_and_never_enters_the_cache(
    corpora, tmp_path, kind, change, message, caplog
):
    shutil.copytree(corpora[0] / kind, tmp_path / "remote")
    change(next((tmp_path / "remote" / "train").glob("shard.00002.mds*")))
    source = open_source(tmp_path / "local", tmp_path / "remote", attempts=3)
    with pytest.raises(BadShard, match=message) as caught:
        source.document(2, 0)
    assert caught.value.shard == 2
    assert caplog.text.count("attempt") == 2
    assert shards_in(tmp_path / "local") == []
    assert len(source.document(3, 0))


def test_trouble_of_the_network_is_not_blamed_on_the_shard(remote, tmp_path, monkeypatch):
    source = open_source(tmp_path / "local", remote)

    def unreachable(*arguments):
        raise TimeoutError("no answer")

    monkeypatch.setattr(
        "streaming.base.storage.download.LocalDownloader._download_file_impl", unreachable
    )
    with pytest.raises(CacheError, match="no answer.*nothing says that the shard is bad"):
        source.document(0, 0)


def test_a_full_disk_is_not_blamed_on_the_shard(remote, tmp_path, monkeypatch):
    source = open_source(tmp_path / "local", remote, attempts=3)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("streaming.Stream.prepare_shard", full)
    with pytest.raises(CacheError, match="no space left for .*cache_limit"):
        source.document(0, 0)


def test_a_cache_that_cannot_be_written_is_reported(remote, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot write to the cache .*set `local` to a folder"):
        open_source(tmp_path / "file" / "local", remote)


def test_a_damaged_copy_is_fetched_again(remote, tmp_path, caplog):
    source = open_source(tmp_path / "local", remote)
    expected = source.document(0, 0)
    os.truncate(tmp_path / "local" / "train" / "shard.00000.mds", 100)
    again = open_source(tmp_path / "local", remote)
    np.testing.assert_array_equal(again.document(0, 0), expected)
    assert "fetching it again" in caplog.text


def test_shards_that_were_there_before_are_never_removed(corpora, remote, tmp_path):
    """They may be the only copy: a remote need not have what its index lists."""
    local = tmp_path / "local" / "train"
    local.mkdir(parents=True)
    kept = ["shard.00000.mds", "shard.00001.mds", "shard.00002.mds"]
    for name in kept:
        shutil.copy(remote / "train" / name, local)
        (remote / "train" / name).unlink()
    source = open_source(tmp_path / "local", remote, cache_limit_bytes=6 * SHARD_BYTES)
    assert_same(read_all(source), corpora[1])
    assert set(kept) <= set(shards_in(local))
    os.truncate(local / kept[0], 100)
    damaged = open_source(tmp_path / "local", remote)
    with pytest.raises(BadShard, match="truncated"):
        damaged.document(0, 0)
    assert (local / kept[0]).exists()


def test_a_folder_that_is_its_own_remote_is_never_evicted(remote):
    before = shards_in(remote)
    source = open_source(remote, f"{remote}/", cache_limit_bytes=4 * SHARD_BYTES)
    assert len(read_all(source)) == DOCUMENTS
    assert shards_in(remote) == before


def test_a_cache_too_small_for_what_is_being_read_goes_on_and_says_so(remote, tmp_path, caplog):
    limit, ready, done = 5 * SHARD_BYTES, fork.Event(), fork.Event()

    def hold():
        first = open_source(tmp_path / "local", remote, cache_limit_bytes=2 * limit)
        for shard in range(5):
            first.document(shard, 0)
        ready.set()
        assert done.wait(30)

    process = fork.Process(target=hold, daemon=True)
    process.start()
    assert ready.wait(30)
    source = open_source(tmp_path / "local", remote, cache_limit_bytes=limit)
    assert len(source.document(5, 0)) and len(source.document(6, 0))
    assert caplog.text.count("exceeds its cache_limit") == 1
    assert len(shards_in(tmp_path / "local")) == 6, "one that nobody else holds is evicted"
    done.set()
    process.join(30)


def test_a_shard_that_arrives_while_room_is_being_made_is_counted(corpora, tmp_path, monkeypatch):
    """Background fetches that end just while the shards that are here are listed."""
    from streaming import Stream

    fetch, listed = Stream.prepare_shard, ShardCache._present

    def slow_fetch(self, reader):
        time.sleep(0.03)
        return fetch(self, reader)

    def slow_list(self):
        found = listed(self)
        time.sleep(0.06)
        return found

    monkeypatch.setattr(Stream, "prepare_shard", slow_fetch)
    monkeypatch.setattr(ShardCache, "_present", slow_list)
    limit = 5 * SHARD_BYTES
    source = open_source(tmp_path / "local", corpora[0] / "raw", cache_limit_bytes=limit)
    count, peak = len(source.samples), 0
    for turn in range(2 * count):
        source.will_need([(turn + 1) % count, (turn + 2) % count])
        source.document(turn % count, 0)
        peak = max(peak, disk_bytes(tmp_path / "local"))
    source.close()
    assert limit // 2 < peak <= limit


@pytest.mark.parametrize("kind", ["raw", "zstd"])
def test_the_cache_stays_within_its_limit(corpora, tmp_path, kind):
    limit = 8 * SHARD_BYTES
    source = open_source(tmp_path / "local", corpora[0] / kind, cache_limit_bytes=limit)
    assert source.shard_bytes.sum() > limit
    peak, found = 0, []
    for shard in range(len(source.samples)):
        found += [source.document(shard, sample) for sample in range(source.samples[shard])]
        peak = max(peak, disk_bytes(tmp_path / "local"))
    assert limit // 2 < peak <= limit
    assert_same([(name, found[i]) for i, (name, _) in enumerate(corpora[1])], corpora[1])


def test_the_oldest_shards_are_evicted_first(remote, tmp_path):
    source = open_source(tmp_path / "local", remote, cache_limit_bytes=5 * SHARD_BYTES)
    for shard in range(5):
        source.document(shard, 0)
        source.close()
        age = time.time() - 100 + shard
        path = tmp_path / "local" / "train" / f"shard.{shard:05}.mds"
        os.utime(path, (age, age))
    source.document(0, 0)  # used again, hence the youngest
    source.close()
    source.document(5, 0)
    names = shards_in(tmp_path / "local")
    assert "shard.00001.mds" not in names
    assert {"shard.00000.mds", "shard.00004.mds", "shard.00005.mds"} <= set(names)


def test_a_limit_that_cannot_work_is_refused_at_once(remote, tmp_path):
    with pytest.raises(ValueError, match="cache_limit 10000b is too small: .* four of the largest"):
        open_source(tmp_path / "local", remote, cache_limit_bytes=SHARD_BYTES)


# ---- several processes


def count_fetches(monkeypatch, log, before=lambda: None):
    """Note the name of every shard that is fetched in a file that all processes append to."""
    from streaming import Stream

    fetch = Stream.prepare_shard

    def counted(self, reader):
        with open(log, "a") as file:
            file.write(reader.raw_data.basename + "\n")
        before()
        return fetch(self, reader)

    monkeypatch.setattr(Stream, "prepare_shard", counted)


def test_processes_that_share_a_cache_fetch_each_shard_once(corpora, tmp_path, monkeypatch):
    root, documents = corpora
    count_fetches(monkeypatch, tmp_path / "log", lambda: os.sched_yield())

    def reader(start):
        def read():
            source = open_source(tmp_path / "local", root / "raw")
            count = len(source.samples)
            source.will_need(range(count))
            for shard in np.roll(np.arange(count), start).tolist():
                assert source.document_id(shard, 0)
                source.document(shard, 0)
            assert_same(read_all(source), documents)

        return read

    run_forked(*(reader(start) for start in (0, 0, 3, 5)))
    fetched = (tmp_path / "log").read_text().split()
    assert sorted(fetched) == shards_in(root / "raw")
    assert shards_in(tmp_path / "local") == shards_in(root / "raw")


def test_processes_that_share_a_small_cache_read_right_and_keep_the_limit(corpora, tmp_path):
    root, documents = corpora
    limit = 8 * SHARD_BYTES
    peak = fork.Value("q", 0)

    def read():
        source = open_source(tmp_path / "local", root / "zstd", cache_limit_bytes=limit)
        for _ in range(2):
            source.will_need(range(4))
            assert_same(read_all(source), documents)
            peak.value = max(peak.value, disk_bytes(tmp_path / "local"))

    run_forked(read, read)
    assert 0 < peak.value <= limit


def test_a_shard_that_another_process_reads_is_not_evicted(remote, tmp_path):
    ready, done = fork.Event(), fork.Event()
    limit = 6 * SHARD_BYTES

    def hold():
        source = open_source(tmp_path / "local", remote, cache_limit_bytes=limit)
        source.document(0, 0)
        ready.set()
        assert done.wait(30)

    def read_the_others():
        assert ready.wait(30)
        held = tmp_path / "local" / "train" / "shard.00000.mds"
        os.utime(held, (1, 1))
        source = open_source(tmp_path / "local", remote, cache_limit_bytes=limit)
        for shard in range(1, len(source.samples)):
            source.document(shard, 0)
            assert held.exists()
        done.set()

    run_forked(hold, read_the_others)
    source = open_source(tmp_path / "local", remote, cache_limit_bytes=limit)
    (tmp_path / "local" / "train" / "shard.00001.mds").unlink(missing_ok=True)
    source.document(1, 0)  # nobody holds it any more
    assert not (tmp_path / "local" / "train" / "shard.00000.mds").exists()


def test_a_worker_does_not_hold_what_its_parent_had_open_at_the_fork(remote, tmp_path):
    ready, done = fork.Event(), fork.Event()
    source = open_source(tmp_path / "local", remote, cache_limit_bytes=5 * SHARD_BYTES)
    source.document(0, 0)

    def work():
        source.document(1, 0)
        ready.set()
        assert done.wait(60)

    worker = fork.Process(target=work, daemon=True)
    worker.start()
    assert ready.wait(60)
    for shard in range(2, 6):
        source.document(shard, 0)
    assert "shard.00000.mds" not in shards_in(tmp_path / "local")
    done.set()
    worker.join(60)
    assert worker.exitcode == 0


def test_a_process_killed_while_it_fetches_leaves_nothing_in_the_way(
    corpora, remote, tmp_path, monkeypatch
):
    started = fork.Event()

    def die():
        def hang(self, reader):
            staged = Path(self.local) / reader.raw_data.basename
            staged.write_bytes(b"half")
            started.set()
            signal.pause()

        monkeypatch.setattr("streaming.Stream.prepare_shard", hang)
        open_source(tmp_path / "local", remote, cache_limit_bytes=limit).document(0, 0)

    limit = 5 * SHARD_BYTES
    process = fork.Process(target=die, daemon=True)
    process.start()
    assert started.wait(30)
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    staged = list((tmp_path / "local").rglob("slot-*/*.mds"))
    assert len(staged) == 1
    assert shards_in(tmp_path / "local") == []

    source = open_source(tmp_path / "local", remote, cache_limit_bytes=limit)
    source.document(1, 0)
    assert not staged[0].exists(), "what the killed process staged still takes space"
    assert_same(read_all(source), corpora[1])


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        os.sched_yield()


def test_what_will_be_needed_is_fetched_in_the_background(remote, tmp_path):
    source = open_source(tmp_path / "local", remote)
    source.will_need([4, 2])
    wait_for(lambda: shards_in(tmp_path / "local") == ["shard.00002.mds", "shard.00004.mds"])
    shutil.rmtree(remote)
    assert len(source.document(4, 0))


def test_prefetching_takes_no_more_than_its_share_of_the_cache(remote, tmp_path):
    limit = 12 * SHARD_BYTES
    source = open_source(tmp_path / "local", remote, cache_limit_bytes=limit)
    source.will_need(range(len(source.samples)))
    wait_for(lambda: len(shards_in(tmp_path / "local")) == 3)
    time.sleep(0.2)
    assert disk_bytes(tmp_path / "local") <= limit // 4


def test_a_prefetch_that_fails_is_logged_and_raises_only_for_who_reads(remote, tmp_path, caplog):
    (remote / "train" / "shard.00001.mds").unlink()
    source = open_source(tmp_path / "local", remote)
    with caplog.at_level(logging.WARNING):
        source.will_need([1, 2])
        wait_for(lambda: shards_in(tmp_path / "local") == ["shard.00002.mds"])
        wait_for(lambda: "prefetch of shard 1" in caplog.text)
    assert len(source.document(2, 0))
    with pytest.raises(BadShard):
        source.document(1, 0)


def test_workers_forked_from_a_process_that_prefetches_read_on_their_own(corpora, remote, tmp_path):
    source = open_source(tmp_path / "local", remote)
    source.will_need(range(4))
    source.document(5, 0)

    def read():
        source.will_need([6, 7])
        wait_for(lambda: "shard.00007.mds" in shards_in(tmp_path / "local"))
        assert_same(read_all(source), corpora[1])

    run_forked(read, read)


def test_two_runs_with_caches_of_their_own_do_not_meet(corpora, tmp_path):
    root, documents = corpora

    def reader(name):
        return lambda: assert_same(read_all(open_source(tmp_path / name, root / "raw")), documents)

    run_forked(reader("one"), reader("two"))
    for name in ("one", "two"):
        state = json.loads((tmp_path / name / "train" / STATE / "kept.json").read_text())
        assert state == []
