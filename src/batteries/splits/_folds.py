"""Folds: made once, kept in a file, the same wherever they are made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from batteries import distributed
from batteries._files import PathLike, write_whole
from batteries._foreign import brief, check_regular
from batteries.splits._tables import (
    column_of,
    is_table,
    length_of,
    polars_for,
    refuse_missing,
    sklearn_room,
)

Kind = Literal["kfold", "stratified", "group", "stratified_group", "time"]
_SPELLINGS = {  # of scikit-learn, and what is said instead
    "n_splits": "n_folds=",
    "random_state": "seed=",
    "X": "data=",
    "y": "targets=",
    "cv": "kind=",
    "folds": "n_folds=",
    "group": "groups=",
    "labels": "targets=",
    "stratify": "targets=, with kind='stratified'",
    "target": "targets=",
    "shuffle": "nothing: rows are shuffled, except those of kind='time'",
}
_SPLITTERS = {
    "kfold": "KFold",
    "stratified": "StratifiedKFold",
    "group": "GroupKFold",
    "stratified_group": "StratifiedGroupKFold",
    "time": "TimeSeriesSplit",
}


@dataclass(frozen=True)
class Folds:
    """In which fold each row is validated.

    >>> Folds(np.array([0, 1, 0]), "kfold").n_folds
    2

    Attributes:
        assignment: (rows,) int64; -1 for rows that are in no validation part, as the first ones in
            the order of time.
        kind: The kind of `make_folds`.
    """

    assignment: NDArray[np.int64]
    kind: str

    def __len__(self) -> int:
        return len(self.assignment)

    @property
    def n_folds(self) -> int:
        """How many folds there are."""
        return int(self.assignment.max()) + 1

    @cached_property
    def hash(self) -> str:
        """A digest of which row is in which fold: a run keeps it, to say what it was trained on."""
        data = self.kind.encode() + self.assignment.astype("<i8").tobytes()
        return hashlib.blake2b(data, digest_size=8).hexdigest()


def make_folds(
    data: Any,
    n_folds: int = 5,
    kind: Kind = "kfold",
    seed: int = 42,
    *,
    targets: Any = None,
    groups: Any = None,
    path: PathLike | None = None,
    **others: Any,
) -> Folds:
    """Divide rows into folds, with scikit-learn's splitters; the same for the same arguments.

    >>> folds = make_folds([0, 0, 1, 1], n_folds=2, kind="stratified")
    >>> train, valid = fold_indices(folds, 0)
    >>> len(train), len(valid)
    (2, 2)

    Args:
        data: The number of rows, or the targets, (rows,), or a table: a polars or pandas frame,
            or a dict of columns.
        kind: "kfold"; "stratified", alike in their classes; "group", a group on one side only;
            "stratified_group", both; "time", trained on what came before: rows in their order.
        targets: Classes, (rows,), or the name of a column of the table.
        groups: Groups, (rows,), or the name of a column of the table.
        path: A `.csv` or `.parquet` file, in which the folds are kept. When it is there they are
            loaded instead of made. Rank 0 reads and writes it, and all ranks make the call: they
            get the same folds, or the same error.

    Raises:
        OSError: Of the disk, on every rank.
        TypeError: Another argument; of scikit-learn's, with its name here.
        ValueError: Too few rows, or members of a class, or groups for so many folds; a group that
            is missing; a file with folds of something else, or that was changed.
    """
    for name in others:
        takes = "it takes data, n_folds, kind, seed, targets, groups and path"
        hint = f"say {_SPELLINGS[name]}" if name in _SPELLINGS else takes
        raise TypeError(f"make_folds has no argument {name!r}: {hint}")
    for name, value in (("n_folds", n_folds), ("seed", seed)):
        if not isinstance(value, int | np.integer):
            labels = ": labels are passed as targets=" if np.ndim(value) else ""
            raise TypeError(f"{name} is {brief(value)}; expected a whole number{labels}")
    n_folds, seed = int(n_folds), int(seed)  # of numpy too: they are hashed
    rows, targets = _rows_and_targets(data, targets)
    groups = column_of(data, groups)
    _check_request(rows, n_folds, kind, targets, groups)
    targets = targets if "stratified" in kind else None  # others are not looked at
    groups = groups if "group" in kind else None
    if path is not None and Path(path).suffix not in (".csv", ".parquet"):
        raise ValueError(f"folds are saved as .csv or .parquet, not as {Path(path).name}")
    made = partial(_made, rows, n_folds, kind, seed, targets, groups)
    if path is None:
        return made()
    made_of = _digest(rows, n_folds, kind, seed, targets, groups)
    on_rank_zero = distributed.rank_zero_only(share=True)
    folds, theirs = on_rank_zero(_kept)(Path(path), rows, kind, made_of, made)
    if theirs != made_of:
        raise ValueError(
            f"rank {distributed.rank()} asks for other folds than rank 0 has from {path}: pass the "
            "same data, n_folds, kind, seed, targets and groups on all ranks"
        )
    return folds


def _made(rows: int, n_folds: int, kind: str, seed: int, targets: Any, groups: Any) -> Folds:
    model_selection = sklearn_room("model_selection")
    options = {} if kind == "time" else {"shuffle": True, "random_state": seed}
    splitter = getattr(model_selection, _SPLITTERS[kind])(n_folds, **options)
    assignment = np.full(rows, -1, dtype=np.int64)
    for fold, (_, valid) in enumerate(splitter.split(np.zeros(rows), targets, groups)):
        assignment[valid] = fold
    return Folds(assignment, kind)


def fold_indices(folds: Folds, fold: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows to train on and to validate on, in their order.

    >>> train, valid = fold_indices(Folds(np.array([-1, 0, 1]), "time"), 0)
    >>> train.tolist(), valid.tolist()
    ([0], [1])

    Raises:
        IndexError: No such fold.
    """
    if not 0 <= fold < folds.n_folds:
        raise IndexError(f"there is no fold {fold}: they are 0 to {folds.n_folds - 1}")
    valid = folds.assignment == fold
    train = folds.assignment < fold if folds.kind == "time" else ~valid
    return np.flatnonzero(train), np.flatnonzero(valid)


def _rows_and_targets(data: Any, targets: Any) -> tuple[int, Any]:
    if isinstance(data, int | np.integer):
        return int(data), column_of(data, targets)
    if targets is None and not is_table(data):
        return length_of(data), column_of(data, data)
    return length_of(data), column_of(data, targets)


def _check_request(rows: int, n_folds: int, kind: str, targets: Any, groups: Any) -> None:
    if kind not in _SPLITTERS:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(_SPLITTERS)}")
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
    if "stratified" in kind:
        values, counts = np.unique(targets, return_counts=True)
        rare = counts.argmin()
        if counts[rare] < n_folds:
            raise ValueError(
                f"class {values[rare]} has {counts[rare]} members, fewer than the {n_folds} folds: "
                "make fewer folds, or join rare classes"
            )
    if "group" in kind and len(np.unique(groups)) < n_folds:
        raise ValueError(f"there are {len(np.unique(groups))} groups for {n_folds} folds")


# ---------------------------------------------------------------- files


def _kept(
    path: Path, rows: int, kind: str, made_of: str, make: Callable[[], Folds]
) -> tuple[Folds, str]:
    if path.exists():
        return _load(path, rows, kind, made_of), made_of
    folds = make()
    _save(folds, path, made_of)
    return folds, made_of


def _digest(*parts: Any) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        listed = part.tolist() if isinstance(part, np.ndarray) else part
        digest.update(repr(listed).encode())
    return digest.hexdigest()


def _save(folds: Folds, path: Path, made_of: str) -> None:
    polars = polars_for("folds in a file")
    rows = len(folds)
    frame = polars.DataFrame(
        {
            "row": np.arange(rows),
            "fold": folds.assignment,
            "kind": [folds.kind] * rows,
            "hash": [folds.hash] * rows,
            "made_of": [made_of] * rows,
        }
    )
    with write_whole(path) as file:
        (frame.write_csv if path.suffix == ".csv" else frame.write_parquet)(file)


def _load(path: Path, rows: int, kind: str, made_of: str) -> Folds:
    polars = polars_for("folds in a file")
    frame = _read(path)
    if not {"row", "fold", "kind", "hash", "made_of"} <= set(frame.columns) or not len(frame):
        raise ValueError(f"{path} has no folds of make_folds in it: it has {frame.columns}")
    if len(frame) != rows:
        raise ValueError(f"{path} has folds of {len(frame)} rows, and the data has {rows}")
    numbers = frame["fold"].cast(polars.Int64, strict=False).fill_null(-2)  # no number is none
    folds = Folds(numbers.to_numpy().astype(np.int64), frame["kind"][0] or "")
    in_order = frame["row"].to_list() == list(range(rows))
    if not in_order or folds.hash != frame["hash"][0]:
        raise ValueError(
            f"{path} was changed since it was written: take it from a copy, or remove it"
        )
    if frame["made_of"][0] != made_of:
        raise ValueError(
            f"{path} was made with another n_folds, kind, seed, targets or groups (kind "
            f"{folds.kind!r}, {folds.n_folds} folds; asked for: {kind!r}): ask for the same, or "
            "remove it to make new folds"
        )
    return folds


def _read(path: Path) -> Any:
    polars = polars_for("folds in a file")
    text = dict.fromkeys(("kind", "hash", "made_of"), polars.String)
    check_regular(path)
    try:
        if path.suffix == ".csv":
            return polars.read_csv(path, schema_overrides=text)
        return polars.read_parquet(path)
    except (polars.exceptions.PolarsError, polars.exceptions.PanicException) as error:
        raise ValueError(
            f"{path} cannot be read ({error}): take it from a copy, or remove it"
        ) from error
