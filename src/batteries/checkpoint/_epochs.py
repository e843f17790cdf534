"""The scores of all epochs, ranked, and `metrics.json`, which has them."""

from __future__ import annotations

import bisect
import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from batteries._files import naming, write_whole
from batteries._history import Row

_PAGE = 4096  # bytes of a file that a killed process has written all or none of
_END = b"\n  ]\n}\n"


class Epochs:
    """The rows of the epochs in their order; adding one takes the same time however many there are.

    >>> history = Epochs("loss", True, [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.4}])
    >>> history.best(1)
    [{'epoch': 2, 'loss': 0.4}]
    """

    def __init__(self, metric: str, minimization: bool, rows: Iterable[Row] = ()) -> None:
        self.metric = metric
        self.minimization = minimization
        self._set(sorted(rows, key=itemgetter("epoch")))

    def _set(self, rows: list[Row]) -> None:
        scores = (self._score(row) for row in rows)
        self._ranked = sorted((s, place) for place, s in enumerate(scores) if s is not None)
        self.rows = rows

    def _score(self, row: Row) -> float | None:
        score = row[self.metric]
        return None if score is None else score if self.minimization else -score

    def add(self, row: Row) -> list[Row]:
        """Add a row; those of its epoch and later ones are forgotten, and returned."""
        place = bisect.bisect_left(self.rows, row["epoch"], key=itemgetter("epoch"))
        forgotten = self.rows[place:]
        if forgotten:
            self._set([*self.rows[:place], row])
            return forgotten
        self.rows.append(row)
        score = self._score(row)
        if score is not None:
            bisect.insort(self._ranked, (score, place))  # of equal scores the earlier comes first
        return forgotten

    def take_back(self, forgotten: list[Row]) -> None:
        """Undo the last `add`."""
        self._set(self.rows[:-1] + forgotten)

    def ranked(self) -> Iterator[Row]:
        """The rows with a finite score, best first."""
        return (self.rows[place] for _, place in self._ranked)

    def best(self, number: int | None = None) -> list[Row]:
        """The first few of them; None for all."""
        return list(islice(self.ranked(), number))

    def has(self, row: Row) -> bool:
        """Whether it is the row of its epoch."""
        place = bisect.bisect_left(self.rows, row["epoch"], key=itemgetter("epoch"))
        return self.rows[place : place + 1] == [row]


class MetricsFile:
    """`metrics.json`: written whole, and a longer one has room in it for the next rows.

    >>> history, file = Epochs("loss", True), MetricsFile(Path("metrics.json"))
    >>> _ = history.add({"epoch": 1, "loss": 0.5})
    >>> file.add(history)
    >>> json.loads(Path("metrics.json").read_text())["values"]
    [{'epoch': 1, 'loss': 0.5}]

    The room is spaces, which JSON allows. A row that is put there lies in one page: a process
    that is killed has written all of it or nothing, and the file is valid at each moment.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ours: Any = None  # what the file is known by, if this has written it
        self._at = self._limit = 0  # where the room for rows begins, and where it ends

    def add(self, history: Epochs) -> None:
        """Let the file have the rows of a history, of which the last one is new to it."""
        row = b",\n    " + _text(history.rows[-1])
        if self._ours is None or self._status() != self._ours:
            self._write(_head(history) + b",\n    ".join(map(_text, history.rows)))
            return
        at = self._at
        if at // _PAGE != (at + len(row) - 1) // _PAGE:
            at = -(-at // _PAGE) * _PAGE
        if len(row) > _PAGE or at + len(row) > self._limit:
            self._write(self._path.read_bytes()[: self._at] + row)
            return
        with naming(self._path):
            file = os.open(self._path, os.O_WRONLY)
            try:
                os.pwrite(file, row, at)
                os.fsync(file)
            finally:
                os.close(file)
        self._at, self._ours = at + len(row), self._status()

    def forget(self) -> None:
        """Write it whole the next time."""
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
        alone = found.st_nlink == 1  # else it is somebody's copy, too
        return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns) if alone else None


def _head(history: Epochs) -> bytes:
    metric = json.dumps(history.metric)
    minimization = json.dumps(history.minimization)
    head = f'{{\n  "metric_name": {metric},\n  "metric_minimization": {minimization},\n'
    return f'{head}  "values": [\n    '.encode()


def _text(row: Row) -> bytes:
    return json.dumps(row, allow_nan=False).encode()
