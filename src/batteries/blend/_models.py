"""The predictions that are blended, as users have them."""

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
BLOCK = 2**16  # numbers that are worked on at once: the processor keeps them at hand


@dataclass
class Models:
    """The predictions of several models for the same rows."""

    arrays: list[Array]  # (rows, ...) each
    named: Sequence[str] = ()  # by the user
    rows: ArrayLike = ()  # what the user calls them, if not by number
    told: Sequence[str] = ()  # what errors call the models, if not by name

    @property
    def keys(self) -> list[str]:
        return list(self.named or [f"model {index}" for index in range(len(self.arrays))])

    @property
    def names(self) -> list[str]:
        """What errors call the models."""
        return list(self.told or [f"model {name!r}" for name in self.named] or self.keys)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.arrays[0].shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a blend: float32 where the predictions are of 16 or 32 bits, else float64."""
        kinds = {array.dtype for array in self.arrays}
        if kinds == {_FLOAT32}:
            return _FLOAT32
        found = np.result_type(*kinds, _FLOAT32)
        return found if found.kind == "f" else np.dtype(np.float64)

    def refuse(self, start: int = 0, stop: int | None = None) -> None:
        """Raise if there is a NaN or an infinity among the numbers; say where.

        Args:
            start: Of the flattened arrays, the first number that is looked at.
            stop: The one behind the last.
        """
        for name, array in zip(self.names, self.arrays, strict=True):
            values = array.reshape(-1)[start:stop]
            finite = np.isfinite(values)
            if not finite.all():
                at = int(np.argmin(finite))
                raise ValueError(
                    f"{name} has {values[at]} in {self.row(start + at)}; expected finite numbers"
                )

    def row(self, at: int) -> str:
        """What the user calls the row of a number of the flattened arrays."""
        row = at // max(1, math.prod(self.shape[1:]))
        names = np.asarray(self.rows)
        return f"row {row}" if not len(names) else f"the row of id {names[row]}"


def as_models(predictions: Any, more: Sequence[Any] = ()) -> Models:
    """Predictions, (models, rows, ...) or one array for each model, as arrays alike.

    Args:
        more: Those of the other models, where they were passed one by one.

    Raises:
        ValueError: None, or arrays of other shapes.
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
        f"the predictions of {models.names[other]} have shape {models.arrays[other].shape}, those "
        f"of {models.names[0]} {shape}; expected (models, rows, ...)"
        + (": weights and powers are said by name, as weights= and power=" if more else "")
    )


def _as_array(values: Any) -> Array:
    if type(values) is np.ndarray and values.flags.c_contiguous:  # most are: it has to be quick
        return values
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
    array = np.asarray(values)
    return np.ascontiguousarray(array) if array.ndim else array


def as_weights(weights: Any, models: Models, negative: bool = False) -> NDArray[np.float64]:
    """Weights of models, together 1, by name or in their order.

    Raises:
        ValueError: Not one for each model, or not positive.
    """
    number = len(models.arrays)
    if weights is None:
        return _same(number)
    if isinstance(weights, Mapping):
        if set(weights) != set(models.keys):
            raise ValueError(
                f"the weights are of {', '.join(map(str, weights))}, and the models are "
                f"{', '.join(models.keys)}; expected one for each"
            )
        weights = [weights[name] for name in models.keys]
    own = np.asarray(weights, dtype=np.float64)
    if own.shape != (number,):
        raise ValueError(f"there are {own.size} weights for {number} models")
    if not (np.isfinite(own).all() and (negative or (own >= 0).all()) and own.sum() > 0):
        raise ValueError(f"the weights are {own.tolist()}; expected positive numbers")
    return np.asarray(own / own.sum())


@functools.cache
def _same(number: int) -> NDArray[np.float64]:
    weights = np.full(number, 1 / number)
    weights.flags.writeable = False
    return weights


def in_blocks(number: int, work: Callable[[int, int], None]) -> None:
    """Call a function for all blocks of so many numbers, on as many threads as torch has."""
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
