"""Weights of a blend, found on out-of-fold predictions, and whether they are worth it."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from batteries._optional import import_optional
from batteries.blend._metrics import Metric, Problem, as_problem
from batteries.blend._models import as_models
from batteries.splits._assignment import Folds

Weights = NDArray[np.float64]


class Step(NamedTuple):
    """The weights and the score at one step of a search."""

    weights: Weights
    score: float


class Gain(NamedTuple):
    """How much better than something else a blend is, on rows that its weights have not seen."""

    mean: float  # over the folds; positive is better
    error: float  # the standard error of that mean

    @property
    def beyond_noise(self) -> bool:
        """Whether it is more than two standard errors."""
        return self.mean > 2 * self.error


class FoundWeights(NamedTuple):
    """The weights of a blend, and what they are worth.

    >>> found = find_weights([[0.1, 0.9, 0.8, 0.2] * 9, [0.5] * 36], [0, 1, 1, 0] * 9, "auc")
    >>> found.weights, found.score, found.best_single
    (array([1., 0.]), 1.0, 0)
    """

    weights: Weights  # (models,), together 1
    score: float  # of the rows they were found on: too good
    unseen_score: float  # the mean over folds, each blended with weights found on the others
    trace: list[Step]
    best_single: int
    single_score: float  # the same of the model that was the best on the others
    mean_score: float  # and of the plain mean
    gain_over_single: Gain
    gain_over_mean: Gain

    @property
    def verdict(self) -> str:
        """In words: whether to use the weights."""
        if math.isnan(self.unseen_score):
            return "not tried on unseen folds: the score is that of the rows it was found on"
        told = (
            f"unseen folds: blend {self.unseen_score:.6g}, best single model "
            f"{self.single_score:.6g}, plain mean {self.mean_score:.6g}; "
        )
        for gain, other in (
            (self.gain_over_single, f"the best single model (model {self.best_single})"),
            (self.gain_over_mean, "the plain mean"),
        ):
            if not gain.beyond_noise:
                return (
                    f"{told}the blend does not beat {other} beyond noise "
                    f"({gain.mean:+.2g}, standard error {gain.error:.2g}): use that"
                )
        return f"{told}the blend beats both beyond noise"


def find_weights(
    oof: Any,
    target: ArrayLike,
    metric: Metric,
    method: Literal["hill_climb", "simplex"] = "hill_climb",
    *,
    metric_minimization: bool | None = None,
    rounds: int = 50,
    folds: int | Folds | ArrayLike | None = 5,
    seed: int = 0,
) -> FoundWeights:
    """Find the weights of a blend on out-of-fold predictions, and try them on unseen folds.

    >>> target = [0, 1, 0, 1] * 10
    >>> good, bad = [0.2, 0.7, 0.4, 0.9] * 10, [0.5, 0.4, 0.5, 0.6] * 10
    >>> found = find_weights([good, bad], target, "log_loss")
    >>> found.weights
    array([1., 0.])
    >>> found.verdict[-91:]
    'does not beat the best single model (model 0) beyond noise (+0, standard error 0): use that'

    The score of the rows that weights were found on is too good. So they are found again on all
    folds but one, and tried on that one, for each fold; the best single model is chosen in the
    same way. `verdict` says what came of it.

    Args:
        oof: (models, rows, ...), out-of-fold predictions, or one array for each model.
        target: (rows,).
        metric: Of target and prediction, as scikit-learn's; "auc", "log_loss", "accuracy" and
            "rmse" are fast, and so are scikit-learn's own functions of these. Accuracy is of the
            largest of (rows, classes), or of (rows,) over 0.5.
        method: "hill_climb" begins with nothing and adds the model that helps most, `rounds`
            times, with replacement (Caruana et al. 2004); the best step counts. "simplex" is
            scipy's SLSQP over positive weights that add up to 1: for smooth metrics.
        metric_minimization: Whether lower is better. Of the four it is known; for another
            function it has to be said.
        folds: Their number, the `Folds` of the models or the fold of each row, to try the weights
            on; None for no such trial. A number makes folds alike in the target.
        seed: For folds that are made here.

    Raises:
        TypeError: A function of your own without `metric_minimization`.
        ValueError: Predictions with NaN, other shapes, an unknown metric or method; a metric that
            is not a number, on which fold.
        ModuleNotFoundError: scipy is not installed, for "simplex".
    """
    models = as_models(oof)
    models.refuse()
    problem = as_problem(models.arrays, target, metric, metric_minimization)
    searches: dict[str, Callable[[Problem], list[Step]]] = {
        "hill_climb": lambda part: _climb(part, rounds),
        "simplex": _on_simplex,
    }
    if method not in searches:
        raise ValueError(f"method is {method!r}; expected 'hill_climb' or 'simplex'")
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; expected 1 or more")
    search = searches[method]
    trace = search(problem)
    best, single = _best(trace), _best_single(problem)
    if not math.isfinite(best.score):
        raise ValueError("the metric is not a finite number for any of the blends")
    tried = [] if folds is None else _tried(problem, search, as_folds(folds, target, seed))
    blend, alone, mean = (np.array([scores[i] for scores in tried]) for i in range(3))
    return FoundWeights(
        weights=best.weights,
        score=problem.sign * best.score,
        unseen_score=_mean(problem.sign * blend),
        trace=[Step(step.weights, problem.sign * step.score) for step in trace],
        best_single=single,
        single_score=_mean(problem.sign * alone),
        mean_score=_mean(problem.sign * mean),
        gain_over_single=_gain(blend - alone),
        gain_over_mean=_gain(blend - mean),
    )


def _mean(scores: NDArray[Any]) -> float:
    return float(scores.mean()) if len(scores) else math.nan


def _gain(differences: NDArray[Any]) -> Gain:
    if len(differences) < 2:
        return Gain(math.nan, math.nan)
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    return Gain(float(differences.mean()), float(error))


def _best(trace: list[Step]) -> Step:
    return max(trace, key=lambda step: step.score)  # the first of several


def _best_single(problem: Problem) -> int:
    return int(np.argmax([problem.of(column) for column in problem.columns]))


def _tried(
    problem: Problem, search: Callable[[Problem], list[Step]], folds: NDArray[Any]
) -> list[tuple[float, float, float]]:
    """The scores on each fold: of weights and model found on the others, and of the mean."""
    scores = []
    number = len(problem.columns)
    for fold in np.unique(folds[folds >= 0]):
        seen, unseen = (
            problem.part(np.flatnonzero(rows)) for rows in (folds != fold, folds == fold)
        )
        weights = _best(search(seen)).weights
        alone = unseen.of(unseen.columns[_best_single(seen)])
        scores.append((unseen.value(weights), alone, unseen.value(np.full(number, 1 / number))))
        if not all(map(math.isfinite, scores[-1])):
            raise ValueError(
                f"the metric is not a finite number on the {len(unseen.target)} rows of fold "
                f"{fold}: take folds that have all classes, or folds=None"
            )
    return scores


def as_folds(folds: int | Folds | ArrayLike, target: ArrayLike, seed: int) -> NDArray[Any]:
    """The fold of each row.

    Raises:
        ValueError: Not one for each row, or fewer than two folds.
    """
    truth = np.asarray(target)
    if isinstance(folds, numbers.Integral):
        # Rows of neighbouring targets go to different folds, at random among equal ones.
        shuffled = np.random.default_rng(seed).permutation(len(truth))
        order = shuffled[np.argsort(truth[shuffled], kind="stable")]
        own = np.empty(len(truth), dtype=np.int64)
        own[order] = np.arange(len(truth)) % max(int(folds), 1)
    else:
        own = np.asarray(folds.assignment if isinstance(folds, Folds) else folds)
        if own.dtype.kind not in "iu":  # by names
            own = np.unique(own, return_inverse=True)[1]
    if own.shape != (len(truth),) or len(np.unique(own[own >= 0])) < 2:
        raise ValueError(
            f"folds has shape {own.shape} and {len(np.unique(own[own >= 0]))} folds for "
            f"{len(truth)} rows; expected two or more"
        )
    return own


# ---------------------------------------------------------------- searches


def _climb(problem: Problem, rounds: int) -> list[Step]:
    """Greedy selection with replacement; the scores are the higher the better."""
    total, counts, trace = np.zeros(problem.columns[0].shape), np.zeros(len(problem.columns)), []
    threads = min(torch.get_num_threads(), len(counts)) if problem.known else 1
    with ThreadPoolExecutor(threads) as pool:
        try_all = pool.map if threads > 1 else map
        for size in range(1, rounds + 1):
            with_one_more = functools.partial(_with, problem, total, size)
            scores = list(try_all(with_one_more, problem.columns))
            best = int(np.argmax(scores))
            total += problem.columns[best]
            counts[best] += 1
            trace.append(Step(counts / size, scores[best]))
    return trace


def _with(problem: Problem, total: NDArray[Any], size: int, column: NDArray[Any]) -> float:
    blend = total + column
    blend /= size
    return problem.of(blend)


def _on_simplex(problem: Problem) -> list[Step]:
    optimize = import_optional(
        "scipy.optimize", needs="scipy", for_="find_weights(method='simplex')"
    )
    number = len(problem.columns)
    single = np.eye(number)[_best_single(problem)]
    trace = [Step(start, problem.value(start)) for start in (single, np.full(number, 1 / number))]

    def note(weights: NDArray[Any]) -> None:
        own = np.clip(weights, 0, None)
        own /= own.sum()
        trace.append(Step(own, problem.value(own)))

    unit = max(abs(step.score) for step in trace) or 1.0  # scipy's tolerance is absolute
    for start in (trace[1].weights, 0.5 * (trace[0].weights + trace[1].weights)):
        found = optimize.minimize(
            lambda weights: -problem.value(weights) / unit,
            start,
            method="SLSQP",
            bounds=[(0, 1)] * number,
            constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1},
            callback=note,
            options={"ftol": 1e-10, "eps": 1e-6 if problem.known else 1e-4},
        )
        note(found.x)
    return trace
