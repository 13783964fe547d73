"""Draws that depend on what is dropped and on nothing else, and look like chance."""

import pytest
import torch

from tessera.model.dropout import dropout_keys, dropout_mask, layer_keys

RATE = 0.1
KEYS = [1595150681, 527324726, 1566435399, 1175603060]
MASKS = ["1101001001010011", "1011010010110110", "1101001110001000", "1111011100100010"]


def kept(rows, layer=0, seed=7, row_tokens=64, channels=32, rate=RATE):
    keys = layer_keys(dropout_keys(seed, torch.as_tensor(rows), row_tokens), 22)[layer]
    return dropout_mask(keys, channels, rate).reshape(len(rows), row_tokens, channels)


def test_draws_do_not_depend_on_how_the_batch_is_cut():
    together = kept([4, 5, 6, 900_000_000_000])
    for i, row in enumerate([4, 5, 6, 900_000_000_000]):
        assert torch.equal(kept([row])[0], together[i])
    assert torch.equal(kept([6, 4])[1], together[0])


def test_draws_are_the_same_for_ever():
    """Changing these numbers changes every run that is resumed."""
    keys = dropout_keys(17, torch.tensor([0, 3_000_000_000]), 2)
    assert keys.tolist() == KEYS
    mask = dropout_mask(layer_keys(keys, 2)[1], 16, 0.5) > 0
    assert ["".join(str(int(k)) for k in token) for token in mask] == MASKS


def mix(word: int) -> int:
    """The hash, in Python's integers."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        word ^= word >> shift
        word = word * factor % 2**32
    return word


def test_draws_equal_those_of_unbounded_integers():
    key = int(dropout_keys(3, torch.tensor([11]), 4)[2])
    mask = dropout_mask(torch.tensor([key], dtype=torch.int32), 8, 0.4)[0] > 0
    threshold = round(0.4 * 65536)
    words = [mix((key % 2**32 + i) % 2**32) for i in range(4)]
    high = [(word >> 16) ^ 0x8000 for word in words]
    low = [(word & 0xFFFF) ^ 0x8000 for word in words]
    assert mask.tolist() == [draw >= threshold for draw in high + low]


@pytest.mark.slow
def test_compiled_code_draws_the_same():
    """Multiples of the channel that overflow would make the compiled loop run out of its array."""
    keys = dropout_keys(3, torch.tensor([11]), 128)
    compiled = torch.compile(dropout_mask, dynamic=False)
    assert torch.equal(compiled(keys, 64, 0.1), dropout_mask(keys, 64, 0.1))


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.01])
def test_the_rate_is_right_and_the_mean_preserved(rate):
    mask = kept(range(64), row_tokens=256, channels=128, rate=rate)
    dropped = (mask == 0).double().mean().item()
    deviation = (rate * (1 - rate) / mask.numel()) ** 0.5
    assert abs(dropped - rate) < 5 * deviation + 1 / 65536
    assert mask.double().mean().item() == pytest.approx(1, abs=5 * deviation / (1 - rate))
    assert mask.max().item() == pytest.approx(1 / (1 - rate), rel=1e-4)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = (x.double().flatten() - x.double().mean() for x in (a, b))
    return float((a * b).mean() / (a.std() * b.std()))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_no_correlation_between_layers_rows_tokens_channels_or_seeds(rate):
    drawn = kept(range(32), row_tokens=128, channels=128, rate=rate)  # 524,288 draws
    pairs = {
        "next layer": (drawn, kept(range(32), 1, row_tokens=128, channels=128, rate=rate)),
        "a distant layer": (drawn, kept(range(32), 21, row_tokens=128, channels=128, rate=rate)),
        "another seed": (drawn, kept(range(32), seed=8, row_tokens=128, channels=128, rate=rate)),
        "next row": (drawn[1:], drawn[:-1]),
        "next token": (drawn[:, 1:], drawn[:, :-1]),
        "next channel": (drawn[..., 1:], drawn[..., :-1]),
        "the other half of the word": (drawn[..., :64], drawn[..., 64:]),
        "two tokens and two channels on": (drawn[:, 2:, 2:], drawn[:, :-2, :-2]),
    }
    for what, (a, b) in pairs.items():
        assert abs(correlation(a, b)) < 5 / a.numel() ** 0.5, what


def test_every_channel_and_every_token_is_dropped_alike():
    dropped = (kept(range(64), row_tokens=128, channels=96) == 0).double()
    for axes, per in (((0, 1), 64 * 128), ((0, 2), 64 * 96), ((1, 2), 128 * 96)):
        deviations = (dropped.mean(axes) - RATE) / (RATE * (1 - RATE) / per) ** 0.5
        assert deviations.abs().max() < 5
        assert 0.7 < deviations.std() < 1.3, "draws of one line must vary as chance does"


def test_no_rate_drops_nothing():
    assert torch.equal(kept([1], rate=0.0), torch.ones(1, 64, 32))
