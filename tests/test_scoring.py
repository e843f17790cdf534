"""Metrics by name give scikit-learn's scores, whatever shape and classes the rows have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from batteries._scoring import as_scoring
from batteries.blend import find_threshold, find_weights, mean
from batteries.scoreboard import paired_bootstrap
from batteries.splits import Folds, OutOfFold

chance = np.random.default_rng(0)
TARGET = chance.integers(0, 2, 60)
LABELS = chance.integers(0, 2, (60, 3))
FOLDS = Folds(np.arange(60) % 3, "kfold")


def out_of_fold(predictions: Any) -> OutOfFold:
    oof = OutOfFold(FOLDS)
    for fold, (_, valid) in enumerate(FOLDS):
        oof.add(fold, predictions[valid])
    return oof


def test_accuracy_of_a_column() -> None:
    """Labels of shape (rows, 1) are compared row by row with targets of (rows,)."""
    guess = np.where(chance.random(60) < 0.7, TARGET, 1 - TARGET)
    expected = metrics.accuracy_score(TARGET, guess)
    assert out_of_fold(guess[:, None]).score(TARGET, "accuracy").value == expected
    assert paired_bootstrap(TARGET, guess[:, None], TARGET, "accuracy").scores == (expected, 1.0)


@pytest.mark.parametrize("metric", ["auc", "roc_auc", "average_precision"])
def test_probabilities_of_two_classes(metric: str) -> None:
    """Of probabilities (rows, 2), a metric of scores gets those of the second class."""
    own, other = chance.random((2, 60))
    wide = [np.stack([1 - each, each], axis=1) for each in (own, other)]
    score = as_scoring(metric).of(TARGET)
    assert [score(TARGET, each) for each in wide] == [score(TARGET, own), score(TARGET, other)]
    assert out_of_fold(wide[0]).score(TARGET, metric) == out_of_fold(own).score(TARGET, metric)


def test_accuracy_of_several_labels() -> None:
    """A row of several labels counts as right if all its labels are, as in scikit-learn."""
    guess = np.where(chance.random((60, 3)) < 0.8, LABELS, 1 - LABELS)
    expected = metrics.accuracy_score(LABELS, guess)
    assert out_of_fold(guess).score(LABELS, "accuracy").value == expected
    with pytest.raises(ValueError, match="mix of multilabel-indicator and continuous"):
        out_of_fold(guess / 2).score(LABELS, "accuracy")


def test_accuracy_of_no_probabilities() -> None:
    """Numbers that are neither classes nor probabilities have no accuracy."""
    with pytest.raises(ValueError, match="mix of binary and continuous"):
        out_of_fold(TARGET * 3.5 - 1).score(TARGET, "accuracy")
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match="contains NaN"):
        out_of_fold(TARGET).score(np.where(np.arange(60) == 7, np.nan, TARGET), "accuracy")
    classes = TARGET + 1  # numbers from 0 to 1 may be classes, too
    assert out_of_fold(classes.astype(float)).score(classes, "f1").folds == [1.0] * 3


@pytest.mark.parametrize("metric", ["accuracy", "f1", "balanced_accuracy"])
def test_probabilities_above_one(metric: str) -> None:
    """Rounding errors of a blend of probabilities do not change its classes."""
    sure = [TARGET.astype(float)] * 9
    assert max(mean(sure)) > 1
    assert find_weights(sure, TARGET, metric, rounds=9).score == 1
    assert out_of_fold(TARGET * (1 + 1e-7)).score(TARGET, metric).folds == [1.0] * 3


@pytest.mark.parametrize("metric", ["neg_log_loss", "log_loss", "top_k_accuracy"])
def test_folds_without_a_class(metric: str) -> None:
    """A class that a fold lacks is known from all rows."""
    target = np.where(np.arange(60) % 30 == 0, 2, TARGET)  # fold 0 alone has class 2
    told = np.eye(3)[target] * 0.5 + chance.dirichlet(np.ones(3), 60) * 0.5
    score = out_of_fold(told).score(target, metric)
    function = metrics.top_k_accuracy_score if "top" in metric else metrics.log_loss
    sign = -1 if metric.startswith("neg") else 1
    each = [sign * function(target[v], told[v], labels=[0, 1, 2]) for _, v in FOLDS]
    assert score.folds == pytest.approx(each)


def test_cut_offs_between_whole_numbers() -> None:
    """Scores may be whole numbers of any type."""
    counts = np.array([0, 1, 3, 4] * 15)
    for dtype in ("int64", "uint8", "bool", "float16"):
        found = find_threshold(counts.astype(dtype), counts > 1, "f1")
        assert found == find_threshold(counts.astype(dtype).astype(float), counts > 1, "f1")


def test_targets_of_several_columns() -> None:
    """Weights of a metric of several labels are tested on folds of the rows."""
    good, bad = LABELS * 0.5 + 0.25, chance.random((60, 3))

    def area(y: Any, p: Any) -> float:
        return float(metrics.roc_auc_score(y, p, average="macro"))

    found = find_weights({"good": good, "bad": bad}, LABELS, area, metric_minimization=False)
    assert (found.weights["good"], found.unseen_score) == (1, 1)


@pytest.mark.parametrize("metric", ["neg_log_loss", "rmse", "roc_auc", "neg_mean_squared_error"])
def test_half_precision(metric: str) -> None:
    """Predictions of 16 bits have the score of the same numbers of 64 bits."""
    half = chance.random(60).astype(np.float16)
    half[TARGET.argmax()] = 0
    scores: list[Callable[[Any], float]] = [
        lambda own: out_of_fold(own).score(TARGET, metric).value,
        lambda own: find_weights([own], TARGET, metric, folds=None).score,
        lambda own: find_weights([own], TARGET, metric, folds=FOLDS).single_score,
    ]
    for score in scores:
        assert score(half) == score(half.astype(float))
    large = (1000 * half).astype(np.float16)  # whose squares no 16 bits hold
    assert np.isfinite(out_of_fold(large).score(large + 500, "rmse").value)
