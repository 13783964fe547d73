"""Folders of transformers: what we read means what it meant there, what we write means the same."""

import json
import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import torch
import transformers
from reference import flexbert as reference

from tessera.checkpoints import CheckpointError, export, exporter, load_model, read_checkpoint
from tessera.checkpoints.formats.huggingface_config import read_config, write_config
from tessera.checkpoints.importer import import_checkpoint
from tessera.model.config import ModelConfig
from tessera.tokenizer import TOKENIZER_FILES

LENGTHS = [30, 1, 12]
LONG_CONTEXT = reference.config_content(
    rotary_emb_base=160_000.0, local_attn_rotary_emb_base=500.0, sliding_window=10
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("flexbert") / "a.pt"
    return read_checkpoint(reference.save(path, content=LONG_CONTEXT))


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    return export(checkpoint, tmp_path_factory.mktemp("export") / "model", max_seq_len=64)


def documents(vocab_size):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(vocab_size, (n,), generator=generator) for n in LENGTHS]


def our_logits(model):
    with torch.inference_mode():
        ends = torch.tensor([0, *LENGTHS]).cumsum(0).int()
        return model(torch.cat(documents(model.config.vocab_size)), cu_seqlens=ends).logits


def their_logits(model):
    with torch.inference_mode():
        found = [model(input_ids=d[None]).logits[0] for d in documents(model.config.vocab_size)]
    return torch.cat(found)


def largest_difference(a, b):
    assert a.std() > 0.1, "logits this flat would hide a mistake"
    return float((a - b).abs().max())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_transformers_computes_our_logits_from_an_export(checkpoint, exported, attention):
    theirs, loading = transformers.AutoModelForMaskedLM.from_pretrained(
        exported, attn_implementation=attention, output_loading_info=True
    )
    assert not any(loading.values())
    theirs.eval()
    ours = our_logits(load_model(checkpoint.path))
    assert largest_difference(ours, their_logits(theirs)) <= 5e-5
    batch = documents(160)
    padded = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=4)
    mask = torch.arange(padded.size(1)) < torch.tensor(LENGTHS)[:, None]
    with torch.inference_mode():
        logits = theirs(input_ids=padded, attention_mask=mask.long()).logits[mask]
    assert largest_difference(ours, logits) <= 5e-5


def test_an_import_of_an_export_is_the_same_model_bit_for_bit(checkpoint, exported, tmp_path):
    back = read_checkpoint(import_checkpoint(exported, tmp_path / "back.pt"))
    assert back.model_config == checkpoint.model_config
    assert back.weights.keys() == checkpoint.weights.keys()
    for name, tensor in checkpoint.weights.items():
        assert torch.equal(back.weights[name], tensor), name
    again = export(back, tmp_path / "again", max_seq_len=64)
    for path in exported.iterdir():
        if path.name != "tessera.json":
            assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_config_is_spelled_for_both_versions_of_transformers(exported):
    config = json.loads((exported / "config.json").read_text())
    assert config["global_attn_every_n_layers"] == 3
    assert (config["global_rope_theta"], config["local_rope_theta"]) == (160_000.0, 500.0)
    assert config["layer_types"] == [
        "full_attention",
        "sliding_attention",
        "sliding_attention",
        "full_attention",
    ]
    assert config["rope_parameters"]["full_attention"]["rope_theta"] == 160_000.0
    assert config["rope_parameters"]["sliding_attention"]["rope_theta"] == 500.0
    assert config["classifier_activation"] == config["hidden_activation"] == "gelu"
    assert config["max_position_embeddings"] == 64
    version_4 = {k: v for k, v in config.items() if k not in {"layer_types", "rope_parameters"}}
    removed = {"global_attn_every_n_layers", "global_rope_theta", "local_rope_theta"}
    version_5 = {k: v for k, v in config.items() if k not in removed}
    assert read_config("", version_4) == read_config("", version_5) == read_config("", config)


def test_special_ids_are_the_tokenizers(exported):
    made = reference.tokenizer()
    config = json.loads((exported / "config.json").read_text())
    loaded = transformers.AutoTokenizer.from_pretrained(exported)
    for role in ("cls", "sep", "pad", "mask"):
        number = made.token_to_id(reference.ROLES[role])
        assert getattr(loaded, f"{role}_token_id") == number
        assert config.get(f"{role}_token_id", number) == number
    assert config["bos_token_id"] == config["cls_token_id"]
    assert config["eos_token_id"] == config["sep_token_id"]
    assert loaded("w9 the").input_ids == made.encode("w9 the").ids
    assert loaded.model_max_length == 64
    assert set(loaded("w9")) == {"input_ids", "attention_mask"}


def test_the_tied_decoder_is_not_stored_and_the_format_is_named(exported):
    with safetensors.safe_open(exported / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert "decoder.weight" not in file.keys()  # noqa: SIM118
        assert "decoder.bias" in file.keys()  # noqa: SIM118


def test_the_fill_mask_pipeline_and_plain_encoders_load_an_export(exported):
    fill = transformers.pipeline("fill-mask", model=str(exported), top_k=3)
    guesses = fill("w7 [MASK] w9")
    assert len(guesses) == 3
    assert all(guess["score"] > 0 for guess in guesses)
    # what sentence-transformers does: AutoModel, AutoTokenizer, and a pooled vector
    encoder = transformers.AutoModel.from_pretrained(exported)
    tokens = transformers.AutoTokenizer.from_pretrained(exported)(
        ["w7 w8", "w9"], padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        hidden = encoder.eval()(**tokens).last_hidden_state
    assert hidden.shape[:2] == tokens["input_ids"].shape
    assert torch.isfinite(hidden).all()


@pytest.mark.parametrize("shards", [False, True], ids=["whole", "sharded"])
def test_a_model_saved_by_transformers_is_read(shards, exported, tmp_path):
    model = transformers.AutoModelForMaskedLM.from_pretrained(exported).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path, max_shard_size="40KB" if shards else "5GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == shards
    found = read_checkpoint(tmp_path)
    assert found.kind == "huggingface"
    assert largest_difference(our_logits(load_model(tmp_path)), their_logits(model)) <= 5e-5


def test_bin_files_are_read_without_unpickling(checkpoint, exported, tmp_path):
    shutil.copy(exported / "config.json", tmp_path)
    torch.save(dict(checkpoint.weights), tmp_path / "pytorch_model.bin")
    found = read_checkpoint(tmp_path)
    assert torch.equal(found.weights["head.dense.weight"], checkpoint.weights["head.dense.weight"])


def test_half_precision_weights_become_float32_of_the_same_values(checkpoint, exported, tmp_path):
    shutil.copy(exported / "config.json", tmp_path)
    halves = {
        name: tensor.bfloat16()
        for name, tensor in checkpoint.weights.items()
        if name != "decoder.weight"
    }
    safetensors.torch.save_file(halves, tmp_path / "model.safetensors")
    found = read_checkpoint(tmp_path).weights
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert torch.equal(found["decoder.bias"], halves["decoder.bias"].float())


RELEASED = {  # as published, and as saved again by version 5
    "version 4": {"global_attn_every_n_layers": 3, "global_rope_theta": 160000.0}
    | {"local_rope_theta": 10000.0},
    "local theta null": {"global_attn_every_n_layers": 3, "global_rope_theta": 10000.0}
    | {"local_rope_theta": None},
    "version 5": {
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"] * 7
        + ["full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_theta": 160000.0, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
    },
    "nothing said": {},
}
SHAPE = {
    "model_type": "modernbert",
    "vocab_size": 50368,
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
}


@pytest.mark.parametrize("spelling", RELEASED)
def test_every_spelling_of_the_released_config_is_understood(spelling):
    expected = ModelConfig()
    if spelling == "local theta null":
        expected = replace(expected, global_rope_theta=10_000.0)
    assert read_config("config.json", SHAPE | RELEASED[spelling]) == expected


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "bert"}, "model_type"),
        ({"hidden_activation": "silu"}, "hidden_activation"),
        ({"classifier_activation": "silu"}, "classifier_activation"),
        ({"attention_bias": True}, "attention_bias"),
        ({"norm_bias": True}, "norm_bias"),
        ({"decoder_bias": False}, "decoder_bias"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_parameters"),
        ({"rope_parameters": {"rope_theta": 5.0}}, "rope_parameters"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types"),
        ({"layer_types": ["sliding_attention"] * 22}, "layer_types"),
        (
            {"global_rope_theta": 5.0}
            | {"rope_parameters": {"full_attention": {"rope_theta": 160000.0}}},
            "Make them equal",
        ),
        ({"global_attn_every_n_layers": 2} | RELEASED["version 5"], "layer_types"),
        ({"num_attention_heads": 7}, "attention heads"),
        ({"hidden_size": "768"}, "hidden_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"norm_eps": float("inf")}, "norm_eps"),
        ({"local_attention": -128}, "local_attention"),
    ],
)
def test_a_config_that_this_model_is_not_is_refused_by_its_key(changes, named):
    with pytest.raises(CheckpointError, match=named):
        read_config("config.json", SHAPE | changes)


def test_any_model_survives_the_trip_through_config_json():
    config = ModelConfig(num_hidden_layers=5, global_attn_every_n_layers=4, local_attention=32)
    ids = {"cls": 1, "sep": 2, "pad": 3, "mask": 4}
    written = write_config(config, ids=ids, max_seq_len=7, transformers_version="5")
    assert read_config("", json.loads(json.dumps(written))) == config


def spoil_thetas(folder):
    config = json.loads((folder / "config.json").read_text())
    config["local_rope_theta"] = config["global_rope_theta"]
    config["rope_parameters"]["sliding_attention"] = config["rope_parameters"]["full_attention"]
    (folder / "config.json").write_text(json.dumps(config))


def spoil_activation(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"classifier_activation": "silu"}))


def spoil_pad_id(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": 0}))


def spoil_weights(folder):
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["model.final_norm.weight"][0] = float("nan")
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def forget_a_tensor(folder):
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    del weights["model.final_norm.weight"]
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_thetas, "logits differ"),
        (spoil_activation, "logits differ"),
        (spoil_pad_id, "pad_token_id"),
        (spoil_weights, "not finite"),
        (forget_a_tensor, "final_norm"),
    ],
)
def test_an_export_that_is_not_our_model_is_refused_and_leaves_nothing(
    spoil, message, checkpoint, tmp_path, monkeypatch
):
    write = exporter.write_folder

    def write_and_spoil(checkpoint, folder, **kwargs):
        write(checkpoint, folder, **kwargs)
        spoil(folder)

    monkeypatch.setattr(exporter, "write_folder", write_and_spoil)
    with pytest.raises(CheckpointError, match=message):
        export(checkpoint, tmp_path / "model", max_seq_len=64)
    assert not list(tmp_path.iterdir())


def test_an_earlier_export_is_replaced_and_nothing_else_is(checkpoint, tmp_path):
    out = tmp_path / "model"
    export(checkpoint, out, max_seq_len=64)
    export(checkpoint, out, max_seq_len=128)
    assert json.loads((out / "config.json").read_text())["max_position_embeddings"] == 128
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

    (out / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"notes\.txt"):
        export(checkpoint, out, max_seq_len=64)
    assert (out / "notes.txt").read_text() == "mine"

    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="left alone"):
        export(checkpoint, other, max_seq_len=64)
    assert (other / "config.json").read_text() == "{}"


def test_an_export_needs_a_tokenizer_of_the_models_size(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="no tokenizer"):
        export(replace(checkpoint, tokenizer_files=None), tmp_path / "a", max_seq_len=64)
    files = {
        name: json.dumps(entry["content"])
        for name, entry in reference.tokenizer_entries(161).items()
    }
    with pytest.raises(CheckpointError, match="161 tokens"):
        export(replace(checkpoint, tokenizer_files=files), tmp_path / "a", max_seq_len=64)
    assert not list(tmp_path.iterdir())


def _without_template(checkpoint):
    parts = json.loads(checkpoint.tokenizer_files["tokenizer.json"])
    parts["post_processor"] = None
    files = {**checkpoint.tokenizer_files, "tokenizer.json": json.dumps(parts)}
    return replace(checkpoint, tokenizer_files=files)


def test_a_tokenizer_without_template_is_exported_with_trainings(checkpoint, tmp_path, caplog):
    from transformers import AutoTokenizer

    bare = _without_template(checkpoint)
    folder = export(bare, tmp_path / "a", max_seq_len=64)
    assert "frames a text x as 'x', training as '[CLS] x [SEP]'" in caplog.text
    loaded = AutoTokenizer.from_pretrained(folder)
    ids = loaded("a")["input_ids"]
    assert (ids[0], ids[-1]) == (loaded.cls_token_id, loaded.sep_token_id) and len(ids) > 2


def test_an_export_that_frames_text_otherwise_is_refused(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("tessera.tokenizer.loading.Tokenizer.framed_files", lambda self: self.files)
    with pytest.raises(CheckpointError, match="transformers turns .* training into"):
        export(_without_template(checkpoint), tmp_path / "a", max_seq_len=64)
    assert not (tmp_path / "a").exists()


def test_the_tokenizer_of_either_version_of_transformers_is_exported_alike(exported, tmp_path):
    loaded = transformers.AutoTokenizer.from_pretrained(exported)
    loaded.save_pretrained(tmp_path)  # as this version spells it
    shutil.copy(exported / "config.json", tmp_path)
    shutil.copy(exported / "model.safetensors", tmp_path)
    saved = read_checkpoint(tmp_path)
    assert set(saved.tokenizer_files) <= set(TOKENIZER_FILES)
    again = export(saved, tmp_path / "again")
    settings = json.loads((again / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "extra_special_tokens" not in settings
    twice = transformers.AutoTokenizer.from_pretrained(again)
    assert twice("w9 [MASK] the").input_ids == loaded("w9 [MASK] the").input_ids


def test_a_hub_id_is_downloaded(exported, tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot_download(name, revision=None, allow_patterns=None):
        asked.append((name, revision))
        assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in allow_patterns)
        return str(exported)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    import_checkpoint("org/name@phase1", tmp_path / "a.pt")
    assert asked == [("org/name", "phase1")]
    assert read_checkpoint(tmp_path / "a.pt").model_config == read_checkpoint(exported).model_config
