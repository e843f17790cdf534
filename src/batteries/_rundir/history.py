"""The scores of epochs: `metrics.json`, which a `CheckpointManager` writes."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from batteries._files import PathLike, Place, naming, write_whole
from batteries._foreign import Most, check, is_epoch, is_number, parse_json, read_regular
from batteries._rundir.names import CHECKPOINTS
from batteries._rundir.record import files_of

NAME = "metrics.json"
_PAGE = 4096  # bytes: a killed process has written all of a page, or nothing
_END = b"\n  ]\n}\n"
Row = dict[str, Any]  # {"epoch": 3, "accuracy": 0.9}; None stands for values that are not finite
SCHEMA = {"metric_name": Most(str, 1000), "metric_minimization": bool, "values": list}


class History(NamedTuple):
    """The content of `metrics.json`."""

    metric: str
    minimization: bool
    rows: list[Row]
    foreign: int  # rows that no manager writes: they were left out or corrected


def read_history(path: PathLike, inside: PathLike | None = None) -> History:
    """Read the scores of epochs from a file.

    Args:
        inside: The directory that must contain the file, at the end of all links.
    """
    data = read_regular(path, inside)
    try:
        try:
            memory = parse_json(data)
        except ValueError:
            memory = parse_json(_mended(data))
        check(memory, SCHEMA)
        missing = [name for name in SCHEMA if name not in memory]
        if missing:
            more = ": whether lower is better" if "metric_minimization" in missing else ""
            raise ValueError(f"it does not say {', '.join(missing)}{more}")
    except ValueError as error:
        raise ValueError(
            f"{path} is not a CheckpointManager's: {error}. Restore it from a copy, or move it away"
        ) from None
    rows = [own for row in memory["values"] if (own := _own(row)) is not None]
    foreign = sum(not is_row(row) for row in memory["values"])
    return History(memory["metric_name"], memory["metric_minimization"], rows, foreign)


def stage_of(file: Path, run: Path) -> str:
    """The name of the stage of a file: its directory in the run, without "checkpoints"."""
    parts = file.parent.relative_to(run).parts
    return "/".join(part for part in parts if part != CHECKPOINTS)


def best_row(metric: str, minimization: bool, rows: list[Row]) -> Row | None:
    """The row of the best epoch; the earliest if several are equal; None if no score is finite."""
    finite = [row for row in rows if is_number(row.get(metric))]
    sign = 1 if minimization else -1
    return min(finite, key=lambda row: sign * row[metric], default=None)


def summaries(run: Path) -> list[dict[str, Any]]:
    """The best epoch of each stage. The record keeps it, in case the checkpoints are removed."""
    found = []
    for file in sorted(files_of(run, NAME)):
        with suppress(OSError, ValueError):
            metric, minimization, rows, _ = read_history(file, inside=run)
            if best := best_row(metric, minimization, rows):
                told = {"stage": stage_of(file, run), "metric": metric, "score": best[metric]}
                told |= {"minimization": minimization, "epoch": best["epoch"], "epochs": len(rows)}
                found.append(told)
    return found


def is_row(row: Any) -> bool:
    return row is not None and _own(row) == row


def _own(row: Any) -> Row | None:
    """The row, with None for values that are not numbers; None for a row without an epoch."""
    if not isinstance(row, dict) or not is_epoch(row.get("epoch")):
        return None
    return {name: value if is_number(value) else None for name, value in row.items()}


_START = '"values": [\n'


def _mended(data: bytes) -> bytes:
    """The content of a file without its last row, which a power cut has torn."""
    text = data.decode(errors="replace")
    if _START not in text:
        return data
    at = last = text.index(_START) + len(_START)
    decoder = json.JSONDecoder()
    try:
        while between := re.compile(r"[\s,]*").match(text, at):
            _, at = decoder.raw_decode(text, between.end())
            last = at
    except (ValueError, RecursionError):
        pass
    return f"{text[:last]}\n  ]\n}}".encode()


class MetricsFile:
    """Writes `metrics.json`. A long file has free room for the next rows.

    The free room consists of spaces, which JSON allows. A new row is written into one page of the
    room. So a killed process has written all of the row or nothing, and the file is valid at each
    moment.
    """

    _path = Place()

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ours: Any = None  # the file's identity, if this object has written it
        self._at = self._limit = 0  # the beginning and the end of the room for rows

    def add(self, metric: str, minimization: bool, rows: list[Row]) -> None:
        """Write the rows of a history, of which only the last one is new."""
        row = b",\n    " + _text(rows[-1])
        if self._ours is None or self._status() != self._ours:
            self._write(_head(metric, minimization) + b",\n    ".join(map(_text, rows)))
            return
        at = self._at
        if at // _PAGE != (at + len(row) - 1) // _PAGE:
            at = -(-at // _PAGE) * _PAGE
        if len(row) > _PAGE or at + len(row) > self._limit:
            self._write(self._path.read_bytes()[: self._at] + row)
            return
        with naming(self._path), self._path.open("r+b", buffering=0) as file:
            file.seek(at)
            file.write(row)
            os.fsync(file.fileno())
        self._at, self._ours = at + len(row), self._status()

    def forget(self) -> None:
        """Write the whole file the next time."""
        self._ours = None

    def _write(self, text: bytes) -> None:
        room = 0 if len(text) < _PAGE else max(_PAGE, len(text) // 4)
        with write_whole(self._path, len(text) + room, inside=self._path.parent) as file:
            file.write(text + b" " * room + _END)
        self._at, self._limit, self._ours = len(text), len(text) + room, self._status()

    def _status(self) -> Any:
        try:
            found = self._path.stat()
        except OSError:
            return None
        alone = found.st_nlink == 1  # else it has another name: a user has made a copy with a link
        return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns) if alone else None


def _head(metric: str, minimization: bool) -> bytes:
    said = f'  "metric_name": {json.dumps(metric)},\n'
    said += f'  "metric_minimization": {json.dumps(minimization)},\n'
    return f'{{\n{said}  "values": [\n    '.encode()


def _text(row: Row) -> bytes:
    return json.dumps(row, allow_nan=False).encode()
