"""A first look at data: what there is, what is missing, and whether test is like train."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from batteries.splits._tables import (
    as_table,
    column_of,
    is_missing,
    polars_for,
    sklearn_room,
)

_ROWS = 5000  # of each side, for the classifier
_FEATURES = 64
_PARTS = 5  # of the cross-validation
_LARGEST = 1e30  # for the classifier, which adds up all values as float32


class Look(NamedTuple):
    """What `look` has seen.

    >>> Look(columns=None, classes=None, auc=0.5, spread=0.01).auc
    0.5
    """

    columns: Any  # a polars frame: a row for each column, or one for an array
    classes: Any  # a polars frame: the part of each class; None without targets
    auc: float  # of telling train from test: near 0.5 they are alike, near 1 they are not
    spread: float  # the standard deviation of the auc over five folds
    note: str = ""  # why there is no auc, where it is NaN


def look(train: Any, test: Any, targets: Any = None, seed: int = 42) -> Look:
    """A first look at data: what there is, what is missing, and whether test is like train.

    >>> chance = np.random.default_rng(0)
    >>> seen = look({"a": chance.normal(size=300)}, {"a": chance.normal(size=200) + 3})
    >>> seen.columns.row(0, named=True)["missing in test"], round(seen.auc, 1)
    (0, 1.0)

    The last is adversarial validation: a quick classifier learns to tell the two apart, on at most
    5,000 rows of each, and its area under the ROC curve is measured by cross-validation. To it an
    infinity is a missing value. With fewer than 5 rows on a side the area is NaN, and the note
    says so.

    Args:
        train: A table, or an array or tensor, (rows, ...).
        test: The same of the test data; columns that it lacks are left out of the comparison.
        targets: Classes of train, (rows,), or the name of a column.

    Raises:
        ValueError: Nothing to compare, or rows of different shapes.
    """
    polars = polars_for("look")
    tables = [as_table(train), as_table(test)]
    name = targets if isinstance(targets, str) else None
    classes = column_of(train, targets)
    shared = [key for key in tables[0] if key in tables[1] and key != name]
    if not shared:
        raise ValueError("train and test have no column in common")
    rows = [
        {
            "column": key,
            **{f"{side} dtype": _shape_of(table.get(key)) for side, table in _named(tables)},
            **{f"missing in {side}": _missing(table.get(key)) for side, table in _named(tables)},
            **{f"infinite in {side}": _infinite(table.get(key)) for side, table in _named(tables)},
        }
        for key in dict.fromkeys([*tables[0], *tables[1]])
    ]
    for key in shared:
        shapes = [table[key].shape[1:] for table in tables]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the rows of {key!r} have shape {shapes[0]} in train and {shapes[1]} in test: "
                "bring them to one shape, or leave the column out"
            )
    columns = polars.DataFrame(rows, infer_schema_length=None)  # the first may all lack in test
    balance = None if classes is None else polars.DataFrame(_balance(classes))
    few = [f"{len(table[shared[0]])} in {side}" for side, table in _named(tables)]
    if min(len(table[shared[0]]) for table in tables) < _PARTS:
        note = f"too few rows to compare: {' and '.join(few)}; at least {_PARTS} of each are needed"
        return Look(columns, balance, math.nan, math.nan, note)
    aucs = _adversarial([[table[key] for key in shared] for table in tables], seed)
    return Look(columns, balance, float(np.mean(aucs)), float(np.std(aucs, ddof=1)))


def _named(tables: Sequence[Any]) -> list[tuple[str, Any]]:
    return list(zip(("train", "test"), tables, strict=True))


def _shape_of(column: NDArray[Any] | None) -> str | None:
    return None if column is None else f"{column.dtype} {column.shape}"


def _missing(column: NDArray[Any] | None) -> int | None:
    return None if column is None else int(is_missing(column.reshape(-1)).sum())


def _infinite(column: NDArray[Any] | None) -> int | None:
    if column is None:
        return None
    return int(np.isinf(column).sum()) if np.issubdtype(column.dtype, np.inexact) else 0


def _balance(classes: NDArray[Any]) -> dict[str, Any]:
    """The rows and the part of each class, and of those that are missing."""
    absent = is_missing(classes)
    values, counts = np.unique(classes[~absent], return_counts=True)
    named, rows = values.tolist(), counts.tolist()
    if absent.any():
        named, rows = [*named, None], [*rows, int(absent.sum())]
    return {"class": named, "rows": rows, "part": [count / len(classes) for count in rows]}


def _adversarial(sides: list[list[NDArray[Any]]], seed: int) -> list[float]:
    """The area under the ROC curve of telling the sides apart, by fold."""
    chance = np.random.default_rng(seed)
    picked = [np.sort(chance.permutation(len(columns[0]))[:_ROWS]) for columns in sides]
    features = np.concatenate(
        [
            _numeric(*(column[rows] for column, rows in zip(pair, picked, strict=True)))
            for pair in zip(*sides, strict=True)
        ],
        axis=1,
    )
    if features.shape[1] > _FEATURES:
        projection = sklearn_room("random_projection").GaussianRandomProjection(
            _FEATURES, random_state=seed
        )
        features = projection.fit_transform(np.nan_to_num(features))
    labels = np.repeat([0, 1], [len(rows) for rows in picked])
    splitter = sklearn_room("model_selection").StratifiedKFold(
        _PARTS, shuffle=True, random_state=seed
    )
    aucs = []
    for train, valid in splitter.split(features, labels):
        model = sklearn_room("ensemble").ExtraTreesClassifier(
            50, min_samples_leaf=5, random_state=seed
        )
        model.fit(features[train], labels[train])
        guess = model.predict_proba(features[valid])[:, 1]
        aucs.append(float(sklearn_room("metrics").roc_auc_score(labels[valid], guess)))
    return aucs


def _numeric(train: NDArray[Any], test: NDArray[Any]) -> NDArray[np.float64]:
    """One column of both sides as numbers, (rows, features): texts by their place among all."""
    sides = [train.reshape(len(train), -1), test.reshape(len(test), -1)]
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
