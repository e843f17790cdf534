"""A shuffle that is computed where it is needed: no list of all indices."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 16  # from 12 on, all orders of few elements are equally frequent
_HALF = np.uint64(32)
_MULTIPLIERS = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)


class Shuffle:
    """An order of the numbers below `length`, chosen by a key: a bijection, and no list.

    >>> order = Shuffle(10**9, key=(42, 0))
    >>> order(np.arange(3))
    array([...])
    >>> sorted(Shuffle(5, key=(42, 0))(np.arange(5)).tolist())
    [0, 1, 2, 3, 4]

    A Feistel network over pairs of digits: in each round one digit is shifted by a keyed hash of
    the other, which can be undone, so no two positions meet. What falls outside the length goes
    through once more. (The idea: "Bandwidth-Optimal Random Shuffling for GPUs", arXiv 2106.06161.)

    Args:
        length: Up to 2**62.
        key: Any integers.
    """

    def __init__(self, length: int, key: tuple[int, ...]) -> None:
        self._length = length
        first = math.isqrt(max(length - 1, 0)) + 1
        second = max(1, -(-length // first))
        self._sides = np.uint64(first), np.uint64(second)  # digits; hardly more pairs than numbers
        digest = hashlib.shake_128(repr([int(n) for n in key]).encode()).digest(8 * _ROUNDS)
        self._keys = np.frombuffer(digest, "<u8")

    def __call__(self, positions: NDArray[np.integer]) -> NDArray[np.int64]:
        """What stands at positions of the order, (n,) int64."""
        values = self._through(positions.astype(np.uint64))
        while (outside := values >= self._length).any():
            values[outside] = self._through(values[outside])
        return values.astype(np.int64)

    def _through(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        digits = list(np.divmod(values, self._sides[1]))
        for number, key in enumerate(self._keys):
            moved = number % 2
            shift = digits[1 - moved] + key  # wraps around, as all of this does
            shift *= _MULTIPLIERS[0]
            shift ^= shift >> _HALF
            shift *= _MULTIPLIERS[1]
            shift >>= _HALF
            shift *= self._sides[moved]
            shift >>= _HALF  # 32 random bits to below the side
            shift += digits[moved]
            shift %= self._sides[moved]
            digits[moved] = shift
        return np.asarray(digits[0] * self._sides[1] + digits[1])
