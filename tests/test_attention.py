"""Every backend that runs here is the dense oracle, forward and backward, whatever the packing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.attention import dense_attention, visible

from tessera.model.attention import flex, sdpa
from tessera.model.attention.backends import BACKENDS, attend, choose, prepare, survey
from tessera.model.attention.packing import documents_of

PACKINGS = {
    "ragged": [17, 1, 300, 64, 2, 129, 65],
    "one document": [333],
    "a document per token": [1] * 40,
    "documents of the window's size": [64, 65, 66, 128, 129],
    "just long enough to be cut into blocks": [256, 257, 258, 320, 321],
    "empty documents, and a zero-length tail": [30, 0, 70, 0, 0, 0],
}
WINDOWS = [None, 64, 5, 1, 100]
BOTH_WAYS = pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])


def inputs(tokens, heads=2, channels=16, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(tokens, 3, heads, channels, generator=generator).to(dtype)
    return [part.detach().requires_grad_() for part in qkv.unbind(1)]


def packing_of(lengths, backend, window, causal=False):
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return prepare(cu_seqlens, max(lengths), backend, sum(lengths), {window}, causal=causal)


def check_against_oracle(
    lengths, window, causal=False, dtype=torch.float32, tolerance=2e-5, heads=2, channels=16
):
    tokens = sum(lengths)
    ours, exact = (inputs(tokens, heads, channels, dtype) for _ in range(2))
    upstream = torch.randn(tokens, heads, channels, generator=torch.Generator().manual_seed(1))

    out = attend(*ours, packing_of(lengths, "sdpa", window, causal), window)
    expected = dense_attention(*exact, lengths, window, causal)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)

    gradients = torch.autograd.grad(out, ours, upstream.to(dtype))
    expected_gradients = torch.autograd.grad(expected, exact, upstream.double())
    for gradient, exactly in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(
            gradient.double(), exactly.double(), atol=5 * tolerance, rtol=tolerance
        )


@BOTH_WAYS
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("lengths", PACKINGS.values(), ids=PACKINGS.keys())
def test_sdpa_equals_the_dense_oracle(lengths, window, causal):
    check_against_oracle(lengths, window, causal)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 330), min_size=1, max_size=4).filter(any),
    window=st.none() | st.integers(1, 90),
    causal=st.booleans(),
    heads=st.integers(1, 3),
    channels=st.sampled_from([8, 24, 32, 64, 80, 128]),
)
def test_sdpa_equals_the_dense_oracle_on_any_packing(lengths, window, causal, heads, channels):
    check_against_oracle(lengths, window, causal, heads=heads, channels=channels)


@BOTH_WAYS
@pytest.mark.parametrize("window", [None, 20])
def test_sdpa_in_bfloat16_is_close_to_the_oracle(window, causal):
    check_against_oracle([50, 200, 3], window, causal, dtype=torch.bfloat16, tolerance=2e-2)


@BOTH_WAYS
@pytest.mark.parametrize("window", WINDOWS)
def test_sdpa_without_the_cpu_kernel_is_the_same(window, causal, monkeypatch):
    """The path of devices that have no kernel of their own, here on the CPU."""

    def forward(q, k, v, rate, after, attn_mask):
        out = sdpa._anywhere(q, k, v, attn_mask, after)
        return out, q.new_zeros(q.size(0), q.size(1), q.size(2))

    def backward(d_out, q, k, v, out, sums, rate, after, attn_mask):
        return sdpa._anywhere_backward(d_out, q, k, v, attn_mask, after)

    tiles = sdpa._tiles
    monkeypatch.setattr(sdpa, "_tiles", lambda at, reach, way, _: tiles(at, reach, way, 100))
    monkeypatch.setattr(sdpa, "_flash_on_cpu", forward)
    monkeypatch.setattr(sdpa, "_flash_on_cpu_backward", backward)
    check_against_oracle(PACKINGS["ragged"], window, causal)


@pytest.mark.parametrize("window", [None, 64, 5])
def test_a_later_token_changes_nothing_before_it(window):
    """To the last bit: a long document is cut into blocks, each with keys of the one before."""
    lengths = [90, 700, 3]
    q, k, v = (x.detach() for x in inputs(sum(lengths)))
    packing = packing_of(lengths, "sdpa", window, causal=True)
    before = attend(q, k, v, packing, window)
    for changed in (0, 89, 90, 155, 400, 789, 790):
        others = [x.clone() for x in (q, k, v)]
        for x in others:
            x[changed] += 1
        after = attend(*others, packing, window)
        assert torch.equal(after[:changed], before[:changed])
        assert not torch.equal(after[changed], before[changed])


@BOTH_WAYS
def test_windowed_work_grows_with_the_tokens_and_not_with_their_square(causal):
    def scores(tokens):
        tiles = sdpa._tiles([0, tokens], window=64, causal=causal)
        return sum(tile.count * tile.queries * tile.keys for tile in tiles)

    assert scores(16_384) < 2.01 * scores(8192)
    assert scores(8192) <= 8192 * (2 if causal else 3) * 64


@BOTH_WAYS
def test_tiles_hold_every_query_once_and_every_visible_key(causal):
    lengths, window = [700, 3, 257, 64, 640], 50
    seen = torch.zeros(sum(lengths), sum(lengths), dtype=torch.int64)
    queries = torch.zeros(sum(lengths), dtype=torch.int64)
    boundaries = torch.tensor([0, *lengths]).cumsum(0).tolist()
    for tile in sdpa._tiles(boundaries, window, causal):
        for block in range(tile.count):
            query, key = (x + block * tile.queries for x in (tile.query, tile.key))
            queries[query : query + tile.queries] += 1
            seen[query : query + tile.queries, key : key + tile.keys] += 1
    assert (queries == 1).all()
    assert (seen[visible(lengths, window, causal)] == 1).all()
    assert (seen[~visible(lengths, None)] == 0).all()


@pytest.mark.slow
def test_the_operator_keeps_what_it_promises_a_compiler():
    q, k, v = inputs(80)
    boundaries = torch.tensor([0, 50, 50, 80], dtype=torch.int32)
    for window in (-1, 4):
        torch.library.opcheck(sdpa._attend, (q, k, v, boundaries, window, window > 0))


# ---- FlexAttention: its masks here, its kernels in tests/gpu


@BOTH_WAYS
@pytest.mark.parametrize("window", [None, 1, 64, 127, 128, 255, 300])
@pytest.mark.parametrize("lengths", [[700], [130, 1, 300, 0, 129, 40], [128] * 4, [3] * 200])
def test_blocks_that_flex_visits_are_those_of_the_dense_mask(lengths, window, causal):
    dense = visible(lengths, window, causal)
    tokens = len(dense)
    whole = -(-tokens // 128) * 128
    padded = torch.zeros(whole, whole, dtype=torch.bool)
    padded[:tokens, :tokens] = dense
    blocks = padded.view(whole // 128, 128, whole // 128, 128)

    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    some, all_of = flex.visible_blocks(documents_of(cu_seqlens, tokens), window, causal)
    assert torch.equal(some, blocks.any(3).any(1))
    assert torch.equal(all_of, blocks.all(3).all(1))

    listed = flex.prepare(cu_seqlens, tokens, window, causal).to_dense()[0, 0]
    assert torch.equal(listed.bool(), some)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 200), min_size=1, max_size=4).filter(any),
    window=st.none() | st.integers(1, 140),
    causal=st.booleans(),
    channels=st.sampled_from([16, 32, 64, 128]),
)
def test_flex_equals_the_dense_oracle_on_any_packing(lengths, window, causal, channels):
    """Forward: torch has no backward pass of it for a CPU."""
    q, k, v = (x.detach() for x in inputs(sum(lengths), channels=channels))
    out = attend(q, k, v, packing_of(lengths, "flex", window, causal), window)
    expected = dense_attention(q, k, v, lengths, window, causal)
    torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=0)


# ---- the choice


def test_a_cpu_is_served_by_sdpa_and_every_other_backend_says_why_not():
    cpu = torch.device("cpu")
    assert choose("auto", cpu, torch.float32, 64) == "sdpa"
    reasons = dict(survey(cpu, torch.float32))
    assert list(reasons) == list(BACKENDS)
    assert [name for name, reason in reasons.items() if reason is None] == ["sdpa"]
    assert all("cpu" in reason for reason in reasons.values() if reason)


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "sdpa"])
def test_forcing_a_backend_that_cannot_serve_is_refused(name):
    with pytest.raises(ValueError, match=rf"'{name}' cannot serve .* sdpa"):
        choose(name, torch.device("cpu"), torch.float32, 64)


def test_a_misspelt_backend_is_met_with_the_likely_one():
    with pytest.raises(ValueError, match="did you mean 'torch-varlen'"):
        choose("torch_varlen", torch.device("cpu"), torch.float32, 64)
