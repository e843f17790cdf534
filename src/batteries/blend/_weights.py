"""Find the weights of a blend on out-of-fold predictions, and test them on unseen folds."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from batteries._numbers import as_whole
from batteries._optional import import_optional
from batteries._spellings import hints
from batteries.blend._means import weighted
from batteries.blend._metrics import Problem, as_problem
from batteries.blend._models import as_models, as_weights
from batteries.blend._verdicts import Rows, Trial, as_pairs, best_single, predicted_by_all, tried
from batteries.splits._assignment import Folds


class Step(NamedTuple):
    """The weights and the score at one step of a search.

    >>> Step(np.array([0.25, 0.75]), score=0.9).score
    0.9

    Attributes:
        weights: (models,), in the order of the models; their sum is 1.
        score: The score of the blend with these weights, on the rows of the search.
    """

    weights: NDArray[np.float64]
    score: float


@dataclass(frozen=True, repr=False)
class FoundWeights(Trial):
    """The weights of a blend, and its scores on unseen folds.

    >>> oof = {"tree": [0.1, 0.9, 0.8, 0.2] * 9, "coin": [0.5] * 36}
    >>> found = find_weights(oof, [0, 1, 1, 0] * 9, "roc_auc")
    >>> found.weights, found.score, found.best_single
    ({'tree': 1.0, 'coin': 0.0}, 1.0, 'tree')

    Attributes:
        weights: The weight of each model by name; their sum is 1. Unnamed models are "model 0" and
            so on.
        score: The score on the rows that the weights were found on. It is too good.
        trace: All steps of the search.
        unseen_score: The mean score over folds, each with weights found on the other folds.
        single_score: The same for the model that was best on the other folds.
        mean_score: The same for the plain mean.
        best_single: The name of the model that is best on all rows.
        gain_over_single, gain_over_mean: How much better the blend is than the best single model,
            and than the plain mean, each with its standard error.
        rows: The number of rows with predictions of all models.
        left_out: The number of the other rows.
    """

    weights: dict[str, float]
    score: float
    trace: list[Step]

    _what = "blend"

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {weight:.3g}" for name, weight in self.weights.items())
        return f"<FoundWeights: {self.verdict}. Weights: {shown}>"

    def blend(self, predictions: Any, *more: Any) -> NDArray[Any]:
        """The weighted mean of other predictions of the same models.

        `predictions` and `more` are those of `mean`.

        Raises:
            TypeError: As for `mean`.
            ValueError: As for `mean`, or other models.
        """
        models = as_models(predictions, more)
        return weighted(models, as_weights(self.weights, models, negative=True))


@hints
def find_weights(
    oof: Any,
    target: ArrayLike,
    metric: str | Callable[[Any, Any], float],
    method: Literal["hill_climb", "simplex"] = "hill_climb",
    *,
    metric_minimization: bool | None = None,
    rounds: int = 50,
    negative: bool = False,
    folds: int | Folds | ArrayLike | None = 5,
    allow_missing: bool = False,
    seed: int = 0,
) -> FoundWeights:
    """Find the weights of a blend on out-of-fold predictions, and test them on unseen folds.

    >>> target = [0, 1, 0, 1] * 10
    >>> oof = {"good": [0.2, 0.7, 0.4, 0.9] * 10, "bad": [0.5, 0.4, 0.5, 0.6] * 10}
    >>> found = find_weights(oof, target, "neg_log_loss")
    >>> found.weights
    {'good': 1.0, 'bad': 0.0}
    >>> found.verdict[-69:]
    'beyond noise (+0, standard error 0): use the best single model (good)'

    The score on the rows that the weights were found on is too good. So, for each fold, weights
    are found on the other folds and scored on this one. The best single model is chosen in the
    same way. `verdict` says whether to use the blend.

    Args:
        oof: Out-of-fold predictions, as for `mean`. `OutOfFold` objects are arrays, too.
        target: (rows,).
        metric: One of these:

            - "auc", "log_loss", "accuracy", "rmse", or scikit-learn's functions and names of
              scorers for the same metrics, such as `roc_auc_score` and "roc_auc": these are fast;
            - "mae", another name of scikit-learn's scorers, a scorer, or any function of target and
              prediction.

            Names and scorers of class metrics, such as "accuracy", get classes. For predictions
            (rows, classes) that is the most probable class. For (rows,) it is the second class if
            the number is above 0.5, else the first. Other functions get the predictions themselves.
        method: "hill_climb" adds the model that helps most, `rounds` times, with replacement, and
            returns the best step (Caruana et al. 2004). "simplex" is scipy's SLSQP over weights
            of 0 or more whose sum is 1, for smooth metrics.
        metric_minimization: Whether lower is better. Required for a function, except for
            scikit-learn's functions of the fast metrics. Known for names and scorers.
        negative: Whether weights may be negative. A step of "hill_climb" may then also subtract a
            model.
        folds: The folds to test on. A number: so many folds, stratified by the target. Or the
            `Folds` of the models, of which the first repeat is used. Or an array (rows,) with the
            number or the name of each row's fold. Rows whose fold is -1, NaN or None are in no
            test. With folds in the order of time, weights are found on earlier folds. None: no
            test, and the scores of unseen folds are NaN.
        allow_missing: Whether models may have NaN, as for rows that no fold validates. Rows
            without predictions of all models are left out, and counted.
        seed: The seed of the folds, if `folds` is a number.

    Raises:
        TypeError: As for `mean`; a function of your own without `metric_minimization`, or one that
            does not return one number; or `rounds`, `folds` or `seed` of another type.
        ValueError: Predictions or targets with NaN, other shapes, predictions that the metric
            cannot score, an unknown metric or method, a wrong `metric_minimization`, `rounds` below
            1, a wrong seed, fewer than two folds, folds of another number of rows, folds that are
            fractions, or a fold on which the metric is not a number. Also: predictions, target or
            folds that have the same rows in different orders, by their indexes of pandas.
        ModuleNotFoundError: scipy is not installed, for "simplex"; or scikit-learn, for its
            metrics.
    """
    models, truth, rows = predicted_by_all(
        everything := as_models(oof), target, allow_missing, folds
    )
    problem = as_problem(models.arrays, truth, metric, metric_minimization, names=models.names)
    searches: dict[str, Callable[[Problem], list[Step]]] = {
        "hill_climb": lambda part: _climb(part, rounds, negative),
        "simplex": lambda part: _on_simplex(part, negative),
    }
    if method not in list(searches):  # a list has no hash
        raise ValueError(f"method is {method!r}; expected 'hill_climb' or 'simplex'")
    rounds = as_whole(rounds, "rounds", 1)
    search = searches[method]
    trace = search(problem)
    best = _best(trace)
    if not math.isfinite(best.score):
        raise ValueError(
            "the metric is not a finite number for any blend: check it on the predictions of one "
            "model"
        )

    def unseen(seen: Rows, others: Rows) -> float:
        return problem.part(others).value(_best(search(problem.part(seen))).weights)

    number = everything.shape[0]
    pairs = [] if folds is None else as_pairs(folds, truth, seed, rows, number)
    return FoundWeights(
        **tried(problem, pairs, unseen, rows=len(rows), left_out=number - len(rows)),
        best_single=models.keys[best_single(problem)],
        weights=dict(zip(models.keys, best.weights.tolist(), strict=True)),
        score=problem.sign * best.score,
        trace=[Step(step.weights, problem.sign * step.score) for step in trace],
    )


def _best(trace: list[Step]) -> Step:
    return max(trace, key=lambda step: step.score)  # the first of several


# ---------------------------------------------------------------- searches


def _climb(problem: Problem, rounds: int, negative: bool) -> list[Step]:
    """Greedy selection with replacement. Higher scores are better."""
    total, counts, trace = np.zeros(problem.columns[0].shape), np.zeros(len(problem.columns)), []
    threads = min(torch.get_num_threads(), len(counts)) if problem.known else 1
    with ThreadPoolExecutor(threads) as pool:
        try_all = pool.map if threads > 1 else map
        for _ in range(rounds):
            size = int(counts.sum())
            steps = [1, -1] if negative and size > 1 else [1]  # the sum of counts stays above 0
            scores = [
                list(try_all(functools.partial(_with, problem, total, size, step), problem.columns))
                for step in steps
            ]
            way, best = np.unravel_index(np.argmax(scores), (len(steps), len(counts)))
            total += steps[way] * problem.columns[best]
            counts[best] += steps[way]
            trace.append(Step(counts / counts.sum(), scores[way][best]))
    return trace


def _with(
    problem: Problem, total: NDArray[Any], size: int, step: int, column: NDArray[Any]
) -> float:
    blend = total + column if step > 0 else total - column
    blend /= size + step
    return problem.of(blend)


def _on_simplex(problem: Problem, negative: bool) -> list[Step]:
    optimize = import_optional("scipy.optimize", for_="find_weights(method='simplex')")
    number = len(problem.columns)
    single = np.eye(number)[best_single(problem)]
    trace = [Step(start, problem.value(start)) for start in (single, np.full(number, 1 / number))]

    def note(weights: NDArray[Any]) -> None:
        own = weights if negative else np.clip(weights, 0, None)
        own = own / own.sum()
        trace.append(Step(own, problem.value(own)))

    unit = max(abs(step.score) for step in trace) or 1.0  # scipy's tolerance is absolute
    for start in (trace[1].weights, 0.5 * (trace[0].weights + trace[1].weights)):
        found = optimize.minimize(
            lambda weights: -problem.value(weights) / unit,
            start,
            method="SLSQP",
            bounds=[(None, None) if negative else (0, 1)] * number,
            constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1},
            callback=note,
            options={"ftol": 1e-10, "eps": 1e-6 if problem.known else 1e-4},
        )
        note(found.x)
    return trace
