"""Random bits as functions of a key: the same on every machine, process and numpy version.

Only raw output of the counter-based Philox4x64-10 generator (Salmon et al., 2011) is used, whose
words are fixed by its definition; numpy's distributions may change from version to version.
"""

import hashlib

import numpy as np

_ROUNDS = 12  # with 8, some permutations of 7 numbers were measurably more frequent than others
_LEAST_BITS = 3  # so were some of fewer than 8 numbers, with fewer bits


class Draws:
    """Uniform uint64, fixed by a key: any strings and integers that name the draw."""

    def __init__(self, *key: object) -> None:
        self._generator = np.random.Philox(key=_philox_key(key))
        self._start = self._generator.state

    def begin(self, *key: object) -> None:
        """Draw from the beginning of another key: an eighth of the time of a new object."""
        self._start["state"]["key"] = _philox_key(key)
        self._generator.state = self._start

    def words(self, count: int) -> np.ndarray:
        """The next `count` words."""
        return self._generator.random_raw(count)


def words(count: int, *key: object) -> np.ndarray:
    """The first `count` uniform uint64 of a key."""
    return Draws(*key).words(count)


def permuted(positions: np.ndarray, size: int, *key: object) -> np.ndarray:
    """Where a random permutation of `range(size)`, fixed by the key, sends these positions.

    Costs no memory for the positions not asked for. Each round is a bijection of `b`-bit numbers,
    `x -> x * odd + constant` and then `x -> x xor (x >> b/2)`; numbers that leave the range walk on
    until they are back in it (cycle walking, Black and Rogaway, 2002, section 3).
    """
    bits = max(_LEAST_BITS, (size - 1).bit_length())
    low, half = np.uint64((1 << bits) - 1), np.uint64((bits + 1) // 2)
    drawn = words(2 * _ROUNDS, *key)
    factors, constants = drawn[:_ROUNDS] | np.uint64(1), drawn[_ROUNDS:]

    image = np.empty(len(positions), np.uint64)
    walking = np.arange(len(positions))
    x = positions.astype(np.uint64)
    while len(walking):
        for factor, constant in zip(factors, constants, strict=True):
            x *= factor
            x += constant
            x &= low
            x ^= x >> half
        inside = x < size
        image[walking[inside]] = x[inside]
        walking, x = walking[~inside], x[~inside]
    return image.astype(np.int64)


def _philox_key(key: tuple[object, ...]) -> np.ndarray:
    assert all(type(part) in (str, int) for part in key), "a numpy integer's repr is another"
    return np.frombuffer(hashlib.sha256(repr(key).encode()).digest()[:16], "<u8")
