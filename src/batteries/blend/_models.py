"""Predictions of models, in any form that users have them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from batteries._arrays import as_array, by_name, is_frame

Array = NDArray[Any]
_FLOAT32 = np.dtype(np.float32)
BLOCK = 2**16  # numbers in one step: they fit into the processor's cache


@dataclass
class Models:
    """The predictions of several models for the same rows."""

    arrays: list[Array]  # (rows, ...) each
    named: Sequence[str] = ()  # the user's names
    rows: ArrayLike = ()  # the user's ids of the rows, if any
    told: Sequence[str] = ()  # the names of the models in errors, if they differ from `named`
    index: Any = None  # the index of pandas, if the models have one
    kept: Sequence[int] | NDArray[np.intp] = ()  # the numbers of the rows, if some were left out

    @property
    def keys(self) -> list[str]:
        return list(self.named or [f"model {index}" for index in range(len(self.arrays))])

    @property
    def names(self) -> list[str]:
        """The names of the models in errors."""
        return list(self.told or [f"model {name!r}" for name in self.named] or self.keys)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.arrays[0].shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of a blend: float32 if it can hold all predictions exactly, else float64."""
        kinds = {array.dtype for array in self.arrays}
        exact = np.result_type(*kinds, _FLOAT32) == _FLOAT32
        return _FLOAT32 if exact else np.dtype(np.float64)

    def refuse(self, start: int = 0, stop: int | None = None) -> None:
        """Raise if there is a NaN or an infinity from `start` to `stop` of the flat arrays."""
        for name, array in zip(self.names, self.arrays, strict=True):
            values = array.reshape(-1)[start:stop]
            finite = np.isfinite(values)
            if not finite.all():
                at = int(np.argmin(finite))
                raise ValueError(
                    f"{name} has {values[at]} in {self.row(start + at)}; expected finite numbers"
                )

    def row(self, at: int) -> str:
        """The row that has the number `at` of the flat arrays, as errors name it."""
        row = at // max(1, math.prod(self.shape[1:]))
        row = int(self.kept[row]) if len(self.kept) else row
        names = np.asarray(self.rows)
        return f"row {row}" if not len(names) else f"the row of id {names[row]}"


def as_models(predictions: Any, more: Sequence[Any] = (), *, labels: bool = False) -> Models:
    """Predictions, (models, rows, ...) or one array for each model, as arrays of one shape.

    Args:
        more: The other models, if they were passed one by one.
        labels: Whether values other than numbers are allowed.
    """
    if isinstance(predictions, Models):
        return predictions
    predictions = [predictions, *more] if more else predictions
    names: list[str] = []
    if isinstance(predictions, Mapping):
        names, predictions = list(map(str, predictions)), predictions.values()
    elif is_frame(predictions):
        names = list(map(str, predictions.columns))
        predictions = [predictions[name] for name in predictions.columns]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"more than one model is called {twice[0]!r}: give each model its own name"
        )
    if not isinstance(predictions, Iterable) or getattr(predictions, "ndim", 1) == 0:
        predictions = [predictions]
    parts = list(predictions)
    models = Models([_as_array(part, at, names) for at, part in enumerate(parts)], names)
    if not models.arrays:
        raise ValueError("there are no predictions to blend")
    _check(models, parts, labels)
    models.index = next((part.index for part in parts if hasattr(part, "iloc")), None)
    shape = models.shape
    if shape and all(array.shape == shape for array in models.arrays):
        return models
    if not any(array.ndim for array in models.arrays):
        raise ValueError(
            f"the predictions are one array of {len(models.arrays)} numbers; expected "
            "(models, rows, ...) or an array for each model: [first, second]"
        )
    other = next(at for at, array in enumerate(models.arrays) if array.shape != shape or not shape)
    raise ValueError(
        f"the predictions of {models.names[other]} have shape {models.arrays[other].shape}, but "
        f"those of {models.names[0]} have {shape}; expected (models, rows, ...)"
        + (": pass weights and powers by name, as weights= and power=" if more else "")
    )


def _check(models: Models, parts: list[Any], labels: bool) -> None:
    """Raise if there are other values than numbers, or rows or columns in different orders."""
    for at, array in enumerate(models.arrays):
        if array.dtype.kind not in "biuf" and not labels:
            raise TypeError(f"{models.names[at]} is of {array.dtype}; expected real numbers")
    index = [part.index for part in parts if hasattr(part, "iloc")]
    if any(not other.equals(index[0]) for other in index[1:]):
        raise ValueError(
            f"{models.names[0]} and another model have different indexes of pandas: bring their "
            "rows into one order, or pass .to_numpy() if they are in one order already"
        )
    columns = [list(part.columns) for part in parts if is_frame(part)]
    for other in columns[1:]:
        if other != columns[0] and set(other) == set(columns[0]):
            raise ValueError(
                f"{models.names[0]} and another model have their columns in different orders, "
                f"{columns[0]} and {other}: bring the columns into one order"
            )


def _as_array(values: Any, at: int, names: Sequence[str]) -> Array:
    if type(values) is np.ndarray and values.flags.c_contiguous:  # the common case has to be fast
        return values
    array = as_array(values, f"model {names[at]!r}" if names else f"model {at}")
    return np.ascontiguousarray(array) if array.ndim else array


def as_weights(weights: Any, models: Models, negative: bool = False) -> NDArray[np.float64]:
    """Weights of models, by name or in order, divided by their sum."""
    number = len(models.arrays)
    if weights is None:
        return np.full(number, 1 / number)
    weights = by_name(weights)
    if isinstance(weights, Mapping):
        weights = {str(name): weight for name, weight in weights.items()}
        if set(weights) != set(models.keys):
            raise ValueError(
                f"the weights are of {', '.join(weights)}, but the models are "
                f"{', '.join(models.keys)}; expected one for each, by the same names"
            )
        weights = [weights[name] for name in models.keys]
    given = as_array(weights, "weights")
    try:
        own = given.astype(np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"the weights are {given.tolist()}; expected numbers") from None
    if own.shape != (number,):
        raise ValueError(f"there are {own.size} weights for {number} models; expected one for each")
    if not ((negative or (own >= 0).all()) and 0 < own.sum() < np.inf):
        raise ValueError(
            f"the weights are {own.tolist()}; expected positive numbers or 0, and a finite sum "
            "above 0"
        )
    return np.asarray(own / own.sum())


def flat(array: Array) -> Array:
    """The numbers of each row: (rows, numbers)."""
    return array.reshape(len(array), math.prod(array.shape[1:]))


def in_blocks(number: int, work: Callable[[int, int], None]) -> None:
    """Call a function for each block of `number` numbers, on as many threads as torch has."""
    starts = range(0, number, BLOCK)
    stops = [min(number, start + BLOCK) for start in starts]
    with ThreadPoolExecutor(max(min(torch.get_num_threads(), len(starts)), 1)) as pool:
        list(pool.map(work, starts, stops))
