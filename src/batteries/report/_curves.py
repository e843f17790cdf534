"""Curves of a run, and the few of their points that are drawn."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from batteries._foreign import LARGEST, lines_of, open_regular
from batteries._rundir.lines import NAME, parse_line
from batteries.scoreboard import Stage

_DIGITS = 5  # of a value; a screen shows three
_MANY = 1000  # curves of a run
_LONG = 200  # letters of a name
_LAST = 2.0**53  # steps, which JavaScript counts in floats


class Curve:
    """The values of one metric over steps or epochs.

    Args:
        group: What is drawn together, such as the losses of training and of validation.
        part: Which of them.
        unit: What is counted: "step" or "epoch".
    """

    def __init__(self, group: str, part: str, unit: str = "step") -> None:
        self.group = group
        self.part = part
        self.unit = unit
        self.steps = array("d")
        self.values = array("d")
        self._ordered = True

    def __len__(self) -> int:
        return len(self.steps)

    def add(self, step: float, value: float) -> None:
        """A point; a step that comes again replaces what it was."""
        self._ordered = self._ordered and not (self.steps and step <= self.steps[-1])
        self.steps.append(step)
        self.values.append(value)

    def points(self, most: int) -> tuple[list[float], list[float | None]]:
        """Steps, each but the first as the distance from the one before, and values, None for NaN.

        Of more points than are wanted the first, the last and the extremes in between remain.
        """
        if not self._ordered:
            pairs = sorted(dict(zip(self.steps, self.values, strict=True)).items())
            self.steps = array("d", [step for step, _ in pairs])
            self.values = array("d", [value for _, value in pairs])
            self._ordered = True
        kept = _extremes(self.values, most)
        steps = [self.steps[index] for index in kept]
        distances = [_short(b - a) for a, b in zip([0.0, *steps], steps, strict=False)]
        values = [self.values[index] for index in kept]
        return distances, [_rounded(value) if abs(value) < LARGEST else None for value in values]

    def lost(self) -> int:
        """How many values are NaN or infinite."""
        return sum(not math.isfinite(value) for value in self.values)


def read_curves(run: Path, stages: Iterable[Stage], problems: list[str]) -> list[Curve]:
    """The curves in each `metrics.jsonl` of a run and those of the scores of checkpoints.

    Args:
        problems: What cannot be read is added to it.
    """
    curves: dict[tuple[str, str, str], Curve] = {}

    def add(group: str, part: str, unit: str, step: Any, value: Any) -> None:
        x, y = _number(step), _number(value)
        if x is not None and y is not None and abs(x) < _LAST:
            key = (group[:_LONG], part[:_LONG], unit)
            if key in curves or len(curves) < _MANY:
                curves.setdefault(key, Curve(*key)).add(x, y)
            else:
                more.add(hash(key))

    more: set[int] = set()  # metrics that are not drawn
    for path in sorted(path for below in ("", "*/", "*/*/") for path in run.glob(below + NAME)):
        # A stage has its own in metrics/<stage>.
        place = [part for part in path.parent.relative_to(run).parts if part != "metrics"]
        for line in _lines(path, run, problems):
            metrics = line.get("metrics")
            for name, value in metrics.items() if isinstance(metrics, dict) else ():
                *parts, group = [*place, *str(name).split("/")]
                add(group, "/".join(parts), "step", line.get("step"), value)
    for stage in stages:
        for row in stage.rows:
            value = row.get(stage.metric, "")
            score = math.nan if value is None else value  # None is what was not finite
            add(f"{stage.metric} by epoch", stage.name, "epoch", row.get("epoch"), score)
    if more:
        problems.append(
            f"{run} has {_MANY + len(more):,} metrics: {_MANY:,} of them are drawn; are steps or "
            "names of files in their names?"
        )
    return list(curves.values())


def _lines(path: Path, run: Path, problems: list[str]) -> Iterable[dict[str, Any]]:
    foreign, torn = 0, False
    try:
        with open_regular(path, inside=run) as file:
            for raw in lines_of(file):
                line = parse_line(raw)
                if line is not None:
                    yield line
                elif raw.endswith(b"\n"):
                    foreign += 1
                else:
                    torn = True
    except OSError as error:
        problems.append(f"{path} cannot be read: {error}")
    if foreign:
        problems.append(f"{path}: {foreign} lines are not a JSON object each, and are left out")
    if torn:
        problems.append(f"{path}: the last line is half written, and is left out")


def _extremes(values: Sequence[float], most: int) -> list[int]:
    """The indices of the first, the last, and the lowest and highest of equal parts in between."""
    if len(values) <= max(most, 2):
        return list(range(len(values)))
    parts = max((most - 2) // 2, 1)
    inner = len(values) - 2
    kept = {0, len(values) - 1}
    for part in range(parts):
        indices = range(1 + part * inner // parts, 1 + (part + 1) * inner // parts)
        finite = [index for index in indices if math.isfinite(values[index])] or indices[:1]
        kept.add(min(finite, key=values.__getitem__))
        kept.add(max(finite, key=values.__getitem__))
    return sorted(kept)


def _number(value: Any) -> float | None:
    """A float, of the strings that stand for NaN and infinities too."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _rounded(value: float) -> float:
    return _short(float(f"{value:.{_DIGITS}g}"))


def _short(value: float) -> float:
    """Without ".0", which each point would carry."""
    return int(value) if value.is_integer() and abs(value) < 2**53 else value
