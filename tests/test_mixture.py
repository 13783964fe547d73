"""The next piece comes from the source furthest behind its share of tokens, in exact integers."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.data.pipeline.mixture import furthest_behind, head_start, whole_shares

weights = st.lists(st.sampled_from([0.05, 0.1, 0.3, 1.0, 2.5, 7.0]), min_size=1, max_size=6)


def draws(shares, drawn, lengths):
    """The tokens drawn from each source after each piece."""
    drawn = list(drawn)
    for length in lengths:
        drawn[furthest_behind(shares, drawn)] += length
        yield list(drawn)


@given(weights=weights, seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_shares_hold_over_any_window_to_within_a_few_pieces(weights, seed):
    longest = 1024
    lengths = np.random.default_rng(seed).integers(3, longest + 1, 600).tolist()
    shares = whole_shares(weights)
    history = [[0] * len(shares), *draws(shares, [0] * len(shares), lengths)]
    for begin in (0, 1, 57, 300):
        for end in (begin + 1, begin + 40, 600):
            window = [b - a for a, b in zip(history[begin], history[end], strict=True)]
            for share, tokens in zip(shares, window, strict=True):
                fair = Fraction(share, sum(shares)) * sum(window)
                assert abs(tokens - fair) <= longest * len(shares)


def test_shares_hold_where_sources_have_documents_of_very_different_lengths():
    shares, drawn = whole_shares([0.5, 0.3, 0.2]), [0, 0, 0]
    typical = (1024, 20, 200)
    for _ in range(20_000):
        source = furthest_behind(shares, drawn)
        drawn[source] += typical[source]
    for share, tokens in zip((0.5, 0.3, 0.2), drawn, strict=True):
        assert abs(tokens - share * sum(drawn)) < 3 * 1024


def test_the_choice_is_exact_far_into_a_run():
    """A float would no longer see one token in 10**18."""
    shares = whole_shares([1.0, 1.0])
    assert furthest_behind(shares, [10**18 + 1, 10**18]) == 1
    assert furthest_behind(shares, [10**18, 10**18 + 1]) == 0


def test_weights_are_read_as_they_were_written():
    assert whole_shares([0.1, 0.2, 0.7]) == (1, 2, 7)
    assert whole_shares([1e-3, 2.5]) == (1, 2500)


@pytest.mark.parametrize("lanes", [8, 96])
def test_the_first_pieces_of_all_lanes_together_follow_the_shares(lanes):
    shares = whole_shares([0.5, 0.3, 0.2])
    chosen = [furthest_behind(shares, head_start(shares, lane, 512)) for lane in range(lanes)]
    for source, share in enumerate((0.5, 0.3, 0.2)):
        assert abs(chosen.count(source) - share * lanes) <= 1
