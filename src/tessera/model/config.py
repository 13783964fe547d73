"""The shape of the model: what the YAML's `model` section says. Imports no torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """ModernBERT's architecture (https://arxiv.org/abs/2412.13663), in Hugging Face's names.

    Defaults are the released base model.
    """

    vocab_size: int = 50_368
    """Rows of the embedding. A multiple of 64 is fastest; it may exceed the tokenizer's size."""
    hidden_size: int = 768
    """Channels of a token between the layers; `num_attention_heads` divides it."""
    intermediate_size: int = 1152
    """Width of each half of the gated feed-forward layer."""
    num_hidden_layers: int = 22
    """The first is always global; published shapes have a multiple of three, and one more."""
    num_attention_heads: int = 12
    """Heads of 64 channels are what kernels are made for."""
    local_attention: int = 128
    """Window of the local layers: a token sees those at most `local_attention // 2` away."""
    global_attn_every_n_layers: int = 3
    """Layer i attends globally if i is a multiple of this, else locally."""
    global_rope_theta: float = 160_000.0
    """Base of the global layers' rotary wavelengths; 10,000 suits documents of 1,024 tokens."""
    local_rope_theta: float = 10_000.0
    """Base of the local layers' rotary wavelengths."""
    norm_eps: float = 1e-5
    """Added to the variance in every layer norm."""
    qk_norm: bool = False
    """Layer norm of each head's queries and keys before their rotation: attention's logits stay
    bounded (https://arxiv.org/abs/2302.05442). Cannot be exported: transformers has none."""
    attention_output_dropout: float = 0.1
    """After attention's output projection, in training; no other layer drops anything."""
    initializer_range: float = 0.02
    """Standard deviation of initial weights; output projections get it over sqrt(2 layers)."""
    initializer_cutoff_factor: float = 2.0
    """Initial weights are cut at this many standard deviations."""
    decoder_bias_init: Literal["zero", "uniform"] = "zero"
    """`uniform` is what the published training code did: U(-1/sqrt(hidden), 1/sqrt(hidden))."""

    def __post_init__(self) -> None:
        counts = (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "global_attn_every_n_layers",
        )
        positive = ("global_rope_theta", "local_rope_theta", "norm_eps", "initializer_range")
        found = [
            f"{name} must be at least 1; got {getattr(self, name)}"
            for name in counts
            if getattr(self, name) < 1
        ]
        sizes = min(self.hidden_size, self.num_attention_heads) > 0
        if sizes and self.hidden_size % self.num_attention_heads:
            found.append(
                f"hidden_size {self.hidden_size} does not divide into "
                f"{self.num_attention_heads} attention heads"
            )
        elif sizes and self.head_size % 2:
            found.append(f"rotary positions need an even head size; got {self.head_size}")
        if self.local_attention < 2 or self.local_attention % 2:
            found.append(f"local_attention must be even and positive: {self.local_attention}")
        if not 0 <= self.attention_output_dropout < 1:
            found.append(
                f"attention_output_dropout is in [0, 1); got {self.attention_output_dropout}"
            )
        found += [
            f"{name} must be positive; got {getattr(self, name)}"
            for name in positive
            if not getattr(self, name) > 0
        ]
        if found:
            raise ValueError("\n".join(found))

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def not_in_transformers(self) -> str | None:
        """What keeps such a model from being transformers' ModernBert, by key; None if nothing."""
        if not self.qk_norm:
            return None
        return "model.qk_norm: true has weights that transformers' ModernBert has no place for"

    def is_global(self, layer: int) -> bool:
        """Whether this layer, counted from 0, attends to the whole document."""
        return layer % self.global_attn_every_n_layers == 0

    def window(self, layer: int) -> int | None:
        """How far a token of this layer sees on either side; None: the whole document."""
        return None if self.is_global(layer) else self.local_attention // 2

    def rope_theta(self, layer: int) -> float:
        """Base of the layer's rotary wavelengths."""
        return self.global_rope_theta if self.is_global(layer) else self.local_rope_theta
