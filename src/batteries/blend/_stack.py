"""Stacking: a second model on the predictions of others."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from batteries._arrays import as_rows
from batteries._foreign import brief
from batteries._spellings import hints
from batteries.blend._metrics import as_problem
from batteries.blend._models import Array, Models, as_models, flat
from batteries.blend._verdicts import Rows, Trial, as_pairs, best_single, predicted_by_all, tried
from batteries.splits._assignment import Folds


@dataclass(frozen=True, repr=False)
class Stack(Trial):
    """A model on the predictions of others, and its scores on unseen folds.

    >>> from sklearn.linear_model import LogisticRegression
    >>> oof = {"tree": [0.1, 0.9, 0.8, 0.2] * 9, "coin": [0.5] * 36}
    >>> stacked = stack(oof, [0, 1, 1, 0] * 9, LogisticRegression())
    >>> stacked.predict({"tree": [0.9, 0.1], "coin": [0.5, 0.5]}).round()
    array([1., 0.])

    Attributes:
        model: The second model, fitted on all rows that the first-level models have predicted.
        oof: (rows, ...), the predictions of models fitted on the other folds; NaN for rows
            that no fold validates, or that were left out.
        names: The names of the first-level models, in order.
        unseen_score: The mean score of `oof` over the folds.
        single_score, mean_score, best_single, gain_over_single, gain_over_mean, rows, left_out:
            As for `FoundWeights`.
    """

    model: Any
    oof: NDArray[Any]
    names: list[str]
    _predict: Callable[[Any, Array], Array]

    _what = "stack"

    def __repr__(self) -> str:
        return f"<Stack: {self.verdict}. Of: {', '.join(self.names)}>"

    def predict(self, predictions: Any, *more: Any) -> NDArray[Any]:
        """The model's predictions from other predictions of the same models.

        `predictions` and `more` are those of `mean`.

        Raises:
            TypeError: As for `mean`.
            ValueError: As for `mean`, or other models.
        """
        models = as_models(predictions, more)
        if sorted(models.keys) == sorted(self.names):  # by name, in any order
            order = [models.keys.index(name) for name in self.names]
            models = Models([models.arrays[at] for at in order], self.names)
        if models.keys != self.names:
            raise ValueError(
                f"the models are {', '.join(models.keys)}; expected {', '.join(self.names)}"
            )
        models.refuse()
        return self._predict(self.model, _features(models))


@hints
def stack(
    oof: Any,
    target: ArrayLike,
    model: Any,
    metric: str | Callable[[Any, Any], float] | None = None,
    *,
    metric_minimization: bool | None = None,
    folds: int | Folds | ArrayLike = 5,
    allow_missing: bool = False,
    seed: int = 0,
) -> Stack:
    """Fit a second model on the out-of-fold predictions of others, and test it on unseen folds.

    >>> from sklearn.linear_model import LogisticRegression
    >>> chance = np.random.default_rng(0)
    >>> target = chance.integers(0, 2, 400)
    >>> oof = {name: 1 / (1 + np.exp(chance.normal(0, 1, 400) - target)) for name in "ab"}
    >>> stack(oof, target, LogisticRegression()).verdict[-33:]
    'the stack beats both beyond noise'

    For each fold, the model is fitted on the rows of the other folds and predicts those of the
    fold. `unseen_score` and `verdict` are of these predictions. One dependence is left, as in every
    stack: the predictions of the other folds come from first-level models that were also fitted on
    the rows of this fold.

    Args:
        oof: Out-of-fold predictions, as for `find_weights`. Each class of (rows, classes) is a
            feature.
        target: (rows,).
        model: An object such as scikit-learn's, with `fit(features, target)` and `predict`, or with
            `predict_proba` and `classes_`. Features are (rows, features), in float64. Copies of the
            model are fitted. With `predict_proba`, the stack predicts (rows, classes). For two
            classes and first-level predictions (rows,), it predicts the probability of the second
            class, (rows,).
        metric: As for `find_weights`. Default: "log_loss" for a model with `predict_proba`, else
            "rmse".
        folds: As for `find_weights`, but not None. Pass those that the models were trained on.
        metric_minimization, allow_missing, seed: As for `find_weights`.

    Raises:
        TypeError: As for `find_weights`; a model without `fit`, or without both `predict` and
            `predict_proba`; a model with `predict_proba` and without `classes_`; or a model without
            `predict_proba` that predicts texts.
        ValueError: As for `find_weights`; or predictions of the model that are not finite, or that
            have another shape.
        ModuleNotFoundError: As for `find_weights`.
    """
    probable = hasattr(model, "predict_proba")
    usable = hasattr(model, "fit") and (probable or hasattr(model, "predict"))
    if isinstance(model, type) or not usable:
        raise TypeError(f"model is {brief(model)}; expected an object with fit and predict")
    models, truth, rows = predicted_by_all(
        everything := as_models(oof), target, allow_missing, folds
    )
    classes = np.unique(truth)
    metric = metric or ("log_loss" if probable else "rmse")
    problem = as_problem(models.arrays, truth, metric, metric_minimization, "stack", models.names)
    positive = probable and models.arrays[0].ndim == 1 and len(classes) == 2

    predict = functools.partial(_predict, classes=classes if probable else None, positive=positive)
    features = _features(models)
    pairs = as_pairs(folds, truth, seed, rows, everything.shape[0])
    second: dict[int, Array] = {}
    for seen, unseen in pairs:
        own = predict(_fitted(model, features[seen], truth[seen]), features[unseen])
        second |= dict(zip(unseen.tolist(), own, strict=True))
    there = np.array(sorted(second))
    stacked = np.stack([second[row] for row in there.tolist()])
    named = ["the stack"]
    Models([stacked], told=named, kept=rows[there]).refuse()
    of_second = as_problem([stacked], truth[there], metric, metric_minimization, "stack", named)

    def unseen_score(_: Rows, others: Rows) -> float:
        part = of_second.part(np.searchsorted(there, others))
        return part.of(part.columns[0])

    whole = np.full((everything.shape[0], *stacked.shape[1:]), np.nan)
    whole[rows[there]] = stacked
    return Stack(
        **tried(problem, pairs, unseen_score, rows=len(rows), left_out=len(whole) - len(rows)),
        best_single=models.keys[best_single(problem)],
        model=_fitted(model, features, truth),
        oof=whole,
        names=models.keys,
        _predict=predict,
    )


def _features(models: Models) -> NDArray[np.float64]:
    """The numbers of all models: (rows, features)."""
    return np.concatenate(list(map(flat, models.arrays)), axis=1).astype(np.float64)


def _predict(
    fitted: Any, features: Array, *, classes: Array | None, positive: bool
) -> NDArray[Any]:
    """The predictions of a model, in the shape of a first-level model's.

    Args:
        classes: The classes of the target, if the model has `predict_proba`.
        positive: Whether only the probability of the second class is needed.
    """
    rows = len(features)
    if classes is None:
        own = _checked(fitted.predict(features), rows)
        if own.dtype.kind not in "biuf":
            raise TypeError(
                f"model predicts classes such as {own.tolist()[0]!r}; expected a model with "
                "predict_proba, or a target of numbers"
            )
        return own
    known = _classes_of(fitted, classes)
    told = np.zeros((rows, len(classes)))
    own = _checked(fitted.predict_proba(features), rows, len(known))
    told[:, np.searchsorted(classes, known)] = own
    return told[:, 1] if positive else told


def _checked(predicted: Any, rows: int, columns: int | None = None) -> Array:
    """What a model has predicted, (rows, ...) or (rows, columns)."""
    own = as_rows(predicted, "what model predicts")
    if len(own) != rows or (columns is not None and own.shape != (rows, columns)):
        raise ValueError(
            f"the predictions of model have shape {own.shape} for {rows} rows; expected "
            f"({rows}, {'...' if columns is None else columns})"
        )
    return own


def _classes_of(fitted: Any, classes: Array) -> Array:
    """The classes of the columns of `predict_proba`."""
    if not hasattr(fitted, "classes_"):
        raise TypeError(
            "model has no classes_ after fit, as scikit-learn's models with predict_proba have; "
            "expected the class of each column"
        )
    known = as_rows(fitted.classes_, "the classes_ of model")
    if not np.isin(known, classes).all():
        raise ValueError(
            f"the classes_ of model are {', '.join(map(str, known))}; expected classes of the "
            f"target: {', '.join(map(str, classes))}"
        )
    return known


def _fitted(model: Any, features: Array, target: Array) -> Any:
    """A fitted copy of a model. What the model's `fit` returns does not matter."""
    own = _fresh(model)
    own.fit(features, target)
    return own


def _fresh(model: Any) -> Any:
    """An unfitted copy of a model."""
    if hasattr(model, "get_params") and not isinstance(model, type):
        from sklearn.base import clone

        return clone(model)
    return copy.deepcopy(model)
