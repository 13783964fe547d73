"""On a GPU: every backend that serves there, compiled layers, long rows, large vocabularies."""

import pytest
import torch
from reference.attention import dense_attention

from tessera.batch import IGNORED
from tessera.model.attention.backends import BACKENDS, attend, choose, prepare, survey
from tessera.model.compilation import graph_breaks, graphs_compiled
from tessera.model.config import ModelConfig
from tessera.model.dropout import dropout_keys, dropout_mask, layer_keys
from tessera.model.loss import masked_loss
from tessera.model.modernbert import ModernBertForMaskedLM
from tessera.model.rope import rotary, rotate

pytestmark = pytest.mark.gpu

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

DEVICE = torch.device("cuda")
PACKINGS = {
    "ragged": [17, 1, 300, 64, 2, 129, 65],
    "one document": [1000],
    "a document per token": [1] * 300,
    "exact blocks": [128] * 5,
    "empty documents, and a zero-length tail": [30, 0, 270, 0, 0, 0],
}


def serving(name: str) -> str:
    reason = dict(survey(DEVICE))[name]
    if reason:
        pytest.skip(reason)
    return name


@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
@pytest.mark.parametrize("window", [None, 64, 5])
@pytest.mark.parametrize("lengths", PACKINGS.values(), ids=PACKINGS.keys())
@pytest.mark.parametrize("name", BACKENDS)
def test_backends_equal_the_dense_oracle(name, lengths, window, causal):
    check_against_oracle(serving(name), lengths, window, causal=causal)


@pytest.mark.parametrize("window, channels", [(None, 32), (1, 64), (37, 128), (128, 80)])
@pytest.mark.parametrize("name", BACKENDS)
def test_backends_equal_the_dense_oracle_on_any_packing(name, window, channels):
    """Of one length, lest what compiles its kernels spend minutes on it."""
    generator = torch.Generator().manual_seed(channels)
    for documents in (1, 3, 30, 400):
        ends = torch.randint(0, 769, (documents - 1,), generator=generator).sort().values
        lengths = torch.tensor([0, *ends.tolist(), 768]).diff().tolist()
        check_against_oracle(serving(name), lengths, window, channels)


def check_against_oracle(name, lengths, window, channels=64, *, causal=False):
    tokens, heads = sum(lengths), 3
    generator = torch.Generator(DEVICE).manual_seed(0)
    draw = [
        torch.randn(tokens, heads, channels, device=DEVICE, generator=generator).bfloat16()
        for _ in range(4)
    ]
    ours = [x.clone().requires_grad_() for x in draw[:3]]
    exact = [x.clone().requires_grad_() for x in draw[:3]]
    cu_seqlens = torch.tensor([0, *lengths], device=DEVICE).cumsum(0).to(torch.int32)

    packing = prepare(cu_seqlens, max(lengths), name, tokens, {window}, causal=causal)
    out = attend(*ours, packing, window)
    expected = dense_attention(*exact, lengths, window, causal)
    torch.testing.assert_close(out.double(), expected, atol=2e-2, rtol=2e-2)
    gradients = torch.autograd.grad(out, ours, draw[3])
    for a, b in zip(gradients, torch.autograd.grad(expected, exact, draw[3].double()), strict=True):
        torch.testing.assert_close(a.double(), b.double(), atol=5e-2, rtol=5e-2)


def test_flash_attention_of_torch_is_always_among_those_that_serve():
    """Ampere or newer, and no package but torch."""
    assert "torch-varlen" in [name for name, reason in survey(DEVICE) if reason is None]
    assert choose("auto", DEVICE, torch.float32, 64) in ("flex", "sdpa")


CONFIG = ModelConfig(
    vocab_size=1024,
    hidden_size=256,
    intermediate_size=384,
    num_hidden_layers=7,
    num_attention_heads=4,
)


def step(model, row, tokens=2048):
    generator = torch.Generator().manual_seed(row)
    cuts = torch.randperm(tokens - 1, generator=generator)[: 7 * row].sort().values + 1
    cu_seqlens = torch.tensor([0, *cuts.tolist(), tokens], dtype=torch.int32)
    ids = torch.randint(0, 1024, (tokens,), generator=generator)
    positions = torch.randperm(tokens, generator=generator)[:640].sort().values
    labels = ids[positions].clone()
    labels[600 + row % 40 :] = IGNORED
    keys = dropout_keys(1, torch.tensor([row], device=DEVICE), tokens)
    batch = [x.to(DEVICE) for x in (ids, cu_seqlens, positions, labels)]
    with torch.autocast("cuda", dtype=torch.bfloat16):
        out = model(
            batch[0],
            cu_seqlens=batch[1],
            max_seqlen=tokens,
            masked_positions=batch[2],
            masked_labels=batch[3],
            dropout_keys=keys,
        )
    return out


def gradients(model, row):
    model.zero_grad()
    out = step(model, row)
    out.loss_sum.backward()
    return out.loss_sum.detach(), [p.grad.clone() for p in model.parameters()]


def build(attention="auto"):
    model = ModernBertForMaskedLM(CONFIG, attention=attention).to(DEVICE).train()
    model.initialize(0)
    return model


def test_a_step_never_waits_for_the_gpu():
    model = build()
    gradients(model, 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        generator = torch.Generator().manual_seed(1)
        tokens = 2048
        ids = torch.randint(0, 1024, (tokens,), generator=generator).pin_memory()
        ends = torch.tensor([0, 700, tokens], dtype=torch.int32).pin_memory()
        positions = torch.arange(0, tokens, 4).pin_memory()
        rows = torch.tensor([3]).pin_memory()
        ids, ends, positions, rows = (
            x.to(DEVICE, non_blocking=True) for x in (ids, ends, positions, rows)
        )
        with torch.autocast("cuda", dtype=torch.bfloat16):
            out = model(
                ids,
                cu_seqlens=ends,
                max_seqlen=tokens,
                masked_positions=positions,
                masked_labels=ids.index_select(0, positions),
                dropout_keys=dropout_keys(1, rows, tokens),
            )
        (out.loss_sum / out.masked_tokens).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "sdpa"])
def test_compiled_layers_do_not_recompile_and_give_the_same_gradients(name):
    serving(name)
    eager = build(name)
    expected = [gradients(eager, row) for row in range(4)]
    torch._dynamo.reset()
    model = build(name)
    model.compile_layers()
    breaks = graph_breaks()
    first = gradients(model, 0)
    warm = graphs_compiled()
    rest = [gradients(model, row) for row in range(1, 4)]
    assert graphs_compiled() == warm, "documents changed and code was compiled again"
    if name not in ("flash-attn-2", "flash-attn-3"):  # as whole as their packages make them
        assert graph_breaks() == breaks
    for (loss, ours), (expected_loss, theirs) in zip([first, *rest], expected, strict=True):
        torch.testing.assert_close(loss, expected_loss, rtol=2e-3, atol=0)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=0.1, atol=0.03 * b.abs().max().item())


def test_dropout_draws_the_same_as_on_a_cpu():
    keys = dropout_keys(5, torch.tensor([9, 10]), 256)
    there = dropout_keys(5, torch.tensor([9, 10], device=DEVICE), 256)
    assert torch.equal(keys, there.cpu())
    mask = dropout_mask(layer_keys(keys, 4)[3], 256, 0.1)
    assert torch.equal(mask, dropout_mask(layer_keys(there, 4)[3], 256, 0.1).cpu())
    compiled = torch.compile(dropout_mask)(layer_keys(there, 4)[3], 256, 0.1)
    assert torch.equal(mask, compiled.cpu())


@pytest.mark.parametrize("rotate", [rotate, torch.compile(rotate, dynamic=False)])
def test_rotation_is_right_beyond_two_billion_elements(rotate):
    heads, channels = 16, 64
    tokens = 2**31 // (3 * heads * channels) + 1000
    qkv = torch.empty(tokens, 3, heads, channels, device=DEVICE, dtype=torch.bfloat16)
    qkv.normal_(generator=torch.Generator(DEVICE).manual_seed(0))
    positions = torch.arange(tokens, device=DEVICE) % 8192
    q, k, v = rotate(qkv, rotary(positions, channels, 160_000.0))
    tail = slice(tokens - 64, tokens)
    alone = rotate(qkv[tail].clone(), rotary(positions[tail], channels, 160_000.0))
    for whole, part in zip((q, k, v), alone, strict=True):
        torch.testing.assert_close(whole[tail], part)


def test_a_vocabulary_of_256k_fits():
    tokens, hidden, vocabulary = 8192 * 12 * 3 // 10, 768, 256_000
    x = torch.randn(tokens, hidden, device=DEVICE, dtype=torch.bfloat16).requires_grad_()
    weight = (torch.randn(vocabulary, hidden, device=DEVICE) * 0.02).requires_grad_()
    bias = torch.zeros(vocabulary, device=DEVICE, requires_grad=True)
    labels = torch.randint(0, vocabulary, (tokens,), device=DEVICE)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        masked_loss(x, weight, bias, labels).backward()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 6 * 2**30, f"{peak / 2**30:.1f} GiB; all logits at once are 28 GiB in float32"
