"""Operations counted by formula are those that torch counts as they happen."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from tessera.model.config import ModelConfig
from tessera.model.flops import flops_per_token
from tessera.model.modernbert import ModernBertForMaskedLM

CONFIG = ModelConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=24,
    num_hidden_layers=5,
    num_attention_heads=2,
    local_attention=512,
)


def counted(training: bool) -> float:
    """Of one document of 100 tokens, 30 of them predicted; attention is opaque to the counter."""
    model = ModernBertForMaskedLM(CONFIG)
    model.initialize(0)
    ids = torch.randint(0, 96, (100,))
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        out = model(
            ids,
            cu_seqlens=torch.tensor([0, 100], dtype=torch.int32),
            masked_positions=torch.arange(30),
            masked_labels=ids[:30],
        )
        if training:
            out.loss_sum.backward()
    return counter.get_total_flops() / 100


def attention(training: bool) -> float:
    per_layer = 2 * 2 * 32 * 100  # scores and their sum over values, two operations each
    return 5 * per_layer * (3 if training else 1)


def test_forward_and_backward_are_counted_as_torch_does():
    for training in (False, True):
        formula = flops_per_token(CONFIG, attended_tokens=100, masked_share=0.3, training=training)
        exact = counted(training) + attention(training)
        assert abs(formula / exact - 1) < 1e-3


def test_windows_bound_what_long_documents_cost():
    base = ModelConfig()

    def at(length):
        return flops_per_token(base, attended_tokens=length, masked_share=0.3)

    local, everywhere = 14, 22
    assert at(2000) - at(1000) == 6 * 2 * 768 * 1000 * (everywhere - local)
