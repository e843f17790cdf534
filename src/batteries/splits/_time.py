"""Folds in the order of time: blocks of rows, and the rows that each fold does not use."""

from __future__ import annotations

import datetime
import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batteries.splits._tables import is_missing, refuse_missing

_Blocks = tuple[NDArray[np.int64], NDArray[np.bool_] | None]


def as_times(values: Any, rows: int) -> NDArray[Any]:
    """Numbers or dates that can be ordered, (rows,). Without values, the rows are in order."""
    if values is None:
        return np.arange(rows)
    times = np.asarray(values)
    refuse_missing("times", times)
    times = _dates(times)
    if times.dtype.kind not in "iufM":
        (first,) = times.ravel()[:1].tolist() or [None]
        raise ValueError(
            f"time has the dtype {times.dtype}, such as {first!r}; expected dates or "
            "numbers, since texts sort in another order"
        )
    if times.shape != (rows,):
        raise ValueError(f"time has shape {times.shape}; expected ({rows},), one for each row")
    return times


def _dates(times: NDArray[Any]) -> NDArray[Any]:
    """Dates of Python, and dates of pandas with a time zone, as dates of numpy in UTC."""
    if times.dtype != object or not all(isinstance(each, datetime.date) for each in times.flat):
        return times
    zoned = [bool(getattr(each, "tzinfo", None)) for each in times.flat]
    if any(zoned) and not all(zoned):
        raise ValueError("some times have a time zone and others have none: give all of them one")
    if any(zoned):
        utc = datetime.timezone.utc
        times = np.array([each.astimezone(utc).replace(tzinfo=None) for each in times.flat])
    return times.astype("datetime64[us]")


def refuse_unsorted(data: dict[str, NDArray[Any]]) -> None:
    """Raise if the rows of a table are not in the order of a column of dates."""
    for name, column in data.items():
        if column.dtype.kind in "MO" and column.ndim == 1:
            known = _dates(column[~is_missing(column)])
            if known.dtype.kind == "M" and (known[1:] < known[:-1]).any():
                raise ValueError(
                    f"the rows are not in the order of column {name!r}: pass time={name!r}, or "
                    "the name of another column of times"
                )


def in_blocks(times: NDArray[Any], n_folds: int, gap: Any, embargo: Any, window: Any) -> _Blocks:
    """The block of each row, and the rows that each fold does not use.

    Rows of one time are in one block.
    """
    _check_spans(times, gap, embargo, window)
    rows, order = len(times), np.argsort(times, kind="stable")
    ordered = times[order]
    size = rows // (n_folds + (embargo is None))  # without embargo the first block only trains
    cuts = rows - size * np.arange(n_folds, 0, -1)
    if embargo is not None:
        cuts[0] = 0
    edges = np.append(np.searchsorted(ordered, ordered[cuts]), rows)
    if (np.diff(edges) <= 0).any() or (embargo is None and edges[0] == 0):
        raise ValueError(
            f"there are {len(np.unique(times))} different times for {n_folds} folds, and some "
            "times have more rows than a fold: make fewer folds"
        )
    assignment = np.empty(rows, dtype=np.int64)
    assignment[order] = np.searchsorted(edges[:-1], np.arange(rows), side="right") - 1
    if gap == 0 and embargo is None and window is None:
        return assignment, None
    after = None if embargo is None else gap + embargo if gap and embargo else gap or embargo
    left_out = np.ones((n_folds, rows), dtype=bool)
    for fold, (begin, end) in enumerate(itertools.pairwise(edges)):
        stop = _moved(ordered, begin, gap, -1)
        start = 0 if window is None else _moved(ordered, stop, window, -1, of=max(stop - 1, 0))
        again = rows if after is None else _moved(ordered, end, after, 1)
        if start >= stop and again >= rows:
            raise ValueError(f"fold {fold} has no rows to train on: use a smaller gap or embargo")
        for part in (order[start:stop], order[begin:end], order[again:]):
            left_out[fold, part] = False
    return assignment, left_out


def _moved(ordered: NDArray[Any], row: int, span: Any, way: int, of: int | None = None) -> int:
    """A row of the sorted times, a span away from another row.

    If `way` is 1, it is the first row that is at least a span after `row - 1`. If `way` is -1, it
    is the row after the last one that is at least a span before `of`.

    Args:
        of: Default: `row`.
    """
    if _is_rows(span):
        return int(min(max(row + way * span, 0), len(ordered)))
    length = np.timedelta64(span) if isinstance(span, datetime.timedelta) else span
    if way > 0:
        return int(np.searchsorted(ordered, ordered[row - 1] + length, side="left"))
    time = ordered[row if of is None else of] - length
    return int(min(np.searchsorted(ordered, time, side="right"), row))


def _is_rows(span: Any) -> bool:
    # np.timedelta64 is a subclass of np.integer.
    return isinstance(span, int | np.integer) and not isinstance(span, bool | np.timedelta64)


def _check_spans(times: NDArray[Any], gap: Any, embargo: Any, window: Any) -> None:
    dates = times.dtype.kind == "M"
    kinds: Any = (datetime.timedelta, np.timedelta64) if dates else float
    for name, span in (("gap", gap), ("embargo", embargo), ("window", window)):
        if _is_rows(span):
            if span < (least := int(name == "window")):
                raise ValueError(f"{name} is {span}; expected {least} or more rows")
        elif span is None and name != "gap":
            continue
        elif not isinstance(span, kinds):
            unit = "a datetime.timedelta" if dates else "a float, because the times are numbers"
            raise TypeError(f"{name} is {span!r}; expected a number of rows, or {unit}")
        elif not span >= type(span)(0):  # NaN is refused, too
            raise ValueError(f"{name} is {span!r}; expected 0 or more")
    if embargo is not None and window is not None:
        raise ValueError("embargo= trains on later rows, window= does not: leave out one of them")
    if embargo and gap and _is_rows(gap) != _is_rows(embargo):
        raise ValueError(
            f"gap is {gap!r} and embargo is {embargo!r}: give both in rows, or both in time"
        )
