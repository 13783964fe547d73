"""Shapes by formula: what is rejected and kept, and where the published choices stand."""

import pytest

from tessera.cli.main import main
from tessera.model.config import ModelConfig
from tessera.planning.gpus import GPUS, Gpu
from tessera.planning.shapes import PUBLISHED, shapes, useful_share

TABLE = {  # multiprocessors: base 22x768x1152, large 28x1024x2624, of 16,384 tokens; reckoned apart
    40: (0.98, 0.98),
    82: (0.94, 0.95),
    128: (1.00, 0.99),
    72: (0.97, 0.94),
    58: (0.98, 0.97),
    108: (0.95, 0.96),
    132: (0.97, 0.96),
}


@pytest.mark.parametrize("multiprocessors", TABLE)
def test_the_published_shapes_waste_as_little_as_was_reckoned_of_them(multiprocessors):
    gpu = Gpu(
        title="",
        memory_mib=1,
        bf16_flops=1.0,
        memory_bandwidth=1.0,
        multiprocessors=multiprocessors,
    )
    found = [useful_share(config, 16_384, gpu) for config in PUBLISHED.values()]
    assert found == pytest.approx(TABLE[multiprocessors], abs=0.0101)


def test_a_product_of_one_tile_more_than_a_wave_takes_two():
    gpu = Gpu(title="", memory_mib=1, bf16_flops=1.0, memory_bandwidth=1.0, multiprocessors=64)
    square = ModelConfig(hidden_size=256, intermediate_size=256, num_attention_heads=4)
    tokens = 64 * 128  # a wave is 64 tiles: the products have 3, 1, 2 and 1 of them exactly
    assert useful_share(square, tokens, gpu) == 1
    assert useful_share(square, tokens + 128, gpu) == pytest.approx(7 * 65 / (64 * (4 + 2 + 3 + 2)))


def test_shapes_are_near_the_budget_aligned_and_deepest_first():
    gpus = {name: GPUS[name] for name in ("h100", "a100-80", "4090")}
    options = {"vocab_size": 50_000, "length": 1024, "gpus": gpus, "slots": 16_384}
    found, rejected = shapes(150e6, [512, 700, 768], **options)
    least = 0.93 * max(shape.worst for shape in found)
    assert rejected and all(shape.worst >= least for shape in found if not shape.name)
    assert {shape.config.hidden_size for shape in found} == {512, 768, 1024}
    depths = [shape.config.num_hidden_layers for shape in found]
    assert depths == sorted(depths, reverse=True)
    for shape in found:
        config = shape.config
        assert config.intermediate_size % 64 == config.vocab_size % 64 == 0
        assert shape.name or shape.parameters == pytest.approx(150e6, rel=0.03)
        assert 0 < shape.worst <= 1
    shapes_found = [(s.config.num_hidden_layers, s.config.intermediate_size) for s in found]
    assert (22, 1152) in shapes_found
    assert {shape.name for shape in found} == {"", *PUBLISHED}


def test_the_command_shows_a_table_and_measures(capsys):
    assert main(["shapes", "150e6", "--hidden", "768", "--top", "3"]) == 0
    shown = capsys.readouterr().out
    assert "ModernBERT-base" in shown and "left out" in shown
    small = ["--hidden", "64", "--vocab-size", "256", "--slots", "256", "--length", "64"]
    assert main(["shapes", "144_000", *small, "--measure"]) == 0
    assert capsys.readouterr().out.count("tokens/s") == 1
    assert main(["shapes", "1e4", "--hidden", "768"]) == 2
    assert "no shape of hidden size 768" in capsys.readouterr().err
