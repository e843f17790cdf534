"""The logged values of a run, by metric, from each `metrics.jsonl` in it."""

from __future__ import annotations

import math
from array import array
from collections.abc import MutableSequence, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from batteries._foreign import LARGEST
from batteries._rundir.lines import NAME, Lines, Rows, told_lines
from batteries._rundir.record import files_of

_METRICS = 1000  # at most, of one run
_ITEMS = 10_000  # at most: figures, histograms and texts of one run
_VALUES = 5_000_000  # at most, of one run; each takes 24 bytes
_LONG = 200  # letters of a name
_LAST = 2.0**53  # the largest step that a float can count


class Metric(NamedTuple):
    """A summary of a metric in a run.

    >>> Metric(0.3, step=9, values=9, lowest=(0.2, 7), highest=(0.9, 1)).best(minimization=True)
    (0.2, 7)

    Attributes:
        last: The value at the last step. It may be NaN or infinite.
        step: The last step.
        values: The number of values.
        lowest: The lowest finite value and its step, the earliest of equal ones; None if there is
            none.
        highest: The highest finite value, in the same form.
    """

    last: float
    step: float
    values: int
    lowest: tuple[float, float] | None
    highest: tuple[float, float] | None

    def best(self, minimization: bool) -> tuple[float, float] | None:
        """The best finite value and its step; None if there is none.

        Args:
            minimization: Whether lower is better.

        Raises:
            TypeError: `minimization` is not a bool, for example None.
        """
        if not isinstance(minimization, bool | np.bool_):
            raise TypeError(
                f"minimization is {minimization!r}; expected True if lower is better, else False"
            )
        return self.lowest if minimization else self.highest


@dataclass
class Series:
    """All values of a metric, in the order of their steps.

    >>> Series("valid/loss", steps=[1, 2], values=[0.5, 0.4]).metric().last
    0.4

    Attributes:
        name: The logged name. The name of a stage comes before it: "head/loss".
        steps: The step of each value, in rising order.
        values: The values. They may be NaN or infinite.
        times: The time of each value, in seconds since 1970; NaN if it is not known.
    """

    name: str
    steps: MutableSequence[float] = field(default_factory=lambda: array("d"))
    values: MutableSequence[float] = field(default_factory=lambda: array("d"))
    times: MutableSequence[float] = field(default_factory=lambda: array("d"))

    def metric(self) -> Metric:
        """The summary of the values, of which there must be one or more."""
        values = np.asarray(self.values)
        finite = np.flatnonzero(np.abs(values) < LARGEST)
        some, ends = values[finite], list[tuple[float, float] | None]([None, None])
        if len(some):
            places = (int(finite[some.argmin()]), int(finite[some.argmax()]))
            ends = [(float(self.values[place]), float(self.steps[place])) for place in places]
        return Metric(self.values[-1], self.steps[-1], len(self.steps), *ends)


class Item(NamedTuple):
    """A logged value that is not a metric.

    Attributes:
        kind: "figure", "histogram" or "text".
        value: The path of a figure, the text, or the counts and edges of a histogram.
    """

    kind: str
    name: str
    step: float
    time: float
    value: Any


_Columns = tuple[Any, ...]  # numbers of lines, steps, values and times
Logged = tuple[dict[str, Series], list[Item]]


def read_logged(run: Path, problems: list[str]) -> Logged:
    """All that a run has logged. Problems with its files are added to `problems`."""
    reader = _Reader(run, problems)
    for path in sorted(files_of(run, NAME)):
        # A stage has its own file in metrics/<stage>.
        place = [part for part in path.parent.relative_to(run).parts if part != "metrics"]
        prefix = "".join(f"{part}/" for part in place)
        for rows, lines in told_lines(path, run, problems):
            for each in rows:
                reader.add_rows(prefix, each)
            reader.add_lines(prefix, lines, path.parent)
    return reader.logged()


class _Reader:
    """Makes columns of numbers from lines. Lines with the same metrics are read together."""

    def __init__(self, run: Path, problems: list[str]) -> None:
        self._run, self._problems = run, problems
        self._parts: dict[str, list[_Columns]] = {}
        self._items: list[Item] = []
        self._more: set[str] = set()  # metrics over the limit
        self._left = _VALUES

    def add_rows(self, prefix: str, rows: Rows) -> None:
        if self._left >= 0:
            self._left -= len(rows.places) * len(rows.names)
            table = np.frombuffer(rows.numbers).reshape(len(rows.places), -1)
            kept = np.abs(table[:, 0]) < _LAST
            steps, times, *columns = table[kept].T
            order = np.asarray(rows.places)[kept]
            for name, values in zip(rows.names, columns, strict=True):
                self._add(prefix + name[:_LONG], (order, steps, values, times))

    def add_lines(self, prefix: str, lines: Lines, folder: Path) -> None:
        alike: dict[tuple[str, ...], list[tuple[int, dict[str, Any]]]] = {}
        for place, line in lines:
            if type(metrics := line.get("metrics")) is dict:
                if self._left >= 0 and _is_step(line.get("step")):
                    self._left -= len(metrics)
                    alike.setdefault(tuple(metrics), []).append((place, line))
            else:
                self._add_items(prefix, line, folder)
        for names, some in alike.items():
            order = np.array([place for place, _ in some])
            steps = np.array([line["step"] for _, line in some], np.float64)
            times = _numbers([line.get("time") for _, line in some])[0]
            table = zip(*[line["metrics"].values() for _, line in some], strict=True)
            for name, column in zip(names, table, strict=True):
                values, known = _numbers(column)
                columns = tuple(each[known] for each in (order, steps, values, times))
                self._add(prefix + name[:_LONG], columns)

    def _add(self, name: str, columns: _Columns) -> None:
        if name not in self._parts and len(self._parts) == _METRICS:
            self._more.add(name)
        else:
            self._parts.setdefault(name, []).append(columns)

    def _add_items(self, prefix: str, line: dict[str, Any], folder: Path) -> None:
        for kind in ("figure", "histogram", "text"):
            told: Any = line.get(kind)
            step: Any = line.get("step")
            if type(told) is dict and _is_step(step) and len(self._items) < _ITEMS:
                if kind == "figure":  # its path is relative to the file of lines
                    told = {n: str(folder / v) if type(v) is str else v for n, v in told.items()}
                when = number_of(line.get("time"))
                own = (step, math.nan if when is None else when)
                self._items += [Item(kind, prefix + n[:_LONG], *own, v) for n, v in told.items()]

    def logged(self) -> Logged:
        if self._more:
            self._problems.append(
                f"{self._run} has {_METRICS + len(self._more):,} metrics: {_METRICS:,} of them are "
                "shown; do not put steps or names of files into the names of metrics"
            )
        if self._left < 0:
            self._problems.append(
                f"{self._run} has more than {_VALUES:,} values: only the first ones are shown"
            )
        found = {name: _series(name, parts) for name, parts in self._parts.items()}
        return {name: each for name, each in found.items() if len(each.steps)}, self._items


def _series(name: str, parts: list[_Columns]) -> Series:
    """A series in the order of its steps. The value logged last for a step counts."""
    order, steps, values, times = map(np.concatenate, zip(*parts, strict=True))
    if not (np.diff(steps) > 0).all():
        kept = np.lexsort((order, steps))
        kept = kept[np.append(np.diff(steps[kept]) > 0, [True] * bool(len(kept)))]
        steps, values, times = steps[kept], values[kept], times[kept]
    return Series(name, *(array("d", each.tobytes()) for each in (steps, values, times)))


def _numbers(column: Sequence[Any]) -> tuple[Any, Any]:
    """The values as floats, and which of them are numbers."""
    if set(map(type, column)) <= {float, int, bool}:
        with suppress(OverflowError):
            return np.array(column, np.float64), slice(None)
    found = [number_of(value) for value in column]
    known = np.array([value is not None for value in found], bool)
    return np.array([math.nan if value is None else value for value in found]), known


def _is_step(value: Any) -> bool:
    return type(value) in (int, float) and -_LAST < value < _LAST


def number_of(value: Any) -> float | None:
    """A float, also from the texts of NaN and infinities; None for other values."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None
