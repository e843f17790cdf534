"""Means of predictions: arithmetic, geometric, of any power; the label with most votes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from batteries._numbers import as_number
from batteries._spellings import hints
from batteries.blend._models import BLOCK, Array, Models, as_models, as_weights, in_blocks
from batteries.splits._tables import is_missing

Weights = Mapping[Any, float] | Sequence[float] | NDArray[Any] | None
_SQUARES = float("2")  # no other 2.0 is this object, so an explicit power=2 differs from it
_FEW = 2**11  # with fewer numbers, torch's calls take longer than their work
_Together = Callable[[Array], Array]  # its argument: all numbers, (models, numbers)
# Its arguments: a block of each model, and two arrays of float64. One takes the result, and the
# other takes a term of the sum.
_ByBlock = Callable[[list[Array], Array, Array], Array]


@hints
def mean(predictions: Any, *more: Any, weights: Weights = None) -> NDArray[Any]:
    """The weighted mean of predictions.

    >>> mean([[0.2, 0.9], [0.4, 0.9]])
    array([0.3, 0.9])

    Args:
        predictions: (models, rows, ...), or an array or tensor (rows, ...) for each model: a list,
            a mapping by name, or a frame with a column for each.
        *more: The other models, if `predictions` is the first of several.
        weights: (models,), 0 or more, or a mapping by name. Their sum does not matter. Default:
            all equal.

    Returns:
        (rows, ...): float32 if all predictions fit into it exactly (floats of up to 32 bits, whole
            numbers of up to 16), else float64. Computed in float64.

    Raises:
        TypeError: Predictions that are not real numbers, or an unknown argument.
        ValueError: A NaN or an infinity, with model and row; no models, or two of one name; arrays
            of different shapes, or with different indexes of pandas; not one weight for each model,
            a negative weight, or no weight above 0.
    """
    models = as_models(predictions, more)
    own = as_weights(weights, models)
    return weighted(models, own)


def weighted(models: Models, own: Array) -> NDArray[Any]:
    """The mean with weights that add up to 1."""
    return _blended(
        models,
        lambda rows: _dot(own, rows),
        lambda parts, total, term: _weighted_sum(parts, own, total, term),
    )


@hints
def power_average(
    predictions: Any, *more: Any, power: float = _SQUARES, weights: Weights = None
) -> NDArray[Any]:
    """The power mean of predictions: the mean of their powers, to the power of `1 / power`.

    >>> power_average([[0.2, 0.9], [0.4, 0.9]], power=2)
    array([0.31622777, 0.9       ])

    A high power gives more weight to large predictions, a low one to small predictions. 1 is the
    mean, 0 the geometric mean, -1 the harmonic mean, inf the maximum and -inf the minimum.

    Args:
        predictions, more: As for `mean`, not negative.
        power: Any number, or an infinity. It may also be the last positional argument.
        weights: As for `mean`.

    Returns:
        (rows, ...), with the dtype of `mean`.

    Raises:
        TypeError: As for `mean`, a power that is not one number, or two powers.
        ValueError: As for `mean`, a negative prediction, or a power that is NaN.
    """
    if more and _is_power(more[-1]):
        if power is not _SQUARES:
            raise TypeError(f"power is {power}, but {more[-1]} was passed as well: pass one power")
        *more, power = more  # type: ignore[assignment]
    power = as_number(power, "power")
    if math.isnan(power):
        raise ValueError("the power is NaN; expected a number, such as 2")
    return _power_mean(as_models(predictions, more), power, weights)


def _is_power(value: Any) -> bool:
    """Whether a positional argument is a power, and not the predictions of a model."""
    of_rows = isinstance(value, Iterable) or hasattr(value, "__array__")  # such as OutOfFold
    return not of_rows or getattr(value, "ndim", 1) == 0


def _power_mean(models: Models, power: float, weights: Weights) -> NDArray[Any]:
    own = as_weights(weights, models)
    counted = models
    if weights is not None and not own.all():
        models.refuse()  # a weight of 0 would hide NaN in the result
        _refuse_negative(models)
        used = np.flatnonzero(own)
        told = [models.names[at] for at in used]
        counted, own = Models([models.arrays[at] for at in used], (), models.rows, told), own[used]
    return _blended(
        counted,
        lambda rows: _power_together(rows, power, own, counted),
        lambda parts, total, term: _power_by_block(parts, power, own, counted, total, term),
    )


@hints
def geometric(predictions: Any, *more: Any, weights: Weights = None) -> NDArray[Any]:
    """The geometric mean of predictions; 0 if one with a weight above 0 is 0.

    >>> geometric([[0.2, 0.9], [0.8, 0.9]])
    array([0.4, 0.9])

    This is the power mean of power 0. `predictions`, `more`, `weights`, the result and the errors
    are those of `power_average`.
    """
    return _power_mean(as_models(predictions, more), 0, weights)


@hints
def majority_vote(labels: Any, *more: Any, weights: Weights = None) -> NDArray[Any]:
    """The label that most models predict. If several have the most votes, the smallest of them.

    >>> majority_vote([[1, 0], [1, 2], [0, 2]])
    array([1, 2])

    Args:
        labels, more: As for `mean`, but whole numbers, bools or strings. For class probabilities,
            take the `argmax` first, or use `mean`.
        weights: As for `mean`.

    Returns:
        (rows, ...), with the labels' dtype.

    Raises:
        TypeError: Texts of one model and numbers of another.
        ValueError: As for `mean`; a missing label; or numbers that are not labels, such as 0.5.
    """
    models = as_models(labels, more, labels=True)
    own = as_weights(weights, models)
    for name, array in zip(models.names, models.arrays, strict=True):
        if array.dtype == object and (gone := is_missing(array.reshape(-1))).any():
            raise ValueError(f"{name} has no label in {models.row(int(gone.argmax()))}")
        if array.dtype.kind != "f":
            continue
        models.refuse()
        if not (array == np.floor(array)).all():
            raise ValueError(f"{name} has numbers that are not labels; take the argmax first")
    texts = [_is_text(array) for array in models.arrays]
    if len(set(texts)) > 1:
        odd = texts.index(not texts[0])
        raise TypeError(
            f"{models.names[odd]} has other labels than {models.names[0]}: one has texts, the "
            "other has numbers; expected texts from all models, or numbers from all"
        )
    best, most = models.arrays[0].copy(), np.full(models.shape, -1.0)
    for label in _candidates(models.arrays):
        votes = np.zeros(models.shape)
        for other, weight in zip(models.arrays, own, strict=True):
            votes += weight * (label == other)
        # Equal sums of weights may differ in the last bits.
        tied = np.isclose(votes, most, rtol=1e-12, atol=0)
        better = np.where(tied, label < best, votes > most)
        best, most = np.where(better, label, best), np.where(better, votes, most)
    return np.asarray(best, dtype=np.result_type(*models.arrays))


def _is_text(labels: Array) -> bool:
    return labels.dtype.kind in "UT" or any(isinstance(each, str) for each in labels.flat[:1])


def _candidates(labels: list[Array]) -> Iterable[Any]:
    """Labels that may have most votes: all labels if there are few, else those of each model."""
    if all(array.dtype.kind in "iu" and array.size for array in labels):
        low, high = min(int(a.min()) for a in labels), max(int(a.max()) for a in labels)
        if high - low < len(labels):
            return range(low, high + 1)
    return labels


# ---------------------------------------------------------------- all at once, or block by block


def _blended(models: Models, together: _Together, by_block: _ByBlock) -> Array:
    """The blend of all rows, with `Models.dtype`."""
    arrays, shape = models.arrays, models.shape
    size = arrays[0].size
    if 0 < size * len(arrays) <= BLOCK:
        rows = np.concatenate(arrays, dtype=np.float64).reshape(len(arrays), size)
        with np.errstate(all="ignore"):
            value = together(rows)
            if not math.isfinite(np.add.reduce(value)):
                models.refuse()
        return value.astype(models.dtype, copy=False).reshape(shape)
    flat = [array.reshape(-1) for array in arrays]
    out = np.empty(size, dtype=models.dtype)

    def work(start: int, stop: int) -> None:
        total, term = np.empty(stop - start), np.empty(stop - start)
        with np.errstate(all="ignore"):
            value = by_block([array[start:stop] for array in flat], total, term)
            if not math.isfinite(np.add.reduce(value)):
                models.refuse(start, stop)
        out[start:stop] = value

    in_blocks(size, work)
    return out.reshape(shape)


def _dot(weights: Array, rows: Array) -> Array:
    """The weighted sum of rows. BLAS would add up the last columns in another order."""
    return np.asarray(np.add.reduce(weights[:, None] * rows))


def _weighted_sum(parts: list[Array], weights: Array, total: Array, term: Array) -> Array:
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


# ---------------------------------------------------------------- powers


def _checked(part: Array, power: float, models: Models) -> Array:
    """Return the part, or raise if it has no power mean.

    An infinity to a negative power is 0, so the result would not show it.
    """
    if not np.minimum.reduce(part) >= 0 or (power < 0 and not np.isfinite(part).all()):
        models.refuse()
        _refuse_negative(models)
    return part


def _refuse_negative(models: Models) -> None:
    for name, array in zip(models.names, models.arrays, strict=True):
        flat = array.reshape(-1)
        if flat.size and flat.min() < 0:
            at = int(np.argmin(flat))
            raise ValueError(
                f"{name} has {flat[at]} in {models.row(at)}: a power mean needs numbers that are "
                "not negative; use the mean, or the rank average"
            )


def _is_geometric(power: float) -> bool:
    return abs(power) < 1e-8  # rounding changes such a mean by more than the power does


def _power_together(rows: Array, power: float, weights: Array, models: Models) -> Array:
    _checked(rows.reshape(-1), power, models)
    if math.isinf(power):
        return np.asarray((np.maximum if power > 0 else np.minimum).reduce(rows))
    if not _is_geometric(power):
        return _root(_dot(weights, _raised(rows, power)), power, rows, weights)
    if _all_the_same(weights):
        return _geometric_root(np.multiply.reduce(rows), rows)
    return np.asarray(np.exp(_dot(weights, np.log(rows))))


def _power_by_block(
    parts: list[Array], power: float, weights: Array, models: Models, total: Array, term: Array
) -> Array:
    # Each part is checked just before its use, when it is in the cache.
    each = (_checked(part, power, models) for part in parts)
    if math.isinf(power):
        return np.asarray(functools.reduce(np.maximum if power > 0 else np.minimum, each))
    if _is_geometric(power) and _all_the_same(weights):
        total[:] = 1
        for part in each:
            total *= part
        return _geometric_root(total, parts)
    total[:] = 0
    added, factor = torch.from_numpy(total), torch.from_numpy(term)
    for part, weight in zip(each, weights.tolist(), strict=True):
        np.copyto(term, part)
        if _is_geometric(power):
            added.add_(factor.log_(), alpha=weight)
        elif power in (2, 3, 4):  # the square takes one pass less
            square = factor if power == 2 else factor * factor
            added.addcmul_(square, square if power == 4 else factor, value=weight)
        else:
            _raise(term, power)
            added.add_(factor, alpha=weight)
    if _is_geometric(power):
        added.exp_()
        return total
    return _root(total, power, parts, weights)


def _all_the_same(weights: Array) -> bool:
    return len(set(weights.tolist())) == 1


def _raised(rows: Array, power: float) -> Array:
    """A new array of powers."""
    if power in (2, 3, 4):
        square: Array = rows * rows
        return square if power == 2 else np.asarray(square * (square if power == 4 else rows))
    out: Array = rows.copy()
    _raise(out, power)
    return out


def _raise(values: Array, power: float) -> None:
    """Replace the values by their powers, as exactly as `**`, and in a third of the time."""
    if power == 1:
        return
    if power == 0.5:
        np.sqrt(values, out=values)
    elif power == -1:
        np.divide(1.0, values, out=values)
    elif values.size < _FEW:
        np.exp(np.multiply(np.log(values, out=values), power, out=values), out=values)
    else:
        torch.from_numpy(values).log_().mul_(power).exp_()


def _not_held(total: Array) -> Array | None:
    """Which numbers are too small or too large for float64; None if there are none."""
    if np.minimum.reduce(total) > 1e-290 and np.maximum.reduce(total) < 1e290:
        return None
    return ~((total >= 1e-290) & (total <= 1e290))  # also NaN


def _root(total: Array, power: float, parts: list[Array] | Array, weights: Array) -> Array:
    """The root of a mean of powers."""
    lost = _not_held(total)
    _raise(total, 1 / power)
    if lost is not None:
        total[lost] = _scaled_power(power, [part[lost] for part in parts], weights)
    return total


def _scaled_power(power: float, parts: list[Array], weights: Array) -> Array:
    """The power mean of numbers whose powers float64 cannot hold.

    First, the numbers of a row are divided by the largest one. For a negative power, they are
    divided by the smallest one.
    """
    rows = np.stack(parts).astype(np.float64)
    unit = rows.max(0) if power > 0 else rows.min(0)
    mean = (weights[:, None] * (rows / unit) ** power).sum(0) ** (1 / power)
    return np.where(unit == 0, 0.0, unit * mean)


def _geometric_root(product: Array, parts: list[Array] | Array) -> Array:
    lost = _not_held(product)  # a product that float64 holds needs only one logarithm
    _raise(product, 1 / len(parts))
    if lost is not None:
        few = np.stack([part[lost] for part in parts]).astype(np.float64)
        product[lost] = np.exp(np.log(few).mean(0))
    return product
