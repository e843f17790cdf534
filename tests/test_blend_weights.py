"""Weights and cut-offs found on out-of-fold predictions, and tried where they were not found."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
from scipy.optimize import nnls
from sklearn import metrics
from sklearn.model_selection import KFold
from torch.nn.functional import softmax

from batteries.blend import Correlation, find_threshold, find_thresholds, find_weights
from batteries.blend._metrics import as_problem, auc
from batteries.blend._verdicts import Gain, as_folds
from batteries.splits import make_folds

rng = np.random.default_rng(0)
ROWS = 2000
UP: Any = {"metric_minimization": False}
TARGET = (rng.random(ROWS) < 0.3).astype(int)


def scores(noise: float, dtype: Any = np.float64) -> Any:
    raw = TARGET + rng.normal(0, noise, ROWS)
    return (1 / (1 + np.exp(2 - 4 * raw))).astype(dtype)


OOF = [scores(noise) for noise in (0.6, 0.7, 0.8, 1.5)]


@pytest.mark.parametrize(
    "prediction",
    [
        OOF[0],
        OOF[0].astype(np.float32),
        np.round(OOF[0], 1),
        -np.round(OOF[0], 1),
        rng.normal(size=ROWS),
        np.round(rng.normal(size=ROWS)) * 0.0,
        np.full(ROWS, 0.5),
        TARGET * 2.0,
        rng.integers(-3, 3, ROWS),
        np.exp(rng.normal(size=ROWS) * 200),
    ],
)
def test_auc_is_sklearn_s(prediction: Any) -> None:
    """The fast AUC is scikit-learn's, with ties, negative numbers and numbers of any size."""
    expected = metrics.roc_auc_score(TARGET, prediction)
    assert auc(TARGET.astype(np.int64), prediction) == pytest.approx(expected, abs=1e-13)


CLASSES = rng.integers(0, 4, ROWS)
LOGITS = torch.tensor(rng.normal(size=(3, ROWS, 4)) + 2 * np.eye(4)[CLASSES])
PROBABILITIES = softmax(LOGITS, 2).numpy()
KNOWN: list[tuple[Any, str, Any, Any]] = [
    (metrics.roc_auc_score, "auc", OOF, TARGET),
    (metrics.log_loss, "log_loss", OOF, TARGET),
    (metrics.log_loss, "log_loss", PROBABILITIES, CLASSES),
    (metrics.root_mean_squared_error, "rmse", OOF, TARGET + 0.5),
    (lambda y, p: metrics.accuracy_score(y, p > 0.5), "accuracy", OOF, TARGET),
    (lambda y, p: metrics.accuracy_score(y, p.argmax(1)), "accuracy", PROBABILITIES, CLASSES),
]


@pytest.mark.parametrize("index", range(len(KNOWN)))
def test_known_metrics_are_sklearn_s(index: int) -> None:
    """The fast scores of a blend are scikit-learn's, by name and by function."""
    function, name, oof, target = KNOWN[index]
    weights = rng.dirichlet(np.ones(len(oof)))
    expected = function(target, np.average(oof, 0, weights))
    for metric in (name, function):
        own = getattr(metric, "__name__", "") == "<lambda>"
        problem = as_problem(list(oof), target, metric, False if own else None)
        assert problem.value(weights) == pytest.approx(problem.sign * expected, abs=1e-12)


def climb_by_hand(oof: Any, target: Any, metric: Any, rounds: int, sign: int) -> Any:
    """The loop that people write around a metric."""
    total, counts, best = np.zeros_like(oof[0]), np.zeros(len(oof)), (-np.inf, np.zeros(len(oof)))
    for size in range(1, rounds + 1):
        tried = [sign * metric(target, (total + part) / size) for part in oof]
        chosen = int(np.argmax(tried))
        total, counts[chosen] = total + oof[chosen], counts[chosen] + 1
        if tried[chosen] > best[0]:
            best = tried[chosen], counts / size
    return best


@pytest.mark.parametrize("index", range(len(KNOWN)))
@pytest.mark.parametrize("threads", [1, 2])
def test_hill_climbing(index: int, threads: int) -> None:
    """The weights are those of the loop around scikit-learn's metric."""
    function, name, oof, target = KNOWN[index]
    sign = -1 if name in ("log_loss", "rmse") else 1
    score, weights = climb_by_hand(np.asarray(oof), target, function, 15, sign)
    torch.set_num_threads(threads)
    found = find_weights(oof, target, name, rounds=15, folds=None)
    torch.set_num_threads(1)
    np.testing.assert_array_equal(list(found.weights.values()), weights)
    assert found.score == pytest.approx(sign * score, abs=1e-12)
    assert len(found.trace) == 15
    assert np.isnan(found.unseen_score)


def test_any_metric() -> None:
    """A function of the user's own is maximised or minimised, as they say."""

    def distance(y: Any, p: Any) -> float:
        return float(np.abs(y - p).max())

    down = find_weights(OOF, TARGET, distance, rounds=5, metric_minimization=True)
    up = find_weights(
        OOF, TARGET, lambda y, p: -distance(y, p), rounds=5, metric_minimization=False
    )
    assert down.weights == up.weights
    assert down.score == -up.score
    assert down.unseen_score == -up.unseen_score
    assert down.gain_over_mean == up.gain_over_mean


def test_simplex_is_least_squares() -> None:
    """For squared errors the weights on the simplex are those of scipy's least squares."""
    target = 0.6 * OOF[0] + 0.4 * OOF[2] + rng.normal(0, 0.01, ROWS)
    found = find_weights(OOF, target, "rmse", "simplex", folds=None)
    # a heavy row makes the weights of nnls add up to 1
    rows, heavy = np.stack(OOF, 1), 1e6
    expected, _ = nnls(np.vstack([rows, heavy * np.ones(4)]), np.append(target, heavy))
    np.testing.assert_allclose(list(found.weights.values()), expected, atol=2e-3)
    assert sum(found.weights.values()) == pytest.approx(1)
    assert found.score <= min(metrics.root_mean_squared_error(target, part) for part in OOF)


@pytest.mark.parametrize("method", ["hill_climb", "simplex"])
def test_what_is_found_is_no_worse(method: Any) -> None:
    """On the rows it was found on, a blend is no worse than each model, and as the mean for one."""
    for _, name, oof, target in KNOWN:
        found = find_weights(oof, target, name, method, folds=None)
        problem = as_problem(list(oof), target, name, None)
        weights = np.array(list(found.weights.values()))
        assert (weights >= 0).all()
        singles = [problem.of(column) for column in problem.columns]
        assert problem.value(weights) >= max(singles)
        assert problem.value(weights) == pytest.approx(problem.sign * found.score)
        assert found.best_single == f"model {np.argmax(singles)}"


@pytest.mark.parametrize("scale", [1e-8, 1e6])
def test_the_scale_of_the_target(scale: float) -> None:
    """Weights do not depend on the unit in which the target is measured."""
    target = rng.normal(size=ROWS)
    oof = np.stack([target + rng.normal(0, noise, ROWS) for noise in (0.3, 0.4, 0.8)])
    for method in ("hill_climb", "simplex"):
        one, other = (
            find_weights(oof * unit, target * unit, "rmse", method, folds=None)
            for unit in (1, scale)
        )
        assert other.weights == pytest.approx(one.weights, abs=1e-3)
        assert other.score == pytest.approx(one.score * scale)


def test_several_targets() -> None:
    """scikit-learn's own average over the columns of a target counts."""
    target = rng.normal(size=(ROWS, 2)) * [1, 10]
    oof = [target + rng.normal(0, noise, (ROWS, 2)) for noise in (0.3, 0.5)]
    error = metrics.root_mean_squared_error
    found = find_weights(oof, target, error, metric_minimization=True, folds=np.arange(ROWS) % 3)
    assert found.score == pytest.approx(
        error(target, np.average(oof, 0, list(found.weights.values())))
    )


def test_forms_of_folds() -> None:
    """Folds have numbers or names, and rows without one are never unseen; all give the same."""
    numbers = np.arange(ROWS) % 4
    names = np.array(["a", "b", "c", "d"])[numbers]
    expected = find_weights(OOF, TARGET, "auc", folds=numbers, rounds=5)
    assert find_weights(OOF, TARGET, "auc", folds=names, rounds=5).verdict == expected.verdict
    spared = find_weights(OOF, TARGET, "auc", folds=np.where(numbers == 3, -1, numbers), rounds=5)
    for none in (-1.0, np.nan):  # as a frame has whole numbers of which some are missing
        column = np.where(numbers == 3, none, numbers)
        found = find_weights(OOF, TARGET, "auc", folds=column, rounds=5)
        assert found.verdict == spared.verdict
    scores = [
        metrics.roc_auc_score(TARGET[numbers == k], np.mean(OOF, 0)[numbers == k]) for k in range(3)
    ]
    assert spared.mean_score == pytest.approx(np.mean(scores))
    by_number = [find_weights(OOF, TARGET, "auc", folds=n, rounds=5) for n in (5, np.int64(5))]
    assert by_number[0].verdict == by_number[1].verdict
    own = as_folds(5, TARGET, seed=0)
    shares = [TARGET[own == fold].sum() for fold in range(5)]
    assert max(shares) - min(shares) <= 1


def test_two_standard_errors() -> None:
    """A gain is beyond noise when it is more than two standard errors."""
    assert Gain(2.1, 1.0).beyond_noise
    assert not Gain(1.9, 1.0).beyond_noise


def test_luck_is_called_luck() -> None:
    """Of fifty models of noise the best and their blend look good, and are not on unseen folds."""
    noise = rng.random((50, 300))
    target = rng.integers(0, 2, 300)
    found = find_weights(noise, target, "auc", rounds=20)
    assert found.score > 0.6
    assert found.unseen_score < 0.58
    assert not (found.gain_over_single.beyond_noise and found.gain_over_mean.beyond_noise)
    assert "does not beat" in found.verdict


def test_what_is_better_than_the_blend() -> None:
    """Instead of a blend that is not better, the better of the best model and the mean is named."""
    found = find_weights(OOF, TARGET, "auc", rounds=5)
    sure, unsure = Gain(0.002, 0.0005), Gain(0.01, 0.007)
    for single, mean, other, better in (
        (sure, unsure, "the plain mean beyond", f"the best single model ({found.best_single})"),
        (unsure, sure, f"the best single model ({found.best_single}) beyond", "the plain mean"),
    ):
        verdict = replace(found, gain_over_single=single, gain_over_mean=mean).verdict
        assert f"does not beat {other}" in verdict
        assert verdict.endswith(f"use {better}")


def test_a_blend_that_is_better() -> None:
    """Weights that beat every model of independent errors, and their mean with noise, say so."""
    oof = [*(scores(1.0) for _ in range(4)), rng.random(ROWS), rng.random(ROWS)]
    found = find_weights(oof, TARGET, "log_loss", folds=make_folds(TARGET, 5, "stratified"))
    assert found.gain_over_single.beyond_noise
    assert found.gain_over_mean.beyond_noise
    assert found.verdict.endswith("the blend beats both beyond noise")
    assert found.unseen_score == pytest.approx(found.score, rel=0.1)


def test_unseen_is_unseen() -> None:
    """A model that knows the rows of one fold alone does not raise the score of that fold."""
    folds = np.arange(ROWS) % 4
    honest = scores(0.8)
    leaked = np.where(folds == 0, TARGET, rng.random(ROWS))
    found = find_weights([honest, leaked], TARGET, "auc", folds=folds)
    alone = find_weights([honest, rng.random(ROWS)], TARGET, "auc", folds=folds)
    assert found.score > alone.score
    assert found.unseen_score < found.score
    expected = [metrics.roc_auc_score(TARGET[folds == k], honest[folds == k]) for k in range(4)]
    assert alone.single_score == pytest.approx(np.mean(expected))


def test_input_of_weights() -> None:
    """What does not fit is named."""
    with pytest.raises(ValueError, match="auc is better when it is higher; leave metric_minim"):
        find_weights(OOF, TARGET, "auc", metric_minimization=True)
    with pytest.raises(
        ValueError, match="metric is 'f2'; expected a function, one of auc, log_loss"
    ):
        find_weights(OOF, TARGET, "f2")
    with pytest.raises(ValueError, match="method is 'genetic'"):
        find_weights(OOF, TARGET, "auc", "genetic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there are 10 targets for 2000 rows"):
        find_weights(OOF, TARGET[:10], "auc")
    with pytest.raises(ValueError, match="model 1 has nan in row 3"):
        find_weights([OOF[0], np.where(np.arange(ROWS) == 3, np.nan, 0.5)], TARGET, "auc")
    with pytest.raises(ValueError, match="auc needs two classes"):
        find_weights(PROBABILITIES, CLASSES, "auc")
    with pytest.raises(ValueError, match="probabilities of model 0 do not add up to 1"):
        find_weights(PROBABILITIES / 2, CLASSES, "log_loss")
    with pytest.raises(ValueError, match="model 0 has numbers outside of 0 to 1"):
        find_weights([OOF[0] * 5, OOF[1]], TARGET, "log_loss")
    for metric in ("log_loss", "accuracy"):
        with pytest.raises(ValueError, match=f"{metric} has 1 classes and predictions of shape"):
            find_weights(OOF, np.zeros(ROWS), metric)
    with pytest.raises(ValueError, match=r"rmse needs \(rows,\) predictions and targets"):
        find_weights([part[:, None] for part in OOF], TARGET, "rmse")
    with pytest.raises(ValueError, match="the target of row 7 is not a finite number"):
        find_weights(OOF, np.where(np.arange(ROWS) == 7, np.nan, TARGET), "rmse")
    with pytest.raises(ValueError, match="the metric is not a finite number for any"):
        find_weights(OOF, TARGET, lambda *_: np.nan, metric_minimization=False)
    first = np.arange(ROWS) == 0  # the one row of its class
    with pytest.raises(ValueError, match="not a finite number on the 1000 rows of fold 1"):
        find_weights(OOF, first, "auc", folds=np.arange(ROWS) % 2)
    with pytest.raises(ValueError, match="expected two or more"):
        find_weights(OOF, TARGET, "auc", folds=1)
    with pytest.raises(TypeError, match="a whole number, the Folds, or the fold of each row"):
        find_weights(OOF, TARGET, "auc", folds=KFold(3))
    with pytest.raises(ValueError, match="rounds is 0"):
        find_weights(OOF, TARGET, "auc", rounds=0)


# ---------------------------------------------------------------- cut-offs


def test_threshold() -> None:
    """The cut-off is the best of all, and each fold's is the best of the other folds."""
    folds, oof = np.arange(ROWS) % 4, np.round(OOF[0], 1)
    found = find_threshold(oof, TARGET, metrics.f1_score, metric_minimization=False, folds=folds)
    every = np.unique(oof)
    assert found.score == max(metrics.f1_score(TARGET, oof >= cut) for cut in every)
    for fold, cut in enumerate(found.folds):
        others = folds != fold
        best = max(metrics.f1_score(TARGET[others], oof[others] >= other) for other in every)
        assert metrics.f1_score(TARGET[others], oof[others] >= cut) == best
    unseen = [
        metrics.f1_score(TARGET[folds == k], oof[folds == k] >= found.folds[k]) for k in range(4)
    ]
    assert found.unseen_score == pytest.approx(np.mean(unseen))
    assert found.spread == pytest.approx(np.std(found.folds, ddof=1))


def test_threshold_of_objects() -> None:
    """A target of 0 and 1 may be of any dtype, as of a column that held other things before."""
    scores, target = [0.1, 0.4, 0.6, 0.9] * 5, np.array([0, 0, 1, 1] * 5)
    for other in (target.astype(object), target.astype(bool), target * 1.0):
        assert find_threshold(scores, other, "f1") == find_threshold(scores, target, "f1")


def test_threshold_of_many_scores() -> None:
    """Of many scores the cut-offs lie between quantiles, and a metric may be minimised."""
    oof, target = OOF[0][:400], TARGET[:400]
    loss = metrics.zero_one_loss
    found = find_threshold(oof, target, loss, metric_minimization=True, candidates=50)
    best = min(loss(target, oof >= cut) for cut in oof)
    assert best <= found.score <= best + 0.02
    with pytest.raises(ValueError, match=r"scores of shape \(4, 2000\) for targets of \(2000,\)"):
        find_threshold(np.stack(OOF), TARGET, metrics.f1_score, **UP)
    with pytest.raises(ValueError, match="has nan in row 0"):
        find_threshold([np.nan, 1.0], [0, 1], metrics.f1_score, **UP)
    with pytest.raises(ValueError, match="the metric is NaN for every cut-off"):
        find_threshold([0.1, 0.9] * 5, [0, 1] * 5, lambda *_: np.nan, **UP)


def test_scores_to_cut() -> None:
    """A score that is NaN has no class, and scores may be tensors."""
    found = find_thresholds([0.1, 0.9, 1.2, 2.4] * 5, [0, 1, 1, 2] * 5, "accuracy")
    assert found.apply(torch.tensor([0.25, 9.0], requires_grad=True)).tolist() == [0, 2]
    with pytest.raises(ValueError, match="model 'scores' has nan in row 1"):
        found.apply([0.1, np.nan])


def test_threshold_below_all() -> None:
    """Where it is best to call all of them positive, the cut-off is the lowest score."""
    found = find_threshold([0.1, 0.1, 0.2, 0.9] * 5, [1, 1, 1, 0] * 5, metrics.accuracy_score)
    assert (found.value, found.score) == (0.1, 0.75)


def test_thresholds_that_are_as_good() -> None:
    """Of cut-offs with the same score it is the middle one."""
    found = find_threshold(np.arange(10) / 10, [0] * 3 + [1] * 7, lambda *_: 1.0, folds=2, **UP)
    assert found.value == 0.45


# ---------------------------------------------------------------- what is optional


def test_plot_of_correlations() -> None:
    """The table becomes a picture."""
    pytest.importorskip("matplotlib")
    Correlation(["a", "b"], np.array([[1.0, 0.97], [0.97, 1.0]])).plot("correlation.png")
    assert Path("correlation.png").read_bytes().startswith(b"\x89PNG")


CALLS = {
    "polars": ("polars", "blend_files(['a.csv'])"),
    "scipy": ("scipy.optimize", "find_weights([[0.1, 0.9] * 9] * 2, [0, 1] * 9, 'auc', 'simplex')"),
    "matplotlib": ("matplotlib.figure", "correlation([[0.1, 0.9]] * 2).plot('a.png')"),
}


@pytest.mark.parametrize("package", CALLS)
def test_optional_packages(package: str) -> None:
    """A package that is missing is named, with the command that installs it."""
    module, call = CALLS[package]
    Path("a.csv").write_text("id,p\n1,0.5\n")
    script = (
        f"import sys; sys.modules[{module!r}] = None; from batteries import blend; blend.{call}"
    )
    result = warm.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert f"needs {package}, which is not installed: pip install {package}" in result.stderr
