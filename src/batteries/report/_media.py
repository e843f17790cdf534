"""Pictures, texts and histograms of a run: some of each, checked before they are shown."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from batteries._foreign import is_number, read_regular
from batteries._rundir.lines import BINS
from batteries.report._curves import evenly
from batteries.scoreboard._series import Item

_EACH = 12  # steps of one name, at most
_NAMES = 50  # names, at most
_LONG = 4000  # letters of a text
_PICTURE = 500_000  # bytes
_PIXELS = 2**25


class Shown(NamedTuple):
    """An item that the page shows.

    Attributes:
        kind: "figure", "text" or "histogram".
        rank: 0 for the last step of its name. If there is little room, low ranks come first.
        value: A text, a histogram, or the path of the file of a figure.
    """

    kind: str
    name: str
    step: float
    rank: int
    value: Any


def media_of(items: Iterable[Item], problems: list[str]) -> list[Shown]:
    """Some steps of each name, always with the last step. Foreign items become a problem."""
    names: dict[tuple[str, str], dict[float, Any]] = {}
    foreign: set[str] = set()
    for item in items:
        value = _checked(item.kind, item.value)
        if value is None:
            foreign.add(f"{item.kind} {item.name}"[:100])
        elif len(names) < _NAMES or (item.kind, item.name) in names:
            names.setdefault((item.kind, item.name), {})[item.step] = value
    if foreign:
        problems.append(
            f"values that no logger writes are not shown: {', '.join(sorted(foreign)[:3])}"
            + (f" and {len(foreign) - 3:,} more" if len(foreign) > 3 else "")
        )
    return [
        Shown(kind, name, step, rank, steps[step])
        for (kind, name), steps in names.items()
        for rank, step in enumerate(reversed(evenly(sorted(steps), _EACH)))
    ]


def _checked(kind: str, value: Any) -> Any:
    """A text, the name of a file, or a histogram; None for anything else."""
    if kind == "histogram":
        told = value if isinstance(value, dict) else {}
        counts: Any = told.get("counts")
        edges: Any = told.get("edges")
        lists = isinstance(counts, list) and isinstance(edges, list)
        if not lists or not 0 < len(counts) == len(edges) - 1 <= BINS:
            return None
        numbers = all(map(is_number, [*counts, *edges])) and min(counts) >= 0
        lost = told.get("lost", 0)
        short = [float(f"{edge:.5g}") for edge in (edges[0], edges[-1])] if numbers else []
        return [counts, *short, lost if is_number(lost) else 0] if numbers else None
    if not isinstance(value, str):
        return None
    more = len(value) - _LONG
    return value if more <= 0 else f"{value[:_LONG]} [{more:,} characters more]"


def fitting(found: list[tuple[Path, list[Shown], list[str]]], room: int) -> list[list[list[Any]]]:
    """The items of each run that there is room for, as `[kind, name, step, value]`.

    The last steps come first if there is not room for all.

    Args:
        found: For each run its directory, its items, and its problems.
    """
    kept: list[list[list[Any]]] = [[] for _ in found]
    ranked = sorted((each.rank, place, each) for place, run in enumerate(found) for each in run[1])
    for _, place, each in ranked:
        run, _, problems = found[place]
        try:
            value = _picture(run, each.value) if each.kind == "figure" else each.value
        except (OSError, ValueError) as error:
            text = f"a figure cannot be shown: {error}"[:500]
            problems += [text] if text not in problems else []  # a live page calls this repeatedly
            continue
        size = len(json.dumps(value)) + len(each.name) + 30
        if size <= room:
            room -= size
            kept[place].append([each.kind, each.name, each.step, value])
    for some in kept:
        some.sort(key=lambda each: (each[0], each[1], each[2]))
    return kept


def _picture(run: Path, name: str) -> str:
    """A PNG file in base64."""
    path = Path(name)
    data = read_regular(path, inside=run, most=_PICTURE)
    if len(data) < 24 or data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR":
        raise ValueError(f"{path} is not a PNG file")
    width, height = struct.unpack(">II", data[16:24])
    if not 0 < width * height <= _PIXELS:
        raise ValueError(f"{path} has {width:,} x {height:,} pixels; expected {_PIXELS:,} at most")
    return base64.b64encode(data).decode()
