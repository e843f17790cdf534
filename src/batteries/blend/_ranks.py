"""The rank average: what is left of predictions when only their order counts."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from batteries._spellings import hints
from batteries.blend._means import Weights
from batteries.blend._models import Array, as_models, as_weights

_FEW = 2**14  # rows, below which threads take longer to start than to work


@hints
def rank_average(predictions: Any, *more: Any, weights: Weights = None) -> Array:
    """The weighted mean of the predictions' ranks, from over 0 to 1.

    >>> rank_average([[0.1, 0.2, 0.9], [10, 30, 20]])
    array([0.33333333, 0.83333333, 0.83333333])

    Scores of any scale can be blended, and the blend does not change when one of them is
    transformed monotonously. The largest of n predictions has rank 1, the smallest 1 / n; equal
    ones share the mean of their ranks, as with `scipy.stats.rankdata`.

    Args:
        predictions: As for `mean`; each column is ranked on its own.
        weights: As for `mean`.

    Returns:
        (rows, ...): float32 of float32 (and of less), else float64; computed in float64.

    Raises:
        ValueError: A NaN or an infinity, with model and row; arrays of different shapes; weights
            that do not fit.
    """
    models = as_models(predictions, more)
    own = as_weights(weights, models)
    rows = models.shape[0]
    models.refuse()
    flat = rows, math.prod(models.shape[1:])
    columns = np.zeros(flat[::-1])
    # Of very many rows one thread at a time: each needs the memory of several arrays.
    threads = min(torch.get_num_threads(), len(own)) if rows < 2**22 else 1
    if rows < _FEW or threads == 1:
        _add_ranks(models.arrays, own, columns, map, 1)
    else:
        with ThreadPoolExecutor(threads) as pool:
            _add_ranks(models.arrays, own, columns, pool.map, threads)
    return np.asarray(columns.T.reshape(models.shape), dtype=models.dtype)


def _add_ranks(
    arrays: list[Array], weights: Array, columns: Array, each: Callable[..., Any], threads: int
) -> None:
    rows = columns.shape[1]
    for column, total in enumerate(columns):
        for start in range(0, len(arrays), threads):
            some = slice(start, start + threads)
            parts = [array.reshape(columns.shape[::-1])[:, column] for array in arrays[some]]
            for ranked, weight in zip(each(ranks, parts), weights[some], strict=True):
                ranked *= weight / max(1, rows)
                total += ranked


def ranks(values: Array) -> NDArray[np.float64]:
    """The ranks of numbers, from 1, equal ones sharing the mean of theirs: (rows,).

    They are those of `scipy.stats.rankdata`, bit by bit.
    """
    if not len(values):
        return np.empty(0)
    if values.dtype.kind == "f" and values.itemsize <= 4 and len(values) < 2**32:
        order, first = _sorted_float32(values)
    else:
        order = np.argsort(values)
        ordered = values[order]
        first = np.not_equal(ordered[1:], ordered[:-1])
    ends = np.flatnonzero(first) + 1
    starts, stops = np.concatenate(([0], ends)), np.concatenate((ends, [len(values)]))
    in_order = np.repeat((starts + stops + 1) * 0.5, stops - starts)
    # torch scatters several times faster than numpy's out[order] = in_order
    out = torch.empty(len(values), dtype=torch.float64)
    out.scatter_(0, torch.from_numpy(order.astype(np.int64)), torch.from_numpy(in_order))
    return out.numpy()


def _sorted_float32(values: Array) -> tuple[Array, Array]:
    """The order of float32 numbers, and which of the ordered ones is another than the one before.

    A number whose bits are made to sort as unsigned integers do, and its index, are the halves of
    one integer of 64 bits: numpy sorts those several times faster than it finds an order.
    """
    bits = (values.astype(np.float32, copy=False) + np.float32(0)).view(np.uint32)  # no -0
    negative = (bits.view(np.int32) >> 31).view(np.uint32)  # all bits, or none
    negative |= np.uint32(2**31)
    bits ^= negative
    keys = np.empty(len(bits), dtype=np.uint64)
    low, high = (0, 1) if sys.byteorder == "little" else (1, 0)
    halves = keys.view(np.uint32).reshape(-1, 2)
    halves[:, high], halves[:, low] = bits, np.arange(len(bits), dtype=np.uint32)
    keys.sort()
    number = np.ascontiguousarray(halves[:, high])
    return halves[:, low].copy(), np.not_equal(number[1:], number[:-1])
