"""What a model starts from: the published random weights, or tiles of a smaller model."""

from dataclasses import replace

import pytest
import torch

from tessera.model.config import ModelConfig
from tessera.model.modernbert import ModernBertForMaskedLM
from tessera.model.tiling import layer_sources, tile_weights

SMALL = ModelConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
)
BASE = ModelConfig()
LARGE = ModelConfig(
    hidden_size=1024, intermediate_size=2624, num_hidden_layers=28, num_attention_heads=16
)


def weights(config: ModelConfig, seed: int = 1) -> dict[str, torch.Tensor]:
    model = ModernBertForMaskedLM(config)
    model.initialize(seed)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def distinguishable(config: ModelConfig) -> dict[str, torch.Tensor]:
    return {k: torch.randn(v.shape) for k, v in weights(config).items()}


# ---- random weights


def test_weights_are_the_published_truncated_normal():
    drawn = weights(SMALL)
    for name, tensor in drawn.items():
        if name.endswith("norm.weight"):
            assert torch.equal(tensor, torch.ones_like(tensor)), name
        elif name != "decoder.bias":
            std = 0.02 / (8**0.5 if name.endswith("Wo.weight") else 1)
            assert tensor.abs().max() <= 2 * std, name
            assert tensor.abs().max() > 1.9 * std, name
            # A normal cut at two standard deviations has 0.8796 of its nominal one.
            assert tensor.std() == pytest.approx(0.8796 * std, rel=0.05), name
            assert tensor.mean().abs() < 0.1 * std, name


def test_no_two_matrices_share_their_draws():
    drawn = [t.flatten()[:64] for t in weights(SMALL).values() if t.dim() == 2]
    normed = torch.stack(drawn)[1:]  # the decoder is the embedding
    normed = normed[:-1] if torch.equal(drawn[0], drawn[-1]) else normed
    assert len(normed) == len(torch.unique(normed, dim=0))


@pytest.mark.parametrize("start", ["zero", "uniform"])
def test_the_decoder_bias_is_zero_or_what_the_published_code_left(start):
    bias = weights(replace(SMALL, decoder_bias_init=start))["decoder.bias"]
    if start == "zero":
        assert not bias.any()
    else:
        assert 0.95 / 8 < bias.abs().max() <= 1 / 8
        assert bias.std() == pytest.approx((1 / 8) / 3**0.5, rel=0.1)


def test_weights_are_a_function_of_the_seed_alone():
    torch.manual_seed(5)
    first = weights(SMALL, seed=1)
    torch.manual_seed(6)
    with torch.device("meta"):
        model = ModernBertForMaskedLM(SMALL)
    model.to_empty(device="cpu").initialize(1)
    again, other = model.state_dict(), weights(SMALL, seed=2)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(
        first["model.layers.0.attn.Wqkv.weight"], other["model.layers.0.attn.Wqkv.weight"]
    )


# ---- tiles


def tile_by_loop(small: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Cell by cell: the small matrix in the middle, and again on every side."""
    high, wide = small.shape
    above, left = (rows - high) // 2, (columns - wide) // 2
    cells = small.tolist()
    return torch.tensor(
        [
            [cells[(i - above) % high][(j - left) % wide] for j in range(columns)]
            for i in range(rows)
        ]
    )


def test_the_published_tiles_are_centred_and_periodic():
    target = replace(
        SMALL, hidden_size=88, num_attention_heads=4, intermediate_size=131, num_hidden_layers=7
    )
    small = distinguishable(SMALL)
    large = tile_weights(small, SMALL, target, mode="published")

    assert layer_sources(SMALL, target, "published") == [0, 1, 1, 2, 2, 3, 3]
    for i, j in enumerate([0, 1, 1, 2, 2, 3, 3]):
        to, of = f"model.layers.{i}.", f"model.layers.{j}."
        for part in range(3):
            piece = small[f"{of}attn.Wqkv.weight"].chunk(3)[part]
            tiled = large[f"{to}attn.Wqkv.weight"].chunk(3)[part]
            assert torch.equal(tiled, tile_by_loop(piece, 88, 88))
        for part in range(2):
            piece = small[f"{of}mlp.Wi.weight"].chunk(2)[part]
            tiled = large[f"{to}mlp.Wi.weight"].chunk(2)[part]
            assert torch.equal(tiled, tile_by_loop(piece, 131, 88))
        mlp_out = tile_by_loop(small[f"{of}mlp.Wo.weight"], 88, 131)
        assert torch.equal(large[f"{to}mlp.Wo.weight"], mlp_out)
    embedding = tile_by_loop(small["model.embeddings.tok_embeddings.weight"], 512, 88)
    assert torch.equal(large["decoder.weight"], embedding)
    assert torch.equal(large["model.final_norm.weight"], torch.ones(88))
    assert torch.equal(large["decoder.bias"], small["decoder.bias"])


def test_the_published_layers_of_large_are_those_of_the_release():
    expected = "0 1 2 2 3 4 5 6 6 7 8 9 9 10 11 12 13 13 14 15 16 16 17 18 19 20 20 21"
    assert layer_sources(BASE, LARGE, "published") == [int(i) for i in expected.split()]


@pytest.mark.parametrize("depth", [4, 5, 7, 8, 12, 13, 1])
@pytest.mark.parametrize("source", [SMALL, replace(SMALL, num_hidden_layers=1)])
def test_local_layers_come_from_local_ones_and_global_from_global(source, depth):
    target = replace(SMALL, num_hidden_layers=depth)
    chosen = layer_sources(source, target)
    assert len(chosen) == depth
    has_local = source.num_hidden_layers > 1
    for i, j in enumerate(chosen):
        assert 0 <= j < source.num_hidden_layers
        assert source.is_global(j) == target.is_global(i) or not has_local
    for kind in (True, False):
        of_kind = [j for i, j in enumerate(chosen) if target.is_global(i) == kind]
        assert of_kind == sorted(of_kind)


def test_every_layer_of_base_is_used_in_large_once_or_twice():
    chosen = layer_sources(BASE, LARGE)
    assert {chosen.count(j) for j in range(22)} == {1, 2}
    assert all(BASE.is_global(j) == LARGE.is_global(i) for i, j in enumerate(chosen))
    assert (chosen[0], chosen[-1]) == (0, 21)


def test_heads_are_tiled_whole():
    """A query head of the large model is a whole head of the small one, at the same angles."""
    target = replace(SMALL, hidden_size=112, num_attention_heads=7)  # 1.75 x, not a multiple
    small, large = distinguishable(SMALL), {}
    large = tile_weights(small, SMALL, target)
    heads = small["model.layers.3.attn.Wqkv.weight"].view(3, 4, 16, 64)
    for part in range(3):
        tiled = large["model.layers.3.attn.Wqkv.weight"].view(3, 7, 16, 112)[part]
        for head, of in enumerate([3, 0, 1, 2, 3, 0, 1]):
            middle = tiled[head][:, 24:88]
            assert torch.equal(middle, heads[part, of])
    out = large["model.layers.3.attn.Wo.weight"].view(112, 7, 16)
    assert torch.equal(out[24:88, 2], small["model.layers.3.attn.Wo.weight"].view(64, 4, 16)[:, 1])


def test_the_final_norm_is_tiled():
    small = distinguishable(SMALL)
    target = replace(SMALL, hidden_size=128, num_attention_heads=8)
    gains = tile_weights(small, SMALL, target)["model.final_norm.weight"]
    assert torch.equal(gains[32:96], small["model.final_norm.weight"])


@pytest.mark.parametrize(
    ("hidden", "heads", "inner", "depth"),
    [(128, 8, 192, 12), (64, 4, 96, 9), (160, 5, 97, 4), (100, 10, 96, 2), (64, 4, 96, 4)],
    ids=["doubled", "deeper only", "wider heads", "shallower", "the same"],
)
def test_any_larger_shape_can_be_tiled_and_loaded(hidden, heads, inner, depth):
    target = replace(
        SMALL,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=inner,
        num_hidden_layers=depth,
    )
    large = ModernBertForMaskedLM(target)
    large.load_state_dict(tile_weights(distinguishable(SMALL), SMALL, target), strict=True)


def test_tiling_to_the_same_shape_is_a_copy():
    small = distinguishable(SMALL)
    small["decoder.weight"] = small["model.embeddings.tok_embeddings.weight"]
    same = tile_weights(small, SMALL, SMALL)
    assert same.keys() == small.keys()
    assert all(torch.equal(same[k], small[k]) for k in small)


def test_a_repeated_first_layer_gets_the_norm_its_source_was_read_through():
    target = replace(SMALL, num_hidden_layers=13)
    small = distinguishable(SMALL)
    chosen = layer_sources(SMALL, target)
    again = chosen.index(0, 1)
    large = tile_weights(small, SMALL, target)
    assert torch.equal(
        large[f"model.layers.{again}.attn_norm.weight"], small["model.embeddings.norm.weight"]
    )


def test_norms_of_queries_and_keys_are_tiled_with_their_rotary_pairs():
    """Wider heads: each pair's gain goes where the rows of its queries go."""
    source = replace(SMALL, qk_norm=True)
    target = replace(source, hidden_size=128, num_attention_heads=4)  # heads of 32 from 16
    small = distinguishable(source)
    large = tile_weights(small, source, target)
    name = "model.layers.2.attn.q_norm.weight"
    assert torch.equal(large[name].view(2, 8, 2), small[name].view(2, 8, 1).expand(2, 8, 2))
    rows = small["model.layers.2.attn.Wqkv.weight"].chunk(3)[0].view(4, 2, 8, 64)
    tiled = large["model.layers.2.attn.Wqkv.weight"].chunk(3)[0].view(4, 2, 8, 2, 128)
    assert torch.equal(tiled[..., 32:96], rows.unsqueeze(3).expand(4, 2, 8, 2, 64))
    same = tile_weights(small, source, source)
    assert all(torch.equal(same[k], small[k]) for k in small if "decoder" not in k)
    with pytest.raises(ValueError, match="qk_norm is true in the source and false in the target"):
        tile_weights(small, source, SMALL)
    with pytest.raises(ValueError, match="published lays channels whatever the heads"):
        tile_weights(small, source, target, "published")


@pytest.mark.parametrize(
    ("change", "words"),
    [({"vocab_size": 600}, "vocab_size"), ({"intermediate_size": 80}, "only enlarge")],
)
def test_what_cannot_be_tiled_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        tile_weights(distinguishable(SMALL), SMALL, replace(SMALL, **change))
