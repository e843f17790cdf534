"""Metrics by name or as functions, with the same names everywhere."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from batteries._direction import said_direction
from batteries._numbers import as_number
from batteries._optional import import_optional

Function = Callable[..., float]  # of target and prediction
_ROUNDED = 1e-6  # rounding errors of float32 probabilities


class Scoring(NamedTuple):
    """A metric and its direction."""

    name: str  # for errors
    fast: str | None  # the name of our own fast implementation
    sign: int  # -1 for scores such as "neg_log_loss"
    minimized: bool
    function: Function | None = None  # the function, if it is not ours
    of_labels: bool = False  # whether the function takes classes and not probabilities
    with_classes: bool = False  # whether it takes labels=, for rows that lack some classes
    of_scores: bool = False  # whether it takes one score a row, if there are two classes

    def of(self, target: Any) -> Function:
        """The function of target and prediction. `target` shows which classes there are."""
        # Our fast function may not apply, for example to several targets.
        function = self.function or _of_sklearn(self)
        target = _in_rows(target)
        needed = (self.of_labels or self.with_classes) and target.ndim == 1
        classes = np.unique(target) if needed else None
        more = {"labels": classes} if self.with_classes and needed else {}

        def score(y: Any, p: Any) -> float:
            y, p = _in_rows(y), _in_rows(p)
            if self.of_scores and y.ndim == 1 and p.shape[1:] == (2,):
                p = p[:, 1]  # the probability of the second class, as in scikit-learn's scorers
            elif self.fast == "auc" and y.ndim == 1 and p.ndim == 2:
                raise ValueError(
                    f"{self.name} needs two classes and (rows,) predictions; found predictions of "
                    f"shape {p.shape}: use 'roc_auc_ovr' for more classes"
                )
            if classes is not None and self.of_labels:
                p = _labels(p, classes)
            return as_number(function(wide(y), wide(p), **more), f"the result of {self.name}")

        return score


def _in_rows(values: Any) -> NDArray[Any]:
    """One column as (rows,): numpy would subtract (rows, 1) from (rows,) as (rows, rows)."""
    array = np.asarray(values)
    return array[:, 0] if array.shape[1:] == (1,) else array


def wide(values: Any) -> NDArray[Any]:
    """An array. Floats of 16 bits become floats of 64 bits, since their sums would overflow."""
    array = np.asarray(values)
    return array.astype(np.float64) if array.dtype == np.float16 else array


_FAST = {  # by the names of scikit-learn's scorers, of scikit-learn's functions, and ours
    "roc_auc": ("auc", 1, False),
    "auc": ("auc", 1, False),
    "roc_auc_score": ("auc", 1, False),
    "neg_log_loss": ("log_loss", -1, False),
    "log_loss": ("log_loss", 1, True),
    "accuracy": ("accuracy", 1, False),
    "accuracy_score": ("accuracy", 1, False),
    "neg_root_mean_squared_error": ("rmse", -1, False),
    "rmse": ("rmse", 1, True),
    "root_mean_squared_error": ("rmse", 1, True),
    "mae": ("mae", 1, True),
}
_FUNCTIONS = {  # of scikit-learn, by our names
    "auc": "roc_auc_score", "log_loss": "log_loss", "accuracy": "accuracy_score",
    "rmse": "root_mean_squared_error", "mae": "mean_absolute_error",
}  # fmt: skip


def as_scoring(
    metric: str | Callable[[Any, Any], float],
    metric_minimization: bool | None = None,
    of: str | None = None,
) -> Scoring:
    """The metric that a user passed, with its direction.

    Args:
        metric: "auc", "log_loss", "accuracy", "rmse", "mae"; a name of scikit-learn's scorers, such
            as "neg_log_loss" or "f1_macro"; a scorer; or any function of target and prediction.
        of: The name of the public function, for errors. None: the direction does not matter.

    Raises:
        TypeError: A function comes without its direction.
        ValueError: The metric is not known, or its direction is wrong.
    """
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", "")
    ours = isinstance(metric, str) or _is_of_sklearn(metric)
    if name == "auc" and ours and not isinstance(metric, str):
        raise ValueError(
            "metric is sklearn.metrics.auc, which takes the points of a curve; expected "
            "roc_auc_score or 'auc'"
        )
    if ours and name in _FAST:
        fast, sign, minimized = _FAST[name]
        own = None if isinstance(metric, str) else metric
        kinds = (fast == "accuracy" and own is None, fast == "log_loss", fast == "auc")
        found = Scoring(name, fast, sign, minimized, own, *kinds)
    elif isinstance(metric, str) or hasattr(metric, "_score_func"):
        found = _of_scorer(metric)
    else:
        if not callable(metric):
            raise _unknown(metric)
        what = f"{of} with a function as its metric"
        lower = of is not None and said_direction(metric_minimization, what)
        return Scoring(name or "the metric", None, 1, lower, metric)
    if metric_minimization not in (None, found.minimized):
        raise ValueError(
            f"{found.name} is better when it is {'lower' if found.minimized else 'higher'}; leave "
            "metric_minimization out"
        )
    return found


def _unknown(metric: Any) -> ValueError:
    return ValueError(
        f"metric is {metric!r}; expected a function, one of {', '.join(_FUNCTIONS)}, or a name of "
        "scikit-learn's: sklearn.metrics.get_scorer_names()"
    )


def _is_of_sklearn(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).startswith("sklearn.metrics")


def _of_scorer(metric: Any) -> Scoring:
    """The function of a scikit-learn scorer, which takes predictions and not a model."""
    if isinstance(metric, str):
        name = metric
        metrics = import_optional("sklearn.metrics", needs="scikit-learn", for_=f"metric {name!r}")
        if metric not in metrics.get_scorer_names():
            raise _unknown(metric)
        metric = metrics.get_scorer(metric)
    else:
        name = f"the scorer of {getattr(metric._score_func, '__name__', 'a function')}"
    score, sign, options = metric._score_func, metric._sign, metric._kwargs
    of_classes = _is_of_sklearn(score) and not score.__module__.endswith("_regression")
    of_labels = of_classes and getattr(metric, "_response_method", "predict") == "predict"
    with_classes = of_classes and not of_labels and "labels" in inspect.signature(score).parameters

    def function(y: Any, p: Any, **more: Any) -> Any:
        return sign * score(y, p, **{**more, **options})

    of_scores = of_classes and not of_labels and score.__name__ != "log_loss"
    return Scoring(name, None, 1, False, function, of_labels, with_classes, of_scores)


def _of_sklearn(scoring: Scoring) -> Function:
    def function(y: Any, p: Any, **more: Any) -> Any:
        if scoring.fast == "accuracy" and _are_classes(np.asarray(y), np.asarray(p)):
            return np.mean(y == p)  # the same result in a tenth of the time
        metrics = import_optional("sklearn.metrics", needs="scikit-learn", for_=scoring.name)
        return scoring.sign * getattr(metrics, _FUNCTIONS[str(scoring.fast)])(y, p, **more)

    return function


def _are_classes(target: NDArray[Any], prediction: NDArray[Any]) -> bool:
    kinds = {target.dtype.kind, prediction.dtype.kind}
    alike = "f" not in kinds and (len(kinds) == 1 or kinds <= set("biu"))
    return alike and target.shape == prediction.shape == (len(target),)


def _labels(prediction: NDArray[Any], classes: NDArray[Any]) -> NDArray[Any]:
    """The most probable classes; predictions that are classes already stay the same."""
    if prediction.dtype.kind != "f":
        return prediction
    if prediction.ndim == 2 and prediction.shape[1] == len(classes):
        return np.asarray(classes[prediction.argmax(1)])
    if prediction.ndim != 1 or len(classes) != 2:
        return prediction
    same = classes.dtype.kind in "biuf" and np.isin(prediction, classes).all()
    inside = np.abs(prediction - 0.5).max(initial=0) <= 0.5 + _ROUNDED
    return (
        np.asarray(classes[(prediction > 0.5).astype(int)]) if inside and not same else prediction
    )
