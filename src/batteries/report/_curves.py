"""Curves of a run: which of their points are drawn, and how the page stores them."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from batteries._foreign import LARGEST
from batteries.scoreboard import RunInfo
from batteries.scoreboard._series import Series

_LONG = 200  # letters of a name
_LAST = 2.0**53  # the largest step: the numbers of JavaScript are floats
_FLOAT = 3e38, 1e-38  # numbers between these are written in three bytes
_KNOTS = 16  # of a clock: the longest breaks, and twice as many evenly spaced points
Pairs = tuple[list[float], list[float]]


@dataclass
class Curve:
    """The values of one metric over steps or epochs.

    Attributes:
        name: "valid/loss". Curves with the same part after the last / share a plot.
        steps: Steps or epochs, (points,) float64.
        values: Values, (points,) float64.
        unit: "step" or "epoch".
        lost: How many values are NaN or infinite, also of points that are not drawn.
    """

    name: str
    steps: Any
    values: Any
    unit: str = "step"
    lost: int = 0

    def __post_init__(self) -> None:
        self.steps = np.asarray(self.steps, np.float64)
        self.values = np.asarray(self.values, np.float64)
        self.lost = self.lost or int((~np.isfinite(self.values)).sum())

    def __len__(self) -> int:
        return len(self.steps)

    def thinned(self, most: int) -> Curve:
        """The curve with at most `most` points: the first, the last and extremes in between."""
        if len(self) <= most:
            return self
        kept = _extremes(self.values, most)
        return Curve(self.name, self.steps[kept], self.values[kept], self.unit, self.lost)

    def written(self) -> list[Any]:
        """The curve as the page stores it: name, unit, lost values, steps and values."""
        return [self.name, self.unit, self.lost, _steps(self.steps), _values(self.values)]


def read_curves(run: RunInfo, series: dict[str, Series]) -> tuple[list[Curve], Pairs]:
    """The curves of all metrics, and of the scores of checkpoints that are not logged, too.

    Returns:
        The curves; and steps with their epochs, if the epochs are known.
    """
    curves = [Curve(each.name, each.steps, each.values) for each in series.values()]
    told = next((each for each in curves if each.name.rpartition("/")[2] == "epoch"), None)
    epochs: Pairs = _knots(told.steps, told.values) if told is not None else ([], [])
    for stage in run.stages:
        points = {
            row["epoch"]: math.nan if row[stage.metric] is None else row[stage.metric]
            for row in stage.rows
            if stage.metric in row and abs(row["epoch"]) < _LAST
        }
        name = f"{stage.name}/{stage.metric} by epoch"[-_LONG:].removeprefix("/")
        own = Curve(name, sorted(points), [points[x] for x in sorted(points)], "epoch")
        same = next((each for each in curves if _is_same(each, own, stage.metric)), None)
        if same is None:
            curves += [own] if len(own) else []
        elif not epochs[0] and len(same) == len(own):
            epochs = _knots(same.steps, own.steps)
    return curves, epochs


def clock_of(series: dict[str, Series]) -> Pairs:
    """Steps, and the seconds since the first step. The longest breaks are exact."""
    longest = max(series.values(), key=lambda each: len(each.steps), default=None)
    if longest is None:
        return [], []
    steps, times = np.asarray(longest.steps), np.asarray(longest.times)
    known = np.isfinite(times) & (np.abs(times) < _LAST)
    if not known.any():
        return [], []
    return _knots(steps[known], times[known] - times[known].min())


def _knots(steps: Any, values: Any) -> Pairs:
    even = np.linspace(0, len(steps) - 1, 2 * _KNOTS).astype(int)
    jumps = np.argsort(np.diff(values))[::-1][:_KNOTS] if len(steps) > 4 * _KNOTS else even[:0]
    kept = np.unique(np.concatenate([even, jumps, jumps + 1]))
    kept = kept[np.isfinite(values[kept])]
    return [_short(x) for x in steps[kept]], [_short(float(f"{y:.7g}")) for y in values[kept]]


def _is_same(logged: Curve, scores: Curve, metric: str) -> bool:
    """Whether a logged curve has all scores of the checkpoints."""
    if logged.unit == "epoch" or logged.name.rpartition("/")[2] != metric.rpartition("/")[2]:
        return False
    finite = scores.values[np.isfinite(scores.values)].astype(np.float32)
    known = np.isin(finite, logged.values.astype(np.float32))
    return len(finite) > 0 and bool(known.all())


def _extremes(values: Any, most: int) -> Any:
    """The indices of the points to keep: the first, the last, and the extremes of equal parts.

    A part with values that are not finite also keeps the first of these, so a gap stays a gap.
    """
    count = len(values)
    parts = max((most - 2) // 2, 1)
    edges = 1 + np.arange(parts + 1) * (count - 2) // parts
    inner = values[1:-1]
    finite = np.isfinite(inner)
    wide = int(np.diff(edges).max())
    places = np.minimum(edges[:-1, None] + np.arange(wide), edges[1:, None] - 1) - 1
    kept = np.zeros(count, bool)
    kept[[0, -1]] = True
    for sign in (1, -1):
        grid = np.where(finite, sign * inner, np.inf)[places]
        kept[1 + places[np.arange(parts), grid.argmin(1)]] = True
    if not finite.all():
        lost = ~finite[places]
        kept[1 + places[np.arange(parts), lost.argmax(1)][lost.any(1)]] = True
    return np.flatnonzero(kept)


def _steps(steps: Any) -> list[Any]:
    """Steps as `[first, unit, bytes of a distance, distances in base64]`, or as `[numbers]`."""
    distances = np.diff(steps)
    if len(distances) and (steps == np.round(steps)).all():
        unit = int(np.gcd.reduce(distances.astype(np.int64)))
        for width in (1, 2):
            if unit > 0 and distances.max() // unit < 256**width:
                data = (distances // unit).astype(f"<u{width}").tobytes()
                return [_short(steps[0]), unit, width, _text(data)]
    return [[_short(step) for step in steps]]


def _values(values: Any) -> str | list[float | None]:
    """Floats as their first three bytes, five digits; as numbers if a float does not fit."""
    finite = np.abs(values[np.isfinite(values)])
    if ((finite < _FLOAT[0]) & ((finite > _FLOAT[1]) | (finite == 0))).all():
        bits = np.where(np.isfinite(values), values, np.nan).astype(">f4").view(">u4")
        rounded = np.where(np.isfinite(values), bits + np.uint32(0x80), np.uint32(0x7FC00000))
        return _text(rounded.astype(">u4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes())
    return [float(f"{v:.5g}") if abs(v) < LARGEST else None for v in values]


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _short(value: float) -> float:
    """A number without ".0", which would take two more bytes for each point."""
    value = float(value)
    return int(value) if value.is_integer() and abs(value) < _LAST else value


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the items, evenly spread. The last item is always one of them."""
    if len(items) <= most:
        return list(items)
    return [items[len(items) - 1 - index * len(items) // most] for index in range(most)][::-1]
