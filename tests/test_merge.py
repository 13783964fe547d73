"""An average is the average, and only of what can be averaged."""

import json
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from reference import flexbert as reference

from tessera.checkpoints import CheckpointError, read_checkpoint
from tessera.checkpoints.formats import composer
from tessera.checkpoints.merge import merge


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    content = reference.config_content()
    return [
        reference.save(folder / f"{i}.pt", named=reference.weights(content, seed=i))
        for i in range(3)
    ]


def exact_average(paths, shares, name, index):
    """In rational numbers, rounded once."""
    total = Fraction(0)
    for path, share in zip(paths, shares, strict=True):
        number = read_checkpoint(path).weights[name].view(-1)[index].item()
        total += Fraction(number) * Fraction(share)
    return torch.tensor(float(total / sum(map(Fraction, shares))), dtype=torch.float32)


@pytest.mark.parametrize("shares", [None, [1, 1, 1], [3, 1, 0.5], [0, 0, 2]])
def test_an_average_is_rounded_once(shares, three, tmp_path):
    merged = read_checkpoint(merge(three, tmp_path / "out.pt", weights=shares))
    for name in ("head.dense.weight", "model.layers.2.mlp.Wi.weight", "decoder.bias"):
        for index in (0, 7, 100):
            expected = exact_average(three, shares or [1, 1, 1], name, index)
            found = merged.weights[name].view(-1)[index]
            assert torch.nextafter(found, expected) == expected or found == expected, name


def test_the_average_of_a_thousand_is_not_blurred(tmp_path):
    """float32 sums would be off by many roundings; float64 ones round as one does."""
    first = read_checkpoint(reference.save(tmp_path / "a.pt"))
    copies = []
    for i in range(12):
        weights = {name: tensor + i * 1e3 for name, tensor in first.weights.items()}
        weights["decoder.weight"] = weights["model.embeddings.tok_embeddings.weight"]
        copies.append(composer.write(replace(first, weights=weights), tmp_path / f"{i}.pt"))
    merged = read_checkpoint(merge(copies, tmp_path / "out.pt"))
    stacked = torch.stack([read_checkpoint(c).weights["decoder.bias"] for c in copies])
    assert torch.equal(merged.weights["decoder.bias"], stacked.double().mean(0).float())


def test_the_result_starts_afresh_and_says_what_it_is_made_of(three, tmp_path):
    merged = read_checkpoint(merge(three[:2], tmp_path / "out.pt", weights=[3, 1]))
    assert merged.kind == "tessera"
    assert merged.optimizer is None
    parts = merged.progress["merged"]
    assert [(part["checkpoint"], part["share"]) for part in parts] == [
        ("0.pt", 0.75),
        ("1.pt", 0.25),
    ]
    assert merged.tokenizer_files == read_checkpoint(three[0]).tokenizer_files


def test_models_of_other_shapes_are_refused_by_their_tensors(three, tmp_path):
    wider = reference.config_content(intermediate_size=64)
    other = reference.save(tmp_path / "wide.pt", content=wider)
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.Wi\.weight \(\[80, 48\] and \[128"):
        merge([three[0], other], tmp_path / "out.pt")
    deeper = reference.save(
        tmp_path / "d.pt", content=reference.config_content(num_hidden_layers=5)
    )
    with pytest.raises(CheckpointError, match=r"layers\.4\.attn_norm\.weight \(absent and"):
        merge([three[0], deeper], tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rotary_emb_base": 160_000.0}, "global_rope_theta"),
        ({"sliding_window": 32}, "local_attention"),
        ({"num_attention_heads": 2}, "num_attention_heads"),
    ],
)
def test_models_that_compute_otherwise_are_refused_by_the_key(changes, named, three, tmp_path):
    other = reference.save(tmp_path / "other.pt", content=reference.config_content(**changes))
    with pytest.raises(CheckpointError, match=named):
        merge([three[0], other], tmp_path / "out.pt")


def test_another_tokenizer_is_refused(three, tmp_path):
    first = read_checkpoint(three[0])
    text = json.loads(first.tokenizer_files["tokenizer.json"])
    vocabulary = text["model"]["vocab"]
    vocabulary["w10"], vocabulary["w11"] = vocabulary["w11"], vocabulary["w10"]
    files = {**first.tokenizer_files, "tokenizer.json": json.dumps(text)}
    other = composer.write(replace(first, tokenizer_files=files), tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="different tokenizers"):
        merge([three[0], other], tmp_path / "out.pt")


def test_what_makes_no_average_is_refused(three, tmp_path):
    out = tmp_path / "out.pt"
    (tmp_path / "latest").symlink_to(three[0])
    for paths, shares, message in (
        (three[:1], None, "two checkpoints"),
        ([three[0], three[0]], None, "twice"),
        ([three[0], tmp_path / "latest"], None, "twice"),
        (three, [1, 2], "2 weights for 3"),
        (three, [1, -1, 1], "negative"),
        (three, [0, 0, 0], "zero"),
        (three, [1, float("nan"), 1], "weights"),
    ):
        with pytest.raises(CheckpointError, match=message):
            merge(paths, out, weights=shares)
    assert not out.exists()
    out.write_text("mine")
    with pytest.raises(CheckpointError, match="exists"):
        merge(three, out)
    assert out.read_text() == "mine"
