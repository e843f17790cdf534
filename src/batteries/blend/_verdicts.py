"""Test a blend on unseen folds, against the best single model and the plain mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from batteries._arrays import as_rows, index_of, refuse_other_order
from batteries._numbers import as_seed, as_whole
from batteries.blend._metrics import Problem
from batteries.blend._models import Models, flat
from batteries.splits._assignment import Folds
from batteries.splits._tables import is_missing

Rows = NDArray[np.intp]
Pair = tuple[Rows, Rows]  # rows that a blend is found on, and rows that it is tested on


class Gain(NamedTuple):
    """How much better a blend is than something else, on rows that its weights have not seen.

    >>> Gain(mean=0.02, error=0.005).beyond_noise
    True

    Attributes:
        mean: The mean gain over the folds. The blend is better if it is positive.
        error: The standard error of this mean.
    """

    mean: float
    error: float

    @property
    def beyond_noise(self) -> bool:
        """Whether the mean is more than two standard errors above 0."""
        return self.mean > 2 * self.error


@dataclass(frozen=True, repr=False)
class Trial:
    """A blend's scores on folds that it was not found on, averaged over the folds."""

    unseen_score: float
    single_score: float  # of the model that was best on the other folds
    mean_score: float  # of the plain mean
    best_single: str  # on all rows
    gain_over_single: Gain
    gain_over_mean: Gain
    rows: int  # rows that all models have predicted
    left_out: int  # the other rows
    _what: ClassVar[str]

    @property
    def beats_both(self) -> bool:
        """Whether the blend or stack beats the best single model and the mean, beyond noise."""
        return self.gain_over_single.beyond_noise and self.gain_over_mean.beyond_noise

    @property
    def verdict(self) -> str:
        """Whether to use the blend, in words."""
        what = self._what
        if math.isnan(self.unseen_score):
            return f"the {what} was not tested on unseen folds, so its score is too good"
        few = f" of the {self.rows:,} rows that have all predictions ({self.left_out:,} have not)"
        told = (
            f"unseen folds{few if self.left_out else ''}: {what} {self.unseen_score:.6g}, best "
            f"single model {self.single_score:.6g}, plain mean {self.mean_score:.6g}; "
        )
        others = (
            (self.gain_over_single, f"the best single model ({self.best_single})"),
            (self.gain_over_mean, "the plain mean"),
        )
        better = min(others, key=lambda each: each[0].mean)[1]
        for gain, other in others:
            if not gain.beyond_noise:
                return (
                    f"{told}the {what} does not beat {other} beyond noise "
                    f"({gain.mean:+.2g}, standard error {gain.error:.2g}): use {better}"
                )
        return f"{told}the {what} beats both beyond noise"


def predicted_by_all(
    models: Models, target: Any, allow_missing: bool, folds: Any
) -> tuple[Models, Any, Rows]:
    """The predictions and targets of the rows that all models have predicted, and their numbers.

    Args:
        folds: The folds of all rows, if they are an array. They are only compared with the others.
    """
    refuse_other_order("the target and the predictions", models.index, index_of(target))
    refuse_other_order("the folds and the predictions", models.index, index_of(folds))
    refuse_other_order("the folds and the target", index_of(target), index_of(folds))
    truth = as_rows(target, "target")
    if truth.shape[1:] == (1,):  # a frame of one column
        truth = truth[:, 0]
    if len(truth) != models.shape[0]:
        raise ValueError(
            f"there are {len(truth)} targets for {models.shape[0]} rows; expected one for each"
        )
    rows = np.arange(len(truth))
    if allow_missing:
        gone = [np.isnan(flat(array)).any(1) for array in models.arrays]
        rows = np.flatnonzero(~np.any(gone, axis=0))
        if not len(rows):
            raise ValueError(
                "no row has predictions of all models: check that the models have predicted the "
                "same rows"
            )
        if len(rows) < len(truth):
            arrays = [array[rows] for array in models.arrays]
            models, truth = Models(arrays, models.named, kept=rows), truth[rows]
    models.refuse()
    _refuse_missing(truth, rows)
    return models, truth, rows


def _refuse_missing(truth: NDArray[Any], rows: Rows) -> None:
    finite = truth.dtype.kind == "f"
    gone = ~np.isfinite(truth) if finite else is_missing(truth.reshape(-1)).reshape(truth.shape)
    gone = gone.any(axis=tuple(range(1, gone.ndim)))
    if gone.any():
        fault = "not a finite number" if finite else "missing"
        raise ValueError(f"the target of row {rows[gone.argmax()]} is {fault}")


def as_pairs(
    folds: int | Folds | ArrayLike, target: NDArray[Any], seed: int, kept: Rows, rows: int
) -> list[Pair]:
    """For each fold, the rows of the other folds and the rows of the fold.

    In the order of time, the other folds are the earlier ones. Only the first repeat of repeated
    folds is used. With all repeats, each row would count several times, and the standard error
    would be too small.

    Args:
        folds: If it is a number, folds of the kept rows are made.
        target: The target of the kept rows.
        kept: The numbers of the kept rows.
        rows: The number of all rows. Folds that are not a number have all of them.
    """
    if isinstance(folds, Folds):
        _check_rows(folds.rows, rows)
        place = np.full(rows, -1)
        place[kept] = np.arange(len(kept))
        once = folds.n_folds // len(np.atleast_2d(folds.assignment))
        parts = [[place[part][place[part] >= 0] for part in folds[fold]] for fold in range(once)]
        pairs = [(seen, unseen) for seen, unseen in parts if len(seen) and len(unseen)]
    else:
        own = as_folds(folds, target, seed)
        if not _is_number(folds):
            _check_rows(len(own), rows)
            own = own[kept]
        pairs = [
            (np.flatnonzero(own != fold), np.flatnonzero(own == fold))
            for fold in np.unique(own[own >= 0])
        ]
    if len(pairs) < 2:
        raise ValueError(f"there are rows of {len(pairs)} folds; expected two or more folds")
    return pairs


def _check_rows(number: int, rows: int) -> None:
    if number != rows:
        raise ValueError(f"folds has {number} rows; expected one for each of {rows} rows")


def as_folds(folds: int | ArrayLike, target: ArrayLike, seed: int) -> NDArray[Any]:
    """The fold of each row. A number makes stratified folds."""
    truth = as_rows(target, "target")
    if folds is None:
        raise ValueError("folds is None; expected their number, the Folds, or the fold of each row")
    if _is_number(folds):
        # Rows with neighbouring targets go to different folds; equal targets are shuffled.
        order = np.random.default_rng(as_seed(seed)).permutation(len(truth))
        if truth.ndim == 1:
            order = order[np.argsort(truth[order], kind="stable")]
        own = np.empty(len(truth), dtype=np.int64)
        number = as_whole(folds, "folds", told=", the Folds, or the fold of each row")
        own[order] = np.arange(len(truth)) % max(number, 1)
        return own
    return _of_rows(as_rows(folds, "folds"))


def _of_rows(folds: NDArray[Any]) -> NDArray[np.int64]:
    """The number of each row's fold; -1 for a row without a fold."""
    if folds.shape[1:] == (1,):  # a frame of one column
        folds = folds[:, 0]
    if folds.ndim != 1:
        raise ValueError(f"folds have shape {folds.shape}; expected (rows,)")
    if folds.dtype.kind in "iu":
        return folds.astype(np.int64, copy=False)
    gone = is_missing(folds)
    own = np.full(len(folds), -1)
    if folds.dtype.kind == "f":  # whole numbers of a frame in which some are missing
        odd = ~gone & ~(np.isfinite(folds) & (folds == np.floor(folds)))
        if odd.any():
            at = int(np.argmax(odd))
            raise ValueError(f"folds has {folds[at]} in row {at}; expected whole numbers or names")
        own[~gone] = folds[~gone]
    else:  # names
        own[~gone] = np.unique(folds[~gone], return_inverse=True)[1]
    return own


def _is_number(folds: Any) -> bool:
    return (
        isinstance(folds, str) or not isinstance(folds, Iterable) or getattr(folds, "ndim", 1) == 0
    )


def tried(
    problem: Problem, pairs: list[Pair], blend: Callable[[Rows, Rows], float], **counted: int
) -> dict[str, Any]:
    """The fields of a `Trial`.

    Args:
        blend: Finds a blend on the first rows, and returns its score on the second rows. Higher is
            better.
    """
    scores = []
    number = len(problem.columns)
    for seen, unseen in pairs:
        there = problem.part(unseen)
        alone = there.of(there.columns[best_single(problem.part(seen))])
        scores.append((blend(seen, unseen), alone, there.value(np.full(number, 1 / number))))
        if not all(map(math.isfinite, scores[-1])):
            raise ValueError(
                f"the metric is not a finite number on the {len(unseen)} rows of fold "
                f"{len(scores) - 1}: use folds that have all classes"
            )
    own, single, mean = (np.array([each[at] for each in scores]) for at in range(3))
    return {
        "unseen_score": _mean(problem.sign * own),
        "single_score": _mean(problem.sign * single),
        "mean_score": _mean(problem.sign * mean),
        "gain_over_single": _gain(own - single),
        "gain_over_mean": _gain(own - mean),
        **counted,
    }


def best_single(problem: Problem) -> int:
    return int(np.argmax([problem.of(column) for column in problem.columns]))


def _mean(scores: NDArray[Any]) -> float:
    return float(scores.mean()) if len(scores) else math.nan


def _gain(differences: NDArray[Any]) -> Gain:
    if len(differences) < 2:
        return Gain(math.nan, math.nan)
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    return Gain(float(differences.mean()), float(error))
