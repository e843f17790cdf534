"""Tables and arrays, in any form that users have them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batteries._arrays import as_array, as_names, as_rows, is_frame
from batteries._foreign import brief
from batteries._optional import import_optional

_NAMED = 5  # rows in an error


def is_table(data: Any) -> bool:
    """Whether data has named columns: a polars or pandas frame, or a dict."""
    return isinstance(data, Mapping) or is_frame(data)


def column_of(data: Any, column: Any, told: str = "it") -> Any:
    """The column of a table by its name, (rows,), or by several names, (rows, names).

    Other values are returned as an array.

    Args:
        told: The name of the argument, for errors.
    """
    if _are_names(column, data):
        column = np.stack([column_of(data, name) for name in column], axis=1)
    elif isinstance(column, str):
        column = data[known_names(data, column)[0]]
    if column is None:
        return None
    if isinstance(column, Iterator):
        column = list(column)
    array = as_rows(column, told)
    if array.shape[1:] == (1,):  # a frame of one column
        return column_of(data, array[:, 0], told)
    texts = isinstance(column, list | tuple) and array.dtype.kind in "US"
    if array.dtype != object and not texts:
        return array
    values = list(column)
    mixed = np.array(values, dtype=object)
    # As text or numbers, a missing value would look like another class.
    return mixed if mixed.ndim == 1 and is_missing(mixed).any() else np.asarray(values)


def _are_names(column: Any, data: Any) -> bool:
    """Whether a list has the names of columns, and not a text for each row."""
    texts = isinstance(column, list | tuple) and all(isinstance(each, str) for each in column)
    known = set(column) & set(names_in(data)) if texts and is_table(data) else set()
    return bool(known) and (known == set(column) or len(column) != length_of(data))


def groups_of(data: Any, groups: Any) -> Any:
    """The group of each row, (rows,), or None."""
    own = column_of(data, groups, "groups")
    if own is not None and own.ndim != 1:
        raise ValueError(
            f"groups have shape {own.shape}; expected (rows,): join the columns into one, with "
            "values such as 'a/b', if all columns together are the group"
        )
    return own


def names_in(data: Any) -> list[str]:
    return list(data if isinstance(data, Mapping) else getattr(data, "columns", []))


def length_of(data: Any, told: str = "data") -> int:
    rows = next(iter(data.values()), ()) if isinstance(data, Mapping) else data
    if not hasattr(rows, "__len__"):
        raise TypeError(f"{told} is {brief(data)}; expected a table, an array or a list")
    return len(rows)


def as_table(data: Any) -> dict[str, NDArray[Any]]:
    """The columns as arrays. An array becomes a table with one column, "values"."""
    if is_table(data):
        table = {name: as_rows(data[name], f"column {name!r}") for name in names_in(data)}
        lengths = {name: len(column) for name, column in table.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of a table have different lengths: {lengths}")
        return table
    values = as_array(data, "data")
    if not values.ndim:
        raise TypeError(f"data is {brief(data)}; expected a table, an array or a tensor of rows")
    return {"values": values}


def id_columns(
    table: Mapping[str, NDArray[Any]], ids: str | Iterable[str] | None = None
) -> list[str]:
    """The names of the columns of ids.

    By default, these have whole numbers, or texts without spaces, and no value twice.
    """
    if ids is None:
        return [name for name, column in table.items() if _names_rows(column)]
    return known_names(table, ids)


def known_names(data: Any, names: str | Iterable[str]) -> list[str]:
    """The names, or a ValueError if the data has no column of a name."""
    for name in (names := as_names(names)):
        if not is_table(data) or name not in names_in(data):
            known = f"expected one of {names_in(data)}" if is_table(data) else "data is not a table"
            raise ValueError(f"there is no column {name!r}; {known}")
    return names


def _names_rows(column: NDArray[Any]) -> bool:
    if column.ndim != 1 or column.dtype.kind not in "iuUSO" or len(column) < 2:
        return False
    values = column.tolist()
    if column.dtype.kind == "O" and not all(isinstance(value, str | int) for value in values):
        return False
    blank = any(isinstance(value, str) and len(value.split()) > 1 for value in values)
    return not blank and len(set(values)) == len(values)


def is_missing(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which values are None or NaN, (rows,)."""
    if values.dtype.kind in "mM":
        return np.asarray(np.isnat(values))
    if values.dtype == object:
        return np.array([_is_absent(value) for value in values], dtype=bool)
    return (
        np.isnan(values) if np.issubdtype(values.dtype, np.inexact) else np.zeros(len(values), bool)
    )


def refuse_missing(name: str, values: NDArray[Any]) -> None:
    absent = np.flatnonzero(is_missing(values.reshape(-1)).reshape(len(values), -1).any(1))
    if len(absent):
        raise ValueError(
            f"{len(absent)} of the {name} are missing, the first ones in rows "
            f"{', '.join(map(str, absent[:_NAMED]))}: fill them in, or leave the rows out"
        )


def _is_absent(value: Any) -> bool:
    try:
        return value is None or bool(value != value)  # as NaN is
    except TypeError:  # pandas' NA has no truth value
        return True
    except ValueError:  # an array is not missing
        return False


def polars_for(for_: str) -> Any:
    return import_optional("polars", for_=for_)


def random_state(seed: int) -> Any:
    """A seed for scikit-learn, which takes numbers of 32 bits."""
    return seed if seed < 2**32 else np.random.RandomState(np.random.MT19937(seed))


def sklearn_room(room: str) -> Any:
    return import_optional(f"sklearn.{room}", needs="scikit-learn", for_="batteries.splits")
