"""Predictions of models, in any form that users have them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Array = NDArray[Any]
_FLOAT32 = np.dtype(np.float32)
BLOCK = 2**16  # numbers in one step: they fit into the processor's cache


@dataclass
class Models:
    """The predictions of several models for the same rows."""

    arrays: list[Array]  # (rows, ...) each
    named: Sequence[str] = ()  # the user's names
    rows: ArrayLike = ()  # the user's ids of the rows, if any
    told: Sequence[str] = ()  # the names of the models in errors, if others

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
        """The dtype of a blend: float32 for predictions of 16 or 32 bits, else float64."""
        kinds = {array.dtype for array in self.arrays}
        if kinds == {_FLOAT32}:
            return _FLOAT32
        found = np.result_type(*kinds, _FLOAT32)
        return found if found.kind == "f" else np.dtype(np.float64)

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
        """The user's name for the row of a number of the flat arrays."""
        row = at // max(1, math.prod(self.shape[1:]))
        names = np.asarray(self.rows)
        return f"row {row}" if not len(names) else f"the row of id {names[row]}"


def as_models(predictions: Any, more: Sequence[Any] = ()) -> Models:
    """Predictions, (models, rows, ...) or one array for each model, as arrays of one shape.

    Args:
        more: The other models, if they were passed one by one.
    """
    if isinstance(predictions, Models):
        return predictions
    predictions = [predictions, *more] if more else predictions
    names: Sequence[str] = ()
    if isinstance(predictions, Mapping):
        names, predictions = list(map(str, predictions)), predictions.values()
    elif hasattr(predictions, "columns"):
        names = list(map(str, predictions.columns))
        predictions = [predictions[name] for name in predictions.columns]
    models = Models([_as_array(part) for part in predictions], names)
    if not models.arrays:
        raise ValueError("there are no predictions to blend")
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


def _as_array(values: Any) -> Array:
    if type(values) is np.ndarray and values.flags.c_contiguous:  # the common case has to be fast
        return values
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
    array = np.asarray(values)
    return np.ascontiguousarray(array) if array.ndim else array


def as_weights(weights: Any, models: Models, negative: bool = False) -> NDArray[np.float64]:
    """Weights of models, by name or in order, divided by their sum."""
    number = len(models.arrays)
    if weights is None:
        return _same(number)
    if isinstance(weights, Mapping):
        if set(weights) != set(models.keys):
            raise ValueError(
                f"the weights are of {', '.join(map(str, weights))}, but the models are "
                f"{', '.join(models.keys)}; expected one for each"
            )
        weights = [weights[name] for name in models.keys]
    own = np.asarray(weights, dtype=np.float64)
    if own.shape != (number,):
        raise ValueError(f"there are {own.size} weights for {number} models; expected one for each")
    if not (np.isfinite(own).all() and (negative or (own >= 0).all()) and own.sum() > 0):
        raise ValueError(f"the weights are {own.tolist()}; expected positive numbers")
    return np.asarray(own / own.sum())


@functools.cache
def _same(number: int) -> NDArray[np.float64]:
    weights = np.full(number, 1 / number)
    weights.flags.writeable = False
    return weights


def in_blocks(number: int, work: Callable[[int, int], None]) -> None:
    """Call a function for each block of `number` numbers, on as many threads as torch has."""
    if 0 < number <= BLOCK:
        work(0, number)
        return
    starts = range(0, number, BLOCK)
    threads = min(torch.get_num_threads(), len(starts))
    if threads <= 1:
        for start in starts:
            work(start, min(number, start + BLOCK))
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda start: work(start, min(number, start + BLOCK)), starts))
