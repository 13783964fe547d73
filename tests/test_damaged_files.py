"""What `make fuzz` once found: each is refused in one message, or answered as before."""

import json
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
import tiny_run

from tessera.cli.main import main
from tessera.config import ConfigError, load
from tessera.data.preparation.formats.records import Reading, records
from tessera.data.preparation.inputs import parse_inputs
from tessera.data.preparation.notes import Notes
from tessera.data.preparation.text_files import cut_into_parts, read_part
from tessera.data.sources.mds import MdsDocuments
from tessera.tokenizer import load_tokenizer
from tessera.training import run_folder
from tessera.training.config import RunConfig

ROWS = [{"id": f"r{i}", "text": f"document {i}"} for i in range(40)]


def read(path):
    [source] = parse_inputs([f"x={path}"])
    (files,) = source.found.splits.values()
    parts = cut_into_parts(files, source.root, 1 << 20, source.reading)
    return [text for part in parts for _, text in read_part(part, source.reading)]


# ---- texts


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("]]", "stands after the array of 40 records"),
        ("]\n \n{}", "stands after the array of 40 records"),
        (', {"text": "a"} {"text": "b"}]', "no comma before record 41"),
        (", " + "[" * 100_000, "nested too deep"),
    ],
)
def test_what_an_array_of_json_does_not_hold_is_not_left_out_in_silence(tmp_path, rest, message):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(ROWS))
    assert len(read(path)) == 40
    path.write_text(json.dumps(ROWS)[:-1] + rest)
    with pytest.raises(ValueError, match=message):
        read(path)


def test_a_line_nested_too_deep_is_refused_by_its_place(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "a"}\n' + "[" * 100_000)
    with pytest.raises(ValueError, match="no JSON in the line at byte 14"):
        read(path)


def test_an_arrow_file_whose_offsets_lead_elsewhere_does_not_end_the_process(tmp_path):
    table = pyarrow.Table.from_pylist(ROWS)
    sink = pyarrow.OSFile(str(tmp_path / "c.arrow"), "wb")
    with sink, pyarrow.ipc.new_stream(sink, table.schema) as batches:
        batches.write_table(table)
    content = (tmp_path / "c.arrow").read_bytes()
    offsets = table["text"].chunk(0).buffers()[1].to_pybytes()[: 4 * 41]
    wrong = offsets[:80] + (2**30).to_bytes(4, "little") + offsets[84:]
    assert offsets in content
    (tmp_path / "c.arrow").write_bytes(content.replace(offsets, wrong))
    code = f"import test_damaged_files as t; t.read({str(tmp_path / 'c.arrow')!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=tiny_run.environment(),
        cwd=tiny_run.REPOSITORY / "tests",
    )
    assert done.returncode == 1, done
    assert "ValueError" in done.stderr and "c.arrow" in done.stderr


def test_rows_that_a_parquet_file_lost_are_missed(tmp_path, monkeypatch):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "c.parquet")
    whole = pyarrow.parquet.ParquetFile.iter_batches
    monkeypatch.setattr(
        pyarrow.parquet.ParquetFile,
        "iter_batches",
        lambda *about, **more: (batch.slice(0, 27) for batch in whole(*about, **more)),
    )
    with pytest.raises(ValueError, match="row group 0 has 27 rows, the file's footer says 40"):
        list(records(str(tmp_path / "c.parquet"), Reading(), Notes()))


DAMAGES = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "its footer": lambda content: content[:-60] + b"\xff" * 52 + content[-8:],
    "its text": lambda content: content.replace(b"text of", b"\xff\xfe\xff"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_parquet_file_is_said_in_one_sentence(tmp_path, damage):
    """Its library speaks of magic bytes and thrift: of nothing that one could do."""
    from tessera.evaluation.tasks.inputs.tables import read_split

    path = tmp_path / "c.parquet"
    table = pyarrow.Table.from_pylist([{"text": f"text of {i}", "label": i} for i in range(50)])
    pyarrow.parquet.write_table(table, path, compression="none", use_dictionary=False)
    content = path.read_bytes()
    path.write_bytes(DAMAGES[damage](content))
    assert path.read_bytes() != content
    told = f"{path}: is damaged or cut short, and cannot be read as Parquet; copy or write it again"
    for read_it in (read, lambda path: read_split(path, ["text"])):
        with pytest.raises(ValueError) as refused:
            list(read_it(str(path)))
        assert str(refused.value).startswith(told) and "\n" not in str(refused.value)
    with pytest.raises(FileNotFoundError):
        list(records(str(tmp_path / "none.parquet"), Reading(), Notes()))


# ---- YAMLs, shards, tokenizers, run folders


@pytest.mark.parametrize("extends", [2147483648, True, {"a": 1}, ["a.yaml", 3]])
def test_extends_that_names_no_file_is_refused(tmp_path, extends):
    path = tiny_run.write_yaml(tmp_path / "a.yaml", {"extends": extends})
    tiny_run.write_yaml(tmp_path / "b.yaml", {})
    with pytest.raises(ConfigError, match="is not the name of a YAML file"):
        load(RunConfig, path)


def test_shards_that_an_index_lost_are_missed(tmp_path):
    folder = tiny_run.make_corpus(tmp_path) / "web" / "train"
    index = json.loads((folder / "index.json").read_text())
    del index["shards"][1]
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"tessera\.json counts 240 documents, the index\.json"):
        MdsDocuments("web", folder)


def test_a_tokenizer_with_ids_beyond_its_tokens_is_refused(tmp_path):
    tiny_run.make_tokenizer(tmp_path / "t")
    path = tmp_path / "t" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["w29"] = 2**31
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="255 tokens, but ids up to 2,147,483,648"):
        load_tokenizer(tmp_path / "t")
    content["model"]["vocab"]["w29"] = 2000  # ids may be left out
    path.write_text(json.dumps(content))
    assert load_tokenizer(tmp_path / "t").size == 2001


def test_a_tokenizer_that_is_no_text_is_refused_by_its_file(tmp_path):
    tiny_run.make_tokenizer(tmp_path / "t")
    (tmp_path / "t" / "special_tokens_map.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match=r"special_tokens_map\.json is damaged"):
        load_tokenizer(tmp_path / "t")


@pytest.mark.parametrize("content", [b"", b"[1, ", b"3", b'["a"]', b"\xff"])
def test_a_damaged_list_of_pinned_checkpoints_is_named(tmp_path, content):
    run_folder_ = tmp_path / "run"
    (run_folder_ / "checkpoints").mkdir(parents=True)
    (run_folder_ / "checkpoints" / "pinned.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"pinned\.json is damaged"):
        run_folder.pinned(run_folder_)


# ---- models


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b'{"model": '),
        ("special_tokens_map.json", b'{"unk_token": 3}'),
        ("tokenizer_config.json", b"\xff"),
        ("config.json", b'{"model_type": "modernbert", "hidden_size": "x"}'),
        ("model.safetensors", b"\0" * 40),
    ],
)
def test_a_damaged_export_is_one_message_of_fill(exported, tmp_path, capsys, name, content):
    for path in exported.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    arguments = ["evaluate", str(tmp_path), "--fill", "w1 [MASK] w2"]
    assert main(arguments) == 0
    (tmp_path / name).write_bytes(content)
    capsys.readouterr()
    assert main(arguments) == 2
    assert str(tmp_path) in capsys.readouterr().err


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    corpus = tiny_run.make_corpus(folder / "corpus", documents=30)
    plain = tiny_run.settings(corpus, folder / "run", duration="3ba", evaluation={"at_end": False})
    assert tiny_run.train(plain) == 0
    assert main(["export", str(folder / "run"), "--out", str(folder / "model")]) == 0
    return folder / "model"
