"""The rows that each fold trains and validates on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batteries._arrays import as_rows
from batteries._foreign import brief
from batteries._numbers import as_whole
from batteries.splits._tables import length_of


@dataclass(frozen=True, eq=False)
class Folds:
    """The fold in which each row is validated. Loop over the folds, or pass them to scikit-learn.

    >>> folds = Folds(np.array([0, 1, 0]), "kfold")
    >>> for train, valid in folds:
    ...     print(train, valid)
    [1] [0 2]
    [0 2] [1]
    >>> len(folds), folds.rows
    (2, 3)

    Functions of scikit-learn take them as `cv=`.

    Attributes:
        assignment: (rows,) int64, or (repeats, rows) for repeated folds. -1 for rows that are never
            validated, such as the first ones in the order of time.
        kind: The argument `kind` of `make_folds`, such as "kfold".
        left_out: (folds, rows) bool, the rows that a fold neither trains nor validates on, such as
            those in a gap. None: a fold trains on all rows that it does not validate on, or for
            "time" on all earlier rows.
    """

    assignment: NDArray[np.int64]
    kind: str
    left_out: NDArray[np.bool_] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        own = as_rows(self.assignment, "assignment")
        if len(own) and own.dtype.kind not in "biu":
            raise TypeError(f"assignment is of {own.dtype}; expected whole numbers")
        object.__setattr__(self, "assignment", own.astype(np.int64, copy=False))

    def __len__(self) -> int:
        return self.n_folds

    def __iter__(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        return (self[fold] for fold in range(self.n_folds))

    def __getitem__(self, fold: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows to train on and to validate on, sorted. -1 is the last fold."""
        if not -self.n_folds <= (fold := as_whole(fold, "fold")) < self.n_folds:
            raise IndexError(
                f"there is no fold {fold}: they are 0 to {self.n_folds - 1}, or -1 for the last one"
            )
        fold %= self.n_folds
        repeat, own = divmod(fold, self._of_one)
        column = np.atleast_2d(self.assignment)[repeat]
        valid = column == own
        if self.left_out is not None:
            train = ~valid & ~self.left_out[fold]
        else:
            train = column < own if self.kind == "time" else ~valid
        return np.flatnonzero(train), np.flatnonzero(valid)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """The assignment, for functions of numpy. A column of a frame needs `assignment`."""
        make = np.array if copy else np.asarray  # numpy 1 has no copy=None
        return make(self.assignment, dtype=dtype)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return int(self.assignment.shape[-1])

    @property
    def _of_one(self) -> int:
        """The number of folds of one repeat."""
        return int(self.assignment.max(initial=-1)) + 1

    @property
    def n_folds(self) -> int:
        """The number of folds, of all repeats together."""
        return self._of_one * (len(self.assignment) if self.assignment.ndim > 1 else 1)

    @cached_property
    def hash(self) -> str:
        """A digest of the folds. A run can record it to say which folds it was trained on."""
        data = self.kind.encode() + self.assignment.astype("<i8").tobytes()
        if self.left_out is not None:
            data += np.packbits(self.left_out).tobytes()
        return hashlib.blake2b(data, digest_size=8).hexdigest()

    def split(
        self,
        X: Any = None,  # noqa: N803 (scikit-learn's name)
        y: Any = None,  # noqa: ARG002
        groups: Any = None,  # noqa: ARG002
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """The rows to train and to validate on, by fold, as scikit-learn's splitters return them.

        `y` and `groups` are not used.

        Raises:
            ValueError: `X` has another number of rows.
            TypeError: `X` has no rows, such as one number.
        """
        if X is not None and (rows := length_of(X, "X")) != self.rows:
            raise ValueError(f"X has {rows} rows, but the folds have {self.rows}")
        return iter(self)

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:  # noqa: ARG002, N803
        """The number of folds, for scikit-learn. `X`, `y` and `groups` are not used."""
        return self.n_folds


def fold_indices(folds: Folds, fold: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows to train on and to validate on, sorted. It is the same as `folds[fold]`.

    >>> train, valid = fold_indices(Folds(np.array([-1, 0, 1]), "time"), 0)
    >>> train.tolist(), valid.tolist()
    ([0], [1])

    Raises:
        IndexError: There is no such fold.
        TypeError: `folds` is not what `make_folds` returns, or `fold` is not a whole number.
    """
    return made(folds)[fold]


def made(folds: Any) -> Folds:
    """The folds that a user passes, or a TypeError."""
    if not isinstance(folds, Folds):
        raise TypeError(f"folds is {brief(folds)}; expected what make_folds returns")
    return folds
