"""Scores of blends, fast enough for a search for weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batteries._arrays import as_array
from batteries._foreign import brief
from batteries._scoring import as_scoring, wide
from batteries.blend._models import Array

_Score = Callable[[Array, Array], float]


@dataclass
class Problem:
    """The predictions of models, their target, and the score of a blend."""

    columns: list[Array]  # (rows, ...) of each model: the score is a function of their mean
    target: Array  # (rows,)
    score: _Score
    sign: int  # 1 if higher is better
    known: bool  # whether the score is one of ours, which threads may compute

    def blend(self, weights: NDArray[np.float64]) -> Array:
        total = np.zeros(self.columns[0].shape)
        for column, weight in zip(self.columns, weights, strict=True):
            if weight:
                total += weight * column
        return total

    def value(self, weights: NDArray[np.float64]) -> float:
        """The score of a blend with these weights; higher is better."""
        return self.of(self.blend(weights))

    def of(self, blend: Array) -> float:
        """The score of a blend; higher is better, and NaN is the worst."""
        score = self.score(self.target, blend)
        return -np.inf if np.isnan(score) else self.sign * score

    def part(self, rows: NDArray[np.intp]) -> Problem:
        columns = [column[rows] for column in self.columns]
        return Problem(columns, self.target[rows], self.score, self.sign, self.known)


def as_problem(
    arrays: list[Array],
    target: Any,
    metric: str | Callable[[Any, Any], float],
    metric_minimization: bool | None,
    of: str = "find_weights",
    names: Sequence[str] = (),
) -> Problem:
    """The problem of a user's metric.

    Args:
        of: The public function, for errors.
        names: The models' names, for errors. Default: "model 0" and so on.
    """
    arrays, truth = list(map(wide, arrays)), wide(as_array(target, "target"))
    if truth.dtype.kind == "f" and not np.isfinite(truth).all():
        raise ValueError(f"the target of row {np.isfinite(truth).argmin()} is not a finite number")
    scoring = as_scoring(metric, metric_minimization, of)
    sign = -1 if scoring.minimized else 1
    # For several targets scikit-learn's functions average in their own ways.
    if scoring.fast not in _KNOWN or (callable(metric) and truth.ndim != 1):
        return Problem(arrays, truth, scoring.of(truth), sign, known=False)
    prepare, score = _KNOWN[scoring.fast]
    if scoring.fast == "log_loss":
        _refuse_improbable(arrays, names or [f"model {index}" for index in range(len(arrays))])
    columns, own = prepare(arrays, truth)
    told = score if scoring.sign > 0 else lambda y, p: -score(y, p)
    return Problem(columns, own, told, sign, known=True)


# ---------------------------------------------------------------- the known ones

_Prepared = tuple[list[Array], Array]


def _for_auc(arrays: list[Array], target: Array) -> _Prepared:
    classes, positive = np.unique(target, return_inverse=True)
    if arrays[0].shape[1:] == (2,):  # probabilities of two classes: the second is positive
        arrays = [array[:, 1] for array in arrays]
    if len(classes) != 2 or arrays[0].ndim != 1:
        raise ValueError(
            f"auc needs two classes and (rows,) predictions; found {len(classes)} classes and "
            f"predictions of shape {arrays[0].shape}: use 'roc_auc_ovr' for more classes"
        )
    return arrays, positive.astype(np.int64)


def auc(positive: Array, prediction: Array) -> float:
    """The area under the ROC curve; NaN if one of the classes is missing.

    The last bit of each number is replaced by its class, so that one sort of integers is enough.
    Numbers that differ only in the last of their 52 bits count as equal.

    Args:
        positive: Integers of 64 bits, 0 and 1.
    """
    keys = (prediction.astype(np.float64) + 0.0).view(np.int64)  # + 0.0 makes 0.0 of -0.0
    if prediction.min(initial=0) < 0:  # negative numbers sort the other way round
        keys ^= (keys >> 63) & np.int64(2**63 - 1)
    keys &= np.int64(-2)
    keys |= positive
    keys.sort()
    wins = keys & 1
    found = np.flatnonzero(wins)
    negatives = len(keys) - len(found)
    if not len(found) or not negatives:
        return float("nan")
    won = int(found.sum()) - len(found) * (len(found) - 1) // 2  # pairs in the right order
    return float((won - 0.5 * _tied_pairs(keys)) / (len(found) * negatives))


def _tied_pairs(keys: Array) -> int:
    """The number of pairs from both classes that have equal numbers, in sorted keys."""
    above = (keys[1:] - keys[:-1] == 1) & (keys[1:] & 1 == 1)  # from one class to the other
    if not above.any():
        return 0
    numbers = keys[1:][above]
    negatives = np.searchsorted(keys, numbers, "left") - np.searchsorted(keys, numbers - 1, "left")
    positives = np.searchsorted(keys, numbers, "right") - np.searchsorted(keys, numbers, "left")
    return int((negatives * positives).sum())


def _two_or_more(name: str, arrays: list[Array], classes: Array) -> None:
    shape = arrays[0].shape
    if shape[1:] != (len(classes),) and not (len(shape) == 1 and len(classes) == 2):
        raise ValueError(
            f"{name} has {len(classes)} classes and predictions of shape {shape}; expected "
            "(rows, classes), or (rows,) for two classes"
        )


def _refuse_improbable(arrays: list[Array], names: Sequence[str]) -> None:
    for name, array in zip(names, arrays, strict=True):
        if array.min(initial=0) < 0 or array.max(initial=0) > 1:
            raise ValueError(f"{name} has numbers outside of 0 to 1; log_loss needs probabilities")
        if array.ndim == 2 and not np.allclose(array.sum(1), 1, atol=1e-4):
            raise ValueError(
                f"the probabilities of {name} do not add up to 1 in each row: divide each row by "
                "its sum"
            )


def _for_log_loss(arrays: list[Array], target: Array) -> _Prepared:
    """The probability that each model gives to the true class."""
    classes, true = np.unique(target, return_inverse=True)
    _two_or_more("log_loss", arrays, classes)
    if arrays[0].ndim == 1:
        return [np.where(true == 1, array, 1 - array) for array in arrays], true
    return [array[np.arange(len(true)), true] for array in arrays], true


def _log_loss(_: Array, probability: Array) -> float:
    smallest = np.finfo(np.float64).eps  # scikit-learn clips at the same probability
    return float(-np.log(np.clip(probability, smallest, 1 - smallest)).mean())


def _for_accuracy(arrays: list[Array], target: Array) -> _Prepared:
    classes, true = np.unique(target, return_inverse=True)
    _two_or_more("accuracy", arrays, classes)
    return arrays, true


def _accuracy(target: Array, prediction: Array) -> float:
    label = prediction.argmax(1) if prediction.ndim == 2 else prediction > 0.5
    return float((label == target).mean())


def _for_rmse(arrays: list[Array], target: Array) -> _Prepared:
    if not arrays[0].shape == target.shape == (len(target),):
        raise ValueError(
            f"rmse needs (rows,) predictions and targets; found {arrays[0].shape} and "
            f"{target.shape}: if there is only one column, pass array[:, 0]; else pass "
            "a function of your own as the metric"
        )
    try:
        return arrays, target.astype(np.float64)
    except (TypeError, ValueError):
        found = brief(target.tolist()[0])
        raise ValueError(f"rmse needs a target of numbers; found {found}") from None


def _rmse(target: Array, prediction: Array) -> float:
    return float(np.sqrt(np.square(prediction - target).mean()))


_KNOWN: dict[str, tuple[Callable[[list[Array], Array], _Prepared], _Score]] = {
    "auc": (_for_auc, auc),
    "log_loss": (_for_log_loss, _log_loss),
    "accuracy": (_for_accuracy, _accuracy),
    "rmse": (_for_rmse, _rmse),
}
