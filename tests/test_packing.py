"""Rows are filled greedily, no piece waits for ever, and little is wasted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import data_oracles as oracle

from tessera.data.pipeline.packing import Waiting, wants_more
from tessera.data.pipeline.pieces import FRAME_TOKENS, Cut, Piece


def pieces(lengths):
    return [Piece((0, n, 0), np.empty(length - 2)) for n, length in enumerate(lengths)]


def pack(lengths, row_tokens, waiting_pieces):
    """Rows of pieces, and for each row how many pieces had arrived before it."""
    waiting, rows, arrived = Waiting(), [], []
    for number, piece in enumerate(pieces(lengths), 1):
        waiting.add(piece)
        while not wants_more(waiting, row_tokens, waiting_pieces):
            rows.append(waiting.take_row(row_tokens))
            arrived.append(number)
    return rows, arrived, waiting


@given(
    seed=st.integers(0, 1000),
    longest=st.integers(3, 40),
    row_tokens=st.integers(40, 200),
    waiting_pieces=st.integers(1, 30),
)
@settings(max_examples=60, deadline=None)
def test_rows_are_those_of_the_obvious_packer(seed, longest, row_tokens, waiting_pieces):
    lengths = np.random.default_rng(seed).integers(3, longest + 1, 300).tolist()
    rows, _, waiting = pack(lengths, row_tokens, waiting_pieces)
    numbers = [[piece.id[1] for piece in row] for row in rows]
    assert numbers == oracle.pack(lengths, row_tokens, waiting_pieces)
    left = [document for _, document, _ in waiting.ids()]
    assert sorted(sum(numbers, left)) == list(range(len(lengths)))
    assert left == sorted(left)
    assert all(sum(piece.tokens for piece in row) <= row_tokens for row in rows)


def longest_wait(row_tokens: int, max_seq_len: int, waiting_pieces: int) -> int:
    """Rows of its lane that a piece may see pass before it is in one.

    What waits before a new piece is less than `waiting_pieces` pieces, or 5/4 rows. If segments are
    at most a quarter of a row, each row takes a whole one of the oldest, less the one that did not
    fit and the one that was exchanged; that one is first in the next row, since all that were older
    were taken. Else each row takes at least the oldest.
    """
    ahead_tokens = max((waiting_pieces - 1) * max_seq_len, -(-5 * row_tokens // 4))
    if 4 * max_seq_len <= row_tokens:
        return 1 + -(-ahead_tokens // (row_tokens - 2 * max_seq_len))
    return max(waiting_pieces - 1, -(-5 * row_tokens // 4) // (FRAME_TOKENS + 1))


@given(
    seed=st.integers(0, 1000),
    longest=st.integers(8, 64),
    row_tokens=st.integers(64, 400),
    waiting_pieces=st.integers(1, 40),
)
@settings(max_examples=60, deadline=None)
def test_no_piece_waits_longer_than_stated(seed, longest, row_tokens, waiting_pieces):
    rng = np.random.default_rng(seed)
    lengths = np.where(rng.random(1500) < 0.5, 3, rng.integers(3, longest + 1, 1500)).tolist()
    rows, arrived, _ = pack(lengths, row_tokens, waiting_pieces)
    bound = longest_wait(row_tokens, longest, waiting_pieces)
    first_row = np.searchsorted(arrived, np.arange(1, len(lengths) + 1))  # that it could be in
    for number, row in enumerate(rows):
        for piece in row:
            assert number - first_row[piece.id[1]] <= bound


def test_the_smallest_piece_does_not_wait_for_ever_among_larger_ones():
    rows, _, _ = pack([50] * 10 + [3] + [50] * 2000, 100, 20)
    waited = next(n for n, row in enumerate(rows) if any(piece.tokens == 3 for piece in row))
    assert waited <= longest_wait(100, 50, 20) < 45


def cut_to_length(rng, count, longest):
    """Long documents in pieces: most are as long as can be."""
    cut = Cut(longest, split=True)
    documents = np.exp(rng.normal(5.8, 1.1, count)).clip(1, 10**6).astype(int)
    pieces = [min(n, longest - 2) for d in documents for n in range(d, 0, 2 - longest)]
    assert len(pieces) == sum(map(cut.pieces, documents.tolist()))
    return np.array(pieces[:count]) + 2


STREAMS = {
    "cut to length": cut_to_length,
    "log-normal": lambda rng, n, longest: np.exp(rng.normal(5.8, 1.1, n)).clip(16, longest),
    "uniform": lambda rng, n, longest: rng.integers(32, longest + 1, n),
}


@pytest.mark.parametrize(
    "stream, longest, row_tokens, at_least",
    [
        ("log-normal", 1024, 8_192, 0.9999),  # the published packer: 0.99928
        ("log-normal", 1024, 98_304, 0.99995),  # 0.99994
        ("uniform", 1024, 8_192, 0.9999),  # 0.99864
        ("uniform", 1024, 98_304, 0.99995),  # 0.99988
        ("log-normal", 8192, 98_304, 0.99995),  # 0.99994
        ("uniform", 8192, 98_304, 0.9999),  # 0.99921
        ("log-normal", 8192, 57_344, 0.9999),
        ("log-normal", 8192, 49_152, 0.9999),
        ("cut to length", 1024, 8_192, 0.9999),
        ("cut to length", 128, 1_024, 0.999),
    ],
)
def test_rows_are_fuller_than_the_published_ones(stream, longest, row_tokens, at_least):
    lengths = STREAMS[stream](np.random.default_rng(0), 24_000, longest).astype(int).tolist()
    rows, _, _ = pack(lengths, row_tokens, 256)
    used = sum(piece.tokens for row in rows for piece in row)
    assert len(rows) > 50
    assert used / len(rows) / row_tokens >= at_least


@pytest.mark.parametrize("length", [0, 1, 29, 30, 31, 60, 61, 1_000_000])
def test_a_document_is_cut_into_pieces_that_hold_all_of_it(length):
    document = np.arange(length)
    cut = Cut(max_seq_len=32, split=True)
    contents = [cut.content(document, n) for n in range(cut.pieces(length))]
    assert np.array_equal(np.concatenate([np.empty(0), *contents]), document)
    assert all(0 < len(content) <= 30 for content in contents)


@pytest.mark.parametrize("length, pieces", [(0, 0), (1, 1), (30, 1), (1_000_000, 1)])
def test_a_document_may_be_truncated_instead(length, pieces):
    cut = Cut(max_seq_len=32, split=False)
    assert cut.pieces(length) == pieces
    if pieces:
        assert np.array_equal(cut.content(np.arange(length), 0), np.arange(min(length, 30)))
