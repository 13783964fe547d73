"""Dropout as a pure function of what is dropped, so that nothing has to be saved to repeat it.

A draw depends on (seed, global row, offset in the row, layer, channel) and on nothing else: not on
the number of ranks, the microbatch, the device or a restart. The draws are a 32-bit integer hash
(the finaliser "lowbias32" of https://nullprogram.com/blog/2018/07/31/), 16 bits a draw.

Legend: `T = R * row_tokens` token slots, `R` rows, `C` channels.
"""

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B9  # 2**32 / golden ratio: consecutive multiples are far apart
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B


def _signed(word: int) -> int:
    return (word & 0xFFFFFFFF) - ((word & 0x80000000) << 1)


def _hash(words: Tensor) -> Tensor:
    """Mix int32 words in place; products wrap around."""
    words ^= (words >> 16) & 0xFFFF  # the masks make arithmetic shifts logical ones
    words *= _FIRST
    words ^= (words >> 15) & 0x1FFFF
    words *= _signed(_SECOND)
    words ^= (words >> 16) & 0xFFFF
    return words


def _low_word(numbers: Tensor) -> Tensor:
    return ((numbers & 0xFFFFFFFF) ^ 0x80000000).sub(0x80000000).to(torch.int32)


def dropout_keys(seed: int, rows: Tensor, row_tokens: int) -> Tensor:
    """A key for every token slot of a batch.

    Args:
        seed: of the run.
        rows: (R,) int64, the number of each row in the run's global stream of rows.
        row_tokens: token slots of a row.

    Returns:
        (T,) int32.
    """
    rows = rows.long()
    key = torch.full_like(rows, _signed(seed), dtype=torch.int32)
    for word in (torch.full_like(rows, seed >> 32), rows, rows >> 32):
        key = _hash(key * 31 + _low_word(word))
    offsets = torch.arange(row_tokens, device=rows.device, dtype=torch.int32)
    return _hash(key[:, None] + offsets * _signed(_GOLDEN)).flatten()


def layer_keys(keys: Tensor, layers: int) -> Tensor:
    """(layers, T) int32: the keys of each layer."""
    numbers = torch.arange(1, layers + 1, device=keys.device, dtype=torch.int32)
    return _hash(keys + numbers[:, None] * _signed(_GOLDEN))


def dropout_mask(keys: Tensor, channels: int, rate: float) -> Tensor:
    """What to multiply the channels with: 0, or 1 / (1 - rate) to preserve the mean.

    Args:
        keys: (T,) int32, a row of `layer_keys`.
        channels: C, even.
        rate: the share to drop, to the nearest 1/65536.

    Returns:
        (T, C) float32.
    """
    assert channels % 2 == 0, "two draws come out of each hashed word"
    dropped = round(rate * 65536)
    pairs = torch.arange(channels // 2, device=keys.device, dtype=torch.int32)
    # Not multiples of _GOLDEN: C++ compilers take it that products of an index never overflow.
    words = _hash(keys[:, None] + pairs)
    # As signed numbers, words order by their upper halves; a shift puts the lower halves there.
    threshold = (dropped - 32768) << 16
    kept = torch.cat([words >= threshold, (words << 16) >= threshold], dim=1)
    return kept * (65536 / (65536 - dropped))
