"""An object store read, written and refused: one message for each thing a person has to mend."""

import hashlib
import json
import subprocess
import sys
import threading

import pytest
import tiny_run
from reference.s3 import BUCKET

from tessera import fetch
from tessera.cli.main import main
from tessera.config import decode
from tessera.object_store import (
    PART_BYTES,
    Conflict,
    ReadOnlyStore,
    S3Store,
    StoreError,
    StoreUnavailable,
)
from tessera.training.config import RunConfig
from tessera.training.remote import lease, remote_run
from tessera.training.remote.lease import LeaseHeld, LeaseLost, acquire

PLACE = f"s3://{BUCKET}/run"


@pytest.fixture
def store(s3):
    return S3Store(PLACE)


# ---- objects


def test_objects_are_written_whole_read_and_listed(store, tmp_path):
    assert store.read("a") is None and store.list() == {}
    store.write("a", b"1")
    store.write("deep/b", b"22")
    assert store.read("a").content == b"1" and store.read("a").age_seconds < 60
    assert {name: entry.bytes for name, entry in store.list().items()} == {"a": 1, "deep/b": 2}
    assert list(store.list("deep/")) == ["deep/b"]
    large = tmp_path / "large"
    large.write_bytes(bytes(range(256)) * (2 * PART_BYTES // 256 + 1))
    with large.open("rb") as file:
        store.upload("large", file)
    store.download("large", tmp_path / "deep" / "back")
    assert (tmp_path / "deep" / "back").read_bytes() == large.read_bytes()
    store.delete(["a", "gone"])
    assert "a" not in store.list()


def test_a_conditional_write_finds_out_that_somebody_was_there(store):
    version = store.write("a", b"1", new=True)
    with pytest.raises(Conflict):
        store.write("a", b"2", new=True)
    newer = store.write("a", b"2", replaces=version)
    with pytest.raises(Conflict):
        store.write("a", b"3", replaces=version)
    store.delete(["a"])
    with pytest.raises(Conflict):
        store.write("a", b"3", replaces=newer)


def test_requests_that_fail_now_and_then_are_repeated(s3, store, tmp_path):
    tried = set()

    def first_try(request):
        about = request.method, request.path
        if about in tried:
            return None
        tried.add(about)
        return ("drop", 503)[len(tried) % 2]

    s3.judge = first_try
    content = bytes(3 * PART_BYTES)
    (tmp_path / "x").write_bytes(content)
    with (tmp_path / "x").open("rb") as file:
        store.upload("x", file)
    store.download("x", tmp_path / "y")
    assert (tmp_path / "y").read_bytes() == content and len(tried) > 4


@pytest.mark.parametrize(
    ("verdict", "error", "said"),
    [
        (503, StoreUnavailable, "does not answer"),
        ("drop", StoreUnavailable, "does not answer"),
        ("ExpiredToken", StoreError, "the credentials have expired; renew them"),
        ("InvalidAccessKeyId", StoreError, "the credentials are not known there"),
        ("SignatureDoesNotMatch", StoreError, "the credentials are wrong"),
        ("AccessDenied", StoreError, "may not be read with these credentials"),
        ("AuthorizationHeaderMalformed", StoreError, "in another region"),
    ],
)
def test_trouble_is_said_in_one_line(verdict, error, said, s3, store):
    s3.judge = lambda request: verdict
    with pytest.raises(error, match=said) as refused:
        store.list()
    assert PLACE in str(refused.value) and "\n" not in str(refused.value)
    assert "secret-of-tests" not in str(refused.value)


def test_a_missing_bucket_and_missing_credentials_are_named(s3, monkeypatch):
    with pytest.raises(StoreError, match="there is no bucket 'other-bucket'"):
        S3Store("s3://other-bucket/run").list()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(StoreError, match="no credentials for it were found; set AWS_ACCESS_KEY"):
        S3Store(PLACE).list()


def test_names_that_lead_out_of_the_folder_are_refused(s3, store, tmp_path):
    s3.client().put_object(Bucket=BUCKET, Key="run/../../escaped", Body=b"x")
    with pytest.raises(ValueError, match="holds an object of the name '../../escaped'"):
        fetch.local(PLACE)
    assert not list(tmp_path.rglob("escaped"))


# ---- the lease


def test_one_of_many_gets_the_lease(store):
    got, refused = [], []

    def want():
        try:
            got.append(acquire(S3Store(PLACE), 60.0))
        except (LeaseHeld, Conflict) as error:
            refused.append(error)

    def alive():
        while len(refused) < 5 and len(got) < 2:
            for held, _ in got:
                held.renew()

    lease_process = lease.this_process
    threads = [threading.Thread(target=want) for _ in range(6)]
    try:
        # Six threads are one process, which may take back its own: each is to be another.
        lease.this_process = lambda: f"elsewhere/1/{threading.get_ident()}/1"
        for thread in threads:
            thread.start()
        renewing = threading.Thread(target=alive)
        renewing.start()
        for thread in [*threads, renewing]:
            thread.join(timeout=60)
    finally:
        lease.this_process = lease_process
    assert len(got) == 1 and len(refused) == 5


def elsewhere(monkeypatch, name):
    monkeypatch.setattr(lease, "this_process", lambda: f"{name}/1/1/1")


@pytest.mark.parametrize("answer", ["ignored", "NotImplemented"])
def test_a_store_without_conditional_writes_is_refused(answer, s3, tmp_path, capsys):
    """In it two runs could write over each other, and neither would find out."""
    s3.heeds_conditions = answer != "ignored"
    if answer != "ignored":
        s3.judge = lambda r: answer if r.method == "PUT" and r.path.endswith("lease.json") else None
    corpus = tiny_run.make_corpus(tmp_path / "corpus", documents=30)
    with pytest.raises(StoreError, match=r"s3://bucket/run: this store writes without regard"):
        tiny_run.train(tiny_run.settings(corpus, PLACE))
    assert s3.names() == []


def test_a_lease_that_is_not_renewed_is_taken_over_and_the_old_holder_finds_out(store, monkeypatch):
    elsewhere(monkeypatch, "one")
    first, before = acquire(store, 2.0)
    assert before == 0
    elsewhere(monkeypatch, "two")
    said = []
    second, before = acquire(store, 2.0, said.append)
    assert before == first.terms.generation == 1 and "waiting up to" in said[0]
    with pytest.raises(LeaseLost, match="taken over by a run on"):
        first.renew()
    second.renew()


def test_a_lease_that_was_released_is_free_at_once_and_counts_on(store, monkeypatch):
    for generation in range(3):
        elsewhere(monkeypatch, str(generation))
        held, before = acquire(store, 600.0)
        assert before == generation
        held.renew()
        held.release()


def test_the_lease_of_a_process_that_is_gone_from_this_machine_is_free(store):
    script = "import sys; from tessera.object_store import S3Store\n"
    script += (
        "from tessera.training.remote.lease import acquire; acquire(S3Store(sys.argv[1]), 600)"
    )
    command = [sys.executable, "-c", script, PLACE]
    assert subprocess.run(command, env=tiny_run.environment()).returncode == 0
    _, before = acquire(store, 600.0)
    assert before == 1


def test_a_write_whose_answer_was_lost_is_no_other_run(s3, store):
    held, _ = acquire(store, 60.0)
    mine = json.loads(store.read("lease.json").content)
    store.write("lease.json", json.dumps({**mine, "renewals": 7}).encode())
    held.renew()  # finds its own name where it expected an older version


# ---- what keeps a run from starting


def config(tmp_path, **changes):
    return decode(RunConfig, tiny_run.settings(tmp_path, PLACE, **changes), "test")


def test_a_bucket_that_is_read_only_is_found_before_training(s3, tmp_path):
    s3.judge = lambda request: "AccessDenied" if request.method in {"PUT", "POST"} else None
    with pytest.raises(StoreError, match="may not be written to with these credentials"):
        remote_run.open_remote(config(tmp_path), print)


def test_a_lease_that_was_deleted_is_not_called_a_takeover(s3):
    store = S3Store(PLACE)
    lease, _ = acquire(store, 60.0)
    store.delete(["lease.json"])
    with pytest.raises(LeaseLost, match="lease.json is gone from .*: somebody deleted it"):
        lease.renew()


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("run_folder", {"run_folder": "s3://no-such-bucket/run"}),
        ("checkpoints.remote", {"checkpoints__remote": "s3://no-such-bucket/run"}),
    ],
)
def test_check_and_main_name_the_key_of_a_missing_bucket(key, changes, s3, tmp_path, capsys):
    corpus = tiny_run.make_corpus(tmp_path / "corpus", documents=20)
    folder = changes.pop("run_folder", str(tmp_path / "run"))
    path = tiny_run.write_yaml(tmp_path / "r.yaml", tiny_run.settings(corpus, folder, **changes))
    assert main(["check", str(path)]) == 2
    assert f"{key}: s3://no-such-bucket/run: there is no bucket" in capsys.readouterr().err
    done = tiny_run.start(path)
    said, _ = done.communicate(timeout=120)
    assert done.returncode == 2 and "there is no bucket" in said and "Traceback" not in said


def test_check_reads_the_index_of_a_source_that_is_elsewhere(s3, tmp_path, capsys):
    corpus = tiny_run.make_corpus(tmp_path / "corpus", documents=20)
    for path in (corpus / "web").rglob("*.*"):
        key = f"data/web/{path.relative_to(corpus / 'web')}"
        s3.client().put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
    hostile = b'{"shards": [{"format": "mds", "raw_data": {"basename": "../../x", "bytes": 1}}]}'
    s3.client().put_object(Bucket=BUCKET, Key="bad/train/index.json", Body=hostile)
    places = {
        f"s3://{BUCKET}/data/web": None,
        str(corpus / "web"): None,
        f"s3://{BUCKET}/nothing": f"s3://{BUCKET}/nothing/train holds no index.json",
        "s3://no-such-bucket/web": "there is no bucket",
        f"s3://{BUCKET}/bad": "is not an index of MDS shards",
        str(tmp_path / "nothing"): "does not exist",
    }
    for number, (place, problem) in enumerate(places.items()):
        plain = tiny_run.settings(corpus, tmp_path / "run")
        source = plain["train_data"]["sources"]["web"]
        source |= {"remote": place, "local": str(tmp_path / f"cache{number}")}
        status = main(["check", str(tiny_run.write_yaml(tmp_path / "r.yaml", plain))])
        said = capsys.readouterr()
        assert status == (2 if problem else 0), said.err
        if problem:
            assert "train_data.sources.web" in said.err and problem in said.err
        assert not (tmp_path / f"cache{number}").exists()


@pytest.mark.parametrize(
    ("verdict", "said"),
    [("ExpiredToken", "have expired"), ("AccessDenied", "may not be read")],
)
def test_every_command_says_in_one_line_what_is_wrong(verdict, said, s3, capsys):
    s3.judge = lambda request: verdict
    for command in (
        ["report", PLACE],
        ["export", PLACE, "--out", "x"],
        ["release", PLACE, "--out", "x"],
        ["evaluate", PLACE, "--fill", "[MASK]"],
        ["merge", PLACE, PLACE, "--out", "x.pt"],
        ["import", PLACE, "--out", "x.pt"],
    ):
        assert main(command) == 2
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1 and said in err and PLACE in err, command


# ---- reading


def put_run(store, folder):
    """A run folder of the local disk, as an upload leaves it."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.name != ".lock":
            name = str(path.relative_to(folder))
            store.write(name, path.read_bytes())
            if path.suffix == ".pt":
                said = {"bytes": path.stat().st_size, "sha256": fetch.sha256_of(path)}
                store.write(f"{name.removesuffix('.pt')}.json", json.dumps(said).encode())


def test_commands_read_runs_models_and_tokenizers_from_a_store(s3, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    corpus = tiny_run.make_corpus(tmp_path / "corpus", documents=40)
    local = tmp_path / "local"
    constant = {"duration": "900tok", "schedule": {"name": "constant"}}
    short = {**constant, "checkpoints__interval": "1ba"}
    assert tiny_run.train(tiny_run.settings(corpus, local, **short)) == 0
    put_run(store, local)
    put_run(S3Store(f"s3://{BUCKET}/tokenizer"), corpus / "tokenizer")
    newest = sorted((local / "checkpoints").glob("step*.pt"))[-1].name
    plain = tiny_run.settings(corpus, tmp_path / "next", **constant, start_from=PLACE, seed=5)
    plain["tokenizer"] = f"s3://{BUCKET}/tokenizer"
    path = tiny_run.write_yaml(tmp_path / "next.yaml", plain)
    assert main(["check", str(path)]) == 0
    assert tiny_run.train(plain) == 0
    assert main(["report", PLACE]) == 0 and (tmp_path / "report.html").exists()
    assert main(["export", PLACE, "--out", "model"]) == 0
    put_run(S3Store(f"s3://{BUCKET}/model"), tmp_path / "model")
    assert main(["evaluate", f"s3://{BUCKET}/model", "--fill", "w1 [MASK] w2"]) == 0
    checkpoint = f"{PLACE}/checkpoints/{newest}"
    assert main(["batches", str(path), "seed=3", "--start-from", checkpoint, "--steps", "1"]) == 0
    assert main(["import", f"s3://{BUCKET}/model", "--out", "imported.pt"]) == 0
    assert main(["merge", checkpoint, f"s3://{BUCKET}/model", "--out", "merged.pt"]) == 0
    assert main(["release", PLACE, "--out", "release"]) == 0
    assert not (tmp_path / "s3:").exists()


def test_a_copy_is_compared_fetched_again_when_it_changed_and_only_then(s3, store, tmp_path):
    run = tmp_path / "run" / "checkpoints"
    run.mkdir(parents=True)
    (run / "step00000001.pt").write_bytes(b"one")
    put_run(store, tmp_path / "run")
    copy = fetch.local(PLACE) / "checkpoints" / "step00000001.pt"
    assert copy.read_bytes() == b"one"
    s3.requests.clear()
    fetch.local(PLACE)
    assert not [request for request in s3.requests if request.key.endswith(".pt")]
    (run / "step00000001.pt").write_bytes(b"two")
    put_run(store, tmp_path / "run")
    fetch.local(PLACE)
    assert copy.read_bytes() == b"two"
    store.write("checkpoints/step00000001.pt", b"six")
    with pytest.raises(StoreError, match="step00000001.pt: is damaged"):
        fetch.local(PLACE)
    assert not copy.exists(), "what is not right does not stay"


def test_a_checkpoint_that_was_cut_off_is_not_the_newest(s3, store, tmp_path):
    run = tmp_path / "run" / "checkpoints"
    run.mkdir(parents=True)
    (run / "step00000001.pt").write_bytes(b"one")
    put_run(store, tmp_path / "run")
    store.write("checkpoints/step00000002.pt", b"half")
    assert [p.name for p in fetch.local(PLACE).rglob("*.pt")] == ["step00000001.pt"]
    with pytest.raises(StoreError, match="there is no such file or folder"):
        fetch.local(f"{PLACE}/checkpoints/step00000009.pt")


def test_what_fsspec_reads_is_read(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe({"/runs/a/config.json": b"{}", "/runs/a/deep/b": b"22"})
    store = ReadOnlyStore("memory://runs/a")
    assert {name: entry.bytes for name, entry in store.list().items()} == {
        "config.json": 2,
        "deep/b": 2,
    }
    assert store.read("deep/b").content == b"22" and store.read("c") is None
    store.download("deep/b", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"22"
    with pytest.raises(StoreError, match="gcsfs|cannot be read"):
        fetch.local("gs://no-such-bucket-of-anyone/x")


# ---- what comes back to a disk


def restored(tmp_path, *, generation, before, cached=True):
    from tessera.training.remote.restore import restore

    said = []
    folder = tmp_path / "folder"
    restore(
        S3Store(PLACE),
        folder,
        generation=generation,
        before=before,
        cached=cached,
        say=said.append,
    )
    return sorted(path.name for path in (folder / "checkpoints").iterdir()), said


def put_checkpoint(store, step, content):
    name = f"checkpoints/step{step:08d}"
    store.write(f"{name}.pt", content)
    said = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    store.write(f"{name}.json", json.dumps(said).encode())


def test_a_disk_that_missed_nothing_keeps_what_was_not_uploaded(store, tmp_path):
    put_checkpoint(store, 1, b"one")
    assert restored(tmp_path, generation=1, before=0)[0] == ["step00000001.pt"]
    (tmp_path / "folder" / "checkpoints" / "step00000002.pt").write_bytes(b"two")
    names, _ = restored(tmp_path, generation=2, before=1)
    assert names == ["step00000001.pt", "step00000002.pt"]


def test_a_disk_that_missed_another_run_is_overruled_and_nothing_of_it_is_deleted(store, tmp_path):
    put_checkpoint(store, 1, b"one")
    restored(tmp_path, generation=1, before=0)
    (tmp_path / "folder" / "checkpoints" / "step00000002.pt").write_bytes(b"two")
    put_checkpoint(store, 2, b"another two")
    names, _ = restored(tmp_path, generation=3, before=2)
    assert names == ["step00000001.pt", "step00000002.pt", "step00000002.pt.superseded"]
    brought = tmp_path / "folder" / "checkpoints" / "step00000002.pt"
    assert brought.read_bytes() == b"another two"


def test_a_store_that_was_emptied_begins_anew(store, tmp_path):
    put_checkpoint(store, 1, b"one")
    restored(tmp_path, generation=1, before=0)
    store.delete(list(store.list()))
    assert restored(tmp_path, generation=1, before=0)[0] == ["step00000001.pt.superseded"]


def test_records_that_were_cleared_away_come_back(store, tmp_path):
    put_checkpoint(store, 1, b"one")
    store.write("metrics.jsonl", b"{}\n")
    store.write("checkpoints/pinned.json", b"[1]")
    restored(tmp_path, generation=1, before=0)
    path = tmp_path / "folder" / "metrics.jsonl"
    path.unlink()
    pins = tmp_path / "folder" / "checkpoints" / "pinned.json"
    pins.write_bytes(b"[1, 2]")
    restored(tmp_path, generation=2, before=1)
    assert path.read_bytes() == b"{}\n" and pins.read_bytes() == b"[1, 2]"
