"""Text from object stores, and shards into them: a real S3 protocol and a real hub client."""

import json

import pytest
from preparing import call, contents, make_records, make_tokenizer, write_jsonl
from reference.fake_hub import data_hub
from reference.s3 import environment, serve

pytest.importorskip("moto")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "t")


@pytest.fixture(scope="module")
def one_server():
    with serve() as server:
        yield server


@pytest.fixture
def server(one_server, tmp_path, monkeypatch):
    """The server, letting everything pass, which processes started here will use."""
    one_server.fail_each(0)
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("S3_ENDPOINT_URL", one_server.endpoint)
    return one_server


@pytest.fixture(scope="module")
def corpus(one_server, tmp_path_factory):
    """The same text in a local folder and in a bucket."""
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path_factory.mktemp("corpus")
    records = make_records(400)
    write_jsonl(folder / "stack" / "a.jsonl", records[:200])
    table = pyarrow.Table.from_pylist(records[200:])
    pyarrow.parquet.write_table(table, folder / "stack" / "b.parquet", row_group_size=40)
    (folder / "stack" / "c.txt").write_text("tile row mosaic")
    one_server.put("corpora", contents(folder))
    return folder


def options(tokenizer, out):
    common = ["--tokenizer", tokenizer, "--out", out, "--part-size", "5kb", "--shard-size", "3kb"]
    return [*common, "--validation-share", "0.2", "--workers", "1"]


def shards(found):
    return {name: content for name, content in found.items() if name.endswith(".mds")}


def assert_the_same_documents(local, remote):
    """The index of a store names the same shards in the same order, below folders of parts."""
    for split in ("train", "validation"):
        ours = json.loads(remote[f"{split}/index.json"])["shards"]
        theirs = json.loads(local[f"{split}/index.json"])["shards"]
        assert len(ours) == len(theirs) > 3
        for our, their in zip(ours, theirs, strict=True):
            assert our["raw_data"]["hashes"] == their["raw_data"]["hashes"]
            ours_content = remote[f"{split}/{our['raw_data']['basename']}"]
            assert ours_content == local[f"{split}/{their['raw_data']['basename']}"]
    assert not [name for name in remote if ".parts" in name]


def test_a_bucket_gives_the_shards_of_the_folder_even_if_it_fails_now_and_then(
    server, corpus, tokenizer, tmp_path
):
    done = call("tokenize", corpus / "stack", *options(tokenizer, tmp_path / "local"))
    assert done.returncode == 0, done.stderr
    server.fail_each(11)
    refused = server.refused
    arguments = options(tokenizer, tmp_path / "remote")
    done = call("tokenize", "stack=s3://corpora/stack", *arguments)
    assert done.returncode == 0, done.stderr
    assert server.refused > refused
    local, remote = contents(tmp_path / "local"), contents(tmp_path / "remote")
    assert shards(local) == shards(remote) and len(shards(local)) > 6
    assert local["stack/train/index.json"] == remote["stack/train/index.json"]
    done = call("tokenize", "stack=s3://corpora/stack", *arguments)
    assert (done.returncode, "nothing to do" in done.stdout) == (0, True), done.stderr


def test_a_glob_takes_the_objects_that_match(server, corpus, tokenizer, tmp_path):
    arguments = options(tokenizer, tmp_path / "out")
    done = call("tokenize", "s3://corpora/stack/*.parquet", *arguments)
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "out/stack/train/tessera.json").read_text())["prepared_from"]
    assert [name for name, _, _ in plan["files"]] == ["b.parquet"]


@pytest.mark.slow
def test_shards_go_into_a_bucket_and_are_trained_on_from_there(server, corpus, tokenizer, tmp_path):
    done = call("tokenize", corpus / "stack", *options(tokenizer, tmp_path / "local"))
    server.put("shards", {})
    server.fail_each(12)
    arguments = options(tokenizer, "s3://shards/mine")
    done = call("tokenize", corpus / "stack", *arguments)
    assert done.returncode == 0, done.stderr
    server.fail_each(0)
    local, remote = (
        contents(tmp_path / "local/stack"),
        server.objects("shards", "mine/stack/"),
    )
    assert_the_same_documents(local, remote)
    ours, theirs = (json.loads(found["train/tessera.json"]) for found in (remote, local))
    assert ours == theirs
    done = call("tokenize", corpus / "stack", *arguments)
    assert (done.returncode, "nothing to do" in done.stdout) == (0, True), done.stderr
    done = call("tokenize", corpus / "stack", *arguments, "--part-size=6kb")
    assert (done.returncode, "other part_bytes" in done.stderr) == (2, True)

    from tessera.data.sources.mds import MdsDocuments

    where = "s3://shards/mine/stack"
    source = MdsDocuments("stack", tmp_path / "cache", remote=where, split="train")
    here = MdsDocuments("stack", tmp_path / "local/stack", split="train")
    assert source.samples.sum() == here.samples.sum() > 300
    last = len(source.samples) - 1
    assert (source.document(last, 0) == here.document(last, 0)).all()
    source.close()


@pytest.mark.slow
def test_killed_on_its_way_to_a_bucket_it_goes_on_and_uploads_no_part_twice(
    server, corpus, tokenizer, tmp_path
):
    server.put("interrupted", {})
    arguments = options(tokenizer, "s3://interrupted/mine")
    server.deny("/interrupted/mine/stack/train/.parts/000003.json")
    done = call("tokenize", corpus / "stack", *arguments)
    assert done.returncode == 2 and "no permission" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    begun = server.objects("interrupted", "mine/stack/train/")
    assert ".parts/000002.json" in begun and ".parts/000003.json" not in begun
    assert "index.json" not in begun
    server.fail_each(0)
    server.requests.clear()
    done = call("tokenize", corpus / "stack", *arguments)
    assert done.returncode == 0, done.stderr
    uploaded = [r.path for r in server.requests if r.method == "PUT" and ".mds" in r.path]
    assert uploaded and not [path for path in uploaded if "train/000002/" in path]
    done = call("tokenize", corpus / "stack", *options(tokenizer, tmp_path / "local"))
    local = contents(tmp_path / "local/stack")
    assert_the_same_documents(local, server.objects("interrupted", "mine/stack/"))


@pytest.mark.parametrize(
    ("address", "denied", "message"),
    [
        ("s3://no-such-bucket/x", [], "s3://no-such-bucket/x: no such bucket; correct the name"),
        ("s3://corpora/nothing", [], "s3://corpora/nothing: does not exist"),
        ("s3://corpora/*.csv", [], r"s3://corpora/*.csv: nothing is there"),
        ("s3://corpora/stack", ["/corpora"], "s3://corpora/stack: no permission; check the cred"),
        ("ftq://corpora/stack", [], "ftq://corpora/stack: no reader for ftq://"),
    ],
)
def test_what_is_wrong_with_an_input_is_one_message(
    server, corpus, tokenizer, tmp_path, address, denied, message
):
    server.deny(*denied)
    arguments = options(tokenizer, tmp_path / "out")
    done = call("tokenize", f"x={address}", *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("bucket_name", "denied", "message"),
    [("no-such-bucket", [], "no such bucket"), ("corpora", ["/corpora/out"], "no permission")],
)
def test_what_is_wrong_with_an_output_is_one_message(
    server, corpus, tokenizer, bucket_name, denied, message
):
    server.deny(*denied)
    arguments = options(tokenizer, f"s3://{bucket_name}/out")
    done = call("tokenize", corpus / "stack", *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_data_set_of_the_hub_is_read_by_its_address(tokenizer, tmp_path):
    records = make_records(200)
    lines = "".join(json.dumps(row) + "\n" for row in records).encode()
    files = {
        "README.md": b"# card",
        "data/train-00000-of-00001.jsonl": lines,
        "data/validation-00000-of-00001.jsonl": lines[: len(lines) // 2].rpartition(b"\n")[0],
        "data/test-00000-of-00001.jsonl": b'{"text": "SECRET"}\n',
    }
    with data_hub({"org/corpus": files}) as url:
        environment = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home")}
        arguments = ["--tokenizer", tokenizer, "--out", tmp_path / "out", "--part-size", "5kb"]
        address = "web=hf://datasets/org/corpus"
        done = call("tokenize", address, *arguments, **environment)
        assert done.returncode == 0, done.stderr
        assert "1 files called test" in done.stderr
        summary = json.loads((tmp_path / "out/web/train/tessera.json").read_text())
        assert summary["documents"] == 200
        assert (tmp_path / "out/web/validation/index.json").exists()
        done = call("tokenize", "x=hf://datasets/org/nothing", *arguments, **environment)
    assert done.returncode == 2 and "hf://datasets/org/nothing: does not exist" in done.stderr


@pytest.mark.slow
def test_cleaned_text_goes_to_a_bucket_and_is_tokenised_from_there(server, tokenizer, tmp_path):
    pytest.importorskip("datatrove")
    rows = make_records(60)
    copies = [{"id": f"again{i}", "text": row["text"]} for i, row in enumerate(rows[:7])]
    lines = [json.dumps(row, ensure_ascii=False) for row in [*rows, *copies]]
    server.put("raw", {"web/a.jsonl": "\n".join(lines).encode()})
    server.put("cleaned", {})
    arguments = ["web=s3://raw/web", "--out", "s3://cleaned/corpus", "--work", tmp_path / "work"]
    options = ["--duplicates", "exact", "--workers", "1", "--part-size", "5kb"]
    server.fail_each(9)
    done = call("clean", *arguments, *options)
    assert done.returncode == 0, done.stderr
    assert "7 removed, copy" in done.stdout
    names = server.names("cleaned")
    assert "corpus/cleaning.json" in names and "corpus/web/000000.jsonl.zst" in names
    assert not [name for name in names if name.endswith("_unfinished")]
    again = call("clean", *arguments, *options)
    assert "is up to date" in again.stdout
    out = ["--out", tmp_path / "out", "--tokenizer", tokenizer, "--validation-share", "0.2"]
    done = call("tokenize", "web=s3://cleaned/corpus/web", *out)
    assert done.returncode == 0, done.stderr
    documents = [
        json.loads((tmp_path / f"out/web/{split}/tessera.json").read_text())["documents"]
        for split in ("train", "validation")
    ]
    assert sum(documents) == 60


def test_a_bucket_that_may_not_be_written_to_is_said_before_anything_is_cleaned(server, tmp_path):
    pytest.importorskip("datatrove")
    write_jsonl(tmp_path / "a.jsonl", make_records(5))
    server.put("closed", {})
    server.deny("/closed")
    options = ["--out", "s3://closed/corpus", "--work", tmp_path / "work"]
    done = call("clean", tmp_path / "a.jsonl", *options)
    assert done.returncode == 2 and "no permission" in done.stderr, done.stderr
    assert "filtering" not in done.stderr
