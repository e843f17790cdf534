"""Find the cut-offs that turn scores into classes, and test them on unseen folds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from batteries._arrays import as_rows, index_of, refuse_other_order
from batteries._numbers import as_whole
from batteries._scoring import as_scoring
from batteries._spellings import hints
from batteries.blend._models import as_models
from batteries.blend._verdicts import Pair, as_pairs, predicted_by_all
from batteries.splits._assignment import Folds

Cuts = NDArray[np.float64]
_Score = Callable[[NDArray[Any], Cuts], float]  # from rows and cut-offs; higher is better


class Threshold(NamedTuple):
    """A threshold (cut-off), and its score on unseen folds.

    >>> scores, target = [0.1, 0.4, 0.6, 0.9] * 5, [0, 0, 1, 1] * 5
    >>> find_threshold(scores, target, "accuracy")
    Threshold(value=0.5, score=1.0, unseen_score=1.0, spread=0.0, folds=[0.5, 0.5, 0.5, 0.5, 0.5])

    Attributes:
        value: The cut-off that was found on all rows.
        score: The score on the rows that the cut-off was found on. It is too good.
        unseen_score: The mean score over folds, each with the cut-off found on the other folds.
        spread: The standard deviation of the folds' cut-offs.
        folds: For each fold, the cut-off found on the other folds.
    """

    value: float
    score: float
    unseen_score: float
    spread: float
    folds: list[float]


class Thresholds(NamedTuple):
    """Cut-offs between ordered classes, and their score on unseen folds.

    >>> found = find_thresholds([0.1, 0.9, 1.2, 2.4] * 5, [0, 1, 1, 2] * 5, "accuracy")
    >>> found.apply([0.3, 1.0, 9.0]).tolist()
    [0, 1, 2]

    Attributes:
        values: The cut-offs that were found on all rows, in rising order.
        score: The score on the rows that the cut-offs were found on. It is too good.
        unseen_score: The mean score over folds, each with cut-offs found on the other folds.
        rounded_score: The mean score over folds without cut-offs: each score is rounded to the
            nearest class.
        spread: For each cut-off, its standard deviation over the folds.
        folds: For each fold, the cut-offs found on the other folds.
        classes: The classes, in rising order: one more than cut-offs.
    """

    values: list[float]
    score: float
    unseen_score: float
    rounded_score: float
    spread: list[float]
    folds: list[list[float]]
    classes: NDArray[Any]

    def apply(self, scores: ArrayLike) -> NDArray[Any]:
        """The classes of scores: (rows,).

        Raises:
            TypeError: Scores that are not real numbers.
            ValueError: A NaN or an infinity, with its row.
        """
        models = as_models({"scores": scores})
        models.refuse()
        return _cut(models.arrays[0], np.array(self.values), self.classes)


@hints
def find_threshold(
    oof: Any,
    target: ArrayLike,
    metric: str | Callable[[Any, Any], float],
    *,
    metric_minimization: bool | None = None,
    folds: int | Folds | ArrayLike = 5,
    allow_missing: bool = False,
    candidates: int = 200,
    seed: int = 0,
) -> Threshold:
    """Find the cut-off with the best score, and test it on folds that it was not found on.

    >>> scores, target = [0.1, 0.3, 0.35, 0.8] * 5, [0, 0, 1, 1] * 5
    >>> found = find_threshold(scores, target, "f1")
    >>> round(found.value, 3), found.unseen_score
    (0.325, 1.0)

    If `spread` is large, the cut-off depends much on the rows. If several cut-offs have the best
    score, the middle one is taken.

    Args:
        oof: (rows,) scores.
        target: (rows,), 0 or 1.
        metric: As for `find_weights`. It gets the target and labels: 1 if the score is at least
            the cut-off, else 0.
        metric_minimization: As for `find_weights`.
        folds: As for `find_weights`, but not None.
        allow_missing: Whether scores may be NaN. These rows are left out.
        candidates: The largest number of cut-offs to try between the lowest and the highest score.
            They lie between neighbouring scores, or between quantiles of many scores. Two more are
            tried: with one, all rows are 1; with the other, all rows are 0.
        seed: The seed of the folds, if `folds` is a number.

    Raises:
        TypeError, ModuleNotFoundError: As for `find_weights`.
        ValueError: As for `find_weights`; scores that are not (rows,); a target other than 0 and 1;
            `candidates` below 1; or a metric that is NaN for every cut-off.
    """
    scores, truth, pairs = _given(oof, target, folds, allow_missing, seed)
    if len(others := np.setdiff1d(truth, [0, 1])):
        raise ValueError(
            f"the target has {', '.join(map(str, others[:3].tolist()))}; expected 0 and 1: pass "
            "target == positive_class"
        )
    truth = truth.astype(np.int64)  # scikit-learn takes no object array of 0 and 1
    scoring = as_scoring(metric, metric_minimization, "find_threshold")
    sign, function = -1 if scoring.minimized else 1, scoring.of(truth)

    def score(rows: NDArray[Any], cuts: Cuts) -> float:
        return sign * function(truth[rows], (scores[rows] >= cuts[0]).astype(np.int64))

    def best(rows: NDArray[Any]) -> Cuts:
        nothing = np.nextafter(scores[rows].astype(np.float64).max(initial=-np.inf), np.inf)
        return _best_of(
            score, rows, np.append(_between(scores[rows], candidates), nothing)[:, None]
        )

    values, worth, unseen, found = _tried(best, score, len(truth), pairs)
    spread = float(np.std(found, ddof=1))
    each = [float(cuts[0]) for cuts in found]
    return Threshold(float(values[0]), sign * worth, sign * unseen, spread, each)


@hints
def find_thresholds(
    oof: Any,
    target: ArrayLike,
    metric: str | Callable[[Any, Any], float],
    *,
    metric_minimization: bool | None = None,
    folds: int | Folds | ArrayLike = 5,
    allow_missing: bool = False,
    candidates: int = 50,
    seed: int = 0,
) -> Thresholds:
    """Find the cut-offs between ordered classes, and test them on folds they were not found on.

    >>> from sklearn.metrics import cohen_kappa_score, make_scorer
    >>> kappa = make_scorer(cohen_kappa_score, weights="quadratic")
    >>> scores, target = [0.2, 0.4, 1.1, 1.3, 1.2, 1.9] * 5, [0, 0, 0, 1, 1, 2] * 5
    >>> found = find_thresholds(scores, target, kappa)
    >>> [round(value, 2) for value in found.values], found.score
    ([1.15, 1.4], 1.0)

    The search begins with cut-offs that give each class as many rows as it has in the target. Then
    each cut-off in turn moves to the place with the best score, until none moves.

    Args:
        oof: (rows,) scores, higher for higher classes.
        target: (rows,) classes, which are numbers, such as 0 to 4. Each class needs a row.
            scikit-learn's metrics of classes take whole numbers only.
        metric: As for `find_weights`. It gets the target and classes.
        metric_minimization, folds, allow_missing, seed: As for `find_threshold`.
        candidates: The largest number of places for a cut-off. They lie between neighbouring
            scores, or between quantiles of many scores. A cut-off may also be at the lowest score.

    Raises:
        TypeError, ModuleNotFoundError: As for `find_weights`.
        ValueError: As for `find_threshold`, but the target may have any two or more numbers.
    """
    scores, truth, pairs = _given(oof, target, folds, allow_missing, seed)
    classes = np.unique(truth)
    if len(classes) < 2:
        raise ValueError(f"the target has {len(classes)} class; expected two or more")
    if classes.dtype.kind not in "iuf":
        raise ValueError(
            f"the target has {', '.join(map(repr, classes[:3].tolist()))}, whose order is not "
            "known; expected numbers, such as 0 for the lowest class"
        )
    scoring = as_scoring(metric, metric_minimization, "find_thresholds")
    sign, function = -1 if scoring.minimized else 1, scoring.of(truth)

    def score(rows: NDArray[Any], cuts: Cuts) -> float:
        return sign * function(truth[rows], _cut(scores[rows], cuts, classes))

    def best(rows: NDArray[Any]) -> Cuts:
        places = _between(scores[rows], candidates)
        below = [(truth[rows] < value).mean() for value in classes[1:]]
        cuts: Cuts = np.quantile(scores[rows], below)
        while True:
            before = cuts.copy()
            for at in range(len(cuts)):
                around = np.concatenate(([-np.inf], cuts, [np.inf]))[[at, at + 2]]
                inside = places[(places >= around[0]) & (places <= around[1])]
                tries = np.tile(cuts, (len(inside) + 1, 1))
                tries[1:, at] = inside
                moved = _best_of(score, rows, tries)
                if score(rows, moved) > score(rows, cuts):
                    cuts = moved
            if (cuts == before).all():
                return cuts

    values, worth, unseen, found = _tried(best, score, len(truth), pairs)
    spread = np.std(found, axis=0, ddof=1).tolist()
    middles = (classes[1:] + classes[:-1]) / 2
    rounded = float(np.mean([score(unseen, middles) for _, unseen in pairs]))
    each = [cuts.tolist() for cuts in found]
    return Thresholds(
        *(values.tolist(), sign * worth, sign * unseen, sign * rounded, spread, each, classes)
    )


def _given(
    oof: Any, target: ArrayLike, folds: Any, allow_missing: bool, seed: int
) -> tuple[NDArray[Any], NDArray[Any], list[Pair]]:
    models = as_models({"oof": oof})
    refuse_other_order("the target and the scores", models.index, index_of(target))
    refuse_other_order("the folds and the target", index_of(target), index_of(folds))
    truth = as_rows(target, "target")
    if models.shape != truth.shape or truth.ndim != 1:
        raise ValueError(
            f"there are scores of shape {models.shape} for targets of {truth.shape}; expected "
            "(rows,) for both"
        )
    number = len(truth)
    models, truth, rows = predicted_by_all(models, truth, allow_missing, folds)
    return models.arrays[0], truth, as_pairs(folds, truth, seed, rows, number)


def _tried(
    best: Callable[[NDArray[Any]], Cuts], score: _Score, number: int, pairs: list[Pair]
) -> tuple[Cuts, float, float, list[Cuts]]:
    """All rows' cut-offs and their score, the score on unseen folds, and each fold's cut-offs."""
    found = [best(seen) for seen, _ in pairs]
    unseen = [score(rows, cuts) for (_, rows), cuts in zip(pairs, found, strict=True)]
    if not np.isfinite(unseen).all():
        fold = int(np.argmin(np.isfinite(unseen)))
        raise ValueError(
            f"the metric is not a finite number on the {len(pairs[fold][1])} rows of fold {fold}: "
            "use folds that have all classes"
        )
    rows = np.arange(number)
    values = best(rows)
    return values, score(rows, values), float(np.mean(unseen)), found


def _best_of(score: _Score, rows: NDArray[Any], tries: NDArray[np.float64]) -> Cuts:
    values = np.array([score(rows, cuts) for cuts in tries])
    if np.isnan(values).all():
        raise ValueError("the metric is NaN for every cut-off: check the target and the metric")
    tied = tries[values == np.nanmax(values)]
    return np.asarray(tied[len(tied) // 2])


def _cut(scores: NDArray[Any], cuts: Cuts, classes: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(classes[np.searchsorted(cuts, scores, side="right")])


def _between(scores: NDArray[Any], candidates: int) -> NDArray[np.float64]:
    """The lowest score, and the middles between neighbouring scores, or quantiles of many."""
    candidates = as_whole(candidates, "candidates", 1)
    distinct = np.unique(scores.astype(np.float64))
    if len(distinct) > candidates + 1:
        distinct = np.unique(np.quantile(scores, np.linspace(0, 1, candidates + 1)))
    return np.concatenate((distinct[:1], (distinct[1:] + distinct[:-1]) / 2))
