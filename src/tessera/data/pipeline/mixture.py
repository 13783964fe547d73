"""Which source the next piece comes from: the one furthest behind its share of tokens.

Exact integers, no random draw: after any number of pieces, each source is within a few pieces of
its share.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import lcm


def whole_shares(weights: Sequence[float]) -> tuple[int, ...]:
    """The weights as integers of the same ratios, read as the decimals they were written as."""
    exact = [Fraction(str(weight)) for weight in weights]
    unit = lcm(*(weight.denominator for weight in exact))
    return tuple(int(weight * unit) for weight in exact)


def furthest_behind(shares: Sequence[int], drawn: Sequence[int]) -> int:
    """The source whose tokens are most below its share of all the tokens drawn so far."""
    if len(shares) == 1:
        return 0
    # Shares and tokens are integers, so that the comparison is exact whatever the machine: a source
    # is behind by share / whole * total - tokens, here multiplied by `whole`.
    total, whole = sum(drawn), sum(shares)
    behind = [share * total - whole * tokens for share, tokens in zip(shares, drawn, strict=True)]
    return behind.index(max(behind))


def head_start(shares: Sequence[int], lane: int, piece_tokens: int) -> list[int]:
    """The tokens a lane counts as drawn before its first piece.

    Lanes that all began at nothing would all draw from the same source at the same time. Lane k
    begins as if k pieces of `piece_tokens` had been drawn already, so that the first pieces of all
    lanes together follow the shares.
    """
    drawn = [0] * len(shares)
    for _ in range(lane):
        drawn[furthest_behind(shares, drawn)] += piece_tokens
    return drawn
