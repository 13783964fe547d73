"""Shapes of models that benchmarks train or count."""

from tessera.model.config import ModelConfig

MODELS = {
    "tiny": ModelConfig(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
    ),
    "base": ModelConfig(),
    "large": ModelConfig(
        hidden_size=1024, intermediate_size=2624, num_hidden_layers=28, num_attention_heads=16
    ),
}
MASKED_SHARE = 0.3
