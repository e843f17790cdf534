"""Out-of-fold predictions. Each row is predicted by the model that has not seen it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from batteries._arrays import as_array, as_rows
from batteries._scoring import as_scoring
from batteries.splits._assignment import Folds, made


class Score(NamedTuple):
    """The score of out-of-fold predictions.

    >>> Score(value=0.5, folds=[0.4, 0.6], spread=0.14, rows=20).value
    0.5

    Attributes:
        value: The score on all rows at once.
        folds: The score on each fold that was added, in the order of the folds.
        spread: The standard deviation of `folds`; NaN for one fold.
        rows: The number of rows that have a prediction.
    """

    value: float
    folds: list[float]
    spread: float
    rows: int


class OutOfFold:
    """The predictions of all folds. Each row is predicted by the model that has not seen it.

    >>> folds = make_folds(4, n_folds=2)
    >>> oof = OutOfFold(folds)
    >>> for fold, (train, valid) in enumerate(folds):
    ...     oof.add(fold, valid / 10, test=np.array([float(fold)]))
    >>> oof.predictions
    array([0. , 0.1, 0.2, 0.3])
    >>> oof.test
    array([0.5])

    Args:
        folds: The folds of `make_folds`.
        allow_missing: Whether folds may be missing. The rows of missing folds are NaN, and are not
            scored.

    Raises:
        TypeError: `folds` is not what `make_folds` returns.
    """

    def __init__(self, folds: Folds, *, allow_missing: bool = False) -> None:
        self._folds = made(folds)
        self._allow_missing = allow_missing
        self._valid: dict[int, NDArray[Any]] = {}
        self._test: dict[int, NDArray[Any]] = {}

    def add(
        self,
        fold: int,
        predictions: ArrayLike,
        test: ArrayLike | None = None,
        *,
        trained_on: str | None = None,
    ) -> None:
        """Add the predictions of one fold's model.

        Args:
            fold: The number of the fold. -1 is the last one.
            predictions: (validation rows of the fold, ...), in the order of `folds[fold][1]`.
            test: The predictions of the test set, (test rows, ...). Each fold predicts the same
                test rows.
            trained_on: The `hash` of the folds that the model was trained on, if the run has
                recorded it. The predictions of a model of other folds are refused.

        Raises:
            TypeError: `fold` is not a whole number.
            ValueError: The model was trained on other folds, the fold was added before, or an array
                has another shape than expected.
            IndexError: There is no such fold.
        """
        _, rows = self._folds[fold]
        fold = range(self._folds.n_folds)[fold]  # -1 is the last one
        if trained_on is not None and trained_on != self._folds.hash:
            raise ValueError(
                f"the model of fold {fold} was trained on other folds ({trained_on}) than these "
                f"({self._folds.hash}), so it has seen rows that it predicts: train it again"
            )
        if fold in self._valid:
            raise ValueError(f"fold {fold} was added before: add each fold once")
        # A copy: the caller may use its memory again.
        own = np.array(as_array(predictions, "predictions"), ndmin=1)
        test = None if test is None else np.array(as_rows(test, "test"))
        if len(own) != len(rows):
            raise ValueError(
                f"fold {fold} has {len(rows)} rows, but there are {len(own)} predictions"
            )
        for kept, array, name in ((self._valid, own, "rows"), (self._test, test, "test rows")):
            if array is None:
                continue
            first = next(iter(kept.values()), None)
            skip = name == "rows"  # their number differs between folds
            if first is not None and array.shape[skip:] != first.shape[skip:]:
                raise ValueError(
                    f"fold {fold} has {name} of shape {array.shape}, but earlier folds have "
                    f"{first.shape}"
                )
        self._valid[fold] = own
        if test is not None:
            self._test[fold] = test

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """The predictions, so that they can be blended as an array."""
        make = np.array if copy else np.asarray  # numpy 1 has no copy=None
        return make(self.predictions, dtype=dtype)

    @property
    def missing(self) -> list[int]:
        """The folds that were not added yet."""
        return [fold for fold in range(self._folds.n_folds) if fold not in self._valid]

    @property
    def predictions(self) -> NDArray[Any]:
        """The predictions of all rows, (rows, ...).

        With repeated folds, it is the mean of the repeats. Rows without a prediction are NaN. The
        dtype is the common one of the folds. If there are repeats or NaNs, numbers are floats, and
        an array of texts is one of objects.

        Raises:
            ValueError: Folds are missing. The error names them.
            TypeError: The folds are repeated, and the predictions are texts.
        """
        self._check_complete(self._valid)
        times = np.zeros(self._folds.rows, dtype=np.int64)
        for fold in self._valid:
            times[self._folds[fold][1]] += 1
        dtype = np.result_type(*self._valid.values())
        if times.max() > 1:
            _refuse_texts("predictions", self._valid.values())
        if (times != 1).any():
            dtype = np.dtype(object) if dtype.kind in "US" else np.result_type(dtype, np.float32)
        shape = next(iter(self._valid.values())).shape[1:]
        whole = np.zeros((self._folds.rows, *shape), dtype=dtype)
        for fold, values in self._valid.items():
            rows = self._folds[fold][1]
            if times.max() > 1:
                whole[rows] += values / times[rows].reshape(-1, *(1 for _ in shape))
            else:
                whole[rows] = values
        if (times == 0).any():
            whole[times == 0] = math.nan
        return whole

    @property
    def test(self) -> NDArray[Any]:
        """The mean of the folds' test predictions, (test rows, ...).

        It is computed in float64. It has the dtype of the predictions if they are floats.

        Raises:
            ValueError: Folds, or their test predictions, are missing. The error names the folds.
            TypeError: The test predictions are texts.
        """
        self._check_complete(self._test)
        dtype = np.result_type(*self._test.values())
        _refuse_texts("test predictions", self._test.values())
        mean = np.mean([self._test[fold] for fold in sorted(self._test)], axis=0, dtype=np.float64)
        kept = dtype if np.issubdtype(dtype, np.floating) else np.float64
        return np.asarray(mean, dtype=kept)

    def score(self, targets: ArrayLike, metric: str | Callable[[Any, Any], float]) -> Score:
        """The score on all rows, on each fold, and the spread.

        >>> folds = make_folds(4, n_folds=2)
        >>> oof = OutOfFold(folds)
        >>> for fold, (_, valid) in enumerate(folds):
        ...     oof.add(fold, valid / 10)
        >>> round(oof.score([0, 0, 1, 0], "neg_mean_absolute_error").value, 2)
        -0.3

        Args:
            targets: (rows,) or (rows, ...).
            metric: As for `find_weights`. A function needs no direction here.

        Raises:
            TypeError: The metric does not return one number.
            ValueError: Folds are missing, `targets` has another number of rows, or the metric is
                unknown.
            ModuleNotFoundError: scikit-learn is not installed, for a metric by its name.
        """
        truth = as_rows(targets, "targets")
        if len(truth) != self._folds.rows:
            raise ValueError(
                f"there are {len(truth)} targets for {self._folds.rows} rows; expected one for each"
            )
        own, predictions = as_scoring(metric).of(truth), self.predictions
        rows = np.unique(np.concatenate([self._folds[fold][1] for fold in self._valid]))
        by_fold = [
            own(truth[self._folds[fold][1]], self._valid[fold]) for fold in sorted(self._valid)
        ]
        value = own(truth[rows], predictions[rows])
        spread = float(np.std(by_fold, ddof=1)) if len(by_fold) > 1 else math.nan
        return Score(value, by_fold, spread, len(rows))

    def _check_complete(self, kept: dict[int, NDArray[Any]]) -> None:
        absent = [fold for fold in range(self._folds.n_folds) if fold not in kept]
        if not absent or (self._allow_missing and kept):
            return
        add = "add at least one" if self._allow_missing else "add them"
        what = "are missing"
        if untested := [fold for fold in absent if fold in self._valid]:
            absent, add = untested, "pass test= to add for each fold"
            what = "have no test predictions"
        more = "" if self._allow_missing else ", or pass allow_missing=True"
        raise ValueError(
            f"{len(absent)} of {self._folds.n_folds} folds {what} "
            f"({', '.join(map(str, absent))}): {add}{more}"
        )


def _refuse_texts(what: str, arrays: Iterable[NDArray[Any]]) -> None:
    for array in arrays:
        if any(isinstance(each, str | bytes) for each in array.flat[:1]):
            raise TypeError(
                f"the {what} are texts, which have no mean: add numbers, such as probabilities"
            )
