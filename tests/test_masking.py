"""Masks are a function of the row's key: 80/10/10 over ordinary tokens, for ever the same."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import data_oracles as oracle

from tessera.data.collate import Shapes
from tessera.data.config import MaskingConfig
from tessera.data.pipeline.masking import (
    LONGEST_SPAN,
    MEAN_SPAN,
    SPAN_OF_A_TOKEN,
    WORD_TOKENS,
    Vocabulary,
    mask,
    rate_at,
    rate_for_shapes,
)
from tessera.data.randomness import Draws
from tessera.quantities import Duration

SIZE, MASK, SPECIAL = 300, 3, (0, 1, 2, 3, 150)


def vocabulary(whole_words=False, size=SIZE, special=SPECIAL):
    ordinary = np.zeros(2**16, bool)
    ordinary[:size] = True
    ordinary[list(special)] = False
    starts = np.arange(2**16) % 3 == 0 if whole_words else None
    return Vocabulary(MASK, ordinary, np.flatnonzero(ordinary).astype(np.uint16), starts)


@given(
    ids=st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=200),
    rate=st.floats(0.01, 0.99),
    row=st.integers(0, 2**40),
    whole_words=st.booleans(),
    spans=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_masks_are_those_of_the_obvious_loop(ids, rate, row, whole_words, spans):
    words = vocabulary(whole_words)
    seen, positions, labels = mask(
        np.array(ids, np.uint16), words, rate, Draws("masks", 7, row), spans=spans
    )
    expected = oracle.mask(
        ids, mask_id=MASK, special=set(SPECIAL), size=SIZE, rate=rate, key=("masks", 7, row),
        word_starts=words.word_starts, spans=spans,
    )  # fmt: skip
    assert (seen.tolist(), positions.tolist(), labels.tolist()) == expected


def test_the_masks_of_a_row_are_the_same_for_ever():
    """Recorded once: a change would make a resumed run differ from one that was never stopped."""
    seen, positions, _ = mask(
        np.arange(4, 44, dtype=np.uint16), vocabulary(), 0.3, Draws("masks", 17, 5)
    )
    assert positions.tolist() == [4, 6, 8, 11, 19, 30, 33, 34, 36, 37]
    assert seen[positions].tolist() == [134, 3, 3, 3, 3, 3, 3, 3, 3, 3]


def test_draws_begun_anew_are_those_of_a_new_object():
    draws = Draws("a")
    draws.words(3)
    draws.begin("b", 1)
    assert draws.words(5).tolist() == Draws("b", 1).words(5).tolist()


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("spans", [False, True])
def test_proportions_are_80_10_10_of_the_rate(whole_words, spans):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, SIZE, 400_000).astype(np.uint16)
    ordinary = np.isin(ids, SPECIAL, invert=True)
    seen, positions, labels = mask(ids, vocabulary(whole_words), 0.3, Draws(1), spans=spans)
    assert abs(len(positions) / ordinary.sum() - 0.3) < 0.005
    assert np.array_equal(labels, ids[positions])
    assert not np.isin(labels, SPECIAL).any()
    shown = seen[positions]
    kept, masked = shown == labels, shown == MASK
    assert abs(masked.mean() - 0.8) < 0.005
    assert abs(kept.mean() - 0.1 - 0.1 / 295) < 0.005
    replaced = shown[~kept & ~masked]
    assert not np.isin(replaced, SPECIAL).any() and replaced.max() < SIZE
    counts = np.bincount(replaced, minlength=SIZE)[vocabulary().ordinary[:SIZE]]
    expected = len(replaced) / len(counts)
    assert ((counts - expected) ** 2 / expected).sum() < 295 + 5 * (2 * 295) ** 0.5
    untouched = np.ones(len(ids), bool)
    untouched[positions] = False
    assert np.array_equal(seen[untouched], ids[untouched])


def test_rows_have_independent_masks():
    ids = np.full(100_000, 7, np.uint16)
    first, second = (mask(ids, vocabulary(), 0.3, Draws("masks", 1, n))[1] for n in (0, 1))
    both = len(np.intersect1d(first, second)) / len(ids)
    assert abs(both - 0.09) < 0.005


def test_whole_words_are_masked_together():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, SIZE, 50_000).astype(np.uint16)
    words = vocabulary(whole_words=True)
    _, positions, _ = mask(ids, words, 0.3, Draws(1))
    chosen = np.zeros(len(ids), bool)
    chosen[positions] = True
    special = np.isin(ids, SPECIAL)
    continues = ~special[1:] & ~special[:-1] & ~words.word_starts[ids[1:]]
    assert continues.sum() > 10_000
    differ = (chosen[1:] != chosen[:-1])[continues].sum()
    assert differ < 0.02 * continues.sum(), "only words of more than eight tokens are cut"
    assert (chosen[1:] != chosen[:-1])[~continues].sum() > 5_000


def test_a_word_without_end_is_masked_in_parts():
    """Thai puts no blanks between words: else a document is masked wholly, or not at all."""
    words = vocabulary(whole_words=True)
    ids = np.full(10_000, 7, np.uint16)
    assert not words.word_starts[7]
    _, positions, _ = mask(ids, words, 0.3, Draws(1))
    assert abs(len(positions) / len(ids) - 0.3) < 0.05
    chosen = np.isin(np.arange(len(ids)), positions).reshape(-1, WORD_TOKENS)
    assert (chosen.all(axis=1) | ~chosen.any(axis=1)).all()


def document_rows(rows, row_tokens=512):
    """Rows of [CLS] content [SEP] and a padded tail, documents of 3 to 200 tokens."""
    rng = np.random.default_rng(0)
    for _ in range(rows):
        ids = np.zeros(row_tokens, np.uint16)
        place = 0
        while place + 3 < row_tokens:
            end = min(place + int(rng.integers(3, 200)), row_tokens)
            ids[place:end] = rng.integers(4, 150, end - place)
            ids[place], ids[end - 1] = 1, 2
            place = end
        yield ids


@pytest.mark.parametrize("rate", [0.15, 0.3, 0.5, 0.8])
def test_spans_predict_the_rate_at_every_place_of_a_document(rate):
    """Where spans collide, or a document ends, no token is predicted less often, or more."""
    of_place = np.zeros((3, 2))  # after [CLS], inside, before [SEP]: tokens, and those predicted
    for number, ids in enumerate(document_rows(1000)):
        _, positions, _ = mask(ids, vocabulary(), rate, Draws("masks", 1, number), spans=True)
        assert vocabulary().ordinary[ids[positions]].all()
        chosen = np.isin(np.arange(len(ids)), positions)
        first, last = np.roll(ids == 1, 1), np.roll(ids == 2, -1)
        inside = vocabulary().ordinary[ids] & ~first & ~last
        for place, here in enumerate((first, inside, last)):
            of_place[place] += here.sum(), chosen[here].sum()
    tokens, predicted = of_place.T
    error = (rate * (1 - rate) * np.array([1, SPAN_OF_A_TOKEN, 1]) / tokens) ** 0.5
    assert (abs(predicted / tokens - rate) < 4 * error).all(), predicted / tokens


def test_spans_have_the_lengths_of_spanbert():
    """Chosen so rarely that none touch: geometric with p = 0.2, given that it is at most ten."""
    ids = np.full(3_000_000, 7, np.uint16)
    _, positions, _ = mask(ids, vocabulary(), 0.01, Draws(1), spans=True)
    lengths = np.diff(np.flatnonzero(np.diff(positions, prepend=-9, append=4_000_000) > 1))
    share = np.bincount(lengths)[1:11] / len(lengths)
    expected = 0.2 * 0.8 ** np.arange(10) / (1 - 0.8**10)
    assert len(lengths) > 5000 and abs(share - expected).max() < 0.03
    assert pytest.approx((expected * np.arange(1, 11)).sum(), abs=1e-3) == MEAN_SPAN
    assert 3.79 < MEAN_SPAN < 3.81 and abs(lengths.mean() - MEAN_SPAN) < 0.2
    assert (lengths > LONGEST_SPAN).mean() < 0.02, "more than by touching"


def test_no_span_goes_on_in_another_document():
    """What is chosen on one side of [SEP] [CLS] says nothing of the other side."""
    sides = []
    for number, ids in enumerate(document_rows(1500)):
        _, positions, _ = mask(ids, vocabulary(), 0.5, Draws("masks", 2, number), spans=True)
        chosen = np.isin(np.arange(len(ids)), positions)
        borders = np.flatnonzero((ids[:-1] == 2) & (ids[1:] == 1))
        sides += list(zip(chosen[borders - 1], chosen[borders + 2], strict=True))
    before, after = np.array(sides, float).T
    assert len(sides) > 5000
    assert abs(np.corrcoef(before, after)[0, 1]) < 4 / len(sides) ** 0.5


def test_spans_of_whole_words_cut_no_word():
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 150, 60_000).astype(np.uint16)
    words = vocabulary(whole_words=True)
    _, positions, _ = mask(ids, words, 0.3, Draws(1), spans=True)
    chosen = np.isin(np.arange(len(ids)), positions)
    continues = ~words.word_starts[ids[1:]]
    assert (chosen[1:] != chosen[:-1])[continues].sum() < 0.02 * continues.sum()
    _, alone, _ = mask(ids, words, 0.3, Draws(1))
    runs, runs_alone = (np.sum(np.diff(found) > 1) + 1 for found in (positions, alone))
    assert runs < 0.5 * runs_alone, "several words at a time"


def test_the_spans_of_a_row_are_the_same_for_ever():
    seen, positions, _ = mask(
        np.arange(4, 64, dtype=np.uint16), vocabulary(), 0.3, Draws("masks", 17, 5), spans=True
    )
    assert positions.tolist() == [30, 31, 32, 33, 34, 35, 36, 37, 38, 40, 41, 42, 43, 44, 51]
    assert seen[positions].tolist() == [3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 147, 3, 288]


def test_prediction_slots_fit_the_spans():
    """Spans make the number of predicted tokens vary more; slots still change shape rarely."""
    ids = np.full(8192, 7, np.uint16)
    masked = np.array(
        [len(mask(ids, vocabulary(), 0.3, Draws("masks", 3, n), spans=True)[1]) for n in range(400)]
    )
    usual, plain = (
        Shapes(8192, 1024, each).predictions(1, 0.3, 0) for each in (SPAN_OF_A_TOKEN, 1)
    )
    spread = (0.21 * 8192 * SPAN_OF_A_TOKEN) ** 0.5
    assert abs(masked.std() / spread - 1) < 0.15
    assert (masked > plain).any() and not (masked > usual).any()
    assert Shapes(8192, 1024, SPAN_OF_A_TOKEN).predictions(1, 0.3, usual + 1) > usual


def test_large_vocabularies_are_masked_too():
    size = 150_000
    ordinary = np.ones(size, bool)
    ordinary[:4] = False
    words = Vocabulary(MASK, ordinary, np.flatnonzero(ordinary).astype(np.uint32))
    ids = np.arange(70_000, 150_000, dtype=np.uint32)
    seen, positions, labels = mask(ids, words, 0.5, Draws(1))
    assert labels.dtype == seen.dtype == np.uint32
    replaced = seen[positions][(seen[positions] != MASK) & (seen[positions] != labels)]
    assert replaced.max() > 2**16 and len(replaced) > 3000


def test_the_rate_moves_linearly_in_tokens():
    masking = MaskingConfig(rate=0.3, final_rate=0.1, over=Duration.parse("1000tok"))
    rates = [rate_at(masking, row, 100) for row in (0, 5, 10, 1000)]
    assert rates == pytest.approx([0.3, 0.2, 0.1, 0.1])
    assert rate_at(MaskingConfig(rate=0.25), 10**9, 8192) == 0.25


@pytest.mark.parametrize("first, last", [(0.3, 0.05), (0.05, 0.3)])
def test_shapes_follow_the_rate_in_few_steps(first, last):
    masking = MaskingConfig(rate=first, final_rate=last, over=Duration.parse("100000tok"))
    rows = range(0, 1200, 7)
    shapes = [rate_for_shapes(masking, row, 100) for row in rows]
    assert len(set(shapes)) <= 10
    for row, rate in zip(rows, shapes, strict=True):
        assert rate_at(masking, row, 100) <= rate + 1e-12 <= rate_at(masking, row, 100) + 1 / 16


@pytest.mark.parametrize("rate", [5e-6, 1 - 5e-6])
def test_a_rate_that_would_mask_none_or_all_is_refused(rate):
    with pytest.raises(ValueError, match="would mask none or all"):
        MaskingConfig(rate=rate)
