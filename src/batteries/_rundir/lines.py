"""Metrics as lines of JSON: read and write `metrics.jsonl`."""

from __future__ import annotations

import itertools
import json
import math
import re
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from batteries._files import PathLike, append_whole, write_whole
from batteries._foreign import lines_of, open_regular, parse_json

NAME = "metrics.jsonl"
BINS = 256  # of a histogram, at most
_CHUNK = 2**20  # bytes that are parsed together
_OTHERS = ("nan", "inf", "-inf")  # numbers that JSON does not have
_NUMBER = b"0123456789+-.eE"  # letters of numbers
_ALIKE = 16, 100  # with fewer lines, or with more metrics, a pattern is slower than JSON


def read_lines(logdir: PathLike) -> Iterator[dict[str, Any]]:
    """Read the lines of a `JsonLinesLogger`, one by one.

    >>> list(read_lines("runs/nothing"))
    []

    Each line is a dict, such as `{"step": 1, "time": 1700000000.0, "metrics": {"loss": 0.5}}`. NaN
    and infinities are floats again. Incomplete lines, and lines that are not JSON objects, are left
    out. Without the file, there are no lines.

    Args:
        logdir: The directory with `metrics.jsonl`, or the file itself.
    """
    path = Path(logdir)
    path = path / NAME if path.is_dir() else path
    if path.is_file():
        with open_regular(path) as file:
            yield from filter(None, map(parse_line, lines_of(file)))


class Rows(NamedTuple):
    """Lines of a logger that have the same metrics, as rows of numbers.

    Attributes:
        places: The places of the lines in the file: 0 for the first line.
        names: The names of the metrics.
        numbers: The step, the time and the values of the first line, then of the second, and so on.
    """

    places: list[int]
    names: Sequence[str]
    numbers: array[float]


Lines = list[tuple[int, dict[str, Any]]]  # with their places


def told_lines(path: Path, run: Path, problems: list[str]) -> Iterator[tuple[list[Rows], Lines]]:
    """All complete lines of a file inside a run, in parts. `problems` gets what is left out."""
    foreign, torn, before = 0, False, 0
    try:
        with open_regular(path, inside=run) as file:
            for some in _some_lines(file):
                rows, others = _rows_of(some, before)
                pairs = [(place, parse_line(some[place - before])) for place in others]
                found = [(place, line) for place, line in pairs if line is not None]
                if len(found) < len(others):
                    last = some[-1].endswith(b"\n")
                    foreign += len(others) - len(found) - (not last)
                    torn = not last
                before += len(some)
                yield rows, found
    except OSError as error:
        problems.append(f"{path} cannot be read: {error}")
    if foreign:
        problems.append(f"{path}: {foreign} lines are not JSON objects, and are left out")
    if torn:
        problems.append(f"{path}: the last line is incomplete, and is left out")


def _some_lines(file: BinaryIO) -> Iterator[list[bytes]]:
    some, size = list[bytes](), 0
    for line in lines_of(file):
        some.append(line)
        size += len(line)
        if size > _CHUNK:
            yield some
            some, size = [], 0
    if some:
        yield some


def _rows_of(some: list[bytes], before: int) -> tuple[list[Rows], list[int]]:
    """Lines of numbers as rows, and the places of the other lines.

    This takes a third of the time of parsing JSON.
    """
    alike: dict[bytes, list[int]] = {}
    for place, line in enumerate(some):
        alike.setdefault(line.translate(None, _NUMBER), []).append(place)
    rows, others = [], []
    for places in alike.values():
        found = _numbers([some[place] for place in places]) if len(places) >= _ALIKE[0] else None
        places = [before + place for place in places]
        if found is None:
            others += places
        else:
            rows.append(Rows(places, *found))
    return rows, sorted(others)


def _numbers(lines: list[bytes]) -> tuple[Sequence[str], array[float]] | None:
    """Names and numbers of lines; None if a line has another form than a logger writes."""
    metrics = (parse_line(lines[0]) or {}).get("metrics")
    if type(metrics) is not dict or not 0 < len(metrics) <= _ALIKE[1]:
        return None
    found = _pattern(tuple(metrics)).findall(b"".join(lines))
    if len(found) == len(lines):
        text = b",".join([b",".join(numbers) for numbers in found])
        with suppress(ValueError, OverflowError):
            return tuple(metrics), array("d", json.loads(b"[%b]" % text))
    return None


@lru_cache(maxsize=64)
def _pattern(names: tuple[str, ...]) -> re.Pattern[bytes]:
    """A line with a step, a time and these metrics, as `add_lines` writes it."""
    number = "([-+.eE0-9]+)"
    metrics = ", ".join(f"{re.escape(json.dumps(name))}: {number}" for name in names)
    line = rf'^\{{"step": {number}, "time": {number}, "metrics": \{{{metrics}\}}\}}\n'
    return re.compile(line.encode(), re.MULTILINE)


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The value of one line; None if it is torn or foreign."""
    try:
        value = parse_json(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return _restored(value) if isinstance(value, dict) else None


def _restored(value: dict[str, Any]) -> dict[str, Any]:
    """A line whose NaN and infinities are floats again."""
    metrics, others = value.get("metrics"), value.pop("not_finite", None)
    if isinstance(metrics, dict) and (others or str in map(type, metrics.values())):
        # Earlier versions wrote these texts into the metrics.
        found = {**metrics, **(others if isinstance(others, dict) else {})}
        metrics.update({
            name: float(text)
            for name, text in found.items()
            if isinstance(text, str) and text in _OTHERS and name in metrics
        })  # fmt: skip
    return value


def add_lines(logdir: Path, lines: list[dict[str, Any]]) -> None:
    """Add all lines, or nothing if the disk is full."""
    text = "".join(json.dumps(line, default=str, allow_nan=False) + "\n" for line in lines)
    append_whole(logdir / NAME, text.encode(), inside=logdir)


def put_aside(path: Path) -> None:
    """Rename a file to the next free name."""
    names = (path.with_suffix(f".{number}{path.suffix}") for number in itertools.count(1))
    path.replace(next(name for name in names if not name.exists()))


def mend(path: Path, after: int | None) -> None:
    """Remove a torn last line, and the lines of steps greater than `after`.

    The program will log these steps again.
    """
    with open_regular(path, inside=path.parent) as file:
        lines = [*lines_of(file)]
        if file.read(1):
            raise ValueError(
                f"{path} has a line that is too long, which no logger writes: move the file away"
            )
    kept = [line for line in lines if line.endswith(b"\n") and not _is_after(line, after)]
    if len(kept) < len(lines):
        with write_whole(path, sum(map(len, kept)), inside=path.parent) as file:
            file.writelines(kept)


def _is_after(line: bytes, step: int | None) -> bool:
    own = (parse_line(line) or {}).get("step") if step is not None else None
    return isinstance(own, int) and step is not None and own > step


def strict(metrics: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Metrics for JSON, which has no NaN."""
    others = {name: str(value) for name, value in metrics.items() if not math.isfinite(value)}
    if not others:
        return {"metrics": metrics}
    return {"metrics": metrics | dict.fromkeys(others), "not_finite": others}
