"""The scores of all epochs, ranked."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import itemgetter

from batteries._rundir.history import Row


class Epochs:
    """The rows of the epochs in their order. Adding one is fast, however many there are."""

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
        """Add a row. Rows of its epoch and of later ones are removed and returned."""
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
        """The best few rows; None for all."""
        return list(islice(self.ranked(), number))

    def has(self, row: Row) -> bool:
        place = bisect.bisect_left(self.rows, row["epoch"], key=itemgetter("epoch"))
        return self.rows[place : place + 1] == [row]
