"""Predictions in one file, with the samples' ids."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from batteries._arrays import as_rows
from batteries._files import PathLike, write_whole
from batteries._foreign import brief, check_regular
from batteries._optional import import_optional


def load(path: PathLike) -> dict[str, NDArray[Any]]:
    """Read a `.npy` or `.parquet` file that `Predictions.save` wrote.

    >>> outputs = Predictions(2)
    >>> outputs.add([0, 1], score=torch.tensor([0.25, 0.5]))
    >>> outputs.save("valid.npy")
    >>> load("valid.npy")["score"]
    memmap([0.25, 0.5 ], dtype=float32)

    Returns:
        The ids as "id", and the arrays by name, (length, ...). The arrays of a `.npy` file are
        mapped into memory, read-only.

    Raises:
        FileNotFoundError: No such file.
        OSError: The path is no regular file, or the file cannot be read.
        ValueError: The file is damaged, holds no predictions, or has another suffix.
        ModuleNotFoundError: A `.parquet` file needs polars, which is not installed.
    """
    known = Path(path).suffix in (".npy", ".parquet")
    if not known and Path(path).is_file():
        raise ValueError(f"{path} has an unknown format; expected .parquet or .npy")
    try:
        columns = _read(Path(path))
    except (OSError, ImportError):
        raise
    except Exception as error:  # numpy and polars raise many kinds for a damaged file
        raise ValueError(f"{path} cannot be read as predictions: {error}") from error
    if "id" not in columns:
        found = ", ".join(columns) or "one plain array"
        raise ValueError(
            f'{path} has no "id" column, which Predictions.save writes; it has {found}'
        )
    return columns


def _read(path: Path) -> dict[str, NDArray[Any]]:
    check_regular(path)
    if path.suffix == ".npy":
        table = np.load(path, mmap_mode="r", allow_pickle=False)
        return {name: table[name] for name in table.dtype.names or ()}
    polars = _polars()
    try:
        frame = polars.read_parquet(path)
    except polars.exceptions.PanicException as error:  # it derives from BaseException
        raise ValueError(str(error)) from error
    return {
        # to_numpy would drop the keys of dicts.
        name: np.array(frame[name].to_list(), dtype=object)
        if frame[name].dtype == polars.Struct
        else frame[name].to_numpy()
        for name in frame.columns
    }


def _polars() -> Any:
    return import_optional("polars", needs="polars", for_="predictions in .parquet")


def write(path: Path, columns: dict[str, Any], ids: Any) -> None:
    length = len(next(iter(columns.values()), ()))
    ids = np.arange(length) if ids is None else as_rows(ids, "ids")
    if ids.dtype == object and all(isinstance(each, str) for each in ids):  # a column of pandas
        ids = ids.astype(str)
    if len(ids) != length:
        raise ValueError(f"there are {len(ids)} ids for {length} samples; expected one for each")
    arrays = {"id": ids} | {name: _as_column(name, value) for name, value in columns.items()}
    if path.suffix == ".npy":
        for name, array in arrays.items():
            if isinstance(array, list) or array.dtype == object:
                raise TypeError(
                    f"{name} is a list of objects, which .npy cannot hold: use .parquet"
                )
        kinds = [(name, array.dtype, array.shape[1:]) for name, array in arrays.items()]
        table = np.empty(length, dtype=kinds)
        for name, array in arrays.items():
            table[name] = array
        with write_whole(path, table.nbytes) as file:
            np.save(file, table, allow_pickle=False)
    elif path.suffix == ".parquet":
        polars = _polars()
        series = [_series(name, array) for name, array in arrays.items()]
        with write_whole(path) as file:
            polars.DataFrame(series).write_parquet(file)
    else:
        raise ValueError(f"predictions are saved as .parquet or .npy, not as {path.name}")


def _series(name: str, values: Any) -> Any:
    polars = _polars()
    told = f"{name} has objects that a .parquet file cannot hold"
    try:
        series = polars.Series(name, values)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{told}: {error}") from error
    if series.dtype == polars.Object:
        raise TypeError(told)
    if series.dtype.is_nested() and isinstance(values, list):
        for given, read in zip(values, series.to_list(), strict=True):
            if not _is_kept(given, read):
                raise TypeError(f"{told} as they are: {brief(given)} would become {brief(read)}")
    return series


def _is_kept(given: Any, read: Any) -> bool:
    """Whether polars has kept an object. polars may cut numbers, and leave out keys."""
    given = given.tolist() if isinstance(given, Tensor | np.ndarray) else given
    if isinstance(given, Mapping):
        read = read or {}
        return all(key in read and _is_kept(each, read[key]) for key, each in given.items())
    if isinstance(given, list | tuple):
        return len(given) == len(read or ()) and all(map(_is_kept, given, read or ()))
    return bool(given == read or given != given)


def _as_column(name: str, value: Any) -> Any:
    if name == "id":
        raise ValueError(
            "an array is called 'id', which is the column of ids: give it another name"
        )
    if isinstance(value, list):
        return [item.tolist() if isinstance(item, Tensor | np.ndarray) else item for item in value]
    small = value.is_floating_point() and value.itemsize < 4
    return (value.float() if small else value).numpy()
