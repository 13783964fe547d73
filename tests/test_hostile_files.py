"""No file that someone else made can run anything here: each is refused with one message."""

import builtins
import io
import json
import os
import pickle
import struct
import subprocess
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch
from reference import flexbert as reference

from tessera.checkpoints import CheckpointError, load_model, read_checkpoint, safe_files
from tessera.checkpoints.importer import import_checkpoint
from tessera.checkpoints.safe_files import load_pickled_tensors

TRACE = "hostile-code-ran"


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """A folder to be in, where a bomb that goes off leaves a trace."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(path, *words):
    """Reading `path` raises one ValueError that names the file and says these words."""
    with pytest.raises(ValueError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert isinstance(caught.value, CheckpointError)
    assert path.name in message
    assert "\n" not in message
    assert len(message) < 700
    for word in words:
        assert word in message, message
    assert not os.path.exists(TRACE), "the bomb went off"
    return message


class Bomb:
    """Calls something when unpickled."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


BOMBS = {
    "os.system": (Bomb(os.system, f"touch {TRACE}"), "posix.system"),
    "eval": (Bomb(builtins.eval, f"open('{TRACE}', 'w')"), "eval"),
    "exec": (Bomb(builtins.exec, f"open('{TRACE}', 'w')"), "exec"),
    "open": (Bomb(builtins.open, TRACE, "w"), "open"),
    "getattr": (Bomb(builtins.getattr, "text", "format"), "getattr"),
    "subprocess": (Bomb(subprocess.Popen, ["touch", TRACE]), "Popen"),
    "torch.load again": (Bomb(torch.load, "inner.pt"), "torch.serialization.load"),
    "numpy loads pickles": (Bomb(np.load, "x.npy"), "numpy"),
    "a class of torch": (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    "a huge bytearray": (Bomb(bytearray, 10**13), "bytearray"),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", BOMBS)
def test_a_pickle_that_calls_something_is_refused_by_its_name(kind, protocol, in_folder):
    bomb, wanted = BOMBS[kind]
    path = in_folder / "bomb.pt"
    contents = reference.checkpoint()
    contents["state"]["callbacks"]["SpeedMonitor"] = bomb
    torch.save(contents, path, pickle_protocol=protocol)
    refused(path, wanted, "Nothing of it was run")


@pytest.mark.parametrize("kind", BOMBS)
def test_a_call_that_the_search_overlooked_is_still_not_made(kind, in_folder, monkeypatch):
    """PyTorch's restricted unpickler is a second lock behind the search for names."""
    monkeypatch.setattr(safe_files, "_globals_of", lambda program: [])
    bomb, _ = BOMBS[kind]
    path = in_folder / "bomb.pt"
    torch.save({"state": {"model": {}}, "bomb": bomb}, path)
    refused(path)


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bare_pickle_is_refused(kind, in_folder):
    path = in_folder / "bomb.pt"
    path.write_bytes(pickle.dumps(BOMBS[kind][0]) if kind != "a class of torch" else b"\x80\x04.")
    refused(path, "not a PyTorch checkpoint")


def test_the_bombs_are_real(in_folder):
    pickle.loads(pickle.dumps(BOMBS["os.system"][0]))
    assert os.path.exists(TRACE)


def test_a_bomb_in_a_folder_of_transformers_is_refused(in_folder):
    (in_folder / "config.json").write_text(json.dumps(good_config()))
    torch.save({"a": BOMBS["os.system"][0]}, in_folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"posix\.system"):
        read_checkpoint(in_folder)
    assert not os.path.exists(TRACE)


def test_importing_a_bomb_writes_nothing(in_folder):
    torch.save(BOMBS["os.system"][0], in_folder / "bomb.pt")
    with pytest.raises(CheckpointError):
        import_checkpoint(in_folder / "bomb.pt", in_folder / "out.pt")
    assert [path.name for path in in_folder.iterdir()] == ["bomb.pt"]


def good_config():
    return {
        "model_type": "modernbert",
        "vocab_size": 160,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
    }


def nan_at(index):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[index] = float("nan")
        return tensor

    return change


LAST = "bert.encoder.layers.3.mlp.Wo.weight"
WEIGHTS = {
    "wrong shape": (LAST, lambda t: t[:, :-1].contiguous(), "[48, 39]"),
    "transposed": (LAST, lambda t: t.T.contiguous(), "[40, 48]"),
    "a scalar": (LAST, lambda t: torch.tensor(1.0), "shape"),
    "NaN": (LAST, nan_at(-1), "NaN"),
    "infinity": ("head.norm.weight", lambda t: t.fill_(float("inf")), "infinity"),
    "whole numbers": (LAST, lambda t: t.to(torch.int8), "int8"),
    "no tensor": (LAST, lambda t: t.tolist()[0], "not a tensor"),
    "nothing": (LAST, lambda t: None, "missing"),
    "repeated by its strides": (
        LAST,
        lambda t: torch.zeros(1).expand(t.shape),
        "claims more numbers",
    ),
    "sparse": (LAST, lambda t: t.to_sparse(), ""),
    "decoder untied": ("decoder.weight", lambda t: t + 1, "differs"),
    "a norm too many": ("bert.encoder.layers.0.attn_norm.weight", lambda t: torch.ones(48), "unk"),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_tensors_that_are_not_the_models_are_refused_by_name(kind, in_folder):
    name, change, word = WEIGHTS[kind]
    contents = reference.checkpoint()
    tensors = contents["state"]["model"]
    tensors[f"model.{name}"] = change(tensors.get(f"model.{name}"))
    path = in_folder / "weights.pt"
    torch.save(contents, path)
    message = refused(path, word)
    if kind != "sparse":  # refused earlier, for how it would be rebuilt
        assert name.removeprefix("bert.").removeprefix("encoder.") in message


@pytest.mark.parametrize("value", [10**9, 10**18, 3, 5, -1])
@pytest.mark.parametrize("key", ["num_hidden_layers", "vocab_size", "hidden_size"])
def test_a_configuration_that_claims_another_size_is_refused(key, value, in_folder):
    path = in_folder / "huge.pt"
    contents = reference.checkpoint()
    config = contents["state"]["integrations"]["huggingface"]["model"]["config"]["content"]
    config[key] = value
    config["rotary_emb_dim"] = None
    torch.save(contents, path)
    refused(path)


def test_moments_of_no_parameter_or_not_finite_are_refused(in_folder):
    path = in_folder / "moments.pt"
    for spoil in (
        lambda state: state.update({"model.stranger": {"exp_avg": torch.zeros(3)}}),
        lambda state: state["model.head.norm.weight"].update(exp_avg=torch.zeros(7)),
        lambda state: state["model.head.norm.weight"]["exp_avg"].fill_(float("nan")),
        lambda state: state.update({7: state["model.head.norm.weight"]}),
        lambda state: state.update({"model.head.norm.weight": torch.zeros(3)}),
    ):
        contents = reference.checkpoint()
        spoil(contents["state"]["optimizers"]["StableAdamW"]["state"])
        torch.save(contents, path)
        refused(path)


def rewrite(path, change):
    """Write a checkpoint's zip again with changed records."""
    with zipfile.ZipFile(path) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in change(records):
            if isinstance(name, zipfile.ZipInfo):
                archive.writestr(name, content, compress_type=name.compress_type)
            else:
                archive.writestr(name, content)


def add_record(name, content=b"x"):
    return lambda records: [*records, (name, content)]


def compress(records):
    deflated = zipfile.ZipInfo("archive/data/0")
    deflated.compress_type = zipfile.ZIP_DEFLATED
    kept = [record for record in records if not record[0].endswith("/data/0")]
    return [*kept, (deflated, bytes(64 * 2**20))]


ZIPS = {
    "a path upwards": (add_record("../../outside"), "outside"),
    "an absolute path": (add_record("/etc/passwd"), "outside"),
    "a path of another system": (add_record("a\\..\\b"), "outside"),
    "a second folder": (add_record("elsewhere/data.pkl"), "outside"),
    "a bomb that unpacks": (compress, "compressed"),
    "no pickle": (lambda r: [x for x in r if not x[0].endswith("data.pkl")], "torch.save"),
    "an empty pickle": (
        lambda r: [(n, b"" if n.endswith("data.pkl") else c) for n, c in r],
        "damaged",
    ),
    "tensors gone": (lambda r: [x for x in r if "/data/" not in x[0]], "damaged"),
}


@pytest.mark.parametrize("kind", ZIPS)
def test_a_zip_with_tricks_is_refused(kind, in_folder):
    change, word = ZIPS[kind]
    path = reference.save(in_folder / "archive.pt")
    rewrite(path, change)
    refused(path, word)
    assert [p.name for p in in_folder.iterdir()] == ["archive.pt"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_records_of_one_name_are_refused(in_folder):
    path = reference.save(in_folder / "archive.pt")
    rewrite(path, lambda records: [*records, records[0]])
    refused(path, "two records")


@pytest.mark.parametrize("claim", [10**6, 10**11, 2**62])
def test_a_tensor_that_claims_more_than_its_record_holds_is_refused(claim, in_folder):
    """Written by hand: a storage of `claim` numbers over a record of 16 bytes."""
    path = in_folder / "claim.pt"
    program = io.BytesIO()

    class Claiming(pickle.Pickler):
        def persistent_id(self, thing):
            if thing == "STORAGE":
                return ("storage", torch.FloatStorage, "0", "cpu", claim)
            return None

    class Tensor:
        def __reduce__(self):
            stride = (1,)
            arguments = ("STORAGE", 0, (claim,), stride, False, OrderedDict())
            return torch._utils._rebuild_tensor_v2, arguments

    Claiming(program, protocol=2).dump({"model.embeddings.tok_embeddings.weight": Tensor()})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("claim/data.pkl", program.getvalue())
        archive.writestr("claim/byteorder", b"little")
        archive.writestr("claim/data/0", bytes(16))
        archive.writestr("claim/version", b"3\n")
    with pytest.raises(CheckpointError, match="damaged"):
        load_pickled_tensors(path)


def test_a_record_that_claims_more_than_the_file_holds_is_refused(in_folder):
    path = reference.save(in_folder / "claim.pt")
    content = bytearray(path.read_bytes())
    at = content.rfind(b"PK\x01\x02")  # the last record of the central directory
    content[at + 20 : at + 28] = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(content)
    refused(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_a_file_cut_short_is_refused(share, in_folder):
    path = reference.save(in_folder / "cut.pt")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refused(path)


def test_a_flipped_bit_never_crashes(in_folder):
    """Most flips in the pickle are refused; none may end the process or raise anything else."""
    path = reference.save(in_folder / "flip.pt")
    content = path.read_bytes()
    start = content.index(b"\x80\x02")
    generator = np.random.default_rng(0)
    refusals = 0
    for at in generator.integers(start, start + 20_000, size=120):
        flipped = bytearray(content)
        flipped[at] ^= 1 << int(generator.integers(8))
        path.write_bytes(flipped)
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            refusals += 1
            assert str(path) in str(error) or "tokenizer" in str(error)
    assert refusals > 20, "the flips hit nothing that matters, so this proves nothing"


def test_a_flipped_bit_of_a_weight_is_refused_by_its_record(in_folder):
    path = reference.save(in_folder / "flip.pt")
    wanted = reference.weights(reference.config_content())["decoder.bias"].numpy().tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(wanted) + 5] ^= 1
    path.write_bytes(content)
    refused(path, "another checksum", "/data/")


def test_what_is_no_checkpoint_is_refused(in_folder):
    for name, content in {
        "empty.pt": b"",
        "text.pt": b"hello\n" * 100,
        "gzip.pt": b"\x1f\x8b" + bytes(100),
        "page.pt": b"<!DOCTYPE html><html>404</html>",
        "pointer.pt": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
    }.items():
        (in_folder / name).write_bytes(content)
        refused(in_folder / name)
    (in_folder / "folder").mkdir()
    refused(in_folder / "folder", "neither")
    (in_folder / "folder" / "latest").symlink_to(".")
    refused(in_folder / "folder", "neither")
    (in_folder / "loop").symlink_to("loop")
    refused(in_folder / "loop", "no such file")
    refused(in_folder / "absent.pt", "no such file")
    for name, value in {
        "list.pt": [1, 2],
        "number.pt": 3,
        "tensor.pt": torch.zeros(3),
        "other-model.pt": {"conv.weight": torch.zeros(3)},
        "other-run.pt": {"state": {"model": {"model.conv.weight": torch.zeros(3)}}},
        "nested.pt": {"state": {"model": 7}},
    }.items():
        torch.save(value, in_folder / name)
        refused(in_folder / name)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_torchscript_archive_is_refused(in_folder):
    class Double(torch.nn.Module):
        def forward(self, x):
            return x * 2

    path = in_folder / "script.pt"
    torch.jit.script(Double()).save(str(path))
    refused(path)


def a_safetensors_file(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


HEADERS = {
    "empty": b"",
    "length of all the world": struct.pack("<Q", 2**63) + b"{}",
    "length beyond the file": struct.pack("<Q", 10**6) + b"{}",
    "no JSON": a_safetensors_file(b"not json"),
    "a claim beyond the file": a_safetensors_file(
        {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}
    ),
    "a shape beyond its bytes": a_safetensors_file(
        {"a": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4]}}, bytes(4)
    ),
    "overlapping tensors": a_safetensors_file(
        {k: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for k in "ab"}, bytes(4)
    ),
    "deep nesting": a_safetensors_file(b"[" * 100_000),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_safetensors_file_with_tricks_is_refused(kind, in_folder):
    folder = in_folder / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(good_config()))
    (folder / "model.safetensors").write_bytes(HEADERS[kind])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.bin", "shard.py"])
def test_an_index_that_points_outside_its_folder_is_refused(name, in_folder):
    folder = in_folder / "model"
    folder.mkdir()
    safetensors.torch.save_file({"a": torch.zeros(1)}, in_folder / "secret.safetensors")
    (folder / "config.json").write_text(json.dumps(good_config()))
    index = {"weight_map": {"a": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="no file of its folder"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "[" * 100_000,
        '{"model_type": "modernbert"}',
        '{"model_type": "modernbert", "vocab_size": NaN}',
        '{"model_type": "modernbert", "auto_map": {"AutoConfig": "evil.Config"}}',
        '{"model_type": ["modernbert"]}',
        "\x00\x01",
    ],
)
def test_a_config_json_with_tricks_is_refused(text, in_folder):
    folder = in_folder / "model"
    folder.mkdir()
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_checkpoint(folder)


def test_a_tokenizer_of_garbage_is_refused(in_folder):
    folder = in_folder / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(good_config()))
    (folder / "tokenizer.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        read_checkpoint(folder)


def test_code_beside_a_model_is_never_imported(in_folder):
    named = reference.weights(reference.config_content())
    folder = in_folder / "model"
    folder.mkdir()
    config = good_config() | {"auto_map": {"AutoModelForMaskedLM": "modeling_evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_evil.py").write_text(f"open('{TRACE}', 'w')")
    from tessera.checkpoints.formats.flexbert import rename

    tensors = {rename(k): v.contiguous() for k, v in named.items() if k != "decoder.weight"}
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    load_model(folder)
    assert not os.path.exists(TRACE)


@pytest.mark.parametrize("numpy_name", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_files_written_under_either_numpy_are_read(numpy_name, in_folder):
    path = reference.save(in_folder / "ours.pt")

    def rename_module(records):
        for name, content in records:
            if name.endswith("data.pkl"):
                for written in (b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n"):
                    content = content.replace(written, b"c" + numpy_name.encode() + b"\n")
                assert numpy_name.encode() in content
            yield name, content

    rewrite(path, rename_module)
    assert read_checkpoint(path).optimizer is not None


def test_pytorchs_own_allowlist_is_not_widened(in_folder):
    before = set(map(str, torch.serialization.get_safe_globals()))
    read_checkpoint(reference.save(in_folder / "good.pt"))
    assert set(map(str, torch.serialization.get_safe_globals())) == before
