"""Predictions of all folds together: each row's by the model that has not seen it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from batteries.splits._assignment import Folds, fold_indices


class Score(NamedTuple):
    """The score of predictions that were made by folds.

    >>> Score(value=0.5, folds=[0.4, 0.6], spread=0.14).value
    0.5
    """

    value: float  # of all rows at once
    folds: list[float]
    spread: float  # the standard deviation over the folds


class OutOfFold:
    """The predictions of all folds, each row's by the model that has not seen it.

    >>> folds = make_folds(4, n_folds=2)
    >>> collected = OutOfFold(folds)
    >>> for fold in range(2):
    ...     _, valid = fold_indices(folds, fold)
    ...     collected.add(fold, valid / 10, test=np.array([float(fold)]), trained_on=folds.hash)
    >>> collected.predictions
    array([0. , 0.1, 0.2, 0.3])
    >>> collected.test
    array([0.5])
    """

    def __init__(self, folds: Folds) -> None:
        self._folds = folds
        self._valid: dict[int, NDArray[Any]] = {}
        self._test: dict[int, NDArray[Any]] = {}

    def add(
        self, fold: int, valid: ArrayLike, test: ArrayLike | None = None, *, trained_on: str
    ) -> None:
        """Take in what the model of one fold predicts.

        Args:
            valid: (rows of the fold, ...), in the order of `fold_indices`.
            test: (test rows, ...), the same for each fold.
            trained_on: The `hash` of the folds that the model was trained on, as its run kept it.

        Raises:
            ValueError: Other folds, a fold that is there already, or arrays of another shape.
        """
        _, rows = fold_indices(self._folds, fold)
        if trained_on != self._folds.hash:
            raise ValueError(
                f"fold {fold} was trained on other splits ({trained_on}) than these "
                f"({self._folds.hash}): it has seen rows that it is to predict; train it again"
            )
        if fold in self._valid:
            raise ValueError(f"fold {fold} was added before")
        own = np.array(valid)  # a copy: the caller may use its memory again
        if len(own) != len(rows):
            raise ValueError(
                f"fold {fold} has {len(rows)} rows, and there are {len(own)} predictions"
            )
        for kept, array, name in ((self._valid, own, "rows"), (self._test, test, "test rows")):
            if array is None:
                continue
            new, first = np.asarray(array), next(iter(kept.values()), None)
            skip = name == "rows"  # of which folds have different numbers
            if first is not None and new.shape[skip:] != first.shape[skip:]:
                raise ValueError(
                    f"fold {fold} has {name} of shape {new.shape}, the ones before {first.shape}"
                )
        self._valid[fold] = own
        if test is not None:
            self._test[fold] = np.array(test)

    @property
    def missing(self) -> list[int]:
        """The folds that are still to come."""
        return [fold for fold in range(self._folds.n_folds) if fold not in self._valid]

    @property
    def predictions(self) -> NDArray[Any]:
        """Of all rows, (rows, ...); NaN for rows that are in no validation part.

        Raises:
            ValueError: Folds are missing; which.
        """
        self._check_complete(self._valid)
        first = self._valid[0]
        outside = (self._folds.assignment < 0).any()
        dtype = np.result_type(*self._valid.values(), *([np.float32] if outside else []))
        whole = np.empty((self._folds.rows, *first.shape[1:]), dtype=dtype)
        if outside:
            whole[self._folds.assignment < 0] = math.nan
        for fold, values in self._valid.items():
            whole[fold_indices(self._folds, fold)[1]] = values
        return whole

    @property
    def test(self) -> NDArray[Any]:
        """The mean of the folds' test predictions, computed in float64.

        Raises:
            ValueError: Folds are missing; which.
        """
        self._check_complete(self._test)
        dtype = np.result_type(*self._test.values())
        mean = np.mean([self._test[fold] for fold in sorted(self._test)], axis=0, dtype=np.float64)
        kept = dtype if np.issubdtype(dtype, np.floating) else np.float64
        return np.asarray(mean, dtype=kept)

    def score(self, targets: ArrayLike, metric: Callable[[Any, Any], float]) -> Score:
        """How good the predictions are: of all rows, of each fold, and the spread.

        >>> collected = OutOfFold(Folds(np.array([0, 1]), "kfold"))
        >>> for fold in range(2):
        ...     collected.add(fold, [fold], trained_on=Folds(np.array([0, 1]), "kfold").hash)
        >>> collected.score([0, 0], lambda targets, predictions: float(predictions.mean()))
        Score(value=0.5, folds=[0.0, 1.0], spread=0.7071067811865476)

        Args:
            targets: (rows,) or (rows, ...).
            metric: Of targets and predictions, as scikit-learn's.

        Raises:
            ValueError: Folds are missing, or targets of another length.
        """
        truth = np.asarray(targets)
        if len(truth) != self._folds.rows:
            raise ValueError(f"there are {len(truth)} targets for {self._folds.rows} rows")
        predictions, inside = self.predictions, self._folds.assignment >= 0
        parts = [fold_indices(self._folds, fold)[1] for fold in range(self._folds.n_folds)]
        by_fold = [float(metric(truth[rows], self._valid[fold])) for fold, rows in enumerate(parts)]
        value = float(metric(truth[inside], predictions[inside]))
        spread = float(np.std(by_fold, ddof=1)) if len(by_fold) > 1 else 0.0
        return Score(value, by_fold, spread)

    def _check_complete(self, kept: dict[int, NDArray[Any]]) -> None:
        absent = [fold for fold in range(self._folds.n_folds) if fold not in kept]
        if absent:
            raise ValueError(
                f"fold {', '.join(map(str, absent))} of {self._folds.n_folds} is missing"
            )
