"""Filter, sort and group the rows of a table."""

from __future__ import annotations

import math
import operator
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from batteries._foreign import brief, is_number

Row = Mapping[str, Any]
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "!=": operator.ne, ">=": operator.ge, "<=": operator.le, "=": operator.eq, ">": operator.gt,
    "<": operator.lt, "~": lambda value, pattern: re.search(pattern, str(value)) is not None,
}  # fmt: skip
_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "text"}
_WORDS = {"true": True, "false": False}


def select(rows: Sequence[Row], condition: str, column_of: Callable[[str], str]) -> list[Row]:
    """The rows for which `COLUMN SIGN VALUE` holds.

    Args:
        column_of: Returns the name of the column that a user's name stands for.
    """
    form = r"\s*(.+?)\s*(!=|>=|<=|==|=|>|<|~)\s*(.*?)\s*"
    parts = re.fullmatch(form, condition) if isinstance(condition, str) else None
    if parts is None:
        raise ValueError(
            f"{condition!r} is not a condition: expected COLUMN, a sign (=, !=, <, <=, >, >=, or ~ "
            "for a pattern) and VALUE, such as 'lr=0.1' or 'valid/loss<0.3'"
        )
    name, sign, text = parts.groups()
    sign = "=" if sign == "==" else sign
    column = column_of(name)
    if text == "":  # "test=" selects rows without a value
        return [row for row in rows if (row.get(column) in (None, "")) == (sign == "=")]
    known = [row[column] for row in rows if row.get(column) is not None]
    wanted = _wanted(condition, name, sign, text, known)
    try:
        return [row for row in rows if _holds(row.get(column), sign, wanted)]
    except re.error as error:
        raise ValueError(f"{condition!r}: {text!r} is not a regular expression: {error}") from None


def _wanted(condition: str, name: str, sign: str, text: str, known: list[Any]) -> Any:
    """The value of a condition, with the type of the column."""
    if sign == "~":
        return text
    quoted = re.fullmatch(r"(['\"])(.*)\1", text)
    value: Any = quoted[2] if quoted else _typed(text)
    kinds = {_KINDS[type(each)] for each in known if type(each) in _KINDS}
    if kinds == {"text"} and not quoted and sign in ("=", "!="):
        return text  # not as a number: run=002
    found = _KINDS[type(value)]
    if kinds and found not in kinds:
        example = brief(known[0])
        raise ValueError(
            f"{condition!r} compares {name}, which is {' or '.join(sorted(kinds))} (such as "
            f"{example}), with {brief(value)}, which is {found}"
        )
    return value


def _typed(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        number, whole = float(text), text.lstrip("+-").isdecimal()
        return int(text) if whole and int(text) != number else number  # a float would be rounded
    except ValueError:
        return text


def _holds(value: Any, sign: str, wanted: Any) -> bool:
    if sign != "~" and value is not None and _KINDS.get(type(value)) != _KINDS[type(wanted)]:
        return sign == "!="
    return (sign == "!=") if value is None else _OPERATORS[sign](value, wanted)


def in_order(rows: Sequence[Row], column: str, descending: bool) -> list[Row]:
    """Rows sorted by a column. Rows without a value, or with NaN, come last."""
    known = [row for row in rows if not _is_missing(row.get(column))]
    missing = [row for row in rows if _is_missing(row.get(column))]
    # Numbers come before texts in both directions.
    numbers = [row for row in known if not isinstance(row[column], str)]
    texts = [row for row in known if isinstance(row[column], str)]
    for some in (numbers, texts):
        some.sort(key=lambda row: row[column], reverse=descending)
    return [*numbers, *texts, *missing]


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def grouped(rows: Sequence[Row], by: Sequence[str], column: str) -> list[dict[str, Any]]:
    """Statistics of a column for each combination of values in the columns `by`."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in by), []).append(row)
    return [
        {**dict(zip(by, values, strict=True)), "runs": len(some), **_spread(some, column)}
        for values, some in groups.items()
    ]


def _spread(rows: Sequence[Row], column: str) -> dict[str, Any]:
    values = sorted(float(row[column]) for row in rows if is_number(row.get(column)))
    count = len(values)
    if not count:
        return {"count": 0, **dict.fromkeys(("mean", "std", "sem", "median", "min", "max"))}
    std = statistics.stdev(values) if count > 1 else None
    return {
        "count": count,
        "mean": statistics.fmean(values),
        "std": std,
        "sem": std / math.sqrt(count) if std is not None else None,
        "median": statistics.median(values),
        "min": values[0],
        "max": values[-1],
    }
