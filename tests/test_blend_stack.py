"""Stacks, metrics by name, cut-offs of several classes, and predictions that are not complete."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn import metrics
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import cross_val_predict

from batteries.blend import (
    check_submission,
    find_threshold,
    find_thresholds,
    find_weights,
    mean,
    stack,
)
from batteries.splits import OutOfFold, make_folds

rng = np.random.default_rng(0)
ROWS = 600
TARGET = (rng.random(ROWS) < 0.4).astype(int)
OOF = {
    name: 1 / (1 + np.exp(-2 * (TARGET - 0.5) - rng.normal(0, noise, ROWS)))
    for name, noise in (("net", 1.0), ("tree", 1.3), ("knn", 2.0))
}
CLASSES = rng.integers(0, 3, ROWS)
SOFT = [rng.dirichlet(np.ones(3), ROWS) * 0.6 + 0.4 * np.eye(3)[CLASSES] for _ in range(2)]
NUMBERS = rng.normal(size=ROWS)
GUESSES = {name: NUMBERS + rng.normal(0, 0.5, ROWS) for name in "abc"}
FOLDS = make_folds(TARGET, 4, "stratified")


# ---------------------------------------------------------------- metrics by name

BY_NAME: list[tuple[str, Any, Any, Any]] = [
    ("roc_auc", OOF, TARGET, metrics.roc_auc_score),
    ("neg_log_loss", OOF, TARGET, lambda y, p: -metrics.log_loss(y, p)),
    ("average_precision", OOF, TARGET, metrics.average_precision_score),
    ("f1", OOF, TARGET, lambda y, p: metrics.f1_score(y, p > 0.5)),
    ("balanced_accuracy", OOF, np.array(["no", "yes"])[TARGET],
     lambda y, p: metrics.balanced_accuracy_score(y == "yes", p > 0.5)),
    ("f1_macro", SOFT, CLASSES, lambda y, p: metrics.f1_score(y, p.argmax(1), average="macro")),
    ("roc_auc_ovr", SOFT, CLASSES, lambda y, p: metrics.roc_auc_score(y, p, multi_class="ovr")),
    ("r2", GUESSES, NUMBERS, metrics.r2_score),
    ("neg_root_mean_squared_error", GUESSES, NUMBERS,
     lambda y, p: -metrics.root_mean_squared_error(y, p)),
    ("neg_mean_absolute_error", GUESSES, NUMBERS,
     lambda y, p: -metrics.mean_absolute_error(y, p)),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(BY_NAME)), ids=lambda index: BY_NAME[index][0])
def test_names_of_scikit_learn(index: int) -> None:
    """A scorer's name is scikit-learn's metric of the blend, told as scikit-learn tells it."""
    name, oof, target, function = BY_NAME[index]
    found = find_weights(oof, target, name, rounds=3, folds=None)
    assert found.score == pytest.approx(function(target, found.blend(oof)), abs=1e-12)
    alone = next(iter(oof.values())) if isinstance(oof, dict) else oof[0]
    folds = make_folds(ROWS, 2)
    collected = OutOfFold(folds)
    for fold, (_, valid) in enumerate(folds):
        collected.add(fold, alone[valid])
    assert collected.score(target, name).value == pytest.approx(function(target, alone), abs=1e-12)


def test_scorers_and_directions() -> None:
    """A scorer of one's own is a metric too; a direction that its name contradicts is an error."""
    kappa = metrics.make_scorer(metrics.cohen_kappa_score, weights="quadratic")
    found = find_weights(SOFT, CLASSES, kappa, rounds=2, folds=None)
    labels = found.blend(SOFT).argmax(1)
    assert found.score == metrics.cohen_kappa_score(CLASSES, labels, weights="quadratic")
    with pytest.raises(ValueError, match="r2 is better when it is higher; leave metric_minim"):
        find_weights(GUESSES, NUMBERS, "r2", metric_minimization=True)


# ---------------------------------------------------------------- models by name


def test_any_form_of_models() -> None:
    """A mapping, frames and out-of-fold objects have the same weights, by the same names."""
    expected = find_weights(OOF, TARGET, "roc_auc", folds=FOLDS)
    assert list(expected.weights) == list(OOF)
    collected = {}
    for name, scores in OOF.items():
        collected[name] = OutOfFold(FOLDS)
        for fold, (_, valid) in enumerate(FOLDS):
            collected[name].add(fold, scores[valid])
    pd: Any = pytest.importorskip("pandas")
    for form in (pl.DataFrame(OOF), pd.DataFrame(OOF), collected):
        assert find_weights(form, TARGET, "roc_auc", folds=FOLDS).weights == expected.weights
    np.testing.assert_array_equal(expected.blend(OOF), mean(OOF, weights=expected.weights))
    assert repr(expected).startswith("<FoundWeights: unseen folds: blend 0.")
    assert len(repr(expected)) < 400
    unnamed = find_weights(list(OOF.values()), TARGET, "roc_auc", folds=FOLDS)
    assert list(unnamed.weights) == ["model 0", "model 1", "model 2"]
    with pytest.raises(ValueError, match="the weights are of net, tree, knn, but the models are n"):
        expected.blend({"net": OOF["net"], "tree": OOF["tree"]})


@pytest.mark.parametrize("method", ["hill_climb", "simplex"])
def test_negative_weights(method: Any) -> None:
    """Where they are asked for, weights may be negative, and come near to least squares."""
    shared = rng.normal(size=ROWS)
    models = {
        "a": NUMBERS + shared,
        "b": NUMBERS + 0.5 * shared + 0.1 * rng.normal(size=ROWS),
    }
    found = find_weights(models, NUMBERS, "rmse", method, negative=True, rounds=40, folds=None)
    # with weights w and 1 - w the error is that of a line through the origin
    line = models["a"] - models["b"]
    exact = float(line @ (NUMBERS - models["b"]) / (line @ line))
    assert found.weights["a"] == pytest.approx(exact, abs=0.1)
    assert exact < 0
    positive = find_weights(models, NUMBERS, "rmse", method, folds=None)
    assert found.score < positive.score
    assert metrics.root_mean_squared_error(NUMBERS, found.blend(models)) == pytest.approx(
        found.score
    )


# ---------------------------------------------------------------- rows without a prediction


def test_rows_without_a_prediction() -> None:
    """Rows that a model has not predicted are left out of weights, stacks and cut-offs: counted."""
    gone = rng.random(ROWS) < 0.3
    partial = OOF | {"net": np.where(gone, np.nan, OOF["net"])}
    rest = {name: scores[~gone] for name, scores in OOF.items()}
    folds = np.arange(ROWS) % 4
    options: Any = {"allow_missing": True, "folds": folds}
    found = find_weights(partial, TARGET, "roc_auc", **options)
    expected = find_weights(rest, TARGET[~gone], "roc_auc", folds=folds[~gone])
    assert found.weights == expected.weights
    assert found.unseen_score == expected.unseen_score
    assert (found.rows, found.left_out) == ((~gone).sum(), gone.sum())
    assert f"of the {found.rows} rows that have all predictions ({gone.sum()}" in found.verdict
    cut = find_threshold(partial["net"], TARGET, "f1", candidates=9, **options)
    alone = find_threshold(rest["net"], TARGET[~gone], "f1", candidates=9, folds=folds[~gone])
    assert cut == alone
    stacked = stack(partial, TARGET, LogisticRegression(), **options)
    np.testing.assert_array_equal(np.isnan(stacked.oof), gone)
    with pytest.raises(ValueError, match="model 'net' has nan in row"):
        find_weights(partial, TARGET, "roc_auc")
    with pytest.raises(ValueError, match="no row has predictions of all models"):
        find_weights([np.full(ROWS, np.nan)], TARGET, "roc_auc", allow_missing=True)


def test_rows_in_errors() -> None:
    """If rows are left out, an error still has the row's own number."""
    oof = {"a": np.linspace(0.1, 0.9, 40), "b": np.full(40, 0.5)}
    target = np.arange(40) % 2.0
    labels: Any = ["cat", None]
    oof["a"][:10] = np.nan
    infinite = oof | {"b": np.where(np.arange(40) == 30, np.inf, 0.5)}
    with pytest.raises(ValueError, match="model 'b' has inf in row 30;"):
        find_weights(infinite, target, "auc", allow_missing=True)
    target[12] = np.nan
    for metric in ("auc", "f1"):
        with pytest.raises(ValueError, match="the target of row 12 is not a finite number"):
            find_weights(oof, target, metric, allow_missing=True)
    with pytest.raises(ValueError, match="the target of row 12 is not a finite number"):
        find_thresholds(oof["b"], target, "accuracy")
    with pytest.raises(ValueError, match="the target of row 1 is missing"):
        find_weights([[0.5, 0.25]], labels, "auc")


def test_no_rows() -> None:
    """Without rows there are no folds to test on, which the error says."""
    with pytest.raises(ValueError, match="there are rows of 0 folds"):
        find_threshold([], [], "f1")


def test_missing_folds() -> None:
    """Rows without a fold are in no test, for numbers and for names of folds."""
    numbers = np.where(np.arange(ROWS) < 9, np.nan, np.arange(ROWS) % 2)
    names = [None, *[None] * 8, *np.array(["a", "b"])[np.arange(9, ROWS) % 2]]
    found = [find_weights(OOF, TARGET, "roc_auc", folds=each) for each in (numbers, names)]
    assert found[0].unseen_score == found[1].unseen_score


def test_the_order_of_time() -> None:
    """In the order of time weights are found on earlier folds alone."""
    folds = make_folds(ROWS, 4, "time")
    oof = {name: np.where(folds.assignment < 0, np.nan, scores) for name, scores in OOF.items()}
    found = find_weights(oof, TARGET, "neg_log_loss", folds=folds, allow_missing=True)
    own, scores = folds.assignment, []
    for fold in (1, 2, 3):  # the first has none before it
        past, now = (own >= 0) & (own < fold), own == fold
        weights = find_weights(
            {n: s[past] for n, s in OOF.items()}, TARGET[past], "log_loss", folds=None
        )
        scores.append(
            -metrics.log_loss(TARGET[now], weights.blend({n: s[now] for n, s in OOF.items()}))
        )
    assert found.unseen_score == pytest.approx(np.mean(scores))


# ---------------------------------------------------------------- stacks


def test_a_stack_is_cross_validation() -> None:
    """What a stack predicts is what scikit-learn's cross-validation of the second model does."""
    features, model = np.stack(list(OOF.values()), 1), LogisticRegression()
    stacked = stack(OOF, TARGET, model, folds=FOLDS)
    expected = cross_val_predict(model, features, TARGET, cv=FOLDS, method="predict_proba")[:, 1]
    np.testing.assert_allclose(stacked.oof, expected, rtol=1e-12)
    losses = [metrics.log_loss(TARGET[valid], expected[valid]) for _, valid in FOLDS]
    assert stacked.unseen_score == pytest.approx(np.mean(losses))
    weights = find_weights(OOF, TARGET, "log_loss", folds=FOLDS)
    assert (stacked.single_score, stacked.mean_score) == (weights.single_score, weights.mean_score)
    fitted = model.fit(features, TARGET).predict_proba(features)[:, 1]
    np.testing.assert_allclose(stacked.predict(OOF), fitted, rtol=1e-12)
    assert stacked.gain_over_mean.mean == pytest.approx(stacked.mean_score - stacked.unseen_score)
    with pytest.raises(ValueError, match="the models are net, tree; expected net, tree, knn"):
        stacked.predict({"net": OOF["net"], "tree": OOF["tree"]})


def test_stacks_of_classes_and_numbers() -> None:
    """A stack of probabilities of classes gives such, and one of numbers gives numbers."""
    several = stack(SOFT, CLASSES, LogisticRegression(), folds=3)
    assert several.oof.shape == (ROWS, 3)
    np.testing.assert_allclose(several.predict(SOFT).sum(1), 1)
    numbers = stack(GUESSES, NUMBERS, LinearRegression(), folds=FOLDS)
    expected = cross_val_predict(
        LinearRegression(), np.stack(list(GUESSES.values()), 1), NUMBERS, cv=FOLDS
    )
    np.testing.assert_allclose(numbers.oof, expected)
    # the mean of guesses is too far from the middle: a regression shrinks it
    assert numbers.gain_over_mean.beyond_noise
    assert numbers.verdict.endswith("the stack beats both beyond noise")


class Plain:
    """A model whose `fit` returns nothing."""

    def fit(self, features: Any, target: Any) -> None:
        self.fitted = LinearRegression().fit(features, target)

    def predict(self, features: Any) -> Any:
        return self.fitted.predict(features)


def test_a_stack_of_a_plain_model() -> None:
    """The `fit` of a model may return anything."""
    own = stack(GUESSES, NUMBERS, Plain(), folds=4)
    np.testing.assert_array_equal(own.oof, stack(GUESSES, NUMBERS, LinearRegression(), folds=4).oof)
    np.testing.assert_array_equal(
        own.predict(GUESSES), own.model.predict(np.stack([*GUESSES.values()], 1))
    )


def test_a_stack_of_tensors_and_no_rows() -> None:
    """A model may predict with tensors that need a gradient, and predict no rows."""
    slope = torch.ones(2, dtype=torch.float64, requires_grad=True)
    model = SimpleNamespace(fit=lambda *_: None, predict=lambda x: torch.from_numpy(x) @ slope)
    stacked = stack(rng.random((2, 20)), [0, 1] * 10, model)
    assert stacked.predict([[0.25], [0.5]]).tolist() == [0.75]
    assert stacked.predict([[], []]).tolist() == []


def test_a_stack_of_noise_is_no_gain() -> None:
    """A second model that can learn its rows by heart gains nothing where there is nothing."""
    noise = rng.normal(size=(30, 200))
    stacked = stack(noise, rng.normal(size=200), Ridge(1e-6))
    assert stacked.unseen_score > stacked.mean_score
    assert "the stack does not beat" in stacked.verdict


def test_a_leak_of_one_fold_does_not_pay() -> None:
    """A model that knows one fold's target does not raise the stack's score of that fold."""
    leaked = np.where(FOLDS.assignment == 0, TARGET, 0.5)
    own = {"net": OOF["net"], "leak": leaked}
    stacked = stack(own, TARGET, LogisticRegression(), "roc_auc", folds=FOLDS)
    honest = stack({"net": OOF["net"]}, TARGET, LogisticRegression(), "roc_auc", folds=FOLDS)
    assert not stacked.gain_over_single.beyond_noise
    first = FOLDS.assignment == 0
    assert metrics.roc_auc_score(TARGET[first], stacked.oof[first]) == pytest.approx(
        metrics.roc_auc_score(TARGET[first], honest.oof[first]), abs=0.02
    )


# ---------------------------------------------------------------- cut-offs


def quadratic(target: Any, labels: Any) -> float:
    return float(metrics.cohen_kappa_score(target, labels, weights="quadratic"))


def test_cut_offs_of_ordered_classes() -> None:
    """Cut-offs of three classes are as good as the best of all pairs on a grid, also unseen."""
    grades = rng.integers(0, 3, 240)
    scores = np.round(grades * 0.6 + rng.normal(0.8, 0.3, 240), 2)
    kappa = metrics.make_scorer(metrics.cohen_kappa_score, weights="quadratic")
    folds = np.arange(240) % 3
    found = find_thresholds(scores, grades, kappa, folds=folds, candidates=30)
    grid = np.quantile(scores, np.linspace(0, 1, 25))
    best = max(
        quadratic(grades, np.searchsorted([low, high], scores, side="right"))
        for low in grid for high in grid if low <= high
    )  # fmt: skip
    assert found.score == quadratic(grades, found.apply(scores)) >= best - 0.02
    unseen = [
        quadratic(
            grades[folds == k], np.searchsorted(found.folds[k], scores[folds == k], side="right")
        )
        for k in range(3)
    ]
    assert found.unseen_score == pytest.approx(np.mean(unseen))
    assert found.unseen_score > found.rounded_score
    assert found.values == sorted(found.values)


def test_two_classes_have_one_cut_off() -> None:
    """With two classes the cut-offs are the one of `find_threshold`, or as good."""
    one = find_threshold(OOF["net"], TARGET, "f1", folds=FOLDS, candidates=9)
    several = find_thresholds(OOF["net"], TARGET, "f1", folds=FOLDS, candidates=9)
    assert several.score >= one.score - 1e-9
    with pytest.raises(ValueError, match="the target has 1 class; expected two or more"):
        find_thresholds([0.1, 0.2], [1, 1], "f1", folds=[0, 1])


def test_missing_rows_with_made_folds() -> None:
    """Folds that are made here are of the rows that all models have, wherever those are."""
    chance = np.random.default_rng(0)
    target = np.arange(100) % 2
    oof = {name: target + chance.normal(size=100) for name in "ab"}
    oof["a"][0] = oof["b"][40] = np.nan
    found = find_weights(oof, target, "roc_auc", allow_missing=True)
    assert set(found.weights) == {"a", "b"}
    with pytest.raises(ValueError, match="folds has 99 rows; expected one for each of 100"):
        find_weights({"a": target, "b": target}, target, "roc_auc", folds=np.arange(99) % 3)
    with pytest.raises(ValueError, match="rows of 1 folds; expected two or more"):
        find_weights({"a": target, "b": target}, target, "roc_auc", folds=[0] * 100)


def test_folds_of_other_data_are_refused() -> None:
    """Folds of more rows than the predictions are an error, and not cut to their first rows."""
    target = np.arange(40) % 2
    for folds in (np.arange(60) % 3, make_folds(60, n_folds=3)):
        with pytest.raises(ValueError, match="folds has 60 rows; expected one for each of 40"):
            find_weights({"a": target, "b": target}, target, "roc_auc", folds=folds)
        with pytest.raises(ValueError, match="folds has 60 rows; expected one for each of 40"):
            find_threshold(target, target, "f1", folds=folds)


def test_models_of_a_stack_by_name() -> None:
    """A stack takes its models by name, in any order."""
    target = np.arange(40) % 2
    oof = {"a": 0.2 + 0.5 * target, "b": np.full(40, 0.5)}
    stacked = stack(oof, target, LogisticRegression())
    turned = {"b": oof["b"], "a": oof["a"]}
    np.testing.assert_array_equal(stacked.predict(turned), stacked.predict(oof))
    with pytest.raises(ValueError, match="folds is None; expected their number"):
        stack(oof, target, LogisticRegression(), folds=None)  # type: ignore[arg-type]


def test_targets_of_one_cut_off() -> None:
    """A cut-off is found for targets of 0 and 1 alone; one that nothing reaches is tried too."""
    for target in ([1, 1, 2, 2] * 5, ["a", "a", "b", "b"] * 5):
        with pytest.raises(ValueError, match="expected 0 and 1: pass target =="):
            find_threshold([0.1, 0.2, 0.8, 0.9] * 5, target, "accuracy")
    found = find_threshold([0.1, 0.2, 0.3, 0.4] * 5, [1, 0, 0, 0] * 5, "accuracy")
    assert found.value > 0.4
    assert found.score == 0.75
    with pytest.raises(ValueError, match="candidates is 0; expected 1 or more"):
        find_threshold([0.1, 0.9] * 5, [0, 1] * 5, "accuracy", candidates=0)


def test_a_fold_without_a_metric() -> None:
    """A metric that is NaN on a fold is an error with the fold, and not a score."""

    def metric(truth: Any, guess: Any) -> float:
        return float("nan") if len(truth) == 4 else float((truth == guess).mean())

    with pytest.raises(ValueError, match="not a finite number on the 4 rows of fold 0"):
        find_threshold([0.1, 0.9] * 10, [0, 1] * 10, metric, metric_minimization=False)


def test_empty_cells_of_samples() -> None:
    """An empty cell of the sample does not switch off the checks of its column."""
    Path("sample.csv").write_text("id,t\n1,0.1\n2,\n3,0.2\n")
    Path("mine.csv").write_text("id,t\n1,7\n2,inf\n3,cat\n")
    with pytest.raises(ValueError, match=r"1 no numbers.*\n.*1 infinite.*\n.*not from 0 to 1"):
        check_submission("mine.csv", "sample.csv", ranges={"t": (0, 1)})
    with pytest.raises(ValueError, match="1 no numbers"):
        check_submission("mine.csv", "sample.csv")


def test_numbers_of_ids() -> None:
    """Ids that are there too often, too seldom or empty are told."""
    Path("sample.csv").write_text("id,t\n1,0.1\n1,0.3\n2,0.2\n")
    Path("mine.csv").write_text("id,t\n1,0.5\n2,0.5\n")
    with pytest.raises(ValueError, match="there are 2 rows; expected 3"):
        check_submission("mine.csv", "sample.csv")
    Path("mine.csv").write_text("id,t\n1,0.5\n1,0.5\n2,0.5\n,0.5\n")
    with pytest.raises(ValueError, match="1 ids are empty"):
        check_submission("mine.csv", "sample.csv")
