"""Stratification: by classes, by bins of numbers, or by several labels at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_BINS = 20
_CLASSES = 20  # if there are more different whole numbers, and most are rare, they are binned


def strata(targets: NDArray[Any], n_folds: int) -> NDArray[Any]:
    """Classes as they are; numbers as bins between quantiles, (rows,).

    There are at most 20 bins, and each bin has at least as many rows as there are folds.
    """
    values, place, counts = np.unique(targets, return_inverse=True, return_counts=True)
    kind = targets.dtype.kind
    fractions = kind == "f" and bool((values != np.floor(values)).any())
    many = kind in "iuf" and len(values) > _CLASSES and float(np.median(counts)) < n_folds
    if not fractions and not many:
        return targets
    below = np.cumsum(counts) - counts
    for bins in range(_BINS, 1, -1):
        of_values = below * bins // len(targets)
        sizes = np.bincount(of_values, counts)
        if sizes[sizes > 0].min() >= n_folds:
            return np.asarray(of_values[place])
    return np.zeros(len(targets), dtype=np.int64)


def as_labels(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Which labels each row has, (rows, labels)."""
    try:
        return np.asarray(labels.astype(np.float64) != 0)
    except (TypeError, ValueError):
        raise ValueError(
            f"the labels are of {labels.dtype}; expected numbers, 0 if a row does not have the "
            "label"
        ) from None


def of_labels(labels: NDArray[Any], n_folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each row, (rows,). Each label has about as many rows in each fold.

    Iterative stratification (Sechidis et al. 2011): the label with the fewest rows left is divided
    first. Each row of this label goes to the fold that still needs most rows of the label.

    Args:
        labels: (rows, labels), 0 if a row does not have a label.
    """
    has = as_labels(labels)
    chance = np.random.default_rng(seed)
    order = chance.permutation(len(has))
    lacking = np.tile(has.sum(0) / n_folds, (n_folds, 1))  # (folds, labels)
    room = np.full(n_folds, len(has) / n_folds)
    left = has.sum(0)
    own = np.full(len(has), -1, dtype=np.int64)
    while left.any():
        rarest = int(np.where(left > 0, left, len(has) + 1).argmin())
        for row in order[has[order, rarest] & (own[order] < 0)]:
            own[row] = np.lexsort((chance.random(n_folds), room, lacking[:, rarest]))[-1]
            lacking[own[row]] -= has[row]
            room[own[row]] -= 1
            left = left - has[row]
    for row in order[own[order] < 0]:
        own[row] = np.lexsort((chance.random(n_folds), room))[-1]
        room[own[row]] -= 1
    return own
