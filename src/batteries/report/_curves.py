"""Curves of a run, and the few of their points that are drawn."""

from __future__ import annotations

import math
from array import array
from collections.abc import MutableSequence, Sequence

from batteries._foreign import LARGEST
from batteries.scoreboard import RunInfo
from batteries.scoreboard._series import number_of

_DIGITS = 5  # of a value; a screen shows three
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
        self.steps: MutableSequence[float] = array("d")
        self.values: MutableSequence[float] = array("d")
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


def read_curves(run: RunInfo) -> list[Curve]:
    """The curves of all that a run has logged, and those of the scores of checkpoints."""
    curves: dict[tuple[str, str, str], Curve] = {}
    for series in run.series().values():
        *parts, group = series.name.split("/")
        key = (group, "/".join(parts), "step")
        curves[key] = own = Curve(*key)
        own.steps, own.values = series.steps, series.values
    for stage in run.stages:
        key = (f"{stage.metric} by epoch"[:_LONG], stage.name[:_LONG], "epoch")
        for row in stage.rows:
            value = row.get(stage.metric, "")
            x, y = number_of(row.get("epoch")), math.nan if value is None else number_of(value)
            if x is not None and y is not None and abs(x) < _LAST:  # None is what was not finite
                curves.setdefault(key, Curve(*key)).add(x, y)
    return list(curves.values())


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


def _rounded(value: float) -> float:
    return _short(float(f"{value:.{_DIGITS}g}"))


def _short(value: float) -> float:
    """Without ".0", which each point would carry."""
    return int(value) if value.is_integer() and abs(value) < 2**53 else value
