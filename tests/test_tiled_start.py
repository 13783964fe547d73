"""A larger model's first checkpoint, laid from tiles of a smaller one's."""

import pytest
import torch
from reference import flexbert as reference

from tessera.checkpoints import CheckpointError, load_model, read_checkpoint
from tessera.checkpoints.importer import import_checkpoint
from tessera.model.config import ModelConfig

LARGE = ModelConfig(
    vocab_size=160,
    hidden_size=80,
    intermediate_size=100,
    num_hidden_layers=7,
    num_attention_heads=5,
    local_attention=16,
    global_rope_theta=10_000.0,
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return reference.save(tmp_path_factory.mktemp("small") / "small.pt")


def periodic(tensor, sizes):
    """The published rule, one number at a time: the original in the middle, then around it."""
    out = torch.empty(sizes)
    for index in torch.cartesian_prod(*(torch.arange(size) for size in sizes)).view(-1, len(sizes)):
        source = [
            (int(i) - (size - n) // 2) % n
            for i, size, n in zip(index, sizes, tensor.shape, strict=True)
        ]
        out[tuple(index)] = tensor[tuple(source)]
    return out


def test_the_published_tiles_are_laid_by_the_published_rule(small, tmp_path):
    source = read_checkpoint(small).weights
    out = import_checkpoint(small, tmp_path / "large.pt", LARGE, tile="published")
    found = read_checkpoint(out)
    assert found.model_config == LARGE
    large = found.weights
    embedding = "model.embeddings.tok_embeddings.weight"
    assert torch.equal(large[embedding], periodic(source[embedding], (160, 80)))
    for i in range(7):
        j = round(4 * i / 7)
        name = "model.layers.{}.attn.Wqkv.weight"
        expected = torch.cat([periodic(part, (80, 80)) for part in source[name.format(j)].chunk(3)])
        assert torch.equal(large[name.format(i)], expected), (i, j)
        name = "model.layers.{}.mlp.Wi.weight"
        expected = torch.cat(
            [periodic(part, (100, 80)) for part in source[name.format(j)].chunk(2)]
        )
        assert torch.equal(large[name.format(i)], expected), (i, j)
    assert torch.equal(large["model.final_norm.weight"], torch.ones(80))
    assert torch.equal(large["decoder.bias"], source["decoder.bias"])


def test_the_default_tiles_the_last_norm_and_keeps_the_kinds_of_layers_apart(small, tmp_path):
    source = read_checkpoint(small).weights
    out = import_checkpoint(small, tmp_path / "large.pt", LARGE, tile="default")
    large = read_checkpoint(out).weights
    assert torch.equal(
        large["model.final_norm.weight"], periodic(source["model.final_norm.weight"], (80,))
    )
    globals_, locals_ = {0, 3}, {1, 2}
    for i in range(7):
        norm = large[f"model.layers.{i}.mlp_norm.weight"]
        came_from = {
            j
            for j in range(4)
            if torch.equal(norm, periodic(source[f"model.layers.{j}.mlp_norm.weight"], (80,)))
        }
        assert came_from and came_from <= (globals_ if i % 3 == 0 else locals_), (i, came_from)


def test_a_tiled_checkpoint_is_one_to_start_from(small, tmp_path):
    out = import_checkpoint(small, tmp_path / "large.pt", LARGE, tile="default")
    found = read_checkpoint(out)
    assert found.optimizer is None
    assert found.progress["tiling"] == "default"
    assert found.tokenizer_files == read_checkpoint(small).tokenizer_files
    document = torch.arange(20)
    with torch.inference_mode():
        logits = load_model(out)(document, cu_seqlens=torch.tensor([0, 20]).int()).logits
    assert torch.isfinite(logits).all()


def test_what_cannot_be_tiled_is_refused(small, tmp_path):
    with pytest.raises(CheckpointError, match="hidden_size is 48"):
        import_checkpoint(
            small,
            tmp_path / "a.pt",
            ModelConfig(vocab_size=160, hidden_size=32, num_attention_heads=2, num_hidden_layers=7),
            tile="default",
        )
    with pytest.raises(CheckpointError, match="vocab_size"):
        import_checkpoint(small, tmp_path / "a.pt", ModelConfig(), tile="default")
    with pytest.raises(CheckpointError, match="name its YAML"):
        import_checkpoint(small, tmp_path / "a.pt", tile="default")
    with pytest.raises(CheckpointError, match=r"\.pt"):
        import_checkpoint(small, tmp_path / "a.safetensors", LARGE, tile="default")
    assert not list(tmp_path.iterdir())
