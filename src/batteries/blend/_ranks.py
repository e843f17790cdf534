"""The rank average: a mean that uses only the order of the predictions."""

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

_FEW = 2**14  # with fewer rows, threads take longer to start than to work


@hints
def rank_average(predictions: Any, *more: Any, weights: Weights = None) -> NDArray[Any]:
    """The weighted mean of the predictions' ranks, in (0, 1].

    >>> rank_average([[0.1, 0.2, 0.9], [10, 30, 20]])
    array([0.33333333, 0.83333333, 0.83333333])

    Scores of any scale can be blended. A transform that keeps the order of a model's scores does
    not change the blend. The largest of n predictions has rank 1, the smallest 1 / n. Equal ones
    get the mean of their ranks, as in `scipy.stats.rankdata`.

    Args:
        predictions, more: As for `mean`. Each column is ranked on its own.
        weights: As for `mean`.

    Returns:
        (rows, ...), with the dtype of `mean`.

    Raises:
        TypeError, ValueError: As for `mean`.
    """
    models = as_models(predictions, more)
    own = as_weights(weights, models)
    rows = models.shape[0]
    models.refuse()
    flat = rows, math.prod(models.shape[1:])
    columns = np.zeros(flat[::-1])
    # With very many rows, use one thread: each takes the memory of several arrays.
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
    """The ranks of `scipy.stats.rankdata`, bit for bit: (rows,)."""
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
    # torch's scatter is several times faster than out[order] = in_order of numpy.
    out = torch.empty(len(values), dtype=torch.float64, device="cpu")
    out.scatter_(0, torch.from_numpy(order.astype(np.int64)), torch.from_numpy(in_order))
    return out.numpy()


def _sorted_float32(values: Array) -> tuple[Array, Array]:
    """The order of float32 numbers, and which of the sorted ones differ from the one before.

    Each number's bits are changed so that they sort as unsigned integers. These bits and the
    number's index make one integer of 64 bits. numpy sorts these several times faster than
    `argsort`.
    """
    values = values.astype(np.float32, copy=False) + np.float32(0)  # + 0 makes 0 of -0
    bits = values.view(np.uint32)
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
