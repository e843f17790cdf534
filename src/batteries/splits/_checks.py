"""What is on both sides of a fold, and how folds differ."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from batteries._foreign import brief
from batteries.splits._folds import Folds, fold_indices
from batteries.splits._tables import (
    as_table,
    column_of,
    is_table,
    length_of,
    polars_for,
    refuse_missing,
)

_NAMED = 5  # in an error
_CLASSES = 20  # with a column of their own


def check_folds(folds: Folds, targets: Any = None, *, groups: Any = None, data: Any = None) -> Any:
    """A short table of the folds, unless something is on both sides of one.

    >>> check_folds(Folds(np.array([0, 1]), "kfold"), targets=["cat", "dog"]).rows()
    [(0, 1, 1, 1.0, 0.0), (1, 1, 1, 0.0, 1.0)]

    Args:
        targets: Classes, (rows,) or the name of a column of `data`, for the part of each in the
            validation rows: of the twenty most frequent, and of the others together. Of more
            different numbers their mean.
        groups: Groups, likewise, that are to be on one side only.
        data: The samples, (rows, ...) or a table or a list of arrays, bytes or strings: exact
            duplicates on both sides are found by their hashes.

    Returns:
        A polars frame, a row for each fold.

    Raises:
        ValueError: Folds for another number of rows, targets or groups that are missing, a fold
            that is empty, or leaks: which, how many and the first few.
    """
    if not isinstance(folds, Folds):
        raise TypeError(f"folds is {brief(folds)}; expected what make_folds gives")
    targets, groups = column_of(data, targets), column_of(data, groups)
    for name, value in {"targets": targets, "groups": groups, "data": data}.items():
        if value is not None and length_of(value) != len(folds):
            raise ValueError(f"{name} has {length_of(value)} rows, the folds are of {len(folds)}")
    parts = [fold_indices(folds, fold) for fold in range(folds.n_folds)]
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
    sides = {"groups": groups, "duplicates": None if data is None else _hashes(data)}
    leaks = [
        leak
        for fold, (train, valid) in enumerate(parts)
        for name, values in sides.items()
        if values is not None
        for leak in _both_sides(name, fold, values, train, valid)
    ]
    if leaks:
        raise ValueError("the folds leak: " + "; ".join(leaks))
    return polars_for("check_folds").DataFrame(columns)


def _shares(targets: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Columns whose mean says how a fold is balanced."""
    classes, counts = np.unique(targets, return_counts=True)
    if len(classes) > _CLASSES and np.issubdtype(targets.dtype, np.number):
        return {"mean": targets.astype(np.float64)}
    shown = classes[np.sort(np.argsort(-counts, kind="stable")[:_CLASSES])]
    shares = {f"class {value}": (targets == value).astype(np.float64) for value in shown}
    if len(classes) > len(shown):
        others = ~np.isin(targets, shown)
        shares[f"{len(classes) - len(shown)} other classes"] = others.astype(np.float64)
    return shares


def _both_sides(
    name: str, fold: int, values: NDArray[Any], train: NDArray[Any], valid: NDArray[Any]
) -> list[str]:
    shared = np.isin(values[valid], values[train])
    if not shared.any():
        return []
    rows = valid[shared]
    first = ", ".join(map(str, values[rows][:_NAMED] if name == "groups" else rows[:_NAMED]))
    what = "rows are in groups that are" if name == "groups" else "rows have exact duplicates"
    where = "in training too" if name == "groups" else "in training"
    return [f"in fold {fold} {len(rows)} validation {what} {where} ({first})"]


def _hashes(data: Any) -> NDArray[Any]:
    if is_table(data):
        table = as_table(data)
        data = list(zip(*(column.tolist() for column in table.values()), strict=True))
    return np.array([_hash_of(row) for row in data])


def _hash_of(row: Any) -> str:
    if isinstance(row, Tensor):
        row = row.detach().cpu().numpy()
    if isinstance(row, np.ndarray) and row.dtype != object:
        data = f"{row.dtype} {row.shape}".encode() + np.ascontiguousarray(row).tobytes()
    elif isinstance(row, list | tuple | np.ndarray):
        data = ",".join(map(_hash_of, row)).encode()
    elif isinstance(row, Mapping):
        data = ",".join(f"{key}={_hash_of(value)}" for key, value in row.items()).encode()
    elif hasattr(row, "tobytes"):  # a picture
        data = f"{getattr(row, 'mode', '')} {getattr(row, 'size', '')}".encode() + row.tobytes()
    elif isinstance(row, bytes):
        data = row
    elif repr(row) == object.__repr__(row):  # it would say where it lies
        raise TypeError(f"a {type(row).__name__} cannot be compared: pass arrays, bytes or texts")
    else:
        data = repr(row).encode()
    return hashlib.blake2b(data, digest_size=16).hexdigest()
