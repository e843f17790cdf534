"""Folds: made once, kept in a file, the same wherever they are made."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from batteries import distributed
from batteries._files import PathLike
from batteries._foreign import brief
from batteries._spellings import hints
from batteries.splits._assignment import Folds
from batteries.splits._kept import digest, kept
from batteries.splits._strata import of_labels, strata
from batteries.splits._tables import (
    as_table,
    column_of,
    is_table,
    length_of,
    refuse_missing,
    sklearn_room,
)
from batteries.splits._time import Span, as_times, in_blocks, refuse_unsorted

Kind = Literal["kfold", "stratified", "group", "stratified_group", "time"]
_SPLITTERS = {
    "kfold": "KFold",
    "stratified": "StratifiedKFold",
    "group": "GroupKFold",
    "stratified_group": "StratifiedGroupKFold",
}
_KINDS = [*_SPLITTERS, "time"]


@hints
def make_folds(
    data: Any,
    n_folds: int = 5,
    kind: Kind = "kfold",
    seed: int = 42,
    *,
    targets: Any = None,
    groups: Any = None,
    time: Any = None,
    gap: Span = 0,
    embargo: Span | None = None,
    window: Span | None = None,
    repeats: int = 1,
    path: PathLike | None = None,
) -> Folds:
    """Divide rows into folds, with scikit-learn's splitters; the same for the same arguments.

    >>> folds = make_folds([0, 0, 1, 1], n_folds=2, kind="stratified")
    >>> for train, valid in folds:
    ...     print(len(train), len(valid))
    2 2
    2 2

    Args:
        data: The number of rows, or the targets, (rows,), or a table: a polars or pandas frame,
            or a dict of columns.
        kind: "kfold"; "stratified", alike in their targets; "group", a group on one side only;
            "stratified_group", both; "time", trained on what came before.
        targets: Classes, (rows,); numbers of a range, of which each fold has as many from between
            two quantiles; labels, (rows, labels), 0 where a row does not have one. Or the name of
            a column of the table, or names of the columns of labels.
        groups: Groups, (rows,), or the name of a column of the table.
        time: For "time": dates or numbers, (rows,), or the name of a column, by which rows are
            ordered; rows of one time are in one fold. Default: rows are in their order.
        gap: For "time": what is left out of training next to the rows of validation. A whole
            number is of rows; a span of time is a `timedelta`, or a float if times are numbers.
            Rows exactly so far away in time are trained on.
        embargo: For "time": with it a fold trains on what comes later as well, except for the gap
            and so much more behind its rows of validation. All rows are validated.
        window: For "time": how much a fold trains on at most, before the gap. Default: all.
        repeats: How often all folds are made, with the seeds `seed`, `seed + 1` and so on.
        path: A `.csv` or `.parquet` file, in which the folds are kept. When it is there they are
            loaded instead of made. Rank 0 reads and writes it, and all ranks make the call: they
            get the same folds, or the same error.

    Raises:
        OSError: Of the disk, on every rank.
        TypeError: Another argument; of scikit-learn's, with its name here.
        ValueError: Too few rows, or members of a class, or groups for so many folds; a group that
            is missing; rows that are in no order of time; a file with folds of something else, or
            that was changed.
    """
    for name, value in (("n_folds", n_folds), ("seed", seed), ("repeats", repeats)):
        if not isinstance(value, int | np.integer):
            labels = ": labels are passed as targets=" if np.ndim(value) else ""
            raise TypeError(f"{name} is {brief(value)}; expected a whole number{labels}")
    n_folds, seed, repeats = int(n_folds), int(seed), int(repeats)  # numpy's too: hashed
    rows, targets = _rows_and_targets(data, targets)
    groups = column_of(data, groups)
    _check_request(rows, n_folds, kind, targets, groups)
    targets = targets if "stratified" in kind else None  # others are not looked at
    groups = groups if "group" in kind else None
    order = _Order(column_of(data, time), gap, embargo, window)
    _check_order(order, kind, int(repeats), data)
    if path is not None and Path(path).suffix not in (".csv", ".parquet"):
        raise ValueError(f"folds are saved as .csv or .parquet, not as {Path(path).name}")
    made = partial(_made, rows, n_folds, kind, seed, targets, groups, order, int(repeats))
    if path is None:
        return made()
    more = [*(order if order.asked else ()), *([repeats] if repeats > 1 else ())]
    made_of = digest(rows, n_folds, kind, seed, targets, groups, *more)
    on_rank_zero = distributed.rank_zero_only(share=True)
    folds, theirs = on_rank_zero(kept)(Path(path), rows, kind, made_of, made)
    if theirs != made_of:
        raise ValueError(
            f"rank {distributed.rank()} asks for other folds than rank 0 has from {path}: pass the "
            "same data and arguments on all ranks"
        )
    return folds


class _Order(NamedTuple):
    """What folds of kind "time" are made of."""

    time: NDArray[Any] | None
    gap: Span
    embargo: Span | None
    window: Span | None

    @property
    def asked(self) -> list[str]:
        """The arguments that were passed."""
        return [
            name
            for name, value, default in zip(self._fields, self, (None, 0, None, None), strict=True)
            if value is not default and not (np.isscalar(value) and value == default)
        ]


def _check_order(order: _Order, kind: str, repeats: int, data: Any) -> None:
    if kind != "time":
        if order.asked:
            raise ValueError(f"{order.asked[0]}= is for kind='time', not for kind={kind!r}")
    elif order.time is None and is_table(data):
        refuse_unsorted(as_table(data))
    if repeats < 1 or (repeats > 1 and kind == "time"):
        many = (
            "the order of time is one: leave out repeats=" if repeats > 1 else "expected 1 or more"
        )
        raise ValueError(f"repeats is {repeats}; {many}")


def _made(
    rows: int, n_folds: int, kind: str, seed: int, targets: Any, groups: Any, order: _Order,
    repeats: int,
) -> Folds:  # fmt: skip
    if kind == "time":
        times = as_times(order.time, rows)
        blocks, left_out = in_blocks(times, n_folds, order.gap, order.embargo, order.window)
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
    splitter = getattr(model_selection, _SPLITTERS[kind])(n_folds, shuffle=True, random_state=seed)
    assignment = np.full(rows, -1, dtype=np.int64)
    for fold, (_, valid) in enumerate(splitter.split(np.zeros(rows), targets, groups)):
        assignment[valid] = fold
    return assignment


def _rows_and_targets(data: Any, targets: Any) -> tuple[int, Any]:
    if isinstance(data, int | np.integer):
        return int(data), column_of(data, targets)
    if targets is None and not is_table(data):
        return length_of(data), column_of(data, data)
    return length_of(data), column_of(data, targets)


def _check_request(rows: int, n_folds: int, kind: str, targets: Any, groups: Any) -> None:
    if kind not in _KINDS:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(_KINDS)}")
    most = rows - 1 if kind == "time" else rows
    if not 2 <= n_folds <= most:
        raise ValueError(f"n_folds is {n_folds}; expected 2 to {most}, for {rows} rows")
    for name, value, needed in (
        ("targets", targets, "stratified" in kind),
        ("groups", groups, "group" in kind),
    ):
        if needed and value is None:
            raise ValueError(f"kind {kind!r} needs {name}=")
        if value is None:
            continue
        if len(value) != rows:
            raise ValueError(f"there are {len(value)} {name} for {rows} rows")
        if needed:
            refuse_missing(name, value)
    if "stratified" in kind and targets.ndim > 1:
        if targets.ndim > 2 or kind != "stratified":
            raise ValueError(f"targets of shape {targets.shape} are no labels for kind {kind!r}")
    elif "stratified" in kind:
        values, counts = np.unique(strata(targets, n_folds), return_counts=True)
        rare = counts.argmin()
        if counts[rare] < n_folds:
            raise ValueError(
                f"class {values[rare]} has {counts[rare]} members, fewer than the {n_folds} folds: "
                "make fewer folds, or join rare classes; of numbers of a range, pass bins"
            )
    if "group" in kind and len(np.unique(groups)) < n_folds:
        raise ValueError(f"there are {len(np.unique(groups))} groups for {n_folds} folds")
