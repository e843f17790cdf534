"""Files of predictions, blended row by row of the same id."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np

from batteries import predictions
from batteries._files import PathLike, listed, write_whole
from batteries._foreign import check_regular
from batteries._optional import import_optional
from batteries._spellings import hints
from batteries.blend._means import Weights, geometric, majority_vote, mean, power_average
from batteries.blend._models import Array, Models
from batteries.blend._ranks import rank_average
from batteries.progress import tqdm

Method = Literal["mean", "power", "geometric", "rank", "vote"]
_TRUTH = ("target", "targets")  # columns of what is true, beside predictions
Table = Any  # of polars, which loads when it is needed


@hints
def blend_files(
    paths: Iterable[PathLike] | Mapping[str, PathLike],
    method: Method = "mean",
    *,
    out: PathLike | None = None,
    id_column: str | None = None,
    columns: Sequence[str] | None = None,
    weights: Weights = None,
    power: float = 2.0,
    renormalise: bool = False,
) -> Table:
    r"""Blend files of predictions, each row with those of the same id, whatever their order.

    >>> _ = Path("a.csv").write_text("id,target\n7,0.25\n9,0.5\n")
    >>> _ = Path("b.csv").write_text("id,target\n9,1.0\n7,0.75\n")
    >>> blend_files(["a.csv", "b.csv"], out="blend.csv")["target"].to_list()
    [0.5, 0.75]
    >>> print(Path("blend.csv").read_text(), end="")
    id,target
    7,0.5
    9,0.75

    The result has the rows and columns of the first file, in its order; columns that are not
    blended are that file's. A CSV is written with as many decimals as the first one has, if all
    its numbers have the same, and at least six; else, and of ranks, with as many as tell the
    numbers apart. Ids are compared as text, so that "007" stays what it is; labels of a CSV that
    are voted on are text too.

    Args:
        paths: `.csv`, `.parquet`, or `.npy` of `Predictions.save`; in a mapping they have names.
        method: "mean", "power", "geometric", "rank" or "vote": the functions of this room.
        out: Where the result is written, whole or not at all: `.csv` or `.parquet`.
        id_column: Default: the first column.
        columns: What is blended. Default: all but the ids; of Parquet and `.npy` files, in which
            out-of-fold predictions stand beside it, also all but "target", if others are left.
        weights: One for each file, in order or by its name; the name of a path is the path.
        power: For "power".
        renormalise: Divide the columns, or the numbers of an array in a column, by their sum: the
            probabilities of classes.

    Returns:
        A polars frame.

    Raises:
        ValueError: An id that is missing, in excess or there twice, other columns, a number that
            is missing, NaN or infinite: with file and id. An unknown method or kind of file; a file
            that cannot be read; nothing to blend.
        ModuleNotFoundError: polars is not installed.
    """
    methods = _methods(weights, power)
    if method not in methods:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(methods)}")
    files = listed(paths.values() if isinstance(paths, Mapping) else paths)
    keys = list(map(str, paths if isinstance(paths, Mapping) else files))
    if not files:
        raise ValueError("there are no files to blend")
    if renormalise and method == "vote":
        raise ValueError("labels cannot be renormalised: they are no probabilities")
    if out is not None and Path(out).suffix not in (".csv", ".parquet"):
        raise ValueError(f"a blend is written as .csv or .parquet, not as {Path(out).name}")
    header = names_in(files[0])
    key = header[0] if id_column is None else id_column
    names = _blended_by_default(files[0], header, key) if columns is None else list(columns)
    if not names or key in names or len(set(names)) < len(names):
        raise ValueError(
            f"the columns to blend are {names} and the ids {key!r}, of {files[0]} with "
            f"{', '.join(header)}: expected one or more others, each once"
        )
    plan = _Plan(key, names, whole=columns is None, labels=method == "vote")
    first = _read(files[0], plan, header)
    _check_ids(files[0], first[key])
    arrays = [_arrays(files[0], first, plan)]
    shown = tqdm(files[1:], "blend", leave=False, disable=None)
    orders: dict[Any, Any] = {}
    arrays += [_aligned(path, files[0], first, plan, orders) for path in shown]
    ids = first[key]
    blended = {}
    for name in names:
        sources = [f"{path}, column {name!r}," for path in files]
        blended[name] = methods[method](
            Models([part.pop(name) for part in arrays], keys, ids, sources)
        )
    if renormalise:
        blended = _renormalised(blended, ids)
    polars = polars_of()
    table = first.with_columns([polars.Series(name, array) for name, array in blended.items()])
    if out is not None:
        _write(table, Path(out), None if method == "rank" else _decimals(files[0], names))
    return table


def _blended_by_default(path: Path, header: Sequence[str], key: str) -> list[str]:
    names = [name for name in header if name != key]
    rest = [name for name in names if name not in _TRUTH]
    return names if path.suffix == ".csv" or not rest else rest


def _methods(weights: Weights, power: float) -> dict[str, Callable[[Models], Array]]:
    return {
        "mean": lambda models: mean(models, weights=weights),
        "power": lambda models: power_average(models, power=power, weights=weights),
        "geometric": lambda models: geometric(models, weights=weights),
        "rank": lambda models: rank_average(models, weights=weights),
        "vote": lambda models: majority_vote(models, weights=weights),
    }


class _Plan(NamedTuple):
    """What is read of each file."""

    key: str  # the column of the ids
    names: list[str]  # what is blended
    whole: bool  # whether the files are to have no other columns
    labels: bool  # whether they are more than numbers


# ---------------------------------------------------------------- reading


def polars_of() -> Any:
    return import_optional("polars", needs="polars", for_="blend_files")


@contextmanager
def reading(path: Path) -> Iterator[Any]:
    polars = polars_of()
    try:
        yield polars
    except polars.exceptions.PolarsError as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def names_in(path: Path) -> list[str]:
    if path.suffix not in (".csv", ".parquet", ".npy"):
        raise ValueError(f"{path} is none of .csv, .parquet and .npy")
    check_regular(path)
    with reading(path) as polars:
        if path.suffix == ".csv":
            rows = polars.read_csv(path, n_rows=1, has_header=False, infer_schema=False).rows()
            names = [name or "" for name in rows[0]] if rows else []
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:  # polars would rename them, and they would be blended
                raise ValueError(f"{path} has the columns {', '.join(twice)} more than once")
            return list(polars.read_csv(path, n_rows=0).columns)
        if path.suffix == ".parquet":
            return list(polars.read_parquet_schema(path))
    return list(predictions.load(path))


def _read(path: Path, plan: _Plan, header: Sequence[str]) -> Table:
    """The columns of a file, in its order."""
    for name in (plan.key, *plan.names):
        if name not in header:
            raise ValueError(f"{path} has no column {name!r}; it has {', '.join(header)}")
    # What is not blended stays the text that it is, and so do labels. Types that are guessed from
    # the first rows are wrong about the rest now and then.
    numbers = [] if plan.labels else plan.names
    with reading(path) as polars:
        if path.suffix == ".parquet":
            return polars.read_parquet(path, columns=list(header))
        if path.suffix == ".csv":
            types = {name: polars.Float64 if name in numbers else polars.String for name in header}
            return polars.read_csv(path, columns=list(header), schema_overrides=types)
        columns = predictions.load(path)
        return polars.DataFrame({name: np.ascontiguousarray(columns[name]) for name in header})


def _check_ids(path: Path, ids: Any) -> None:
    if ids.null_count():
        raise ValueError(f"{path} has no id in row {ids.is_null().arg_max()}")
    if ids.hash().n_unique() < len(ids):  # in less memory than the texts; they may collide
        repeated = ids.filter(ids.is_duplicated())
        if len(repeated):
            raise ValueError(f"{path} has the id {repeated[0]} more than once")


def _aligned(
    path: Path, first_path: Path, first: Table, plan: _Plan, orders: dict[Any, Any]
) -> dict[str, Array]:
    """The columns of another file, its rows in the order of the first."""
    header = names_in(path)
    more = sorted(set(header) ^ set(first.columns))
    if plan.whole and more:
        raise ValueError(
            f"{path} has other columns than {first_path}: {', '.join(more)} is in one of them "
            "alone; pass `columns` to blend those that are in both"
        )
    table = _read(path, plan, [name for name in header if name in (plan.key, *plan.names)])
    if plan.labels:
        with reading(path):
            table = table.cast({name: first[name].dtype for name in plan.names})
    ids, others = _comparable(first[plan.key], table[plan.key])
    if ids.equals(others):
        return _arrays(path, table, plan)
    if ids.dtype not in orders:  # of the first file it is found once
        orders[ids.dtype] = in_order(ids.hash().to_numpy())
    order, hashes = orders[ids.dtype]
    other_order, other_hashes = in_order(others.hash().to_numpy())
    if not np.array_equal(hashes, other_hashes):
        _refuse_ids(path, others, first_path, ids)
    rows = np.empty_like(order)
    rows[order] = other_order
    arrays = _arrays(path, table, plan)
    return {name: array[rows] for name, array in arrays.items()}


def in_order(hashes: Array) -> tuple[Array, Array]:
    """The rows in the order of their ids' hashes, and these hashes: (rows,) each.

    A hash's first bits, and the row in place of its last ones, are one integer: numpy sorts those
    in a third of the time that an order takes. It takes a fraction of a join's memory.
    """
    low = np.uint64(2 ** len(hashes).bit_length() - 1)
    keys = hashes & ~low
    keys |= np.arange(len(hashes), dtype=np.uint64)
    keys.sort()
    order = (keys & low).astype(np.int64)
    ordered = hashes[order]
    keys &= ~low
    alike = keys[1:] == keys[:-1]
    if alike.any():  # in the first bits
        at = np.flatnonzero(np.append(alike, False) | np.append(False, alike))
        order[at] = order[at][np.argsort(ordered[at])]
        ordered = hashes[order]
    return order, ordered


def _refuse_ids(path: Path, ids: Any, first_path: Path, first: Any) -> NoReturn:
    """Say why a file's ids are not those of the first file."""
    _check_ids(path, ids)
    absent = first.filter(~first.is_in(ids.implode()))
    extra = ids.filter(~ids.is_in(first.implode()))
    if len(absent):
        raise ValueError(
            f"{path} has no row of id {absent[0]}, as {first_path} has; {len(absent)} are missing"
        )
    raise ValueError(
        f"{path} has a row of id {extra[0]}, which {first_path} has not; {len(extra)} are more"
    )


def _comparable(first: Any, other: Any) -> tuple[Any, Any]:
    first, other = first.alias("id"), other.alias("id")
    if first.dtype == other.dtype:
        return first, other
    text = polars_of().String
    return first.cast(text), other.cast(text)


def _arrays(path: Path, table: Table, plan: _Plan) -> dict[str, Array]:
    arrays = {}
    for name in plan.names:
        column = table[name]
        if column.null_count():
            row = table[plan.key][column.is_null().arg_max()]
            raise ValueError(f"{path} has nothing in column {name!r} for id {row}")
        array = column.to_numpy()
        if array.dtype.kind not in "fiub" and not plan.labels:
            raise ValueError(
                f"{path} has {column.dtype} in column {name!r}; expected numbers: pass `columns` "
                "to blend others"
            )
        arrays[name] = array
    return arrays


# ---------------------------------------------------------------- writing


def _renormalised(columns: dict[str, Array], ids: Any) -> dict[str, Array]:
    """Probabilities of classes that add up to 1: in a row, or in each array of a column."""
    flat = all(array.ndim == 1 for array in columns.values())
    shared = np.sum(list(columns.values()), axis=0) if flat else None
    same = {}
    for name, array in columns.items():
        total = array.sum(-1, keepdims=True) if shared is None else shared
        if not (total > 0).all():
            row = int(np.argmin(total.reshape(len(array), -1).min(1)))
            raise ValueError(
                f"the blend of the row of id {ids[row]} adds up to 0: it has no probabilities"
            )
        same[name] = array / total
    return same


def _decimals(path: Path, names: list[str]) -> int | None:
    """How many decimals a CSV's numbers have, if all of its first rows have the same."""
    if path.suffix != ".csv":
        return None
    texts = polars_of().read_csv(path, columns=names, n_rows=1000, infer_schema=False)
    found = {
        len(match[1]) if (match := re.fullmatch(r"[^.eE]*\.(\d+)", str(text))) else None
        for name in names
        for text in texts[name]
    }
    (only,) = found if len(found) == 1 else (None,)
    return None if only is None else max(6, only)


def _write(table: Table, path: Path, decimals: int | None) -> None:
    size = table.estimated_size()
    with write_whole(path, size) as file:
        if path.suffix == ".csv":
            table.write_csv(file, float_precision=decimals)
        else:
            table.write_parquet(file)
