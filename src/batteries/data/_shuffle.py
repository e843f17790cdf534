"""A shuffle whose indices are computed when needed, without a list of all of them."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from batteries._numbers import as_whole

_ROUNDS = 16  # with 12 or more, all orders of a few elements are equally frequent
_LONGEST = 2**62
_HALF = np.uint64(32)
_MULTIPLIERS = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)


class Shuffle:
    """A random order of the numbers below `length`, chosen by a key and never stored as a list.

    >>> order = Shuffle(10**9, key=(42, 0))
    >>> order(np.arange(3))
    array([...])
    >>> sorted(Shuffle(5, key=(42, 0))(np.arange(5)).tolist())
    [0, 1, 2, 3, 4]

    Call it with integers, the positions from 0. The result is int64, of the same shape.

    It is a Feistel network over pairs of digits. Each round shifts one digit by a keyed hash of the
    other. A round can be undone, so no two positions get the same number. A result outside the
    length goes through the network again. (The idea is from "Bandwidth-Optimal Random Shuffling
    for GPUs", arXiv 2106.06161.)

    Args:
        length: The number of elements, up to 2**62.
        key: Any integers.

    Raises:
        ValueError: A length below 0 or above 2**62.
        TypeError: The length or a number of the key is not whole.
    """

    def __init__(self, length: int, key: tuple[int, ...]) -> None:
        length = as_whole(length, "length")
        if not 0 <= length <= _LONGEST:
            raise ValueError(f"length is {length}; expected 0 or more, and at most 2**62")
        self._length = length
        first = math.isqrt(max(length - 1, 0)) + 1
        second = max(1, -(-length // first))
        self._sides = np.uint64(first), np.uint64(second)  # a few more pairs of digits than numbers
        numbers = [as_whole(number, "a number of key") for number in key]
        digest = hashlib.shake_128(repr(numbers).encode()).digest(8 * _ROUNDS)
        self._keys = np.frombuffer(digest, "<u8")

    def __call__(self, positions: ArrayLike) -> NDArray[np.int64]:
        """The numbers at positions of the order, int64.

        Args:
            positions: An array, a list or a range of integers, or one integer.

        Raises:
            IndexError: A position is outside of the order.
            TypeError: The positions are not integers.
        """
        positions = np.asarray(positions)
        if positions.size and positions.dtype.kind not in "iu":
            raise TypeError(f"positions are {positions.dtype}; expected integers")
        outside = positions[(positions < 0) | (positions >= self._length)]
        if len(outside):
            raise IndexError(
                f"position {outside[0]} is outside of an order of {self._length} numbers"
            )
        values = self._through(positions.astype(np.uint64).reshape(-1))
        while (again := values >= self._length).any():
            values[again] = self._through(values[again])
        return values.astype(np.int64).reshape(positions.shape)

    def _through(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        digits = list(np.divmod(values, self._sides[1]))
        for number, key in enumerate(self._keys):
            moved = number % 2
            shift = digits[1 - moved] + key  # all operations wrap around
            shift *= _MULTIPLIERS[0]
            shift ^= shift >> _HALF
            shift *= _MULTIPLIERS[1]
            shift >>= _HALF
            shift *= self._sides[moved]
            shift >>= _HALF  # from 32 random bits to a number below the side
            shift += digits[moved]
            # The sum modulo the side: it is below two sides, and a negative number wraps around.
            digits[moved] = np.minimum(shift, shift - self._sides[moved])
        return np.asarray(digits[0] * self._sides[1] + digits[1])
