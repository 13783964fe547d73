"""The published training checkpoints are read safely, and mean what they meant there."""

import json

import pytest
import torch
from reference import flexbert as reference

from tessera.checkpoints import CheckpointError, load_model, read_checkpoint
from tessera.checkpoints.formats.flexbert import read_config, rename
from tessera.checkpoints.importer import import_checkpoint
from tessera.model.config import ModelConfig
from tessera.tokenizer import load_tokenizer

CONTENTS = {
    "pretraining: one theta for all layers": reference.config_content(),
    "context extension: two thetas": reference.config_content(
        rotary_emb_base=160_000.0, local_attn_rotary_emb_base=10_000.0
    ),
    "other sizes": reference.config_content(
        vocab_size=192,
        hidden_size=64,
        intermediate_size=104,
        num_hidden_layers=7,
        num_attention_heads=2,
        sliding_window=6,
        global_attn_every_n_layers=2,
        norm_kwargs={"bias": False, "eps": 1e-3},
        local_attn_rotary_emb_base=500.0,
    ),
}
LENGTHS = [1, 40, 9, 23]


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_an_imported_model_predicts_what_flexbert_did(content, tmp_path):
    named = reference.weights(content)
    path = reference.save(tmp_path / "ep0-ba59-rank0.pt", content=content, named=named)
    generator = torch.Generator().manual_seed(2)
    documents = [torch.randint(content["vocab_size"], (n,), generator=generator) for n in LENGTHS]
    ends = torch.tensor([0, *LENGTHS]).cumsum(0)
    with torch.inference_mode():
        found = load_model(path)(torch.cat(documents), cu_seqlens=ends.int()).logits
    expected = torch.cat([reference.logits(content, named, document) for document in documents])
    assert expected.std() > 0.5, "logits this flat would hide a mistake"
    assert float((found - expected).abs().max()) <= 5e-5


def test_a_wrong_theta_would_have_been_noticed():
    content, named = CONTENTS["context extension: two thetas"], None
    named = reference.weights(content)
    document = torch.arange(40) % 150
    right = reference.logits(content, named, document)
    for key in ("rotary_emb_base", "local_attn_rotary_emb_base"):
        wrong = reference.logits({**content, key: content[key] / 16}, named, document)
        assert float((right - wrong).abs().max()) > 1e-3, key


def test_the_theta_minus_one_means_the_global_one():
    config = read_config("file", reference.config_content(rotary_emb_base=77.0))
    assert (config.global_rope_theta, config.local_rope_theta) == (77.0, 77.0)
    both = reference.config_content(rotary_emb_base=160_000.0, local_attn_rotary_emb_base=5.0)
    assert read_config("file", both).local_rope_theta == 5.0


def test_moments_and_steps_follow_their_parameters(tmp_path):
    content = reference.config_content()
    named = reference.weights(content)
    stored = reference.optimizer_entry(named)["StableAdamW"]
    found = read_checkpoint(reference.save(tmp_path / "a.pt", named=named))
    assert found.optimizer_name == "StableAdamW"
    assert len(found.optimizer) == len(named) - 1  # the tied decoder has none of its own
    for key, moment in stored["state"].items():
        mine = found.optimizer[rename(key)]
        assert torch.equal(mine["exp_avg"], moment["exp_avg"]), key
        assert torch.equal(mine["exp_avg_sq"], moment["exp_avg_sq"]), key
    for group, original in zip(found.hyperparameters, stored["param_groups"], strict=True):
        assert group["params"] == [rename(name) for name in original["params"]]
        assert group["step"] == 59
        assert (group["lr"], group["max_lr"]) == (3e-4, 8e-4)
    assert found.learning_rate == 3e-4
    assert (found.progress["steps"], found.progress["tokens"]) == (59, 120_392)


def test_one_more_step_is_the_step_that_stableadamw_takes(tmp_path):
    """Against the update of the paper, written out, from the carried-over moments."""
    import optimi

    content = reference.config_content()
    checkpoint = read_checkpoint(reference.save(tmp_path / "a.pt"))
    model = load_model(checkpoint.path).train(False)
    parameters = dict(model.named_parameters())
    groups = [
        {**group, "params": [parameters[name] for name in group["params"]]}
        for group in checkpoint.hyperparameters
    ]
    optimizer = optimi.StableAdamW(
        [{key: g[key] for key in ("params", "lr", "weight_decay")} for g in groups],
        lr=3e-4,
        betas=(0.9, 0.98),
        eps=1e-6,
        decouple_lr=True,
        max_lr=8e-4,
        foreach=False,
        triton=False,
    )
    for name, moment in checkpoint.optimizer.items():
        optimizer.state[parameters[name]] = {k: v for k, v in moment.items()}
    for mine, group in zip(optimizer.param_groups, groups, strict=True):
        mine |= {key: group[key] for key in ("max_lr", "lr", "weight_decay", "setup")}
        mine["step"] = torch.tensor(group["step"], dtype=torch.int32)
    before = {name: parameter.detach().clone().double() for name, parameter in parameters.items()}
    document = torch.arange(30) % content["vocab_size"]
    ends = torch.tensor([0, 30], dtype=torch.int32)
    out = model(document, cu_seqlens=ends, labels=document)
    (out.loss_sum / 30).backward()
    gradients = {name: parameter.grad.double() for name, parameter in parameters.items()}
    stored = {
        name: {key: moment[key].clone().double() for key in ("exp_avg", "exp_avg_sq")}
        for name, moment in checkpoint.optimizer.items()
    }
    optimizer.step()

    step, lr, top = 60, 3e-4, 8e-4
    beta1, beta2 = (b * (1 - b ** (step - 1)) / (1 - b**step) for b in (0.9, 0.98))
    for name, gradient in gradients.items():
        first = beta1 * stored[name]["exp_avg"] + (1 - beta1) * gradient
        second = beta2 * stored[name]["exp_avg_sq"] + (1 - beta2) * gradient.square()
        rms = (gradient.square() / second.clamp(min=1e-12)).mean().sqrt()
        rate = lr / max(1.0, float(rms))
        decay = 1e-5 if gradient.dim() > 1 else 0.0
        expected = before[name] * (1 - rate / top * decay) - rate * first / (second.sqrt() + 1e-6)
        found = parameters[name].detach().double()
        assert float((expected - before[name]).abs().max()) > 1e-6, name
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-7, msg=name)


def test_the_tokenizer_comes_out_of_the_file(tmp_path):
    found = read_checkpoint(reference.save(tmp_path / "a.pt"))
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name, text in found.tokenizer_files.items():
        (folder / name).write_text(text)
    loaded = load_tokenizer(folder)
    expected = reference.tokenizer()
    assert loaded.mask_id == expected.token_to_id("[MASK]")
    text = "w7 the w9 unheard"
    plain = expected.encode(text, add_special_tokens=False).ids
    assert loaded.encode_batch([text])[0].tolist() == plain


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_layer", "base"),
        ("bert_layer", "postnorm"),
        ("mlp_layer", "mlp"),
        ("normalization", "rmsnorm"),
        ("embed_norm", False),
        ("skip_first_prenorm", False),
        ("attn_qkv_bias", True),
        ("mlp_in_bias", True),
        ("decoder_bias", False),
        ("hidden_act", "silu"),
        ("head_pred_act", "silu"),
        ("rotary_emb_interleaved", True),
        ("rotary_emb_dim", 8),
        ("norm_kwargs", {"bias": True}),
        ("embed_dropout_prob", 0.1),
        ("sliding_window", 15),
        ("num_hidden_layers", "4"),
        ("hidden_size", 48.0),
        ("rotary_emb_base", float("nan")),
    ],
)
def test_a_variant_that_is_not_modernbert_is_refused_by_its_key(key, value):
    ours = {"norm_kwargs": "norm_kwargs.bias", "sliding_window": "local_attention"}
    named = {"rotary_emb_base": "rope_theta"}.get(key, ours.get(key, key))
    with pytest.raises(CheckpointError, match=named):
        read_config("file.pt", reference.config_content(**{key: value}))


def test_importing_keeps_every_bit(tmp_path):
    source = read_checkpoint(reference.save(tmp_path / "a.pt"))
    out = import_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt")
    found = read_checkpoint(out)
    assert found.kind == "tessera"
    assert found.model_config == source.model_config
    assert found.weights.keys() == source.weights.keys()
    for name, tensor in source.weights.items():
        assert torch.equal(found.weights[name], tensor), name
    for name, moment in source.optimizer.items():
        for kind, value in moment.items():
            mine = found.optimizer[name][kind]
            assert mine is value or torch.equal(mine, value), (name, kind)
    assert found.hyperparameters == source.hyperparameters
    assert found.progress.items() >= source.progress.items()
    assert found.max_seq_len == source.max_seq_len == 1024
    assert {k: json.loads(v) for k, v in found.tokenizer_files.items()} == {
        k: json.loads(v) for k, v in source.tokenizer_files.items()
    }


def test_bare_weights_need_the_yaml_of_their_model(tmp_path):
    content = reference.config_content()
    named = reference.weights(content)
    torch.save(dict(named), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="--model"):
        read_checkpoint(tmp_path / "weights.pt")
    config = read_config("", content)
    found = read_checkpoint(tmp_path / "weights.pt", model_config=config)
    embedding = named["bert.embeddings.tok_embeddings.weight"]
    assert torch.equal(found.weights["decoder.weight"], embedding)


def test_a_model_that_the_file_contradicts_is_refused_by_its_key(tmp_path):
    path = reference.save(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"vocab_size is 160, the model's YAML says 50368"):
        read_checkpoint(path, model_config=ModelConfig())


def test_a_file_without_its_configuration_needs_one_too(tmp_path):
    path = reference.save(tmp_path / "a.pt", integrations={})
    with pytest.raises(CheckpointError, match="no configuration"):
        read_checkpoint(path)
    config = read_config("", reference.config_content())
    assert read_checkpoint(path, model_config=config).optimizer is not None
