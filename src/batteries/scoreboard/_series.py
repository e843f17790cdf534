"""What a run has logged, by metric: the lines of each `metrics.jsonl` in it."""

from __future__ import annotations

import math
from array import array
from collections.abc import MutableSequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from batteries._foreign import LARGEST
from batteries._rundir.lines import NAME, told_lines

_METRICS = 1000  # of one run
_VALUES = 5_000_000  # of one run, of which each takes 24 bytes
_LONG = 200  # letters of a name
_LAST = 2.0**53  # steps, which a float can count


class Metric(NamedTuple):
    """What a metric came to in a run.

    >>> Metric(0.3, step=9, values=9, lowest=(0.2, 7), highest=(0.9, 1)).best(minimization=True)
    (0.2, 7)

    Attributes:
        last: Its value at the last step; it may be NaN or infinite.
        step: The last step.
        values: How many there are.
        lowest: The lowest finite value and its step; None without one.
        highest: Likewise. Of equal values, these are the earliest.
    """

    last: float
    step: float
    values: int
    lowest: tuple[float, float] | None
    highest: tuple[float, float] | None

    def best(self, minimization: bool) -> tuple[float, float] | None:
        """The best value and its step.

        >>> Metric(0.3, 9, 9, (0.2, 7), (0.9, 1)).best(minimization=False)
        (0.9, 1)
        """
        return self.lowest if minimization else self.highest


@dataclass
class Series:
    """All values of a metric, in the order of their steps.

    >>> Series("valid/loss", steps=[1, 2], values=[0.5, 0.4]).metric().last
    0.4

    Attributes:
        name: As it was logged; in a stage's own file behind the name of the stage: "head/loss".
        times: When they were logged, in seconds since 1970; NaN where that is not known.
    """

    name: str
    steps: MutableSequence[float] = field(default_factory=lambda: array("d"))
    values: MutableSequence[float] = field(default_factory=lambda: array("d"))
    times: MutableSequence[float] = field(default_factory=lambda: array("d"))

    def metric(self) -> Metric:
        """What it came to."""
        values = np.asarray(self.values)
        finite = np.flatnonzero(np.abs(values) < LARGEST)
        some, ends = values[finite], list[tuple[float, float] | None]([None, None])
        if len(some):
            places = (int(finite[some.argmin()]), int(finite[some.argmax()]))
            ends = [(self.values[place], self.steps[place]) for place in places]
        return Metric(self.values[-1], self.steps[-1], len(self.steps), *ends)

    def put_in_order(self) -> None:
        """Sort it by steps; what was logged last for a step is its value."""
        steps = self.steps
        if (np.diff(np.asarray(steps)) > 0).all():
            return
        last = {step: index for index, step in enumerate(steps)}
        kept = [last[step] for step in sorted(last)]
        for name in ("steps", "values", "times"):
            own = getattr(self, name)
            setattr(self, name, array("d", [own[index] for index in kept]))


def read_series(run: Path, problems: list[str]) -> dict[str, Series]:
    """All series of a run by their names.

    Args:
        problems: What cannot be read is added to it.
    """
    found: dict[str, Series] = {}
    more: set[str] = set()  # metrics that there is no room for
    left = _VALUES
    for path in sorted(path for below in ("", "*/", "*/*/") for path in run.glob(below + NAME)):
        # A stage has its own in metrics/<stage>.
        place = [part for part in path.parent.relative_to(run).parts if part != "metrics"]
        prefix = "".join(f"{part}/" for part in place)
        known: dict[str, Series] = {}  # by the names in this file
        for line in told_lines(path, run, problems):
            metrics, when = line.get("metrics"), number_of(line.get("time"))
            step: Any = line.get("step")
            if type(metrics) is not dict or not _is_step(step) or left < 0:
                continue
            left -= len(metrics)
            for name, value in metrics.items():
                number = value if type(value) is float else number_of(value)
                series = known.get(name)
                if series is None:
                    own = prefix + name[:_LONG]
                    if own not in found and len(found) == _METRICS:
                        more.add(own)
                        continue
                    series = known[name] = found.setdefault(own, Series(own))
                if number is not None:
                    series.steps.append(step)
                    series.values.append(number)
                    series.times.append(math.nan if when is None else when)
    if more:
        problems.append(
            f"{run} has {_METRICS + len(more):,} metrics: {_METRICS:,} of them are shown; are "
            "steps or names of files in their names?"
        )
    if left < 0:
        problems.append(f"{run} has more than {_VALUES:,} values: the first of them are shown")
    for series in found.values():
        series.put_in_order()
    return {name: series for name, series in found.items() if series.steps}


def _is_step(value: Any) -> bool:
    return type(value) in (int, float) and -_LAST < value < _LAST


def number_of(value: Any) -> float | None:
    """A float, of the texts that stand for NaN and infinities too."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None
