"""The predictions that are blended, as users have them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Array = NDArray[Any]
BLOCK = 2**16  # numbers that are worked on at once: the processor keeps them at hand


@dataclass
class Models:
    """The predictions of several models for the same rows."""

    arrays: list[Array]  # (rows, ...) each
    names: list[str]  # for errors
    rows: ArrayLike = field(default_factory=list)  # what the user calls them, if not by number
    keys: list[str] = field(default_factory=list)  # what the user calls the models

    @property
    def shape(self) -> tuple[int, ...]:
        return self.arrays[0].shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a blend: float32 where the predictions are of 16 or 32 bits, else float64."""
        found = np.result_type(*self.arrays, np.float32)
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
    columns = predictions if isinstance(predictions, Mapping) else None
    if columns is None and hasattr(predictions, "columns"):
        columns = {name: predictions[name] for name in predictions.columns}
    if columns is None:
        arrays = [_as_array(part) for part in predictions]
        names = keys = [f"model {index}" for index in range(len(arrays))]
    else:
        arrays, keys = [_as_array(part) for part in columns.values()], list(map(str, columns))
        names = [f"model {name!r}" for name in columns]
    if not arrays:
        raise ValueError("there are no predictions to blend")
    if all(array.ndim == 0 for array in arrays):
        raise ValueError(
            f"the predictions are one array of {len(arrays)} numbers; expected (models, rows, ...) "
            "or an array for each model: [first, second]"
        )
    for name, array in zip(names, arrays, strict=True):
        if array.shape != arrays[0].shape or array.ndim == 0:
            raise ValueError(
                f"the predictions of {name} have shape {array.shape}, those of {names[0]} "
                f"{arrays[0].shape}; expected (models, rows, ...)"
                + (": weights and powers are said by name, as weights= and power=" if more else "")
            )
    return Models(arrays, names, keys=keys)


def _as_array(values: Any) -> Array:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
    return np.ascontiguousarray(values) if np.ndim(values) else np.asarray(values)


def as_weights(weights: Any, models: Models, negative: bool = False) -> NDArray[np.float64]:
    """Weights of models, together 1, by name or in their order.

    Raises:
        ValueError: Not one for each model, or not positive.
    """
    number = len(models.arrays)
    if isinstance(weights, Mapping):
        if set(weights) != set(models.keys):
            raise ValueError(
                f"the weights are of {', '.join(map(str, weights))}, and the models are "
                f"{', '.join(models.keys)}; expected one for each"
            )
        weights = [weights[name] for name in models.keys]
    own = np.ones(number) if weights is None else np.asarray(weights, dtype=np.float64)
    if own.shape != (number,):
        raise ValueError(f"there are {own.size} weights for {number} models")
    if not (np.isfinite(own).all() and (negative or (own >= 0).all()) and own.sum() > 0):
        raise ValueError(f"the weights are {own.tolist()}; expected positive numbers")
    return np.asarray(own / own.sum())


def in_blocks(number: int, work: Callable[[int, int], None]) -> None:
    """Call a function for all blocks of so many numbers, on as many threads as torch has."""
    starts = range(0, number, BLOCK)
    threads = min(torch.get_num_threads(), len(starts))
    if threads <= 1:
        for start in starts:
            work(start, min(number, start + BLOCK))
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda start: work(start, min(number, start + BLOCK)), starts))
