"""A first look at data: its columns, missing values, and whether test is like train."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from batteries._files import PathLike
from batteries._numbers import as_seed
from batteries._spellings import hints
from batteries.splits._adversarial import PARTS, tell_apart, tells
from batteries.splits._page import draw
from batteries.splits._tables import (
    as_table,
    column_of,
    id_columns,
    is_missing,
    known_names,
    polars_for,
)

if TYPE_CHECKING:
    from polars import DataFrame

_LEAK = 0.98  # with more AUC or R², a column alone gives the target away
Table = dict[str, NDArray[Any]]


class Look(NamedTuple):
    """The result of `look`. `plot` draws it on one page.

    >>> Look(columns=None, classes=None, auc=0.5, spread=0.01).auc
    0.5

    Attributes:
        columns: A polars frame with a row for each column, or one row for an array.
        classes: A polars frame with the fraction of each class; None without targets.
        auc: The AUC of a classifier of train and test: near 0.5 they are alike, near 1 they differ.
        spread: The standard deviation of `auc` over five folds.
        note: The reason if `auc` is NaN.
        missing: A polars frame: the columns that are missing together, and in how many rows.
    """

    columns: DataFrame
    classes: DataFrame | None
    auc: float
    spread: float
    note: str = ""
    missing: DataFrame | None = None

    @property
    def leaks(self) -> list[str]:
        """The columns that nearly determine the target alone (AUC or R² over 0.98)."""
        told = self.columns.filter(self.columns["tells target"].fill_null(0.0) > _LEAK)
        return list(told["column"])

    def plot(self, path: PathLike) -> None:
        """Draw the page as a PNG file: differing columns, leaks, missing values, and classes.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        draw(self, path)


@hints
def look(
    train: Any,
    test: Any,
    targets: Any = None,
    seed: int = 42,
    *,
    groups: Any = None,
    ids: str | Sequence[str] | None = None,
) -> Look:
    """Take a first look at data: its columns, missing values, and whether test is like train.

    >>> chance = np.random.default_rng(0)
    >>> seen = look({"a": chance.normal(size=300)}, {"a": chance.normal(size=200) + 3})
    >>> seen.columns.row(0, named=True)["missing in test"], round(seen.auc, 1)
    (0, 1.0)

    The comparison is adversarial validation. A quick classifier learns to distinguish train from
    test, on at most 5,000 rows of each. `auc` is its cross-validated area under the ROC curve. An
    infinity counts as missing. With fewer than 5 rows of train or test, `auc` is NaN, and `note`
    says why.

    `Look.columns` has, for each column:

    - "kind": "target", "id" (a different value in each row), "group", or "feature". The classifier
      gets only features, since ids and groups always differ.
    - "tells test": the loss of `auc` when the column is permuted.
    - "tells target": how well the column alone predicts the target of unseen rows, as AUC (0.5 is
      chance), or R² for numbers. Near 1 it is a leak: see `Look.leaks`.
    - "known in test": the fraction of test rows whose value is in train. If it is near 0 for a
      group, use folds by group.

    Args:
        train: A table, or an array or tensor, (rows, ...).
        test: The test data in the same form. Only columns in both are compared.
        targets: Classes or numbers of train, (rows,), or the name of a column.
        groups: The name of the column of groups, or several names.
        ids: The names of the columns of ids. Default: columns of whole numbers, or of texts without
            a blank, that have a different value in each row of both.

    Raises:
        ValueError: Nothing to compare, or rows of different shapes.
    """
    polars = polars_for("look")
    tables = [as_table(train), as_table(test)]
    name = targets if isinstance(targets, str) else None
    truth, seed = column_of(train, targets, "targets"), as_seed(seed)
    kinds = _kinds(tables, name, groups or (), ids)
    shared = [key for key in tables[0] if key in tables[1] and key != name]
    features = [key for key in shared if kinds[key] == "feature"] or shared  # ids, or nothing
    if not features:
        raise ValueError("train and test have no column in common")
    _check_shapes(tables, shared)
    balance = None if truth is None or truth.ndim > 1 else polars.DataFrame(_balance(truth))
    few = [f"{len(table[shared[0]])} in {side}" for side, table in _named(tables)]
    aucs, note = [math.nan] * 2, ""
    lost: dict[str, float] = {}
    if min(len(table[shared[0]]) for table in tables) < PARTS:
        note = f"too few rows to compare: {' and '.join(few)}; at least {PARTS} of each are needed"
    else:
        aucs, lost = tell_apart([{key: table[key] for key in features} for table in tables], seed)
    rows = [
        _row_of(key, tables, {"kind": kinds[key], "tells test": lost.get(key)})
        | {"tells target": tells(tables[0].get(key), truth, seed) if key != name else None}
        for key in dict.fromkeys([*tables[0], *tables[1]])
    ]
    columns = polars.DataFrame(rows, infer_schema_length=None)  # the first rows may have None
    spread = float(np.std(aucs, ddof=1))
    return Look(columns, balance, float(np.mean(aucs)), spread, note, _together(tables))


def _kinds(
    tables: list[Table], target: str | None, groups: str | Sequence[str], ids: Any
) -> dict[str, str]:
    unique = [
        set(id_columns(table)) | (set(tables[1 - at]) - set(table))
        for at, table in enumerate(tables)
    ]
    both = tables[0] | tables[1]
    known = unique[0] & unique[1] if ids is None else set(id_columns(both, ids))
    kinds = {name: "id" if name in known else "feature" for table in tables for name in table}
    return (
        kinds
        | dict.fromkeys(known_names(both, groups), "group")
        | ({target: "target"} if target else {})
    )


def _row_of(key: str, tables: list[Table], more: dict[str, Any]) -> dict[str, Any]:
    columns = [table.get(key) for table in tables]
    facts = {
        name.format(side): None if column is None else fact(column)
        for name, fact in _FACTS.items()
        for side, column in _named(columns)
    }
    return {"column": key, **facts, "known in test": _known(*columns), **more}


def _check_shapes(tables: list[Table], shared: list[str]) -> None:
    for key in shared:
        shapes = [table[key].shape[1:] for table in tables]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the rows of {key!r} have shape {shapes[0]} in train but {shapes[1]} in test: "
                "reshape them to one shape, or leave the column out"
            )


def _known(train: NDArray[Any] | None, test: NDArray[Any] | None) -> float | None:
    """The fraction of test's values that are in train, for names and whole numbers."""
    if train is None or test is None or train.ndim > 1 or train.dtype.kind not in "iubUSO":
        return None
    known = set(train.tolist())
    return sum(value in known for value in test.tolist()) / max(1, len(test))


def _together(tables: list[Table]) -> Any:
    """The sets of columns that are missing together, the most frequent first."""
    found: dict[str, dict[str, Any]] = {}
    for side, table in _named(tables):
        flat = [name for name, column in table.items() if column.ndim == 1]
        if not flat or not len(table[flat[0]]):
            continue
        absent = np.stack([is_missing(table[name]) for name in flat], axis=1)
        patterns, counts = np.unique(absent, axis=0, return_counts=True)
        for pattern, count in zip(patterns, counts.tolist(), strict=True):
            names = ", ".join(name for name, gone in zip(flat, pattern, strict=True) if gone)
            row = {"missing": names, "in train": 0, "in test": 0}
            found.setdefault(names, row)[f"in {side}"] = count
    found.pop("", None)  # rows in which nothing is missing
    schema = dict(zip(("missing", "in train", "in test"), (str, int, int), strict=True))
    ordered = sorted(found.values(), key=lambda row: -row["in train"] - row["in test"])
    return polars_for("look").DataFrame(ordered, schema=schema)


def _named(tables: Sequence[Any]) -> list[tuple[str, Any]]:
    return list(zip(("train", "test"), tables, strict=True))


def _infinite(column: NDArray[Any]) -> int:
    return int(np.isinf(column).sum()) if np.issubdtype(column.dtype, np.inexact) else 0


_FACTS: dict[str, Callable[[NDArray[Any]], Any]] = {
    "{} dtype": lambda column: f"{column.dtype} {column.shape}",
    "missing in {}": lambda column: int(is_missing(column.reshape(-1)).sum()),
    "infinite in {}": _infinite,
}


def _balance(classes: NDArray[Any]) -> dict[str, Any]:
    """The number and the fraction of rows of each class, and of missing ones."""
    absent = is_missing(classes)
    values, counts = np.unique(classes[~absent], return_counts=True)
    named, rows = values.tolist(), counts.tolist()
    if absent.any():
        named, rows = [*named, None], [*rows, int(absent.sum())]
    return {"class": named, "rows": rows, "part": [count / len(classes) for count in rows]}
