"""Arrays that users pass, of any type: checked, and named in errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

_KNOWN = ("torch.float16", "torch.float32", "torch.float64")  # floats that numpy has


def as_array(values: Any, name: str) -> NDArray[Any]:
    """A tensor, an array, a column of a frame, a list or an iterator as an array."""
    if type(values) is np.ndarray:  # the common case has to be fast
        return values
    if _is_tensor(values):
        return _of_tensor(values, name)
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise ValueError(f"{name} is a masked array: pass its .filled(...)")
    listed = _listed(values, name)
    try:
        array = np.asarray(listed)
    except ValueError as error:
        if "inhomogeneous" not in str(error):  # such as [[1, 2], [3]]
            raise
        raise ValueError(
            f"{name} has parts of different lengths; expected an array, a tensor or a list of "
            "equally long rows"
        ) from error
    if not array.ndim and array.dtype.kind in "OUS":
        raise TypeError(
            f"{name} is a {type(values).__name__}; expected an array, a tensor or a list"
        )
    return array


def as_rows(values: Any, name: str) -> NDArray[Any]:
    """The array of `as_array`, (rows, ...). One number is a TypeError."""
    array = as_array(values, name)
    if not array.ndim:
        raise TypeError(f"{name} is {array.item()!r}; expected an array, a tensor or a list")
    return array


def by_name(values: Any) -> Any:
    """A column of pandas whose index has names as a mapping. Other values stay as they are."""
    index = index_of(values) if getattr(values, "ndim", 0) == 1 else None
    named = index is not None and any(isinstance(name, str | os.PathLike) for name in index)
    return values.to_dict() if named else values


def as_names(names: str | Iterable[str]) -> list[str]:
    """Names that users pass. A string is one name, not a name for each letter."""
    return [names] if isinstance(names, str) else list(names)


def is_frame(values: Any) -> bool:
    """Whether values are a frame of pandas or polars, but no LazyFrame, which has no rows yet."""
    return hasattr(values, "__len__") and hasattr(values, "columns")


def index_of(values: Any) -> Any:
    """The index of a column or frame of pandas; None for other values."""
    return values.index if hasattr(values, "iloc") else None


def refuse_other_order(told: str, *indexes: Any) -> None:
    """Raise if indexes of pandas have the same rows in different orders.

    Args:
        told: The values that have the indexes, for the error: "the target and the scores".
        indexes: None stands for values that have no index.
    """
    known = [index for index in indexes if index is not None]
    for other in known[1:]:
        if other.equals(known[0]):
            continue
        rows, first = list(other), list(known[0])
        if rows != first and set(rows) == set(first):
            raise ValueError(
                f"{told} have the same rows in different orders, by their indexes of pandas: bring "
                "them into one order, or pass .to_numpy() if their rows are in one order already"
            )


def _listed(values: Any, name: str) -> Any:
    if isinstance(values, Mapping | Set | str | bytes) or hasattr(values, "__array__"):
        return values
    if isinstance(values, Iterable) and not hasattr(values, "__getitem__"):  # an iterator, a view
        values = list(values)
    of_tensors = isinstance(values, list | tuple) and any(map(_is_tensor, values))
    if not of_tensors:
        return values
    return [as_array(each, f"{name}[{at}]") for at, each in enumerate(values)]


def _of_tensor(tensor: Any, name: str) -> NDArray[Any]:
    odd = tensor.is_nested or tensor.is_quantized or tensor.is_meta
    if odd or str(tensor.layout) != "torch.strided":
        raise ValueError(
            f"{name} is a sparse, nested, quantized or meta tensor, which numpy cannot hold: pass "
            "a dense tensor with data"
        )
    values = tensor.detach().cpu().resolve_conj().resolve_neg()
    known = str(values.dtype) in _KNOWN or not values.is_floating_point()
    return np.asarray(values if known else values.float())


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")  # the command line does without
    return torch is not None and isinstance(value, torch.Tensor)
