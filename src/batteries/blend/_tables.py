"""Blend files of predictions, row by row of the same id."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

import numpy as np

from batteries import predictions
from batteries._arrays import as_names
from batteries._files import PathLike, listed, refuse_source, write_whole
from batteries._foreign import check_regular
from batteries._optional import import_optional
from batteries._spellings import hints
from batteries.blend._means import Weights, geometric, majority_vote, mean, power_average
from batteries.blend._models import Array, Models
from batteries.blend._ranks import rank_average
from batteries.progress import tqdm

if TYPE_CHECKING:
    from polars import DataFrame

_TRUTH = ("target", "targets")  # columns that have the targets
_METHODS: dict[str, Callable[..., Array]] = {
    "mean": mean, "power": power_average, "geometric": geometric, "rank": rank_average,
    "vote": majority_vote,
}  # fmt: skip


@hints
def blend_files(
    paths: Iterable[PathLike] | Mapping[str, PathLike],
    method: Literal["mean", "power", "geometric", "rank", "vote"] = "mean",
    *,
    out: PathLike | None = None,
    id_column: str | None = None,
    columns: str | Sequence[str] | None = None,
    weights: Weights = None,
    power: float = 2.0,
    renormalise: bool = False,
) -> DataFrame:
    r"""Blend files of predictions. Rows are matched by their ids, in any order.

    >>> _ = Path("a.csv").write_text("id,target\n7,0.25\n9,0.5\n")
    >>> _ = Path("b.csv").write_text("id,target\n9,1.0\n7,0.75\n")
    >>> blend_files(["a.csv", "b.csv"], out="blend.csv")["target"].to_list()
    [0.5, 0.75]
    >>> print(Path("blend.csv").read_text(), end="")
    id,target
    7,0.5
    9,0.75

    The result has the rows and columns of the first file, in its order. Columns that are not
    blended are copied from the first file. Ids are compared as text, so "007" stays "007". Labels
    of a CSV for "vote" are text, too.

    If the numbers to blend have the same number of decimals in the first 1,000 rows of the first
    CSV, a CSV of the result has as many, but at least six. Otherwise, and for ranks, numbers have
    as many decimals as they need.

    Args:
        paths: `.csv`, `.parquet`, or `.npy` of `Predictions.save`. A mapping gives them names.
        method: "mean", "power", "geometric", "rank" or "vote": the functions of this module.
        out: A `.csv` or `.parquet` to write, whole or not at all.
        id_column: The column of the ids. Default: the first column.
        columns: The columns to blend. Default: all but the ids. If the first file is no CSV, its
            column "target" or "targets" is not blended either, because it may be the truth beside
            out-of-fold predictions. It is blended if there is no other column.
        weights: One for each file, in order or by name. The name of a file is its path,
            unless `paths` is a mapping.
        power: The power of the method "power", as in `power_average`.
        renormalise: Divide the probabilities of each row by their sum: over the columns if each
            class has a column, or over the array if a column has an array in each row.

    Returns:
        A polars frame with the columns of the first file. The ids of a CSV are text.

    Raises:
        ValueError: Ids that differ or repeat, other columns, or numbers that are missing or not
            finite, with file and id. Also: no files, a file that cannot be read, an unknown method
            or kind of file, wrong weights as for `mean`, a sum that is not above 0 to renormalise,
            `out` among the files to read, or arrays to write to a CSV.
        TypeError: A power that is not one number, or an unknown argument.
        FileNotFoundError: No such file.
        OSError: `out` cannot be written.
        ModuleNotFoundError: polars is not installed.
    """
    if method not in list(_METHODS):  # a list has no hash
        raise ValueError(f"method is {method!r}; expected one of {', '.join(_METHODS)}")
    options = {"weights": weights} | ({"power": power} if method == "power" else {})
    files = listed(paths.values() if isinstance(paths, Mapping) else paths)
    keys = list(map(str, paths if isinstance(paths, Mapping) else files))
    if not files:
        raise ValueError("there are no files to blend")
    if renormalise and method == "vote":
        raise ValueError("labels are not probabilities: leave out renormalise with 'vote'")
    if out is not None:
        _check_out(Path(out), files)
    header = names_in(files[0])
    key = header[0] if id_column is None else id_column
    names = _blended_by_default(files[0], header, key) if columns is None else as_names(columns)
    if not names or key in names or len(set(names)) < len(names):
        raise ValueError(
            f"the columns to blend are {names} and the id column is {key!r}; {files[0]} has "
            f"{', '.join(header)}: expected one or more columns without the ids, each once"
        )
    if "" in (key, *names):
        raise ValueError(
            f"{files[0]} has a column without a name, as pandas writes its index: write the file "
            "with index=False, or pass id_column= and columns="
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
        if plan.labels:
            _refuse_spellings(sources, [part[name] for part in arrays])
        models = Models([part.pop(name) for part in arrays], keys, ids, sources)
        blended[name] = _METHODS[method](models, **options)
    if renormalise:
        blended = _renormalised(blended, ids)
    polars = polars_of()
    table: DataFrame = first.with_columns(
        [polars.Series(name, array) for name, array in blended.items()]
    )
    if out is not None:
        _write(table, Path(out), None if method == "rank" else _decimals(files[0], names))
    return table


def _check_out(out: Path, files: list[Path]) -> None:
    if out.suffix not in (".csv", ".parquet"):
        raise ValueError(f"a blend is written as .csv or .parquet, not as {out.name}")
    refuse_source(out, files)


def _blended_by_default(path: Path, header: Sequence[str], key: str) -> list[str]:
    names = [name for name in header if name != key]
    rest = [name for name in names if name not in _TRUTH]
    return names if path.suffix == ".csv" or not rest else rest


class _Plan(NamedTuple):
    """What to read of each file."""

    key: str  # the column of the ids
    names: list[str]  # the columns to blend
    whole: bool  # whether other columns are an error
    labels: bool  # whether the columns may have other values than numbers


# ---------------------------------------------------------------- reading


def polars_of() -> Any:
    return import_optional("polars", for_="a file of predictions")


@contextmanager
def reading(path: Path) -> Iterator[Any]:
    polars = polars_of()
    try:
        yield polars
    except polars.exceptions.PolarsError as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def names_in(path: Path) -> list[str]:
    if path.suffix not in (".csv", ".parquet", ".npy"):
        raise ValueError(f"{path} has an unknown format; expected .csv, .parquet or .npy")
    check_regular(path)
    with reading(path) as polars:
        if path.suffix == ".csv":
            rows = polars.read_csv(path, n_rows=1, has_header=False, infer_schema=False).rows()
            names = [name or "" for name in rows[0]] if rows else []
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:  # polars would rename them
                raise ValueError(f"{path} has the columns {', '.join(twice)} more than once")
            return list(polars.read_csv(path, n_rows=0).columns)
        if path.suffix == ".parquet":
            return list(polars.read_parquet_schema(path))
    return list(predictions.load(path))


def _read(path: Path, plan: _Plan, header: Sequence[str]) -> Any:
    for name in (plan.key, *plan.names):
        if name not in header:
            raise ValueError(f"{path} has no column {name!r}; it has {', '.join(header)}")
    # Labels and columns that are not blended stay text. Types that polars guesses from the first
    # rows may not fit the others.
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
    if ids.hash().n_unique() < len(ids):  # less memory than texts take, but hashes may collide
        repeated = ids.filter(ids.is_duplicated())
        if len(repeated):
            raise ValueError(f"{path} has the id {repeated[0]} more than once")


def _aligned(
    path: Path, first_path: Path, first: Any, plan: _Plan, orders: dict[Any, Any]
) -> dict[str, Array]:
    """The columns of another file, with rows in the order of the first file."""
    header = names_in(path)
    more = sorted(set(header) ^ set(first.columns))
    if plan.whole and more:
        raise ValueError(
            f"{path} has other columns than {first_path}: only one of them has "
            f"{', '.join(name if name and name == name.strip() else repr(name) for name in more)}; "
            "pass `columns` to blend those that both have"
        )
    table = _read(path, plan, [name for name in header if name in (plan.key, *plan.names)])
    if plan.labels:
        with reading(path):
            table = table.cast({name: first[name].dtype for name in plan.names})
    ids, others = _comparable(first[plan.key], table[plan.key])
    if ids.equals(others):
        return _arrays(path, table, plan)
    if ids.dtype not in orders:  # the order of the first file is computed once
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
    """The rows in the order of their ids' hashes, and the sorted hashes: (rows,) each."""
    order = np.argsort(hashes)
    return order, hashes[order]


def _refuse_ids(path: Path, ids: Any, first_path: Path, first: Any) -> NoReturn:
    _check_ids(path, ids)
    absent = first.filter(~first.is_in(ids.implode()))
    extra = ids.filter(~ids.is_in(first.implode()))
    if len(absent):
        raise ValueError(
            f"{path} has no row of id {absent[0]}, which {first_path} has; {len(absent)} ids are "
            "missing"
        )
    raise ValueError(
        f"{path} has a row of id {extra[0]}, which {first_path} does not have; {len(extra)} ids "
        f"are only in {path}; expected the same ids in all files"
    )


def _comparable(first: Any, other: Any) -> tuple[Any, Any]:
    first, other = first.alias("id"), other.alias("id")
    if first.dtype == other.dtype:
        return first, other
    text = polars_of().String
    return first.cast(text), other.cast(text)


def _arrays(path: Path, table: Any, plan: _Plan) -> dict[str, Array]:
    arrays = {}
    for name in plan.names:
        column = table[name]
        if column.null_count():
            row = table[plan.key][column.is_null().arg_max()]
            raise ValueError(
                f"{path} has nothing in column {name!r} for id {row}; expected a value"
            )
        array = column.to_numpy()
        if array.dtype.kind not in "fiub" and not plan.labels:
            raise ValueError(
                f"{path} has {column.dtype} in column {name!r}; expected numbers: pass `columns` "
                "without it"
            )
        arrays[name] = array
    return arrays


def _refuse_spellings(sources: list[str], arrays: list[Array]) -> None:
    """Raise if files spell one label in two ways, such as 1 and 1.0, which would divide votes."""
    known: dict[Any, tuple[str, str]] = {}
    for source, array in zip(sources, arrays, strict=True):
        for label in set(array.tolist()) if array.dtype == object else ():
            text, told = known.setdefault(_meaning(label), (label, source))
            if text != label:
                raise ValueError(
                    f"{source} has the label {label!r}, and {told} has {text!r}: write the "
                    "same label in the same way in all files"
                )


def _meaning(label: Any) -> Any:
    try:
        return float(label)
    except (TypeError, ValueError):
        return label.strip() if isinstance(label, str) else label


# ---------------------------------------------------------------- writing


def _renormalised(columns: dict[str, Array], ids: Any) -> dict[str, Array]:
    """Probabilities of classes that add up to 1 in each row: of columns, or of arrays in one."""
    flat = all(array.ndim == 1 for array in columns.values())
    shared = np.sum(list(columns.values()), axis=0) if flat else None
    same = {}
    for name, array in columns.items():
        total = array.sum(-1, keepdims=True) if shared is None else shared
        if not (total > 0).all():
            row = int(np.argmin(total.reshape(len(array), -1).min(1)))
            raise ValueError(
                f"the blend of the row of id {ids[row]} adds up to "
                f"{total.reshape(len(array), -1)[row].min():g}, so it cannot be renormalised; "
                "expected a sum above 0: check the predictions of that row"
            )
        same[name] = array / total
    return same


def _decimals(path: Path, names: list[str]) -> int | None:
    """The number of decimals in a CSV, if it is the same in its first 1,000 rows."""
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


def _write(table: Any, path: Path, decimals: int | None) -> None:
    for name, dtype in table.schema.items():
        if path.suffix == ".csv" and dtype.is_nested():
            raise ValueError(f"a .csv cannot hold the arrays of column {name!r}: write .parquet")
    size = table.estimated_size()
    with write_whole(path, size) as file:
        if path.suffix == ".csv":
            table.write_csv(file, float_precision=decimals)
        else:
            table.write_parquet(file)
