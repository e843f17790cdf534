"""Check folds for leaks, and compare their sizes and classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from batteries._spellings import hints
from batteries.splits._assignment import Folds, made
from batteries.splits._duplicates import hashes, near_hashes, rows_of
from batteries.splits._strata import as_labels
from batteries.splits._tables import (
    as_table,
    column_of,
    groups_of,
    id_columns,
    is_table,
    length_of,
    polars_for,
    refuse_missing,
)

if TYPE_CHECKING:
    from polars import DataFrame

_NAMED = 5  # rows or groups in an error
_CLASSES = 20  # at most, with a column of their own


@hints
def check_folds(
    folds: Folds,
    targets: Any = None,
    *,
    groups: Any = None,
    data: Any = None,
    ids: str | Sequence[str] | None = None,
    near: Literal["rounded", "images"] | None = None,
) -> DataFrame:
    """Check that no group and no sample is on both sides of a fold. Return a table of the folds.

    >>> check_folds(Folds(np.array([0, 1]), "kfold"), targets=["cat", "dog"]).rows()
    [(0, 1, 1, 1.0, 0.0), (1, 1, 1, 0.0, 1.0)]

    Args:
        folds: The folds of `make_folds`.
        targets: Classes or numbers, (rows,), labels, (rows, labels), or the name of a column of
            `data`. The table describes them, by the validation rows of each fold.
        groups: Groups, (rows,), or the name of a column of `data`. A group on both sides is a leak.
        data: The samples: an array, (rows, ...), a table, or a list of arrays, bytes or strings.
            Exact duplicates on both sides are a leak.
        ids: The names of columns of `data` that are not compared. Default: columns of whole
            numbers, or of texts without spaces, that have a different value in each row. An error
            about leaks names these columns.
        near: Also find nearly equal rows, though not all of them. "rounded": numbers that differ
            by less than a twentieth of a column's standard deviation, and texts that differ in
            spaces and capitals. "images": images with similar perceptual hashes. Their sizes may
            differ.

    Returns:
        A polars frame with a row for each fold. "fold", "train" and "valid" are the number of the
        fold and its numbers of rows. With `targets`, there are also fractions of the validation
        rows: "class X" for each of the twenty most frequent classes, and one column for all other
        classes together; or "label 0", "label 1" and so on for labels. Instead, more than twenty
        different numbers have one column, "mean".

    Raises:
        TypeError: `folds` do not come from `make_folds`, or samples are objects that cannot be
            compared.
        ValueError: The folds leak. The error has, for each fold, how many validation rows leak,
            and the first few: groups, or numbers of rows. Also: folds for another number of rows,
            missing targets or groups, an empty fold, an unknown column, or samples that `near`
            cannot compare.
        ModuleNotFoundError: polars is not installed.
    """
    folds = made(folds)
    targets, groups = column_of(data, targets, "targets"), groups_of(data, groups)
    _check_rows(folds, targets=targets, groups=groups, data=data)
    parts = list(folds)
    for fold, rows in enumerate(parts):
        for indices, purpose in zip(rows, ("train", "validate"), strict=True):
            if not len(indices):
                raise ValueError(f"fold {fold} is empty: it has no rows to {purpose} on")
    for name, value in {"targets": targets, "groups": groups}.items():
        if value is not None:
            refuse_missing(name, value)
    shares = {} if targets is None else _shares(targets)
    columns: dict[str, list[Any]] = {
        "fold": list(range(folds.n_folds)),
        "train": [len(train) for train, _ in parts],
        "valid": [len(valid) for _, valid in parts],
        **{
            name: [float(values[valid].mean()) for _, valid in parts]
            for name, values in shares.items()
        },
    }
    sides = [] if groups is None else [("groups", groups)]
    if near is not None and data is None:
        raise ValueError("near= compares samples: pass data= with the samples, too")
    compared, without = _compared(data, ids, targets, groups)
    if data is not None:
        sides.append(("exact duplicates", hashes(_samples(compared))))
    if near is not None:
        sides += [("near duplicates", values) for values in near_hashes(compared, near)]
    leaks = [
        leak
        for fold, (train, valid) in enumerate(parts)
        for name, values in sides
        for leak in _both_sides(name, fold, values, train, valid)
    ]
    if leaks:
        raise ValueError("the folds leak: " + "; ".join(dict.fromkeys(leaks)) + without)
    table: DataFrame = polars_for("check_folds").DataFrame(columns)
    return table


def _check_rows(folds: Folds, **values: Any) -> None:
    for name, value in values.items():
        if value is not None and (rows := length_of(value, name)) != folds.rows:
            raise ValueError(f"{name} has {rows} rows, but the folds have {folds.rows}")


def _compared(data: Any, ids: str | Sequence[str] | None, *given: Any) -> tuple[Any, str]:
    """A table without its ids, and a text that names the ids."""
    if data is None or not is_table(data):
        return data, ""
    table = as_table(data)
    used = [name for name, column in table.items() if any(np.array_equal(column, g) for g in given)]
    known = [name for name in id_columns(table, ids) if name not in used]
    rest = {name: column for name, column in table.items() if name not in known}
    if not known or not set(rest) - set(used):  # without the ids, no column would be left
        return table, ""
    named = ", ".join(map(repr, known))
    return rest, f". Not compared: {named}; pass the columns of ids as ids=, or [] for none"


def _samples(data: Any) -> Any:
    return rows_of(list(data.values())) if isinstance(data, dict) else data


def _shares(targets: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """The columns whose mean over the validation rows is in the table."""
    if targets.ndim > 1:
        labels = as_labels(targets).astype(np.float64)
        return {f"label {at}": column for at, column in enumerate(labels.T)}
    classes, counts = np.unique(targets, return_counts=True)
    if len(classes) > _CLASSES and np.issubdtype(targets.dtype, np.number):
        return {"mean": targets.astype(np.float64)}
    shown = classes[np.sort(np.argsort(-counts, kind="stable")[:_CLASSES])]
    shares = {f"class {value}": (targets == value).astype(np.float64) for value in shown}
    if len(classes) > len(shown):
        others = ~np.isin(targets, shown)
        rest = len(classes) - len(shown)
        name = f"{rest} other class{'es' * (rest > 1)}"
        shares[name] = others.astype(np.float64)
    return shares


def _both_sides(
    name: str, fold: int, values: NDArray[Any], train: NDArray[Any], valid: NDArray[Any]
) -> list[str]:
    shared = np.isin(values[valid], values[train])
    if not shared.any():
        return []
    rows = valid[shared]
    first = ", ".join(map(str, values[rows][:_NAMED] if name == "groups" else rows[:_NAMED]))
    what = "rows are in groups that are" if name == "groups" else f"rows have {name}"
    where = "in training too" if name == "groups" else "in training"
    return [f"in fold {fold} {len(rows)} validation {what} {where} ({first})"]
