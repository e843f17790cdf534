"""Means of predictions: arithmetic, geometric, of any power; the label with most votes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from batteries._spellings import hints
from batteries.blend._models import Array, Models, as_models, as_weights, in_blocks

Weights = Mapping[str, float] | Sequence[float] | NDArray[Any] | None
_Room = tuple[Array, Array]  # two of float64, as long as a block
_Blend = Callable[[list[Array], _Room], Array]


@hints
def mean(predictions: Any, *more: Any, weights: Weights = None) -> Array:
    """The weighted mean of predictions.

    >>> mean([[0.2, 0.9], [0.4, 0.9]])
    array([0.3, 0.9])

    Args:
        predictions: (models, rows, ...), or one array or tensor (rows, ...) for each model:
            a list, a mapping by name, a frame with a column for each, or one after the other.
        weights: (models,), positive, or a mapping by name; their sum does not matter. Default: all
            the same.

    Returns:
        (rows, ...): float32 of float32 (and of less), else float64; computed in float64.

    Raises:
        ValueError: A NaN or an infinity, with model and row; arrays of different shapes; weights
            that do not fit.
    """
    models = as_models(predictions, more)
    own = as_weights(weights, models)
    return weighted(models, own)


def weighted(models: Models, own: Array) -> Array:
    """The mean with weights that add up to 1."""
    return _blended(models, lambda parts, room: _weighted_sum(parts, own, room))


@hints
def power_average(
    predictions: Any, *more: Any, power: float = 2.0, weights: Weights = None
) -> Array:
    """The power mean of predictions: the root of the mean of their powers.

    >>> power_average([[0.2, 0.9], [0.4, 0.9]], power=2)
    array([0.31622777, 0.9       ])

    A high power listens to the confident models, a low one to those that say no. 1 is the mean,
    0 the geometric one, -1 the harmonic one, inf the largest and -inf the smallest.

    Args:
        predictions: As for `mean`, not negative.
        power: Any number, or an infinity; it may also be the last of the arrays.
        weights: As for `mean`.

    Returns:
        (rows, ...), as of `mean`.

    Raises:
        ValueError: A negative prediction, a NaN or an infinity, with model and row; a power that
            is NaN.
    """
    if more and np.ndim(more[-1]) == 0:  # a number, which is no model's predictions
        *more, power = more  # type: ignore[assignment]
    if math.isnan(power):
        raise ValueError("the power is NaN; expected a number, such as 2")
    models = as_models(predictions, more)
    own = as_weights(weights, models)
    counted = Models(
        [array for array, weight in zip(models.arrays, own, strict=True) if weight],
        [name for name, weight in zip(models.names, own, strict=True) if weight],
        models.rows,
    )
    if power < 0 or len(counted.arrays) < len(own):  # what would not be seen in the result
        models.refuse()
    _refuse_negative(models)
    return _blended(counted, _power_mean(power, own[own > 0]))


@hints
def geometric(predictions: Any, *more: Any, weights: Weights = None) -> Array:
    """The geometric mean of predictions: one zero makes it zero.

    >>> geometric([[0.2, 0.9], [0.8, 0.9]])
    array([0.4, 0.9])

    Args, Returns, Raises: As of `power_average`, of which it is the one of power 0.
    """
    return power_average(predictions, *more, power=0, weights=weights)


@hints
def majority_vote(labels: Any, *more: Any, weights: Weights = None) -> Array:
    """The label that most models predict; of several, the smallest.

    >>> majority_vote([[1, 0], [1, 2], [0, 2]])
    array([1, 2])

    Args:
        labels: As for `mean`, integers, bools or strings. Of class probabilities take the
            `argmax` first, or their `mean`.
        weights: As for `mean`.

    Returns:
        (rows, ...), of the labels' dtype.

    Raises:
        ValueError: Numbers that are no labels, such as 0.5; NaN and infinities, with model and row.
    """
    models = as_models(labels, more)
    own = as_weights(weights, models)
    for name, array in zip(models.names, models.arrays, strict=True):
        if array.dtype.kind != "f":
            continue
        models.refuse()
        if not (array == np.floor(array)).all():
            raise ValueError(f"{name} has numbers that are no labels; take the argmax first")
    best, most = models.arrays[0].copy(), np.full(models.shape, -1.0)
    for label in models.arrays:
        votes = np.zeros(models.shape)
        for other, weight in zip(models.arrays, own, strict=True):
            votes += weight * (label == other)
        # weights that add up to the same may differ in the last bits
        tied = np.isclose(votes, most, rtol=1e-12, atol=0)
        better = np.where(tied, label < best, votes > most)
        best, most = np.where(better, label, best), np.where(better, votes, most)
    return np.asarray(best, dtype=np.result_type(*models.arrays))


# ---------------------------------------------------------------- block by block


def _blended(models: Models, blend: _Blend) -> Array:
    """What a function makes of all rows, block by block, in the dtype of the predictions."""
    flat = [array.reshape(-1) for array in models.arrays]
    out = np.empty(flat[0].shape, dtype=models.dtype)

    def work(start: int, stop: int) -> None:
        room = np.empty(stop - start), np.empty(stop - start)
        with np.errstate(all="ignore"):
            value = blend([array[start:stop] for array in flat], room)
            if not np.isfinite(value.sum()):
                models.refuse(start, stop)
        out[start:stop] = value

    in_blocks(len(out), work)
    return out.reshape(models.shape)


def _weighted_sum(parts: list[Array], weights: Array, room: _Room) -> Array:
    total, term = room
    if (weights == weights[0]).all():
        np.copyto(total, parts[0])
        for part in parts[1:]:
            total += part
        total *= weights[0]
        return total
    np.multiply(parts[0], weights[0], out=total, dtype=np.float64)
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        np.multiply(part, weight, out=term, dtype=np.float64)
        total += term
    return total


def _refuse_negative(models: Models) -> None:
    for name, array in zip(models.names, models.arrays, strict=True):
        flat = array.reshape(-1)
        if array.dtype.kind not in "ub" and flat.size and not flat.min() >= 0:
            models.refuse()
            at = int(np.argmin(flat))
            raise ValueError(
                f"{name} has {flat[at]} in {models.row(at)}: a power mean is of numbers that are "
                "not negative; take the mean, or the rank average"
            )


def _power_mean(power: float, weights: Array) -> _Blend:
    if abs(power) < 1e-8:  # nearer to the geometric mean than float64 can tell
        return lambda parts, room: _geometric(parts, weights, room)
    if math.isinf(power):
        choose = np.maximum if power > 0 else np.minimum
        return lambda parts, room: _extreme(choose, parts, room)
    return lambda parts, room: _power(power, parts, weights, room)


def _extreme(choose: np.ufunc, parts: list[Array], room: _Room) -> Array:
    value = room[0]
    np.copyto(value, parts[0])
    for part in parts[1:]:
        choose(value, part, out=value)
    return value


def _power(power: float, parts: list[Array], weights: Array, room: _Room) -> Array:
    total, term = room
    total[:] = 0
    alike = (weights == weights[0]).all()
    for part, weight in zip(parts, weights, strict=True):
        _raised(part, power, term)
        if not alike:
            term *= weight
        total += term
    if alike:
        total *= weights[0]
    value: Array = np.sqrt(total) if power == 2 else total ** (1 / power)
    # Numbers whose powers are too small or too large for float64 have means all the same.
    lost = (total < 1e-290) | (total > 1e290)
    if lost.any():
        value[lost] = _scaled_power(power, [part[lost] for part in parts], weights)
    return value


def _raised(values: Array, power: float, out: Array) -> None:
    if power == 0.5:
        np.sqrt(values, out=out, dtype=np.float64)
    elif power == -1:
        np.divide(1.0, values, out=out, dtype=np.float64)
    elif power in (1, 2, 3):
        np.copyto(out, values)
        if power > 1:
            out *= out
        if power == 3:
            out *= values
    else:  # faster than a power, and as exact as 64 bits have it
        np.copyto(out, values)
        torch.from_numpy(out).log_().mul_(power).exp_()  # in half of numpy's time


def _scaled_power(power: float, parts: list[Array], weights: Array) -> Array:
    """The same of multiples of the largest, or smallest, number in a row."""
    rows = np.stack(parts).astype(np.float64)
    unit = rows.max(0) if power > 0 else rows.min(0)
    mean = (weights[:, None] * (rows / unit) ** power).sum(0) ** (1 / power)
    return np.where(unit == 0, 0.0, unit * mean)


def _geometric(parts: list[Array], weights: Array, room: _Room) -> Array:
    total, term = room
    total[:] = 0
    logarithms = torch.from_numpy(term)
    alike = (weights == weights[0]).all()
    # The product of six float32, as small or large as they are, is a float64: one logarithm.
    size = 6 if alike and np.result_type(*parts).itemsize <= 4 else 1
    for start in range(0, len(parts), size):
        np.copyto(term, parts[start])
        for part in parts[start + 1 : start + size]:
            term *= part
        logarithms.log_()
        if not alike:
            term *= weights[start]
        total += term
    if alike:
        total *= weights[0]
    torch.from_numpy(total).exp_()
    return total
