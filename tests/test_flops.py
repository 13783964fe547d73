"""Operations counted by formula are those that torch counts as they happen."""

import pytest
import torch
from reference.attention import visible
from torch.utils.flop_counter import FlopCounterMode

from tessera.model.config import ModelConfig
from tessera.model.device_rate import matmul_rate
from tessera.model.flops import training_flops
from tessera.model.modernbert import ModernBertForMaskedLM

CONFIG = ModelConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=24,
    num_hidden_layers=5,
    num_attention_heads=2,
    local_attention=512,
)


def counted() -> float:
    """Of one document of 100 tokens, 30 of them predicted; attention is opaque to the counter."""
    model = ModernBertForMaskedLM(CONFIG)
    model.initialize(0)
    ids = torch.randint(0, 96, (100,))
    with FlopCounterMode(display=False) as counter:
        out = model(
            ids,
            cu_seqlens=torch.tensor([0, 100], dtype=torch.int32),
            masked_positions=torch.arange(30),
            masked_labels=ids[:30],
        )
        out.loss_sum.backward()
    return counter.get_total_flops()


def test_forward_and_backward_are_counted_as_torch_does():
    per_layer = 2 * 2 * 32 * 100 * 100  # scores and their sum over values, two operations each
    exact = counted() + 5 * 3 * per_layer
    assert training_flops(CONFIG, torch.tensor([100]), 30) == pytest.approx(exact, rel=1e-3)


def test_windows_and_documents_bound_what_attention_costs():
    base = ModelConfig()

    def attention(*lengths):
        alone = training_flops(base, torch.ones(sum(lengths)), 0)
        return training_flops(base, torch.tensor(lengths), 0) - alone

    local, everywhere, a_pair = 14, 8, 6 * 2 * 768
    more = 2000**2 - 2 * 1000**2
    windowed = 2000 * 129 - 2 * 1000 * 129
    expected = a_pair * (everywhere * more + local * windowed)
    assert attention(2000) - attention(1000, 1000) == pytest.approx(expected)


@pytest.mark.parametrize("lengths", [[1], [40, 300, 66, 65, 64], [1000]])
def test_a_causal_token_is_counted_with_those_it_sees(lengths):
    """One by one, from the mask that attention is tested against."""
    base = ModelConfig()
    everything, nothing = (
        training_flops(base, torch.tensor(lengths), predicted, causal=True) for predicted in (9, 0)
    )
    both_ways = (training_flops(base, torch.tensor(lengths), predicted) for predicted in (9, 0))
    assert everything - nothing == pytest.approx(next(both_ways) - next(both_ways))

    without = training_flops(base, torch.ones(sum(lengths)), 0, causal=True)
    a_pair, tokens = 6 * 2 * 768, sum(lengths)
    expected = sum(
        count * (int(visible(lengths, window, True).sum()) - tokens)
        for window, count in ((None, 8), (64, 14))
    )
    assert nothing - without == pytest.approx(a_pair * expected)


def test_the_rate_of_products_is_one_that_a_machine_can_have():
    assert 1e8 < matmul_rate(torch.device("cpu"), torch.float32, seconds=0.01) < 1e15
