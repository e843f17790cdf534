"""Quick models that distinguish test from train, and predict the target from one column."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from batteries.splits._strata import strata
from batteries.splits._tables import is_missing, random_state, sklearn_room

PARTS = 5  # folds of the cross-validation
_ROWS = 5000  # at most, of each side
_FEATURES = 64  # at most; more columns are projected onto this number
_LARGEST = 1e30  # the classifier adds up all values as float32
Table = dict[str, NDArray[Any]]


def tell_apart(sides: list[Table], seed: int) -> tuple[list[float], dict[str, float]]:
    """Train a classifier that distinguishes the sides.

    Returns:
        The area under the ROC curve (AUC) for each fold, and the importance of each column: the
        loss of AUC when the values of the column are permuted. Many columns, such as pixels, are
        projected, and have no importance.
    """
    chance = np.random.default_rng(seed)
    rows = [len(next(iter(side.values()))) for side in sides]
    picked = [np.sort(chance.permutation(number)[:_ROWS]) for number in rows]
    blocks = {
        name: _numeric(*(side[name][rows] for side, rows in zip(sides, picked, strict=True)))
        for name in sides[0]
    }
    features = np.concatenate(list(blocks.values()), axis=1)
    places = np.repeat(np.arange(len(blocks)), [block.shape[1] for block in blocks.values()])
    if features.shape[1] > _FEATURES:
        projection = sklearn_room("random_projection").GaussianRandomProjection(
            _FEATURES, random_state=random_state(seed)
        )
        features, blocks = projection.fit_transform(np.nan_to_num(features)), {}
    labels = np.repeat([0, 1], [len(rows) for rows in picked])
    auc = sklearn_room("metrics").roc_auc_score
    aucs, lost = [], np.zeros((PARTS, len(blocks)))
    for fold, (train, valid) in enumerate(_splitter(seed).split(features, labels)):
        model = sklearn_room("ensemble").ExtraTreesClassifier(
            50, min_samples_leaf=5, random_state=random_state(seed)
        )
        model.fit(features[train], labels[train])
        aucs.append(float(auc(labels[valid], model.predict_proba(features[valid])[:, 1])))
        for at in range(len(blocks)):
            permuted = features[valid].copy()
            mine = np.flatnonzero(places == at)
            permuted[:, mine] = permuted[chance.permutation(len(valid))][:, mine]
            lost[fold, at] = aucs[-1] - auc(labels[valid], model.predict_proba(permuted)[:, 1])
    return aucs, dict(zip(blocks, lost.mean(0).tolist(), strict=True))


def tells(column: NDArray[Any] | None, targets: NDArray[Any] | None, seed: int) -> float | None:
    """How well a column alone predicts the targets of unseen rows: AUC of classes, R² of numbers.

    It is None if it cannot be computed: there are too few rows, the targets have one class only, or
    the column has several values in a row.
    """
    if column is None or targets is None or column.ndim > 1 or len(targets) != len(column):
        return None
    here = np.flatnonzero(~is_missing(targets)) if targets.ndim == 1 else np.array([], dtype=int)
    rows = np.sort(np.random.default_rng(seed).permutation(here)[:_ROWS])
    truth = targets[rows]
    numbers = truth.dtype.kind in "iuf" and strata(truth, PARTS) is not truth
    if len(rows) < 2 * PARTS or len(np.unique(truth)) < 2:
        return None
    if not numbers:
        truth = np.unique(truth, return_inverse=True)[1]
        truth = truth[common := np.bincount(truth)[truth] >= PARTS]
        rows = rows[common]
        if len(np.unique(truth)) < 2:
            return None
    kind, scoring = ("Regressor", "r2") if numbers else ("Classifier", "roc_auc_ovr")
    model = getattr(sklearn_room("tree"), f"DecisionTree{kind}")(
        max_leaf_nodes=64, min_samples_leaf=2, random_state=random_state(seed)
    )
    scores = sklearn_room("model_selection").cross_val_score(
        model, _numeric(column[rows]), truth, cv=_splitter(seed, not numbers), scoring=scoring
    )
    return float(np.mean(scores))


def _splitter(seed: int, stratified: bool = True) -> Any:
    selection = sklearn_room("model_selection")
    kind = selection.StratifiedKFold if stratified else selection.KFold
    return kind(PARTS, shuffle=True, random_state=random_state(seed))


def _numeric(*columns: NDArray[Any]) -> NDArray[np.float64]:
    """A column of all sides as numbers, (rows, features). A text becomes its rank."""
    sides = [column.reshape(len(column), -1) for column in columns]
    try:
        both = np.concatenate(sides)
    except TypeError:  # dates on one side, texts or numbers on the other
        both = np.concatenate([side.astype(object) for side in sides])
    if both.dtype.kind in "biuf":
        numbers = both.astype(np.float64)
        return np.where(np.isinf(numbers), np.nan, np.clip(numbers, -_LARGEST, _LARGEST))
    absent = is_missing(both.reshape(-1)).reshape(both.shape)
    codes = np.unique(both.astype(str), return_inverse=True)[1].reshape(both.shape)
    return np.where(absent, np.nan, codes.astype(np.float64))
