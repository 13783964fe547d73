"""Masked-language modelling on one row: which tokens are predicted, what the model sees instead.

Of the chosen tokens 80 % become [MASK], 10 % a random token, 10 % stay (Devlin et al., 2018,
section 3.1). Special tokens are neither chosen nor drawn as replacements.
"""

from dataclasses import dataclass
from math import ceil

import numpy as np

from tessera.data.config import MASK_STEPS, MaskingConfig
from tessera.data.randomness import Draws
from tessera.tokenizer import Tokenizer, token_dtype

# One 16-bit draw a token decides whether it is chosen and what becomes of it: the generator gives
# 64 bits at a time, enough for four tokens.
_MASKED, _MASKED_OR_REPLACED = 0.8, 0.9
_RATE_STEPS = 32
WORD_TOKENS = 8
"""Tokens of a word at most, where whole words are masked. A longer one, such as a line of Thai or
an encoded picture, is cut into several: else a whole document would be masked, or nothing of it."""

# Lengths of spans are those of SpanBERT (https://arxiv.org/abs/1907.10529, section 3.1): geometric,
# the longest ones left out. Of the 65,536 values of a draw, each length has its share.
# Integers make the shares the same on every machine: a span is at most n long with a probability of
# (1 - 0.8**n) / (1 - 0.8**10), and 0.8 is 4/5.
LONGEST_SPAN = 10
_SPAN_LENGTHS = np.empty(MASK_STEPS, np.uint8)
for _length in range(LONGEST_SPAN, 0, -1):
    _longer = 4**_length * 5 ** (LONGEST_SPAN - _length)
    _SPAN_LENGTHS[: round(MASK_STEPS * (5**10 - _longer) / (5**10 - 4**10))] = _length
MEAN_SPAN = float(_SPAN_LENGTHS.mean())
"""Tokens of a span, or words where whole words are masked: 3.8."""
SPAN_OF_A_TOKEN = float((_SPAN_LENGTHS.astype(float) ** 2).mean()) / MEAN_SPAN
"""Length of the span that a token is in, on average: 5.5, as longer ones hold more tokens."""


@dataclass(frozen=True)
class Vocabulary:
    """What masking must know of a tokenizer. Tables are indexed by token id."""

    mask_id: int
    ordinary: np.ndarray
    """(ids that can occur,) bool: not a special token."""
    replacements: np.ndarray
    """The ordinary tokens, to draw from."""
    word_starts: np.ndarray | None = None
    """(ids that can occur,) bool: begins a word. Only for masking whole words."""


def vocabulary(tokenizer: Tokenizer, *, whole_words: bool) -> Vocabulary:
    """The tables that masking needs.

    Raises:
        ValueError: If whole words are asked for and the tokenizer does not show where they begin.
    """
    dtype = token_dtype(tokenizer.size)
    ordinary = np.zeros(np.iinfo(dtype).max + 1 if dtype.itemsize == 2 else tokenizer.size, bool)
    ordinary[: tokenizer.size] = True
    ordinary[tokenizer.special_ids] = False
    word_starts = None
    if whole_words:
        if tokenizer.word_starts is None:
            raise ValueError(
                "train_data.masking.whole_words: this tokenizer's tokens do not show where a word "
                "begins; set it to false"
            )
        word_starts = np.zeros(len(ordinary), bool)
        word_starts[: tokenizer.size] = tokenizer.word_starts
    replacements = np.flatnonzero(ordinary).astype(dtype)
    return Vocabulary(tokenizer.mask_id, ordinary, replacements, word_starts)


def rate_at(masking: MaskingConfig, row: int, row_tokens: int) -> float:
    """The masking rate of a row: linear in the token slots of the rows before it."""
    if masking.final_rate is None or masking.over is None:
        return masking.rate
    progress = min(1.0, row * row_tokens / masking.over.value)
    return masking.rate + (masking.final_rate - masking.rate) * progress


def rate_for_shapes(masking: MaskingConfig, row: int, row_tokens: int) -> float:
    """The masking rate near a row, rounded up to a 32nd.

    Prediction slots are made for it, so that the tensors' shapes change only rarely while the rate
    follows a schedule.
    """
    if masking.final_rate is None:
        return masking.rate
    steps = ceil(rate_at(masking, row, row_tokens) * _RATE_STEPS) + (
        masking.final_rate > masking.rate
    )
    return min(steps / _RATE_STEPS, max(masking.rate, masking.final_rate))


def mask(
    ids: np.ndarray, vocabulary: Vocabulary, rate: float, draws: Draws, *, spans: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose and change tokens of a row.

    Args:
        ids: (T,) token ids, special ones included.
        vocabulary: The tokenizer's tables.
        rate: Share of the ordinary tokens to choose, to within 2**-17.
        draws: At the beginning of the row's key: the same key gives the same masks for ever.
        spans: Whether to choose several tokens or words that follow each other at a time.

    Returns:
        (T,) ids as the model sees them; (M,) int32 positions chosen, ascending; (M,) the tokens
        that were there.
    """
    fates = _uint16(draws, len(ids))
    chosen = round(rate * MASK_STEPS)
    together = spans or vocabulary.word_starts is not None
    if together:
        begins = _starts(ids, vocabulary, draws, spans=spans).nonzero()[0]
        lengths = np.diff(begins, append=len(ids))
        candidates = np.repeat(fates[: len(begins)] < chosen, lengths).nonzero()[0]
    else:
        candidates = (fates < chosen).nonzero()[0]
    positions = candidates[vocabulary.ordinary.take(ids.take(candidates))]
    labels = ids.take(positions)
    if together:  # one draw chose several tokens; each has its own fate
        fates, chosen = _uint16(draws, len(positions)), MASK_STEPS
    else:
        fates = fates.take(positions)

    # A chosen token's fate is a number below `chosen`. Of that range the first 80 % become [MASK],
    # the next 10 % a random token, the rest stay. Subtracting the first bound from the unsigned
    # numbers makes those below it wrap around to the top, so that one more comparison finds the
    # middle range alone; two comparisons and an "and" would take a pass over the tokens more.
    seen = labels.copy()
    masked_below = np.uint16(round(_MASKED * chosen))
    np.putmask(seen, fates < masked_below, vocabulary.mask_id)
    fates -= masked_below
    replaced = (fates < round(_MASKED_OR_REPLACED * chosen) - masked_below).nonzero()[0]
    seen[replaced] = vocabulary.replacements.take(
        _below(draws, len(vocabulary.replacements), len(replaced))
    )
    masked = ids.copy()
    masked[positions] = seen
    return masked, positions.astype(np.int32), labels


def _uint16(draws: Draws, count: int) -> np.ndarray:
    """(count,) uniform uint16, four from a word."""
    return draws.words(-(-count // 4)).astype("<u8", copy=False).view("<u2")[:count]


def _below(draws: Draws, limit: int, count: int) -> np.ndarray:
    """(count,) uniform integers below a limit that is small beside 2**32."""
    return ((draws.words(count) >> np.uint64(32)) * np.uint64(limit)) >> np.uint64(32)


def _starts(ids: np.ndarray, vocabulary: Vocabulary, draws: Draws, *, spans: bool) -> np.ndarray:
    """(T,) bool: where those tokens begin that are chosen together or not at all.

    Each special token stands alone, so that nothing goes on from one document to the next.
    """
    special = ~vocabulary.ordinary.take(ids)
    alone = special.copy()
    alone[1:] |= special[:-1]
    alone[0] = True
    if vocabulary.word_starts is None:
        return alone | _span_starts(len(ids), draws)
    starts = vocabulary.word_starts.take(ids) | alone
    places = np.arange(len(ids))
    first = np.maximum.accumulate(np.where(starts, places, 0))  # of the word that a token is in
    starts |= (places - first) % WORD_TOKENS == 0
    if not spans:
        return starts
    words = starts.nonzero()[0]
    alone[words[_span_starts(len(words), draws)]] = True
    return alone


def _span_starts(count: int, draws: Draws) -> np.ndarray:
    """(count,) bool: where spans begin that fill so many places without gaps.

    SpanBERT throws spans at a text until enough of it is covered. Here the text is cut into spans
    and each is chosen with the same probability: so every token is, and none twice, whatever the
    rate. Chosen spans may touch, as there.
    """
    starts = np.zeros(count, bool)
    begin = 0
    while begin < count:
        lengths = _SPAN_LENGTHS.take(_uint16(draws, (count - begin) // 3 + 16))  # mostly enough
        ends = np.cumsum(lengths, dtype=np.int64)
        ends += begin
        starts[ends[: ends.searchsorted(count)]] = True
        begin = int(ends[-1])
    return starts
