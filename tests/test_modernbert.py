"""The model is Hugging Face's ModernBERT, and packing changes nothing."""

from dataclasses import replace

import pytest
import torch
import transformers
from reference.attention import dense_attention

from tessera.batch import IGNORED
from tessera.model.config import ModelConfig
from tessera.model.dropout import dropout_keys
from tessera.model.modernbert import ModernBertForMaskedLM
from tessera.planning.memory import parameters

SMALL = ModelConfig(
    vocab_size=160,
    hidden_size=48,
    intermediate_size=56,
    num_hidden_layers=4,
    num_attention_heads=4,
    local_attention=16,
)
VARIANTS = {
    "window smaller than documents": SMALL,
    "window larger than documents": replace(SMALL, local_attention=256),
    "one layer": replace(SMALL, num_hidden_layers=1),
    "seven layers, global every second": replace(
        SMALL, num_hidden_layers=7, global_attn_every_n_layers=2, local_attention=6
    ),
    "thetas swapped": replace(SMALL, global_rope_theta=500.0, local_rope_theta=90_000.0),
    "window of one": replace(SMALL, local_attention=2, norm_eps=1e-3),
    "one wide head": replace(SMALL, num_attention_heads=1, hidden_size=96),
}
LENGTHS = [37, 1, 64, 5, 90, 2]


def hugging_face(model: ModernBertForMaskedLM) -> transformers.ModernBertForMaskedLM:
    """The same weights in transformers, of either major version."""
    config = model.config
    shape = dict(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        local_attention=config.local_attention,
        norm_eps=config.norm_eps,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
        attn_implementation="eager",
    )
    if int(transformers.__version__.split(".")[0]) >= 5:
        kinds = ["sliding_attention", "full_attention"]
        thetas = [config.local_rope_theta, config.global_rope_theta]
        shape["layer_types"] = [kinds[config.is_global(i)] for i in range(config.num_hidden_layers)]
        shape["rope_parameters"] = {
            kind: {"rope_type": "default", "rope_theta": theta}
            for kind, theta in zip(kinds, thetas, strict=True)
        }
    else:
        shape["global_rope_theta"] = config.global_rope_theta
        shape["local_rope_theta"] = config.local_rope_theta
        shape["global_attn_every_n_layers"] = config.global_attn_every_n_layers
        shape["reference_compile"] = False
    theirs = transformers.ModernBertForMaskedLM(transformers.ModernBertConfig(**shape)).eval()
    theirs.load_state_dict(model.state_dict(), strict=True)
    return theirs


def random_model(config: ModelConfig, seed: int = 0) -> ModernBertForMaskedLM:
    """Weights large enough that every part matters, and norms that are not one."""
    model = ModernBertForMaskedLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if name.endswith("norm.weight") else 0.08 * noise)
    return model


def documents(lengths: list[int], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, SMALL.vocab_size, (n,), generator=generator) for n in lengths]


def cumulative(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def packed_logits(model: ModernBertForMaskedLM, docs: list[torch.Tensor]) -> list[torch.Tensor]:
    lengths = [len(doc) for doc in docs]
    with torch.no_grad():
        logits = model(torch.cat(docs), cu_seqlens=cumulative(lengths)).logits
    return list(logits.split(lengths))


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits_equal_those_of_transformers(config):
    model = random_model(config)
    theirs = hugging_face(model)
    for ours, ids in zip(packed_logits(model, documents(LENGTHS)), documents(LENGTHS), strict=True):
        with torch.no_grad():
            expected = theirs(input_ids=ids[None], attention_mask=torch.ones_like(ids[None])).logits
        assert expected.std() > 0.1, "logits so small would agree whatever the model"
        torch.testing.assert_close(ours, expected[0], atol=1e-4, rtol=0)


def test_packed_equals_a_padded_batch_of_transformers():
    model = random_model(SMALL)
    docs = documents(LENGTHS)
    padded = torch.nn.utils.rnn.pad_sequence(docs, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(d) for d in docs], batch_first=True)
    with torch.no_grad():
        expected = hugging_face(model)(input_ids=padded, attention_mask=mask).logits
    for i, ours in enumerate(packed_logits(model, docs)):
        torch.testing.assert_close(ours, expected[i, : len(ours)], atol=1e-4, rtol=0)


def test_gradients_equal_those_of_transformers():
    model = random_model(SMALL)
    theirs = hugging_face(model)
    (ids,) = documents([70])
    labels = torch.where(torch.arange(70) % 3 == 0, ids, IGNORED)
    theirs(input_ids=ids[None], labels=labels[None]).loss.backward()
    out = model(ids, cu_seqlens=cumulative([70]), labels=labels)
    (out.loss_sum / out.masked_tokens).backward()

    expected = dict(theirs.named_parameters())
    for name, parameter in model.named_parameters():
        # transformers gives no gradient to the embedding of padding, which does not occur here.
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=2e-5, rtol=1e-4)


def test_state_dict_has_the_names_and_shapes_of_transformers():
    model = random_model(SMALL)
    theirs = hugging_face(model).state_dict()
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in theirs.items()
    }


def test_a_document_does_not_depend_on_its_neighbours():
    model = random_model(SMALL)
    document, *others = documents([50, 20, 33, 1, 64])
    alone = packed_logits(model, [document])[0]
    between = packed_logits(model, [others[0], others[1], document, others[2], others[3]])[2]
    torch.testing.assert_close(alone, between, atol=2e-5, rtol=0)


def test_empty_documents_change_nothing():
    model = random_model(SMALL)
    docs = documents([30, 12])
    ids = torch.cat(docs)
    padded = torch.tensor([0, 30, 30, 42, 42, 42], dtype=torch.int32)
    with torch.no_grad():
        logits = model(ids, cu_seqlens=padded, max_seqlen=64).logits
    assert torch.equal(logits, torch.cat(packed_logits(model, docs)))


def test_the_loss_of_masked_positions_is_the_loss_of_dense_labels():
    model = random_model(SMALL)
    lengths = [40, 25]
    ids = torch.cat(documents(lengths))
    positions = torch.tensor([3, 11, 12, 41, 64, 0, 0])
    labels = torch.tensor([7, 8, 9, 10, 11, IGNORED, IGNORED])
    dense = torch.full((65,), IGNORED)
    dense[positions[:5]] = labels[:5]
    cu = cumulative(lengths)

    sparse = model(ids, cu_seqlens=cu, masked_positions=positions, masked_labels=labels)
    from_labels = model(ids, cu_seqlens=cu, labels=dense)
    logits = model(ids, cu_seqlens=cu).logits
    expected = torch.nn.functional.cross_entropy(logits, dense, reduction="sum")
    assert int(sparse.masked_tokens) == int(from_labels.masked_tokens) == 5
    torch.testing.assert_close(sparse.loss_sum, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(from_labels.loss_sum, expected, rtol=1e-5, atol=1e-4)
    assert sparse.logits is None


def test_positions_without_labels_give_their_logits():
    model = random_model(SMALL)
    ids, positions = torch.cat(documents([30, 12])), torch.tensor([0, 31, 29])
    with torch.no_grad():
        everywhere = model(ids, cu_seqlens=cumulative([30, 12])).logits
        there = model(ids, cu_seqlens=cumulative([30, 12]), masked_positions=positions).logits
    torch.testing.assert_close(there, everywhere[positions], atol=1e-5, rtol=0)


def test_labels_without_positions_are_refused():
    with pytest.raises(ValueError, match="masked_positions"):
        random_model(SMALL)(
            torch.tensor([4, 5]), cu_seqlens=cumulative([2]), masked_labels=torch.tensor([4])
        )


def test_the_decoder_stays_tied_when_the_model_moves():
    with torch.device("meta"):
        model = ModernBertForMaskedLM(SMALL)
    model.to_empty(device="cpu")
    model.initialize(3)
    assert model.decoder.weight is model.model.embeddings.tok_embeddings.weight
    assert len(list(model.parameters())) == len({p.data_ptr() for p in model.parameters()})


def test_released_sizes_have_the_published_number_of_parameters():
    large = ModelConfig(
        hidden_size=1024, intermediate_size=2624, num_hidden_layers=28, num_attention_heads=16
    )
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in ModernBertForMaskedLM(config).parameters())
            for config in (ModelConfig(), large)
        ]
    assert counts == [149_655_232, 395_881_664]


@pytest.mark.parametrize("layers", [True, [0, 3]], ids=["all layers", "two layers"])
def test_activation_checkpointing_changes_no_gradient(layers):
    model = random_model(SMALL).train()
    ids = torch.cat(documents([40, 24]))
    keys = dropout_keys(1, torch.tensor([5]), 64)

    def gradients():
        model.zero_grad()
        out = model(ids, cu_seqlens=cumulative([40, 24]), labels=ids, dropout_keys=keys)
        out.loss_sum.backward()
        return [p.grad.clone() for p in model.parameters()]

    expected = gradients()
    model.checkpoint_layers(layers)
    assert all(torch.equal(a, b) for a, b in zip(gradients(), expected, strict=True))


def test_checkpointing_a_layer_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"\[4\].*numbered 0 to 3"):
        random_model(SMALL).checkpoint_layers([1, 4])


# ---- normed queries and keys


def dense_logits(model: ModernBertForMaskedLM, ids: torch.Tensor) -> torch.Tensor:
    """(T, V) of one document in float64, from the weights and the formulas alone."""
    config = model.config
    weights = {name: weight.double() for name, weight in model.state_dict().items()}
    heads, size = config.num_attention_heads, config.head_size

    def normed(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()
        return centred / scale * weights[name]

    def gelu(x):
        return x * (1 + torch.erf(x / 2**0.5)) / 2

    def turned(x, theta):
        half = size // 2
        angles = torch.arange(len(ids)).double()[:, None] / theta ** (torch.arange(half) / half)
        pairs = torch.complex(x[..., :half], x[..., half:])
        pairs = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
        return torch.cat((pairs.real, pairs.imag), dim=-1)

    x = normed(
        weights["model.embeddings.tok_embeddings.weight"][ids], "model.embeddings.norm.weight"
    )
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}."
        read = normed(x, f"{layer}attn_norm.weight") if i else x
        qkv = read @ weights[f"{layer}attn.Wqkv.weight"].T
        q, k, v = qkv.view(len(ids), 3, heads, size).unbind(1)
        if config.qk_norm:
            q, k = normed(q, f"{layer}attn.q_norm.weight"), normed(k, f"{layer}attn.k_norm.weight")
        q, k = (turned(each, config.rope_theta(i)) for each in (q, k))
        attended = dense_attention(q, k, v, [len(ids)], config.window(i)).flatten(1)
        x = x + attended @ weights[f"{layer}attn.Wo.weight"].T
        both = normed(x, f"{layer}mlp_norm.weight") @ weights[f"{layer}mlp.Wi.weight"].T
        gate, value = both.chunk(2, dim=-1)
        x = x + (gelu(gate) * value) @ weights[f"{layer}mlp.Wo.weight"].T
    x = normed(x, "model.final_norm.weight")
    x = normed(gelu(x @ weights["head.dense.weight"].T), "head.norm.weight")
    return x @ weights["decoder.weight"].T + weights["decoder.bias"]


@pytest.mark.parametrize("qk_norm", [False, True])
def test_normed_queries_and_keys_are_those_of_a_dense_computation(qk_norm):
    """Without them too: so the dense computation is held against transformers as well."""
    model = random_model(replace(SMALL, qk_norm=qk_norm))
    lengths = [37, 1, 64]
    for ours, ids in zip(packed_logits(model, documents(lengths)), documents(lengths), strict=True):
        exact = dense_logits(model, ids)
        assert exact.std() > 0.1
        torch.testing.assert_close(ours.double(), exact, atol=1e-5, rtol=0)


def test_gradients_of_normed_queries_and_keys_are_those_of_a_dense_computation():
    model = random_model(replace(SMALL, qk_norm=True, num_hidden_layers=2))
    (ids,) = documents([40])
    labels = torch.where(torch.arange(40) % 3 == 0, ids, IGNORED)
    model(ids, cu_seqlens=cumulative([40]), labels=labels).loss_sum.backward()
    ours = {name: weight.grad for name, weight in model.named_parameters()}
    exact = random_model(replace(SMALL, qk_norm=True, num_hidden_layers=2)).double()
    exact.state_dict = lambda: dict(exact.named_parameters(remove_duplicate=False))
    loss = torch.nn.functional.cross_entropy(
        dense_logits(exact, ids), labels, ignore_index=IGNORED, reduction="sum"
    )
    loss.backward()
    assert any("q_norm" in name for name in ours)
    for name, weight in exact.named_parameters():
        torch.testing.assert_close(ours[name].double(), weight.grad, atol=2e-5, rtol=1e-4)


def test_the_scale_of_queries_and_keys_does_not_matter_once_they_are_normed():
    """What the norm is for: attention cannot collapse because their products grow."""
    model = random_model(replace(SMALL, qk_norm=True, norm_eps=1e-12))
    before = packed_logits(model, documents([50]))[0]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.attn.Wqkv.weight[: 2 * SMALL.hidden_size] *= 100
    torch.testing.assert_close(packed_logits(model, documents([50]))[0], before, atol=1e-4, rtol=0)


def test_parameters_of_normed_queries_and_keys_are_counted():
    for qk_norm in (False, True):
        config = replace(SMALL, qk_norm=qk_norm)
        model = ModernBertForMaskedLM(config)
        assert parameters(config) == sum(weight.numel() for weight in model.parameters())
    model.initialize(3)
    gains = [w for name, w in model.named_parameters() if "q_norm" in name or "k_norm" in name]
    assert len(gains) == 2 * 4 and all((gain == 1).all() for gain in gains)
