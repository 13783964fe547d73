"""`tessera data`: what is seen of shards, which are adopted, and what becomes of other people's."""

import json
import subprocess
import sys

import numpy as np
import pytest
from tiny_run import environment, make_corpus

from tessera.cli.main import main
from tessera.data.sources.mds import MdsDocuments
from tessera.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def publish(folder, *, column="input_ids", encoding="ndarray:uint32", framed=True, **writer):
    """Shards as others publish them: of words of the tiny tokenizer, without a manifest."""
    from streaming import MDSWriter

    rng = np.random.default_rng(0)
    columns = {"id": "str", column: encoding}
    with MDSWriter(columns=columns, out=str(folder), size_limit=4000, **writer) as out:
        for i in range(60):
            tokens = rng.integers(5, 255, rng.integers(1, 90))
            if encoding == "str":
                value = " ".join(f"w{t - 5}" for t in tokens)
            else:
                value = np.array([1, *tokens, 2] if framed else tokens, np.uint32)
                value = value.astype(np.int64).tobytes() if encoding == "bytes" else value
            out.write({"id": f"d{i}", column: value})
    return folder


def shown(capsys, *arguments):
    status = main(["data", *map(str, arguments)])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return status, printed.out, printed.err


def test_our_shards_are_shown_with_text_and_a_masked_row(corpus, capsys):
    status, out, _ = shown(capsys, "inspect", corpus / "web" / "train")
    assert status == 0
    assert "columns      id (str), input_ids (ndarray:uint16)" in out
    assert "documents    240" in out
    assert "tokens in a document" in out and "####" in out
    assert "tokenizer, which made these shards" in out
    assert "document web-train-" in out and "w4" in out
    assert "to predict, shown as <seen|true>" in out and "<[MASK]|w" in out
    assert "split: train, validation_split: validation}" in out


def test_the_histogram_adds_up(capsys, corpus):
    _, out, _ = shown(capsys, "inspect", corpus / "web" / "train")
    rows = [line for line in out.splitlines() if line.rstrip().endswith("%")]
    documents, tokens = (sum(float(line.split()[n].rstrip("%")) for line in rows) for n in (-2, -1))
    assert documents == pytest.approx(100, abs=0.5) and tokens == pytest.approx(100, abs=0.5)


def test_a_folder_of_splits_shows_each(corpus, capsys):
    status, out, _ = shown(capsys, "inspect", corpus / "web")
    assert status == 0
    assert f"{corpus / 'web' / 'train'}\n" in out and f"{corpus / 'web' / 'validation'}\n" in out


def test_nothing_is_left_in_the_folder(tmp_path, corpus, capsys):
    folder = publish(tmp_path / "a", compression="zstd")
    before = sorted(path.name for path in folder.rglob("*"))
    status, out, _ = shown(capsys, "inspect", folder, "--tokenizer", corpus / "tokenizer")
    assert status == 0 and "MB compressed" in out
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_public_shards_are_adopted_with_what_they_hold(tmp_path, corpus, capsys):
    folder = publish(tmp_path / "a")
    status, out, _ = shown(capsys, "inspect", folder)
    assert status == 0 and "manifest     none" in out and "name the tokenizer" in out
    assert "lengths      least" in out

    status, _, err = shown(capsys, "inspect", folder, "--adopt")
    assert status == 2 and "--adopt needs --tokenizer" in err

    options = ("inspect", folder, "--tokenizer", corpus / "tokenizer", "--adopt")
    status, out, err = shown(capsys, *options)
    assert status == 0, err
    assert "training takes them off" in out and "adopted:" in out
    manifest = json.loads((folder / "tessera.json").read_text())
    assert manifest["special_tokens"] == "included" and manifest["documents"] == 60
    assert manifest["tokenizer"] == load_tokenizer(corpus / "tokenizer").fingerprint
    source = MdsDocuments("a", folder)
    assert source.tokenizer_fingerprint == manifest["tokenizer"]
    status, _, err = shown(capsys, *options)
    assert status == 2 and "exists already" in err


def test_the_wrong_tokenizer_is_not_adopted(tmp_path, corpus, capsys):
    from tiny_run import make_tokenizer

    folder = publish(tmp_path / "a")
    make_tokenizer(tmp_path / "small", words=50)
    status, _, err = shown(capsys, "inspect", folder, "--tokenizer", tmp_path / "small", "--adopt")
    assert status == 2 and "only 55 ids" in err and not (folder / "tessera.json").exists()

    parts = json.loads((corpus / "tokenizer" / "special_tokens_map.json").read_text())
    parts |= {"cls_token": "[MASK]", "mask_token": "[CLS]"}
    other = tmp_path / "other"
    make_tokenizer(other)
    (other / "special_tokens_map.json").write_text(json.dumps(parts))
    status, _, err = shown(capsys, "inspect", folder, "--tokenizer", other, "--adopt")
    assert status == 2 and "the [CLS] and [SEP] of another tokenizer?" in err
    assert not (folder / "tessera.json").exists()


@pytest.mark.parametrize(
    ("column", "encoding", "compression"),
    [
        ("text", "str", None),
        ("tokens", "ndarray:uint32", "zstd"),
        ("input_ids", "bytes", None),
    ],
)
def test_what_cannot_be_trained_on_names_the_command_that_converts_it(
    tmp_path, corpus, capsys, column, encoding, compression
):
    folder = publish(tmp_path / "a", column=column, encoding=encoding, compression=compression)
    status, out, err = shown(capsys, "inspect", folder)
    assert status == 2 and "columns      id (str)" in out
    words = err[err.index("convert it: tessera") :].split()[3:]
    assert words[:4] == ["data", "convert", str(folder), "--column"]
    filled = [
        {"TOKENIZER": str(corpus / "tokenizer"), "FOLDER": str(tmp_path / "b")}.get(word, word)
        for word in words
    ]
    assert main(filled) == 0
    expected = MdsDocuments("x", publish(tmp_path / "plain", framed=False))
    found = MdsDocuments("y", tmp_path / "b")
    assert found.samples.sum() == 60
    first = [found.document(0, n).tolist() for n in range(5)]
    assert first == [expected.document(0, n).tolist() for n in range(5)]


def test_ids_that_are_read_with_half_their_width_are_refused(tmp_path, corpus, capsys):
    folder = publish(tmp_path / "a", column="tokens", encoding="bytes")
    options = ["--column", "tokens", "--tokenizer", corpus / "tokenizer"]
    status, _, err = shown(
        capsys, "convert", folder, *options, "--out", tmp_path / "b", "--dtype", "int32"
    )
    assert status == 2 and "another --dtype than int32" in err, err
    status, out, _ = shown(
        capsys, "convert", folder, *options, "--out", tmp_path / "c", "--dtype", "int64"
    )
    assert status == 0 and "60 documents" in out


def test_pickled_columns_are_not_read(tmp_path, corpus, capsys):
    from streaming import MDSWriter

    with MDSWriter(columns={"text": "str", "more": "pkl"}, out=str(tmp_path / "a")) as out:
        out.write({"text": "w1 w2", "more": {"a": 1}})
    status, _, err = shown(
        capsys, "convert", tmp_path / "a", "--column", "text", "--out", tmp_path / "b",
        "--tokenizer", corpus / "tokenizer",
    )  # fmt: skip
    assert status == 2 and "pickled objects" in err


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", "there is no such file or folder"),
        ("texts", "python data_prep/tokenize.py NAME="),
        ("empty", "holds no index.json"),
    ],
)
def test_what_is_wrong_with_the_path_is_said_without_torch(tmp_path, path, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl.gz").write_bytes(b"")
    code = (
        "import sys; from tessera.cli.main import main\n"
        f"status = main(['data', 'inspect', {str(tmp_path / path)!r}])\n"
        "assert 'torch' not in sys.modules and 'streaming' not in sys.modules\n"
        "sys.exit(status)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
