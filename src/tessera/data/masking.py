"""Masked-language modelling on one row: which tokens are predicted, what the model sees instead.

Of the chosen tokens 80 % become [MASK], 10 % a random token, 10 % stay (Devlin et al., 2018,
section 3.1). Special tokens are neither chosen nor drawn as replacements.
"""

from dataclasses import dataclass
from math import ceil

import numpy as np

from tessera.data.config import MaskingConfig
from tessera.data.draws import words

_SCALE = 1 << 16  # one 16-bit draw a token decides everything but the replacement
_MASKED, _MASKED_OR_REPLACED = 0.8, 0.9
_RATE_STEPS = 32


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


def rate_at(masking: MaskingConfig, row: int, row_tokens: int) -> float:
    """The masking rate of a row: linear in the token slots of the rows before it."""
    if masking.final_rate is None or masking.over is None:
        return masking.rate
    progress = min(1.0, row * row_tokens / masking.over.value)
    return masking.rate + (masking.final_rate - masking.rate) * progress


def rate_for_shapes(masking: MaskingConfig, row: int, row_tokens: int) -> float:
    """A rate no smaller than the rows' from this one on or near it, of few different values.

    The number of prediction slots is made for it, so that a schedule changes shapes only rarely.
    """
    if masking.final_rate is None:
        return masking.rate
    steps = ceil(rate_at(masking, row, row_tokens) * _RATE_STEPS) + (
        masking.final_rate > masking.rate
    )
    return min(steps / _RATE_STEPS, max(masking.rate, masking.final_rate))


def mask(
    ids: np.ndarray, vocabulary: Vocabulary, rate: float, key: tuple[object, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose and change tokens of a row.

    Args:
        ids: (T,) token ids, special ones included.
        vocabulary: The tokenizer's tables.
        rate: Share of the ordinary tokens to choose, to within 2**-17.
        key: Names the draw: the same key gives the same masks for ever.

    Returns:
        (T,) ids as the model sees them; (M,) int32 positions chosen, ascending; (M,) the tokens
        that were there.
    """
    draws = words(-(-len(ids) // 4), *key).view(np.uint16)[: len(ids)]
    if vocabulary.word_starts is not None:
        draws = draws[_word_numbers(ids, vocabulary)]
    chosen = round(rate * _SCALE)
    positions = np.flatnonzero(draws < chosen)
    positions = positions[vocabulary.ordinary[ids[positions]]]
    labels = ids[positions]
    if vocabulary.word_starts is not None:  # one draw chose the word; each token needs its own fate
        fates = words(-(-len(positions) // 4), *key, "fates").view(np.uint16)[: len(positions)]
        chosen = _SCALE
    else:
        fates = draws[positions]

    seen = labels.copy()
    seen[fates < round(_MASKED * chosen)] = vocabulary.mask_id
    replaced = np.flatnonzero(
        (fates >= round(_MASKED * chosen)) & (fates < round(_MASKED_OR_REPLACED * chosen))
    )
    choices = words(len(replaced), *key, "replacements") >> np.uint64(32)
    choices = (choices * np.uint64(len(vocabulary.replacements))) >> np.uint64(32)
    seen[replaced] = vocabulary.replacements[choices]
    masked = ids.copy()
    masked[positions] = seen
    return masked, positions.astype(np.int32), labels


def _word_numbers(ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """(T,) which word of the row each token belongs to; a special token is one of its own."""
    assert vocabulary.word_starts is not None
    special = ~vocabulary.ordinary[ids]
    starts = vocabulary.word_starts[ids] | special
    starts[1:] |= special[:-1]
    starts[0] = True
    return np.cumsum(starts) - 1
