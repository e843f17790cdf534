"""Compare a submission with the competition's sample."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from batteries._files import PathLike
from batteries._foreign import brief
from batteries._spellings import hints
from batteries.blend._tables import names_in, polars_of, reading

_NAMED = 3  # ids in an error


@hints
def check_submission(
    path: PathLike,
    sample: PathLike,
    *,
    id_column: str | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> int:
    r"""Check that a submission has the rows, columns and kinds of numbers of the sample.

    >>> _ = Path("sample.csv").write_text("id,target\n7,0.0\n9,0.0\n")
    >>> _ = Path("mine.csv").write_text("id,target\n9,0.5\n7,\n")
    >>> check_submission("mine.csv", "sample.csv")
    Traceback (most recent call last):
    ValueError: mine.csv is not as sample.csv:
    - the ids are in another order, first in row 0 (9 for 7)
    - column 'target': 1 missing, first in row 1

    Args:
        path: The submission, `.csv` or `.parquet`.
        sample: The sample of the competition, `.csv` or `.parquet`.
        id_column: The column of the ids. Default: the first column of the sample.
        ranges: The lowest and the highest number that a column may have, such as
            `{"target": (0, 1)}`. An end may be infinite.

    Returns:
        The number of rows.

    Raises:
        ValueError: A list of all faults: other columns; other ids, or the same ids in another
            order; missing values in a column without any in the sample, infinities, other types,
            numbers out of range; predictions that are all equal to those of the sample. Also: a
            file that cannot be read, a column of arrays, a column in the arguments that is not
            there, or a range that is not two numbers in rising order.
        TypeError: `ranges` is no mapping, or an unknown argument.
        FileNotFoundError: No such file.
        ModuleNotFoundError: polars is not installed.
    """
    spans = _spans(ranges)
    own, given = (_read(Path(each)) for each in (path, sample))
    key = given.columns[0] if id_column is None else id_column
    if key not in given.columns:
        raise ValueError(f"{sample} has no column {key!r}; it has {', '.join(given.columns)}")
    faults = []
    if own.columns != given.columns:
        faults.append(f"the columns are {own.columns}; expected {given.columns}")
    if key in own.columns:
        faults += _of_ids(own[key], given[key])
    shared = [name for name in given.columns if name != key and name in own.columns]
    for name in shared:
        low, high = spans.get(name, (-np.inf, np.inf))
        faults += [
            f"column {name!r}: {fault}" for fault in _of_column(own[name], given[name], low, high)
        ]
    alike = len(own) == len(given) > 1 and shared and not faults
    if alike and all(_same(own[name], given[name]) for name in shared):
        faults.append("all predictions are equal to those of the sample")
    if unknown := sorted(set(spans) - set(shared)):
        faults.append(f"ranges= has columns without predictions in both: {', '.join(unknown)}")
    if faults:
        raise ValueError("\n- ".join([f"{path} is not as {sample}:", *faults]))
    return len(own)


def _spans(ranges: Any) -> dict[str, tuple[float, float]]:
    if not isinstance(ranges, Mapping | None):
        raise TypeError(
            f"ranges is {brief(ranges)}; expected a mapping, such as {{'target': (0, 1)}}"
        )
    spans = {}
    for name, span in (ranges or {}).items():
        try:
            low, high = map(float, span)
        except (TypeError, ValueError):
            low = high = np.nan
        if not low <= high:
            raise ValueError(
                f"ranges[{name!r}] is {brief(span)}; expected the lowest and the highest number, "
                "such as (0, 1)"
            )
        spans[name] = (low, high)
    return spans


def _read(path: Path) -> Any:
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"{path} is not a submission; expected .csv or .parquet")
    header = names_in(path)
    with reading(path) as polars:
        if path.suffix == ".csv":
            return polars.read_csv(path, infer_schema=False)
        table = polars.read_parquet(path, columns=header)
    for name, dtype in table.schema.items():
        if dtype.is_nested():
            raise ValueError(f"{path} has {dtype} in column {name!r}; expected numbers or texts")
    return table


def _of_ids(own: Any, given: Any) -> list[str]:
    text = polars_of().String
    own, given = own.cast(text), given.cast(text)
    if own.equals(given, check_names=False):
        return []
    absent = given.filter(~given.is_in(own.implode()))
    extra = own.filter(own.is_not_null() & ~own.is_in(given.implode()))
    faults = [f"{own.null_count()} ids are empty"] if own.null_count() else []
    for which, ids in (("missing", absent), ("not in the sample", extra)):
        if len(ids):
            faults.append(
                f"{len(ids)} ids are {which}, such as {', '.join(ids.drop_nulls()[:_NAMED])}"
            )
    if len(own) != own.n_unique() and len(given) == given.n_unique():
        faults.append(f"the id {own.filter(own.is_duplicated())[0]} is there more than once")
    if not faults and len(own) != len(given):
        faults.append(f"there are {len(own)} rows; expected {len(given)}")
    if not faults:
        at = int(np.argmax((own != given).to_numpy()))
        faults.append(
            f"the ids are in another order, first in row {at} ({own[at]} for {given[at]})"
        )
    return faults


def _of_column(own: Any, given: Any, low: float, high: float) -> list[str]:
    polars = polars_of()
    texts, expected = own.cast(polars.String).str.strip_chars(), given.cast(polars.String)
    numbers, wanted = (each.cast(polars.Float64, strict=False) for each in (texts, expected))
    gone = texts.is_null() | (texts == "") | numbers.is_nan().fill_null(False)
    empty = expected.str.strip_chars().fill_null("") == ""
    # If the sample has missing values, the competition allows them, such as for an empty mask.
    faults = {} if empty.any() else {"missing": gone}
    words = (wanted.is_null() & ~empty).any() or empty.all()
    if words and (low, high) == (-np.inf, np.inf):  # the sample has texts, or shows nothing
        return _told(faults, texts)
    # If the sample has only one number, such as 0, it does not show which kind is expected.
    whole = wanted.n_unique() > 1 and bool((wanted == wanted.floor()).all())
    finite = numbers.fill_null(0.0).fill_nan(0.0)
    return _told(
        {
            **faults,
            "no numbers": numbers.is_null() & ~gone,
            "infinite": finite.is_infinite(),
            "no whole numbers, unlike the sample": (finite != finite.floor()) & whole,
            f"not from {low:g} to {high:g}": ((finite < low) | (finite > high)) & ~gone,
        },
        texts,
    )


def _same(own: Any, given: Any) -> bool:
    """Whether all values are equal, also as numbers that are written in other ways."""
    one, other = (each.cast(polars_of().Float64, strict=False) for each in (own, given))
    return bool(own.equals(given) or (not one.null_count() and one.equals(other)))


def _told(faults: dict[str, Any], texts: Any) -> list[str]:
    """Each fault with the number of its rows, and the first of them."""
    found = []
    for fault, where in faults.items():
        if where.any():
            at = where.arg_max()
            value = "" if fault == "missing" else f" ({texts[at]})"
            found.append(f"{where.sum()} {fault}, first in row {at}{value}")
    return found
