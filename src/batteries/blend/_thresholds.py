"""The cut-off that makes classes of scores, tuned where it is not tried."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from batteries.blend._metrics import is_minimized
from batteries.blend._models import as_models
from batteries.blend._weights import as_folds
from batteries.splits._assignment import Folds


class Threshold(NamedTuple):
    """A cut-off, and what it is worth.

    >>> def accuracy(y, p):
    ...     return (y == p).mean()
    >>> scores, target = [0.1, 0.4, 0.6, 0.9] * 5, [0, 0, 1, 1] * 5
    >>> find_threshold(scores, target, accuracy, metric_minimization=False)
    Threshold(value=0.5, score=1.0, unseen_score=1.0, spread=0.0, folds=[0.5, 0.5, 0.5, 0.5, 0.5])
    """

    value: float  # found on all rows
    score: float  # of the rows it was found on: too good
    unseen_score: float  # the mean over folds, each cut where the others say
    spread: float  # the standard deviation of the folds' cut-offs
    folds: list[float]  # the cut-off that all folds but this one say


def find_threshold(
    oof: Any,
    target: ArrayLike,
    metric: Callable[[Any, Any], float],
    *,
    metric_minimization: bool | None = None,
    folds: int | Folds | ArrayLike = 5,
    candidates: int = 200,
    seed: int = 0,
) -> Threshold:
    """Find the cut-off with the best score, and try it on folds that it was not found on.

    >>> scores, target = [0.1, 0.3, 0.35, 0.8] * 5, [0, 0, 1, 1] * 5
    >>> def accuracy(y, p):
    ...     return (y == p).mean()
    >>> found = find_threshold(scores, target, accuracy, metric_minimization=False)
    >>> round(found.value, 3), found.unseen_score
    (0.325, 1.0)

    A large spread says that the cut-off is one of many. Of cut-offs with the same score it is the
    middle one.

    Args:
        oof: (rows,) scores.
        target: (rows,).
        metric: Of target and labels, 1 where the score is at least the cut-off, else 0.
        metric_minimization: Whether lower is better. Of scikit-learn's functions that
            `find_weights` knows it is known; for others it has to be said.
        folds: Their number, the `Folds` of the model or the fold of each row.
        candidates: How many cut-offs are tried at most: those between quantiles of the scores.
        seed: For folds that are made here.

    Raises:
        TypeError: No `metric_minimization`.
        ValueError: Scores with NaN, or other than (rows,) of them; a metric that is never a number.
    """
    if not callable(metric):
        raise TypeError(f"metric is {metric!r}; expected a function of target and labels")
    models = as_models([oof])
    models.refuse()
    scores, truth = models.arrays[0], np.asarray(target)
    if scores.shape != truth.shape or scores.ndim != 1:
        raise ValueError(f"there are scores of shape {scores.shape} for targets of {truth.shape}")
    sign = -1 if is_minimized(metric, metric_minimization, "find_threshold") else 1

    def scored(rows: NDArray[Any], cut: float) -> float:
        return float(metric(truth[rows], (scores[rows] >= cut).astype(np.int64)))

    def best(rows: NDArray[Any]) -> float:
        cuts = _cuts(scores[rows], candidates)
        values = np.array([sign * scored(rows, cut) for cut in cuts])
        if np.isnan(values).all():
            raise ValueError("the metric is NaN for every cut-off")
        tied = cuts[values == np.nanmax(values)]
        return float(tied[len(tied) // 2])

    own = as_folds(folds, truth, seed)
    numbers = np.unique(own[own >= 0])
    found = [best(np.flatnonzero(own != fold)) for fold in numbers]
    unseen = [
        scored(np.flatnonzero(own == fold), cut) for fold, cut in zip(numbers, found, strict=True)
    ]
    rows = np.arange(len(truth))
    value = best(rows)
    spread = float(np.std(found, ddof=1))
    return Threshold(value, scored(rows, value), float(np.mean(unseen)), spread, found)


def _cuts(scores: NDArray[Any], candidates: int) -> NDArray[np.float64]:
    """The lowest score, and the middles between neighbouring ones, or between quantiles of many."""
    distinct = np.unique(scores.astype(np.float64))
    if len(distinct) > candidates + 1:
        distinct = np.unique(np.quantile(scores, np.linspace(0, 1, candidates + 1)))
    return np.concatenate((distinct[:1], (distinct[1:] + distinct[:-1]) / 2))
