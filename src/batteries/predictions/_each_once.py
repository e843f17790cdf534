"""The result of a gather, in which each sample comes once."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_NAMED = 5  # indices in an error
_BLOCK = 2**16  # rows
Indices = range | NDArray[np.integer]  # a range takes no memory


class Form(NamedTuple):
    name: str
    dtype: str  # "" for objects
    shape: tuple[int, ...]  # of one row


def each_once(parts: list[range | None], length: int) -> bool:
    """Whether the ranges of all ranks contain each index of the dataset once.

    False also if a rank has no range: then the rows are counted as they arrive.
    """
    ranges = [part for part in parts if part is not None and len(part)]
    if None in parts or sum(map(len, ranges)) != length:
        return False
    steps = {part.step for part in ranges if len(part) > 1} or {1}
    step = max(steps)
    ranges.sort(key=lambda part: (part.start % step, part.start))
    return len(steps) == 1 and all(
        one[-1] < other[0] or (other[0] - one[0]) % step for one, other in pairwise(ranges)
    )


class Result:
    def __init__(self, length: int, forms: list[Form], drops: bool, whole: bool) -> None:
        """Memory for the result. If `whole`, the answer of `each_once`, nothing is counted."""
        self.places = torch.int32 if length < 2**31 else torch.int64
        self._whole = whole
        self._drops = drops
        self._seen = np.zeros(length, dtype=bool)
        self._count = 0
        self._repeated: list[int] = []
        self._differing: dict[str, list[int]] = {form.name: [] for form in forms}
        self._arrays: dict[str, Any] = {
            form.name: torch.empty(
                length, *form.shape, dtype=getattr(torch, form.dtype), device="cpu"
            )
            if form.dtype
            else [None] * length
            for form in forms
        }

    def room(self, form: Form, count: int, there: range | None) -> Tensor:
        """Memory for rows that arrive: their place in the result if it is contiguous."""
        array: Tensor = self._arrays[form.name]
        if self._whole and there is not None and there.step == 1:
            return array[there.start : there.stop]
        return array.new_empty(count, *form.shape)

    def put(self, parts: list[tuple[Indices, list[Any]]]) -> None:
        """Put rows into their places, or compare them with rows that came before."""
        if not self._whole:
            for there, values in parts:
                self._put(there if isinstance(there, range) else there.astype(np.intp), values)
            return
        # In blocks, so that neighbouring rows of all ranks are written while they are in the cache.
        for start in range(0, max((len(there) for there, _ in parts), default=0), _BLOCK):
            block = slice(start, start + _BLOCK)
            for there, values in parts:
                if start < len(there):
                    self._write(there[block], [value[block] for value in values])

    def _put(self, there: Indices, values: list[Any]) -> None:
        again = self._claim(there)
        if again is None:
            self._write(there, values)
            return
        there = np.asarray(there)
        self._repeated.extend(there[again].tolist())
        self._write(there[~again], [_chosen(value, ~again) for value in values])
        for (name, array), value in zip(self._arrays.items(), values, strict=True):
            same = _equal(_chosen(array, there[again]), _chosen(value, again))
            self._differing[name].extend(there[again][~same].tolist())

    def _claim(self, there: Indices) -> NDArray[np.bool_] | None:
        """Mark the rows as seen; return which of them came before, or None if none did."""
        where = _selector(there)
        again: NDArray[np.bool_] = self._seen[where]  # a view if `there` is a range
        if isinstance(there, range) and not again.any():
            again[:] = True
            self._count += len(there)
            return None
        again = again.copy()
        self._seen[where] = True
        total = int(np.count_nonzero(self._seen))
        new, self._count = total - self._count, total
        if new == len(again):
            return None
        if not isinstance(there, range):  # an index may be twice in this piece: the first counts
            later = np.ones(len(again), dtype=bool)
            later[np.unique(there, return_index=True)[1]] = False
            again |= later
        return again

    def _write(self, there: Indices, values: list[Any]) -> None:
        for array, value in zip(self._arrays.values(), values, strict=True):
            if isinstance(array, list):
                for place, item in zip(there, value, strict=True):
                    array[place] = item
            # Rows that were received in place are there already.
            elif len(there) and value.data_ptr() != array[there[0] :].data_ptr():
                _bits(array)[_selector(there)] = _bits(value)

    def checked(self) -> dict[str, Any]:
        """The arrays, or an error if rows are missing, repeated or different."""
        total, told = len(self._seen), []
        if self._count < total and not self._whole:
            told.append(
                f"{_few(np.flatnonzero(~self._seen))} of {total} samples are missing: "
                "add each sample on one of the ranks"
            )
        if self._repeated and not self._drops:
            told.append(
                f"{_few(self._repeated)} came more than once: with torch's DistributedSampler, "
                "which repeats some samples, pass duplicates='drop'"
            )
        if self._drops:
            told += [
                f"{_few(places)} came more than once with different values of {name}"
                for name, places in self._differing.items()
                if places
            ]
        if told:
            raise ValueError("; ".join(told))
        return {
            name: list(map(pickle.loads, array)) if isinstance(array, list) else array
            for name, array in self._arrays.items()
        }


def _selector(there: Indices) -> Any:
    return slice(there.start, there.stop, there.step) if isinstance(there, range) else there


def _bits(rows: Tensor) -> NDArray[Any]:
    """The same memory as integers. numpy scatters them faster than torch, but has no bfloat16."""
    if rows.is_complex():
        rows = torch.view_as_real(rows)
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return rows.view(integers[rows.itemsize]).numpy()


def _few(indices: Any) -> str:
    first = sorted({int(index) for index in indices[: 10 * _NAMED]})[:_NAMED]
    more = ", ..." if len(indices) > len(first) else ""
    return f"{len(indices)} ({', '.join(map(str, first))}{more})"


def _chosen(rows: Any, which: NDArray[Any]) -> Any:
    if isinstance(rows, list):
        return [rows[i] for i in (np.flatnonzero(which) if which.dtype == bool else which)]
    return rows[torch.from_numpy(which)]


def _equal(some: Any, others: Any) -> NDArray[np.bool_]:
    """Which rows agree, (rows,)."""
    if isinstance(some, list):
        pairs = zip(some, others, strict=True)
        return np.array(
            [one == two or _agree(*map(pickle.loads, (one, two))) for one, two in pairs]
        )
    if some.is_floating_point() or some.is_complex():
        wide = torch.complex128 if some.is_complex() else torch.float64
        same = torch.isclose(some.to(wide), others.to(wide), equal_nan=True)
    else:
        same = some == others
    return same.reshape(len(same), -1).all(1).numpy()


def _agree(one: Any, two: Any) -> bool:
    """Whether two objects agree. The pickles of equal tensors differ, so pickles do not say it."""
    if type(one) is not type(two):
        return False
    if isinstance(one, np.ndarray | np.generic | float | complex):
        with suppress(TypeError):  # of strings and objects
            one, two = (torch.from_numpy(np.array(each)) for each in (one, two))
    if isinstance(one, Tensor):
        alike = (one.shape, one.dtype, one.layout) == (two.shape, two.dtype, two.layout)
        return alike and bool(_equal(one.to_dense()[None], two.to_dense()[None]).all())
    if isinstance(one, Mapping):
        return one.keys() == two.keys() and all(_agree(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(_agree, one, two))
    same = one == two
    return bool(same.all()) if isinstance(same, np.ndarray) else bool(same)
