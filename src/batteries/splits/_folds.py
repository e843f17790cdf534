"""Make folds, and keep them in a file. Equal arguments give equal folds."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from batteries import distributed
from batteries._files import PathLike
from batteries._numbers import as_seed, as_whole
from batteries._spellings import hints
from batteries.splits._assignment import Folds
from batteries.splits._file import digest, kept
from batteries.splits._strata import of_labels, strata
from batteries.splits._tables import (
    as_table,
    column_of,
    groups_of,
    is_table,
    length_of,
    random_state,
    refuse_missing,
    sklearn_room,
)
from batteries.splits._time import as_times, in_blocks, refuse_unsorted

_SPLITTERS = {
    "kfold": "KFold",
    "stratified": "StratifiedKFold",
    "group": "GroupKFold",
    "stratified_group": "StratifiedGroupKFold",
}
_KINDS = [*_SPLITTERS, "time"]
_Order = tuple[Any, Any, Any, Any]  # time, gap, embargo and window of folds of kind "time"


@hints
def make_folds(
    data: Any,
    n_folds: int = 5,
    kind: Literal["kfold", "stratified", "group", "stratified_group", "time"] = "kfold",
    seed: int = 42,
    *,
    targets: Any = None,
    groups: Any = None,
    time: Any = None,
    gap: float | timedelta | np.timedelta64 = 0,
    embargo: float | timedelta | np.timedelta64 | None = None,
    window: float | timedelta | np.timedelta64 | None = None,
    repeats: int = 1,
    path: PathLike | None = None,
) -> Folds:
    """Divide rows into folds with scikit-learn's splitters. Equal arguments give equal folds.

    >>> folds = make_folds([0, 0, 1, 1], n_folds=2, kind="stratified")
    >>> for train, valid in folds:
    ...     print(len(train), len(valid))
    2 2
    2 2

    Args:
        data: The number of rows, a table (a polars or pandas frame, or a dict of columns), or an
            array or list of one item a row. For "stratified" and "stratified_group", an array or
            list is the targets if there is no `targets`.
        n_folds: The number of folds, 2 or more.
        kind: "kfold"; "stratified": folds have the same fractions of classes; "group": no group is
            on both sides; "stratified_group": both; "time": a fold trains on earlier rows only.
        seed: The seed of the shuffle, from 0 to 2**64 - 1. "time" does not use it.
        targets: Classes, (rows,); numbers, (rows,), which are binned by quantiles; or labels,
            (rows, labels): 0 where a row does not have the label. Or the name of a column of
            the table, or the names of the columns of labels.
        groups: Groups, (rows,), or the name of a column of the table.
        time: For "time": dates or numbers that order the rows, (rows,), or the name of a column.
            Rows of one time are in one fold. Default: the rows are in order.
        gap: For "time": the span next to the validation rows that is not trained on. It is a whole
            number of rows, a `timedelta`, or a float if times are numbers. A row at exactly this
            distance in time is trained on.
        embargo: For "time": a fold also trains on later rows, but not on those within `gap` plus
            this span after the validation rows. With an embargo, every row is validated.
        window: For "time": the longest span to train on, before the gap. Default: all.
        repeats: The number of times that all folds are made, with `seed`, `seed + 1` and so on.
        path: A `.csv` or `.parquet` file of the folds. It is loaded if it exists, else written.
            Rank 0 does this. All ranks make the call, and get the folds or the error of rank 0. A
            rank with other data or arguments raises.

    Returns:
        The folds. `for train, valid in folds` gives the numbers of the rows of each fold.

    Raises:
        OSError: The file cannot be opened or written. All ranks raise it.
        TypeError: A number or a span of another type, or an unknown argument. If scikit-learn has
            this argument, the error says what `make_folds` calls it.
        ValueError: Too few rows, groups, or members of a class for so many folds; an unknown kind
            or column; missing targets or groups, or not one for each row; groups for a kind that
            would divide them; arguments that exclude each other; a negative span, or one that
            leaves no rows to train on; rows that are not in the order of time; a file of other
            folds, or a file that was changed or is damaged.
        ModuleNotFoundError: scikit-learn is not installed; or polars, for `path`.
    """
    labels = ": pass labels as targets=" if isinstance(n_folds, Iterable) else ""
    n_folds = as_whole(n_folds, "n_folds", told=labels)  # numpy's numbers have another repr
    seed, repeats = as_seed(seed), as_whole(repeats, "repeats", 1)
    rows, targets = _rows_and_targets(data, targets, "stratified" in str(kind))
    groups = groups_of(data, groups)
    _check_request(rows, n_folds, kind, targets, groups)
    if groups is not None and "group" not in str(kind):
        raise ValueError(
            f"groups= is for kind='group' and kind='stratified_group'; kind={kind!r} would divide "
            "the groups"
        )
    targets = targets if "stratified" in kind else None  # unused, so not part of the digest
    order = (column_of(data, time, "time"), gap, embargo, window)
    unlike = (order[0], None if np.isscalar(gap) and gap == 0 else gap, embargo, window)
    names = ("time", "gap", "embargo", "window")
    asked = [name for name, each in zip(names, unlike, strict=True) if each is not None]
    _check_order(order, asked, kind, repeats, data)
    if path is not None and Path(path).suffix not in (".csv", ".parquet"):
        raise ValueError(f"folds are saved as .csv or .parquet, not as {Path(path).name}")
    made = partial(_made, rows, n_folds, kind, seed, targets, groups, order, repeats)
    if path is None:
        return made()
    more = [*(order if asked else ()), *([repeats] if repeats > 1 else ())]
    made_of = digest(rows, n_folds, kind, seed, targets, groups, *more)
    on_rank_zero = distributed.rank_zero_only(share=True)
    folds, theirs = on_rank_zero(kept)(Path(path), rows, kind, made_of, made)
    if theirs != made_of:
        raise ValueError(
            f"rank {distributed.rank()} has other data or arguments than rank 0, which has made or "
            f"read {path}: pass the same on all ranks"
        )
    return folds


def _check_order(order: _Order, asked: list[str], kind: str, repeats: int, data: Any) -> None:
    if kind != "time":
        if asked:
            raise ValueError(f"{asked[0]}= is for kind='time', not for kind={kind!r}")
    elif order[0] is None and is_table(data):
        refuse_unsorted(as_table(data))
    if repeats > 1 and kind == "time":
        equal = "all repeats of kind='time' would be equal: leave out repeats="
        raise ValueError(f"repeats is {repeats}; {equal}")


def _made(
    rows: int, n_folds: int, kind: str, seed: int, targets: Any, groups: Any, order: _Order,
    repeats: int,
) -> Folds:  # fmt: skip
    if kind == "time":
        time, *spans = order
        blocks, left_out = in_blocks(as_times(time, rows), n_folds, *spans)
        return Folds(blocks, kind, left_out)
    all_repeats = [
        _assigned(rows, n_folds, kind, own, targets, groups) for own in range(seed, seed + repeats)
    ]
    return Folds(np.stack(all_repeats) if repeats > 1 else all_repeats[0], kind)


def _assigned(
    rows: int, n_folds: int, kind: str, seed: int, targets: Any, groups: Any
) -> NDArray[np.int64]:
    if targets is not None and targets.ndim > 1:
        return of_labels(targets, n_folds, seed)
    if targets is not None:
        targets = strata(targets, n_folds)
    model_selection = sklearn_room("model_selection")
    splitter = getattr(model_selection, _SPLITTERS[kind])(
        n_folds, shuffle=True, random_state=random_state(seed)
    )
    assignment = np.full(rows, -1, dtype=np.int64)
    for fold, (_, valid) in enumerate(splitter.split(np.zeros(rows), targets, groups)):
        assignment[valid] = fold
    return assignment


def _rows_and_targets(data: Any, targets: Any, labels: bool) -> tuple[int, Any]:
    if isinstance(data, str) or not hasattr(data, "__len__") or getattr(data, "ndim", 1) == 0:
        rows = as_whole(data, "data", 0, ", or a table, an array or a list")
        return rows, column_of(data, targets, "targets")
    if targets is None and labels and not is_table(data):
        targets = data
    return length_of(data), column_of(data, targets, "targets")


def _check_request(rows: int, n_folds: int, kind: str, targets: Any, groups: Any) -> None:
    if kind not in _KINDS:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(_KINDS)}")
    most = rows - 1 if kind == "time" else rows
    if most < 2:
        raise ValueError(f"there are {rows} rows; expected {rows - most + 2} or more")
    if not 2 <= n_folds <= most:
        raise ValueError(f"n_folds is {n_folds}; expected 2 to {most} for {rows} rows")
    for name, value, needed in (
        ("targets", targets, "stratified" in kind),
        ("groups", groups, "group" in kind),
    ):
        if needed and value is None:
            raise ValueError(f"kind {kind!r} needs {name}=")
        if value is None:
            continue
        if len(value) != rows:
            raise ValueError(
                f"there are {len(value)} {name} for {rows} rows; expected one for each"
            )
        if needed:
            refuse_missing(name, value)
    if "stratified" in kind and targets.ndim > 1:
        if targets.ndim > 2 or kind != "stratified":
            raise ValueError(
                f"targets have shape {targets.shape}; kind {kind!r} needs (rows,)"
                + (", or (rows, labels)" if kind == "stratified" else "")
            )
    elif "stratified" in kind:
        values, counts = np.unique(strata(targets, n_folds), return_counts=True)
        rare = counts.argmin()
        if counts[rare] < n_folds:
            raise ValueError(
                f"class {values[rare]} has {counts[rare]} members, fewer than the {n_folds} folds: "
                "make fewer folds, join rare classes, or bin the numbers"
            )
    if "group" in kind and len(np.unique(groups)) < n_folds:
        raise ValueError(
            f"there are {len(np.unique(groups))} groups for {n_folds} folds: make fewer folds"
        )
